"""Tests of avis/questions.py: what is asked, in which order, and that one odd line is one error."""

import base64
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from avis.batch import open_questions
from avis.questions import IMAGE_SUFFIXES, ImageFolder, Question, QuestionFile

pytestmark = pytest.mark.unit


def jsonl(folder: Path, *lines) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def table(folder: Path, header: str, *rows: str) -> Path:
    path = folder / "table.tsv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def encoded(colour: str) -> str:
    png = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


def read(path: Path, **options) -> Question:
    return QuestionFile(path, **{"needs_answers": False} | options).question(0)


# ------------------------------------------------------------------------------------------------------------ JSONL


def test_media_keep_their_order_and_folder(tmp_path):
    """Guards against: paths looked for in the working folder, and images moved before videos."""
    line = {"video": "a.mp4", "image": ["b.png", "/c.png"], "prompt": "Which?", "label": "stays in the input"}
    source = QuestionFile(jsonl(tmp_path, line), system_prompt="Be brief.", needs_answers=False)
    question = source.question(0)
    system, user = question.messages(source.media(0))
    assert system == {"role": "system", "content": "Be brief."} and question.input == source.input(0) == line
    shown = [(part["type"], part[part["type"]]) for part in user["content"]]
    assert shown == [
        ("video", str(tmp_path / "a.mp4")),
        ("image", str(tmp_path / "b.png")),
        ("image", "/c.png"),
        ("text", "Which?"),
    ]


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path):
    """Guards against: a first line that is no JSON because an editor has marked it, and lines cut at characters that
    only look like line ends."""
    path = tmp_path / "questions.jsonl"
    text = "\u2028 one\x85?"
    lines = [json.dumps({"image": "a.png", "prompt": text}, ensure_ascii=False)] * 2
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    source = open_questions(path)
    assert [source.question(index).text for index in range(len(source))] == [text, text]


def test_errors_have_the_number_of_their_line(tmp_path):
    """Guards against: a number that counts questions although blank lines stand between them."""
    path = jsonl(tmp_path, "", {"image": "a.png", "prompt": "How many?"}, "  ", {"image": "a.png"}, "{")
    source = open_questions(path)
    assert len(source) == 3 and source.question(0).index == 0
    with pytest.raises(ValueError, match=rf"^{path} line 4: no question"):
        source.question(1)
    with pytest.raises(ValueError, match=rf"^{path} line 5: not a line of JSON") as caught:
        source.question(2)
    assert "\n" not in str(caught.value) and source.input(2) == "{"


@pytest.mark.parametrize(
    "line, text, follow_ups",
    [
        ({"prompt": "Why?"}, "Why?", ()),
        ({"question": "Why?"}, "Why?", ()),
        ({"prompt": ["Why?", "And?"]}, "Why?", ("And?",)),
        ({"question": "Which?", "options": ["one", 2]}, "Which?\nA. one B. 2", ()),
        ({"question": "Which?", "options": {"X": "one"}}, "Which?\nX. one", ()),
        ({"prompt": "Which, A or B?", "options": ["one", "two"]}, "Which, A or B?", ()),
        ({"prompt": "", "question": "Why?"}, "Why?", ()),
        ({}, "the default", ()),
        ({"options": ["one"]}, "the default\nA. one", ()),
    ],
)
def test_the_question_and_its_options(tmp_path, line, text, follow_ups):
    """Guards against: options asked twice or not at all, and a default that replaces what the line asks."""
    question = read(jsonl(tmp_path, line | {"image": "a.png"}), prompt="the default")
    assert (question.text, question.follow_ups) == (text, follow_ups) and question.label is None


@pytest.mark.parametrize(
    "line, match",
    [
        ([], "a question is a JSON object"),
        (3, "a question is a JSON object"),
        ({"prompt": "Why?"}, "nothing to see"),
        ({"prompt": "Why?", "image": []}, "nothing to see"),
        ({"prompt": "Why?", "image": 3}, '"image" must be a path'),
        ({"prompt": "Why?", "image": ["a.png", ""]}, '"image" must be a path'),
        ({"prompt": "Why?", "video": None}, '"video" must be a path'),
        ({"prompt": "", "image": "a.png"}, "no question"),
        ({"prompt": None, "image": "a.png"}, "no question"),
        ({"prompt": [], "image": "a.png"}, "no question"),
        ({"prompt": ["Why?", 3], "image": "a.png"}, "no question"),
        ({"prompt": "What is <|image_pad|>?", "image": "a.png"}, "special token"),
        ({"prompt": "\ud800", "image": "a.png"}, "valid Unicode"),
        ({"prompt": "Why?", "image": "a.png", "options": 3}, '"options" must be'),
        ({"question": "Why?", "image": "a.png", "options": ["x"] * 27}, "27 options need letters"),
        ({"prompt": "Why?", "image": "a.png", "nframes": 4}, '"nframes" is a key of videos'),
        ({"prompt": "Why?", "image": "a.png", "max_pixels": "4000"}, "max_pixels must be a whole number"),
        ({"prompt": "Why?", "image": "a.png", "min_pixels": 9000, "max_pixels": 8000}, "exceeds"),
        ({"prompt": "Why?", "image": "a.png", "resized_width": 280}, "need each other"),
        ({"prompt": "Why?", "video": "a.mp4", "fps": True}, "fps must be a number"),
        ({"prompt": "Why?", "video": "a.mp4", "fps": 2, "nframes": 4}, "fps and nframes exclude each other"),
        ({"prompt": "Why?", "video": "a.mp4", "video_start": 3, "video_end": 2}, "is not before"),
        ({"prompt": "Why?", "video": "a.mp4", "num_frames": 4}, 'unknown key "num_frames"'),
        ({"prompt": "Why?", "video": "a.mp4", "total_pixels": 4000}, 'unknown key "total_pixels"'),
    ],
    ids=str,
)
def test_a_line_that_cannot_be_asked_is_an_error(tmp_path, line, match):
    """Guards against: a default question asked where the line's own is wrong, and errors that do not say what is."""
    with pytest.raises(ValueError, match=match) as caught:
        read(jsonl(tmp_path, line), prompt="the default")
    assert "\n" not in str(caught.value)


def test_keys_of_a_line_are_those_of_all_it_shows(tmp_path):
    """Guards against: sizes and frames of a line that are copied into the record and otherwise ignored."""
    sizes, frames = {"max_pixels": 80_000}, {"fps": 1.5, "video_start": 2}
    line = {"image": ["a.png", "b.png"], "video": "c.mp4", "prompt": "Why?", "id": 7, "nframes": None} | sizes | frames
    source = QuestionFile(jsonl(tmp_path, line), needs_answers=False)
    first, second, video = source.media(0)
    assert first == {"type": "image", "image": str(tmp_path / "a.png")} | sizes and second.keys() == first.keys()
    assert video == {"type": "video", "video": str(tmp_path / "c.mp4")} | sizes | frames
    assert source.question(0).input == line


def test_other_frames_of_a_video_are_another_scene(tmp_path):
    """Guards against: the encoded frames of one question used for another that shows other ones."""
    video = {"video": "a.mp4", "prompt": "Why?", "answer": "x"}
    lines = [video, video | {"nframes": 4}, video | {"nframes": 4}, video | {"video_end": 4}, video | {"fps": None}]
    source = QuestionFile(jsonl(tmp_path, *lines))
    assert list(source.groups()) == [[0, 4], [1, 2], [3]]


def test_labels_say_what_is_known(tmp_path):
    """Guards against: labels of another question, and questions about one image that count as two scenes."""
    lines = [
        {"image": "a.png", "question": "Which?", "options": ["one", "two"], "answer": "B", "task": "count", "level": 2},
        {"image": "./a.png", "prompt": "Why?", "answer": 3},
        {"image": ["a.png", "b.png"], "prompt": "Why?", "answer": "x", "scene": 7},
        {"video": "a.mp4", "image": "a.png", "prompt": "Why?", "answer": "x", "scene": 7},
    ]
    source = QuestionFile(jsonl(tmp_path, *lines))
    first, second, third, fourth = (source.question(index).label for index in range(4))
    assert (first.truth, first.options, first.form, first.medium) == ("B", {"A": "one", "B": "two"}, "choice", "image")
    assert (first.task, first.level, second.task, second.level) == ("count", 2, "questions", None)
    assert (second.truth, second.options, second.form) == ("3", None, "free")
    assert (third.medium, fourth.medium, third.scene) == ("images", "video", "7")
    assert first.scene == second.scene != third.scene
    assert list(source.groups()) == [[0, 1], [2, 3]]
    elsewhere = tmp_path / "below" / ".." / source.path.name  # the same file, its path written in another way
    (tmp_path / "below").mkdir()
    assert QuestionFile(elsewhere).question(0).label.scene == first.scene


def test_a_question_without_an_answer_is_refused_where_answers_are_needed(tmp_path):
    path = jsonl(tmp_path, {"image": "a.png", "prompt": "Why?", "answer": ""})
    with pytest.raises(ValueError, match='line 1: "answer" is missing'):
        QuestionFile(path).question(0)
    assert QuestionFile(path, needs_answers=False).question(0).label is None
    assert list(QuestionFile(path, needs_answers=False).groups()) == [[0]]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf\n"])
def test_a_file_without_questions_is_refused(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"no questions in {path}|is empty"):
        open_questions(path)
    with pytest.raises(ValueError, match="no such file"):
        open_questions(tmp_path / "none.jsonl")


KEYS = st.sampled_from(["image", "video", "prompt", "question", "options", "answer", "scene"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60)
    | st.dictionaries(KEYS | st.text(max_size=5), JSON | st.just("a.png"), max_size=5).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_fuzzed_lines_are_questions_or_errors(tmp_path_factory, line):
    """Guards against: one odd line of a file that ends the whole run, or an error that cannot be written down."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_bytes(b'"first"\n' + line.replace(b"\n", b" ").strip() + b"x" * (not line.strip()))
    source = QuestionFile(path, needs_answers=False)
    assert json.loads(json.dumps(source.input(1), allow_nan=False)) == source.input(1)
    try:
        question = source.question(1)
    except ValueError as error:
        assert str(error).startswith(f"{path} line 2: ") and "\n" not in str(error)
        return
    content = question.messages(source.media(1))[-1]["content"]
    assert content[-1] == {"type": "text", "text": question.text} and question.text.strip() and len(content) > 1
    assert all(isinstance(part[part["type"]], str) for part in content)
    assert all(text.strip() for text in question.follow_ups)


@pytest.mark.parametrize(
    "line",
    [b"[" * 10**5, b'{"a": ' * 10**4, b"9" * 10**5, b'{"prompt": NaN}', b'{"a": 1e999}', b"\xff\xfe", b"null", b"[]"],
    ids=lambda line: repr(line[:12]),
)
def test_deep_and_long_lines_are_errors(tmp_path, line):
    """Guards against: a line that exhausts the parser: nesting without end, numbers without end."""
    (tmp_path / "a.jsonl").write_bytes(line)
    with pytest.raises(ValueError, match="a.jsonl line 1: ") as caught:
        read(tmp_path / "a.jsonl", prompt="How many?")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ tables


def test_a_table_has_its_images_inside(tmp_path):
    """Guards against: images of another row, hints and options lost, and images in the record."""
    red, blue = encoded("red"), encoded("blue")
    header = "index\timage\thint\tquestion\tA\tB\tanswer\tcategory\tl2-category"
    rows = [
        f"1\t{red}\tLook.\tWhich?\tone\ttwo\tB\tcount\thard",
        "2\t1\t\tWhy?\t\t\tyes\t\t",
        f"3\t['{red}', '{blue}']\t\tWhy?\t\t\tno\t\t",
    ]
    source = QuestionFile(table(tmp_path, header, *rows))
    first, second, third = (source.question(index) for index in range(3))
    assert first.text == "Look.\nWhich?\nA. one B. two" and first.label.options == {"A": "one", "B": "two"}
    assert (first.label.task, first.label.level, second.label.task) == ("count", "hard", "table")
    assert first.label.scene == second.label.scene != third.label.scene
    colours = [[part["image"].getpixel((0, 0)) for part in source.media(index)] for index in range(3)]
    assert colours == [[(255, 0, 0)], [(255, 0, 0)], [(255, 0, 0), (0, 0, 255)]]
    assert (first.label.medium, third.label.medium) == ("image", "images")
    assert first.input["question"] == "Which?" and "image" not in first.input


def test_what_is_wrong_with_a_row_is_its_error(tmp_path):
    """Guards against: a question asked without its image, rows that are too long or short, and cells that are code."""
    deep = "[" * 50_000
    rows = ["\tWhy?\tyes", "aGVsbG8=\tWhy?\tyes", f"{deep}\tWhy?\tyes", "[x]\tWhy?\tyes", "", f"{encoded('red')}\tWhy?"]
    rows.append(f"{encoded('red')}\tWhy?\tyes\tmore\tand more")
    path = table(tmp_path, "image\tquestion\tanswer", *rows)
    source = QuestionFile(path)
    assert len(source) == 6, "csv leaves blank lines out"
    for index, match in (
        (0, "row 1: nothing to see"),
        (2, "row 3: "),
        (3, "row 4: "),
        (4, 'row 5: "answer" is missing'),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            source.question(index)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^{path} row 2: its image cannot be read$"):
        source.media(source.question(1).index)
    last = source.question(5)
    assert json.loads(json.dumps(last.input)) == last.input and source.media(5)


@pytest.mark.parametrize(
    "content, match",
    [
        (b"question\tanswer\nWhy?\tyes\n", "it has no column image"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"image\tquestion\tanswer\n", "no questions"),
        (b"\n", "no questions"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, match):
    path = tmp_path / "a.TSV"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match):
        QuestionFile(path)


# ----------------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_images_is_asked_one_question(tmp_path):
    """Guards against: other files of the folder taken for images, and an order that depends on the file system."""
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.mp4"):
        (tmp_path / name).touch()
    source = open_questions(tmp_path, "How many?", "Be brief.")
    assert isinstance(source, ImageFolder) and len(source) == 2 and source.name == tmp_path.name
    first, second = (source.question(index) for index in range(2))
    assert (first.input, second.input) == ({"image": "a.jpg"}, {"image": "b.PNG"})
    assert {first.text, second.text} == {"How many?"} and first.system_prompt == "Be brief."
    assert source.media(1) == [{"type": "image", "image": str(tmp_path / "b.PNG")}]
    assert len(source.sha256) == 64 and ".png" in IMAGE_SUFFIXES
    with pytest.raises(ValueError, match="--prompt"):
        open_questions(tmp_path)
    with pytest.raises(ValueError, match="no question"):
        open_questions(tmp_path, " ")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        open_questions(tmp_path / "none", "How many?")
