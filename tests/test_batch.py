"""Many questions: nothing doubled or lost whatever stops a run, one encoding for questions about one picture; and the
drawing of what was kept.

What needs no model is tested with a stand-in for the answer.
"""

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from policies import write_policy

import demo
from avis.batch import Answers, Totals, read_questions, run
from avis.config import AvisConfig
from avis.pipeline import answer
from avis.session import VisionCache
from avis.visualize import draw_kept
from policy.policy_model import PolicyModel

ROOT = Path(__file__).resolve().parents[1]
BUNDLED, PICTURE, CLIP = ROOT / "models" / "garden-tiny", ROOT / "example.jpg", ROOT / "example.mp4"
SETTINGS = AvisConfig(enable_kdv=True, num_rollouts=3)


def questions_file(folder: Path, *lines) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def asks(*numbers: int) -> list[dict]:
    return [{"id": f"q{number}", "image": "a.png", "prompt": f"Number {number}?"} for number in numbers]


def stand_in(question) -> dict:
    """A record as `Answer.to_dict()` has it, of the fields that are read again."""
    if "fail" in question.prompt:
        raise ValueError("cannot read it\nand more lines")
    return {
        "item": question.item,
        "answer": question.prompt,
        "items": [{"kept": 25, "total": 100}],
        "num_rollouts": 3,
        "flops": {"relative_llm": 0.5, "relative_total": 0.8},
        "weights_sha256": "abc",
    }


def go(folder: Path, source: Path, ask=stand_in, settings=SETTINGS, **options) -> Totals:
    questions = read_questions(source)
    with Answers(folder / "answers.jsonl", questions, settings, **options) as answers:
        return run(questions, answers, ask)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_bytes().splitlines()]


# --------------------------------------------------------------------------------------------- nothing doubled or lost


def test_every_line_is_answered_or_has_its_error(tmp_path):
    """Guards against: one bad line that ends the run, is skipped in silence, or shifts the numbers of the others."""
    wrong = ["not json", "[]", {"image": "a.png"}, {"prompt": "Why?"}, {"image": 3, "prompt": "Why?"}]
    special = {"image": "a.png", "prompt": "What is <|image_pad|>?"}
    source = questions_file(tmp_path, *asks(0), "", *wrong, special, {"image": "a.png", "prompt": "fail"}, *asks(8))
    totals = go(tmp_path, source)
    records = lines(tmp_path)
    assert [record["item"] for record in records] == list(range(9))
    assert ["error" in record for record in records] == [False, *[True] * 7, False]
    assert records[1]["input"] == "not json" and records[0]["input"] == asks(0)[0]
    assert records[7]["error"] == "cannot read it"
    assert (totals.answered, totals.failed) == (2, 7)
    assert str(totals) == "kept 25%, mean K 3.00, FLOPs LLM-only 0.50, total 0.80, failed 7"


def test_unexpected_errors_are_recorded_with_their_kind(tmp_path):
    """Guards against: hours of answers followed by a crash at one question that hits a bug."""

    def ask(question):
        raise KeyError("a bug")

    go(tmp_path, questions_file(tmp_path, *asks(0, 1)), ask)
    assert [record["error"] for record in lines(tmp_path)] == ["KeyError: 'a bug'"] * 2


def test_a_kill_at_any_byte_loses_and_doubles_nothing(tmp_path, monkeypatch):
    """Guards against: a torn last line that is kept, or that glues itself to the next one; a whole line taken for a
    torn one; questions asked twice."""
    source = questions_file(tmp_path, *asks(0, 1), {"image": "a.png", "prompt": "fail \u00fc"})
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # which takes most of a minute, two thousand times
    go(tmp_path, source)
    whole = (tmp_path / "answers.jsonl").read_bytes()
    boundaries = {
        at + near for at, byte in enumerate(whole) if byte == 10 for near in (-1, 0, 1) if at + near < len(whole)
    }
    for end in sorted({*range(20), *range(20, len(whole), 11), *boundaries}):
        (tmp_path / "answers.jsonl").write_bytes(whole[:end])
        asked = []
        go(tmp_path, source, lambda question: asked.append(question.item) or stand_in(question))
        assert (tmp_path / "answers.jsonl").read_bytes() == whole, f"killed after {end} bytes"
        assert asked == list(range(whole[:end].count(b"\n"), 3))
    assert go(tmp_path, source, ask=None).answered == 2, "a finished run asks nothing"


def test_lines_are_on_the_disk_before_the_next_question(tmp_path, monkeypatch):
    """Guards against: lines in a buffer, which a kill takes along, or in the system's, which a power cut does."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))

    def ask(question):
        assert len(lines(tmp_path)) == len(synced) == question.item
        return stand_in(question)

    go(tmp_path, questions_file(tmp_path, *asks(0, 1, 2)), ask)
    assert synced[-1] == (tmp_path / "answers.jsonl").stat().st_size


def test_ctrl_c_keeps_what_is_answered(tmp_path, monkeypatch, capfd, bundled):
    """Guards against: answers lost at Ctrl-C, another exit status than 130, no word on how to go on."""
    monkeypatch.setattr(demo, "loaded", lambda args: bundled)
    asked = []

    def interrupted(model, processor, messages, settings, item, *more):
        asked.append(item)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(model, processor, messages, settings, item, *more)

    monkeypatch.setattr(sys.modules["policy.answer"], "answer", interrupted)
    picture = {"image": str(PICTURE), "prompt": "How many?"}
    source = questions_file(tmp_path, picture, picture, picture)
    command = ["--input", str(source), "--output", str(tmp_path / "answers.jsonl"), "--max-new-tokens", "2"]
    assert demo.main(command) == 130
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("interrupted: 1 of 3"), err
    assert [record["item"] for record in lines(tmp_path)] == [0]
    assert demo.main(command) == 0
    assert asked == [0, 1, 1, 2] and [record["item"] for record in lines(tmp_path)] == [0, 1, 2]


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    """Guards against: half a line left behind by a full disk, and answers before it that are lost or asked again."""
    source = questions_file(tmp_path, *asks(0, 1, 2))
    write, room = os.write, [900]

    def full(fd, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = write(fd, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device; 1 lines are kept"):
        go(tmp_path, source)
    assert [record["item"] for record in lines(tmp_path)] == [0]
    room[0] = 10**6
    go(tmp_path, source)
    assert [record["item"] for record in lines(tmp_path)] == [0, 1, 2]


def test_failed_questions_are_asked_again(tmp_path):
    """Guards against: failures asked again unasked, their old lines beside the new ones, answers asked again."""
    source = questions_file(tmp_path, *asks(0), {"image": "a.png", "prompt": "fail"}, *asks(2), "not json")
    go(tmp_path, source)
    whole = (tmp_path / "answers.jsonl").read_bytes()
    assert go(tmp_path, source, ask=None).failed == 2
    assert (tmp_path / "answers.jsonl").read_bytes() == whole
    asked = []

    def mended(question):
        asked.append(question.item)
        return stand_in(replace(question, prompt="mended"))

    totals = go(tmp_path, source, mended, retry_failed=True)
    assert asked == [1] and (totals.answered, totals.failed) == (3, 1)
    records = {record["item"]: record for record in lines(tmp_path)}
    assert sorted(records) == [0, 1, 2, 3] and len(lines(tmp_path)) == 4
    assert [records[item] for item in (0, 2)] == [json.loads(whole.splitlines()[item]) for item in (0, 2)]
    assert len(list(tmp_path.iterdir())) == 2, "something was left beside the file"


@pytest.mark.parametrize("change", ["input", "order", "settings", "weights", "policy", "damaged", "another's"])
def test_answers_to_something_else_are_left_alone(tmp_path, change):
    """Guards against: answers to other questions, or made with other settings or another model, mixed into one file;
    and somebody's own file cut short because its last line looked torn."""
    source = questions_file(tmp_path, *asks(0, 1, 2))
    go(tmp_path, questions_file(tmp_path, *asks(0, 1)))
    output = tmp_path / "answers.jsonl"
    settings, ask = SETTINGS, stand_in
    source = questions_file(tmp_path, *asks(0, 1, 2))
    if change == "input":
        source = questions_file(tmp_path, *asks(0, 5, 2))
    if change == "order":
        source = questions_file(tmp_path, *asks(1, 0, 2))
    if change == "settings":
        settings = AvisConfig(**asdict(SETTINGS) | {"seed": 7})
    if change == "weights":
        ask = lambda question: stand_in(question) | {"weights_sha256": "def"}  # noqa: E731
    if change == "policy":
        ask = lambda question: stand_in(question) | {"policy_sha256": "def"}  # noqa: E731
    if change == "damaged":
        output.write_bytes(output.read_bytes().replace(b'"answer"', b'answer"', 1))
    if change == "another's":
        output.write_bytes(b"Dear diary")
    before = output.read_bytes()
    with pytest.raises(ValueError, match="choose another --output"):
        go(tmp_path, source, ask, settings)
    assert output.read_bytes() == before


def test_more_questions_can_be_added(tmp_path):
    """Guards against: a file of questions that has grown, all asked again or refused."""
    go(tmp_path, questions_file(tmp_path, *asks(0, 1)))
    asked = []
    source = questions_file(tmp_path, *asks(0, 1, 2))
    go(tmp_path, source, lambda question: asked.append(question.item) or stand_in(question))
    assert asked == [2] and len(lines(tmp_path)) == 3


# ------------------------------------------------------------------------------------------------------- what is asked


def test_media_keep_their_order_and_folder(tmp_path):
    """Guards against: paths looked for in the working folder, and pictures moved before videos."""
    line = {"video": "a.mp4", "image": ["b.png", "/c.png"], "prompt": "Which?", "label": "kept for the reader"}
    (question,) = read_questions(questions_file(tmp_path, line), system_prompt="Be brief.")
    system, user = question.messages
    assert system == {"role": "system", "content": "Be brief."} and question.input == line
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
    assert [question.prompt for question in read_questions(path)] == [text, text]


def test_a_folder_of_pictures_is_asked_one_question(tmp_path):
    """Guards against: other files of the folder taken for pictures, and an order that depends on the file system."""
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.mp4"):
        (tmp_path / name).touch()
    questions = read_questions(tmp_path, prompt="How many?")
    assert [question.input for question in questions] == [{"image": "a.jpg"}, {"image": "b.PNG"}]
    assert {question.prompt for question in questions} == {"How many?"}
    with pytest.raises(ValueError, match="--prompt"):
        read_questions(tmp_path)


# -------------------------------------------------------------------------------------- one encoding for one picture


def drawn(seed: int, size: tuple[int, int] = (196, 140)) -> Image.Image:
    dice = np.random.default_rng(seed)
    picture = Image.new("RGB", size, (120, 160, 90))
    for _ in range(9):
        x, y = (int(v) for v in dice.integers(0, 130, 2))
        ImageDraw.Draw(picture).ellipse([x, y, x + 30, y + 20], fill=tuple(int(v) for v in dice.integers(0, 256, 3)))
    return picture


@pytest.mark.parametrize("kdv", [{"enable_kdv": True, "kdv_ratio": 0.6}, {}], ids=["kdv", "full"])
def test_questions_about_one_picture_share_its_encoding(tmp_path, bundled, monkeypatch, kdv):
    """Guards against: a tower that runs for every question; and answers that differ from one-by-one answering because
    another picture's encoding, or another order of items, was taken up."""
    model, processor = bundled
    drawn(1).save(tmp_path / "a.png")
    drawn(2).save(tmp_path / "b.png")
    a, b, clip = {"image": "a.png"}, {"image": "b.png"}, {"video": str(CLIP)}
    both, swapped = {"image": ["a.png", "b.png"]}, {"image": ["b.png", "a.png"]}
    shows = [a, a, b, a, a, both, both, swapped, clip, clip, clip | a]
    source = questions_file(tmp_path, *({**media, "prompt": f"Question {n}?"} for n, media in enumerate(shows)))
    settings = AvisConfig(num_rollouts=3, max_new_tokens=6, temperature=9.0, num_frames=4, **kdv)
    questions = read_questions(source)
    alone = [answer(model, processor, q.messages, settings, q.item).to_dict() for q in questions]
    calls, memory = [], VisionCache()
    hook = model.visual.register_forward_hook(lambda *_: calls.append(1))
    try:
        with Answers(tmp_path / "answers.jsonl", questions, settings) as answers:
            run(questions, answers, lambda q: answer(model, processor, q.messages, settings, q.item, memory).to_dict())
    finally:
        hook.remove()
    # a, b, a, both, swapped, clip, and the clip and the picture together: two kinds, two calls.
    assert len(calls) == 8
    for record, expected in zip(lines(tmp_path), alone, strict=True):
        got = {name: record[name] for name in expected}
        assert got.pop("seconds").keys() == expected.pop("seconds").keys()
        assert got == expected


def test_memory_is_not_taken_up_where_it_does_not_fit(bundled):
    """Guards against: items encoded without keys pruned later, or those of another model shown to this one."""
    model, processor = bundled
    messages = [{"role": "user", "content": [{"type": "image", "image": drawn(1)}, {"type": "text", "text": "?"}]}]
    memory = VisionCache()
    answer(model, processor, messages, AvisConfig(max_new_tokens=1), vision_cache=memory)
    kdv = AvisConfig(enable_kdv=True, max_new_tokens=1)
    assert answer(model, processor, messages, kdv, vision_cache=memory).items[0].kept == 35 // 4
    assert memory.holds(model, memory.pixels, keys=True)
    assert not memory.holds(object(), memory.pixels, keys=True)
    assert not memory.holds(model, {}, keys=True)
    changed = dict(memory.pixels, pixel_values=memory.pixels["pixel_values"] + 1e-3)
    assert not memory.holds(model, changed, keys=True)


def test_the_command_line_answers_a_file(tmp_path, monkeypatch, capfd, bundled):
    """Guards against: flags that do not reach a batch's questions, a summary of something else than the file, and exit
    status 0 although a question failed."""
    monkeypatch.setattr(demo, "loaded", lambda args: bundled)
    source = questions_file(tmp_path, {"image": str(PICTURE)}, {"image": "none.png", "prompt": "How many?"})
    output = tmp_path / "answers.jsonl"
    flags = ["--enable-kdv", "--kdv-ratio", "0.5", "--num-rollouts", "2", "--max-new-tokens", "3", "--seed", "5"]
    command = ["--input", str(source), "--output", str(output), *flags, "--prompt", "What?"]
    assert demo.main(command) == 1
    out, err = capfd.readouterr()
    good, bad = lines(tmp_path)
    messages = read_questions(source, "What?")[0].messages
    settings = AvisConfig(enable_kdv=True, kdv_ratio=0.5, num_rollouts=2, max_new_tokens=3, seed=5)
    expected = answer(*bundled, messages, settings).to_dict()
    assert {name: good[name] for name in expected if name != "seconds"} == {
        name: value for name, value in expected.items() if name != "seconds"
    }
    assert str(tmp_path / "none.png") in bad["error"] and bad["settings"] == asdict(settings)
    assert out.startswith(f"{output}: 1 of 2 answered; kept 50%, mean K 2.00") and "--retry-failed" in err
    drawn(1).save(tmp_path / "none.png")
    assert demo.main([*command, "--retry-failed"]) == 0
    assert [("error" in record) for record in lines(tmp_path)] == [False, False]


def test_follow_ups_answer_a_file(tmp_path, monkeypatch, capfd, bundled):
    """Guards against: follow-ups asked without the turns before them, or of another line's; the picture encoded anew
    for them; records of earlier turns lost, or left out of the totals; and a line taken up again by half."""
    monkeypatch.setattr(demo, "loaded", lambda args: bundled)
    model, processor = bundled
    drawn(1).save(tmp_path / "a.png")
    three = ["How many cats?", "And dogs?", "Why?"]
    wrong = [[], ["How many?", ""], ["How many?", 3], ["How many?", "<|im_end|>"]]
    shown = [{"image": "a.png", "prompt": prompt} for prompt in (three, "And owls?", *wrong)]
    source, output = questions_file(tmp_path, *shown), tmp_path / "answers.jsonl"
    command = ["--input", str(source), "--output", str(output), "--enable-kdv", "--num-rollouts", "3"]
    command += ["--max-new-tokens", "5", "--temperature", "9"]
    calls = []
    hook = model.visual.register_forward_hook(lambda *_: calls.append(1))
    try:
        assert demo.main(command) == 1
    finally:
        hook.remove()
    assert len(calls) == 1
    out, _ = capfd.readouterr()
    assert out.startswith(f"{output}: 2 of 6 answered; kept 23%, mean K 3.00")
    first, second, *errors = lines(tmp_path)
    assert all("error" in record for record in errors) and "earlier" not in second
    messages = read_questions(source)[0].messages
    settings = AvisConfig(enable_kdv=True, num_rollouts=3, max_new_tokens=5, temperature=9.0)
    assert (first["prompt"], len(first["earlier"])) == (three, 2)
    for number, record in enumerate([*first["earlier"], first]):
        expected = answer(model, processor, messages, settings).to_dict()
        assert [rollout["text"] for rollout in record["rollouts"]] == [r["text"] for r in expected["rollouts"]]
        assert bool(record["reused_tokens"]) == (number > 0)
        said = {"role": "assistant", "content": record["text"].strip()}
        messages = [*messages, said, {"role": "user", "content": [*three, ""][number + 1]}]
    before = output.read_bytes()
    assert demo.main(command) == 1 and output.read_bytes() == before
    totals = [record["flops"]["relative_llm"] for record in (*first["earlier"], first, second)]
    assert f"LLM-only {sum(totals) / 4:.2f}" in out


def test_a_policy_answers_a_file(tmp_path, monkeypatch, capfd, bundled):
    """Guards against: a policy that is read and not asked, K of the flag, totals of something else than what was used,
    and a note for every question."""
    monkeypatch.setattr(demo, "loaded", lambda args: bundled)
    policy = write_policy(tmp_path / "p.pt", (3,))
    source = questions_file(tmp_path, *[{"image": str(PICTURE), "prompt": f"Number {n}?"} for n in range(2)])
    flags = ["--enable-kdv", "--enable-policy", "--policy-path", str(policy), "--num-rollouts", "5"]
    command = ["--input", str(source), "--output", str(tmp_path / "answers.jsonl"), *flags, "--max-new-tokens", "3"]
    assert demo.main([*command, "--rollouts-at-once", "2"]) == 0
    out, err = capfd.readouterr()
    model = PolicyModel(policy)
    settings = AvisConfig(enable_kdv=True, num_rollouts=5, rollout_batch_size=2, max_new_tokens=3)
    for question, record in zip(read_questions(source), lines(tmp_path), strict=True):
        expected = answer(*bundled, question.messages, settings, question.item, policy=model).to_dict()
        assert [record[name] for name in ("p", "bin", "num_rollouts", "items", "rho", "policy_sha256")] == [
            expected[name] for name in ("p", "bin", "num_rollouts", "items", "rho", "policy_sha256")
        ]
        assert record["num_rollouts"] == 3 and record["p"] is not None
    assert "mean K 3.00" in out
    notes = [line for line in err.splitlines() if line.startswith("note: --num-rollouts is ignored")]
    assert len(notes) == 1


# ------------------------------------------------------------------------------------------------- what was kept, drawn


def shown(bundled, *parts, **settings) -> tuple[VisionCache, np.ndarray]:
    memory = VisionCache()
    content = [*parts, {"type": "text", "text": "How many?"}]
    settings = AvisConfig(enable_kdv=True, max_new_tokens=1, **settings)
    answer(*bundled, [{"role": "user", "content": content}], settings, vision_cache=memory)
    return memory, np.asarray(draw_kept(memory, bundled[1])).astype(int)


def test_kept_tokens_are_drawn_where_they_are(bundled):
    """Guards against: a drawing with rows and columns swapped, cells of another token, kept ones dimmed, or another
    picture than the one that the model saw; and a heat map of something else than the scores."""
    colours = np.random.default_rng(0).integers(60, 256, (16, 24, 3)).astype(np.uint8)
    colours[..., 0] = 255  # nothing grey, so that dimmed is told from kept
    colours[..., 2] = 0
    picture = Image.fromarray(colours).resize((24 * 28, 16 * 28), Image.Resampling.NEAREST)
    memory, drawing = shown(bundled, {"type": "image", "image": picture}, kdv_ratio=0.7)
    assert drawing.shape == (16 * 28 + 18, 2 * 24 * 28 + 12, 3)
    left = drawing[18:, : 24 * 28][14::28, 14::28].reshape(-1, 3)
    kept = set(memory.kept[0].tolist())
    assert len(kept) == 115
    wanted = colours.reshape(-1, 3).astype(int)
    for n, colour in enumerate(left):
        if n in kept:
            assert np.abs(colour - wanted[n]).max() <= 3
        else:
            assert np.ptp(colour) == 0 and colour.max() < 140
    heat = drawing[18:, 24 * 28 + 12 :][14::28, 14::28].sum(axis=-1).flatten()
    assert set(np.argsort(-heat, kind="stable")[:100]) <= kept


def test_the_drawing_shows_what_the_model_saw(bundled):
    """Guards against: patches put back in another order, or with other colours, than they were cut."""
    noise = np.random.default_rng(1).integers(0, 256, (17 * 28, 16 * 28, 3)).astype(np.uint8)
    _, drawing = shown(bundled, {"type": "image", "image": Image.fromarray(noise)}, kdv_ratio=0.0)
    assert np.abs(drawing[18 : 18 + 17 * 28, : 16 * 28] - noise).max() <= 1


def test_a_video_is_drawn_as_a_strip(bundled):
    """Guards against: frames of one another's places, more frames than fit, items that overwrite each other, and a
    drawing that fails for the smallest and the slimmest of pictures."""
    memory, drawing = shown(bundled, {"type": "video", "video": str(CLIP)}, kdv_ratio=0.5)
    assert drawing.shape[1] == 7 * 224 + 6 * 12
    odd = [{"type": "image", "image": Image.new("RGB", size, "red")} for size in ((1, 1), (1200, 8))]
    memory, whole = shown(bundled, *odd, {"type": "video", "video": str(CLIP)}, num_frames=4)
    assert len(memory.items) == 3
    assert whole.shape[0] > drawing.shape[0] and whole.shape[1] <= 2 * 1500


def test_pictures_that_were_not_pruned_are_not_drawn(bundled):
    """Guards against: a drawing in which all is kept, or a crash, for a query without KDV or without pictures."""
    memory = VisionCache()
    messages = [{"role": "user", "content": [{"type": "image", "image": drawn(1)}, {"type": "text", "text": "?"}]}]
    answer(*bundled, messages, AvisConfig(max_new_tokens=1), vision_cache=memory)
    for nothing in (memory, VisionCache()):
        with pytest.raises(ValueError, match="nothing was pruned"):
            draw_kept(nothing, bundled[1])


def test_save_kept_writes_a_png(bundled, tmp_path, monkeypatch, capfd):
    """Guards against: another format than the one promised, by whatever name, and a changed answer."""
    monkeypatch.setattr(demo, "loaded", lambda args: bundled)
    out = tmp_path / "kept.anything"
    said = []
    for more in ([], ["--save-kept", str(out)]):
        assert demo.main(["--enable-kdv", "--max-new-tokens", "3", "--json", *more]) == 0
        said.append({k: v for k, v in json.loads(capfd.readouterr().out).items() if k != "seconds"})
    assert said[0] == said[1]
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 600
