"""The adapter to VLMEvalKit: what reaches `answer()`, what the scorers get, what is on the disk.

A stand-in takes VLMEvalKit's place (`stand_in_kit.py`); `test_vlmevalkit_checkout.py` has the real one.
"""

import base64
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from clips import write_clip
from PIL import Image
from stand_in_kit import predictions, write_messages, write_table

from avis.config import AvisConfig
from avis.evaluation.adapters import vlmevalkit
from avis.evaluation.adapters.vlmevalkit_model import ABSTAINED, FAILED
from avis.evaluation.adapters.vlmevalkit_results import read_settings
from avis.evaluation.tables.__main__ import main as print_tables
from avis.evaluation.tables.cells import format_fraction
from avis.questions import QuestionFile

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = str(ROOT / "example.jpg")
BUNDLED = str(ROOT / "models" / "garden-tiny")
QUESTION = "How many wooden rabbits are wearing glasses?"
SMALL = ("--max-pixels", "200704")  # the example at the paper's bounds is 1280 tokens


def image(question: str = QUESTION) -> list[dict]:
    return [{"type": "image", "value": EXAMPLE}, {"type": "text", "value": question}]


def launch(*arguments: str) -> int:
    return vlmevalkit.main(["--model-path", BUNDLED, "--work-dir", "out", "--max-new-tokens", "160", *arguments])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_launcher_runs_the_harness_with_every_answer_recorded(kit, monkeypatch):
    """Guards against: settings that do not reach `answer()`, scorers that see the thought, answers that are lost, and
    a second run that computes what is on the disk."""
    write_messages(kit, "Toy", image(), image("How many wooden bears are there?"))
    flags = (*SMALL, "--data", "Toy", "--enable-kdv", "--kdv-ratio", "0.5", "--num-rollouts", "3", "--mode", "infer")
    assert launch(*flags) == 0
    found = predictions(kit / "out/avis", "Toy")
    config, *records = lines(kit / "out/avis/answers.jsonl")
    assert config["config"]["settings"]["kdv_ratio"] == 0.5 and config["config"]["weights_sha256"]
    assert [record["answer"] or ABSTAINED for record in records] == found
    assert not any("<" in answer for answer in found)
    for record in records:
        assert record["num_rollouts"] == len(record["rollouts"]) == 3 and record["rho"] == pytest.approx(0.5, abs=0.01)
        assert record["query_index"] == int(record["key"]["id"], 16) and record["key"]["dataset"] == "Toy"
    assert records[0]["query_index"] != records[1]["query_index"]
    monkeypatch.setattr("avis.pipeline.AvisPipeline.__call__", lambda *_, **__: pytest.fail("asked again"))
    before = (kit / "out/avis/answers.jsonl").read_bytes()
    assert launch(*flags) == 0
    assert (kit / "out/avis/answers.jsonl").read_bytes() == before
    assert predictions(kit / "out/avis", "Toy") == found


@pytest.fixture
def seen(monkeypatch) -> list[AvisConfig]:
    """Configurations of the questions that reach the pipeline, which answers none."""
    configs = []

    def answer(pipeline, messages, config, query_index):
        configs.append(config)
        raise ValueError("enough")

    monkeypatch.setattr("avis.pipeline.AvisPipeline.__call__", answer)
    return configs


def test_pixel_bounds_are_the_papers_unless_given(kit, seen):
    """Guards against: a table made at the processor's own resolution, and an image's bounds put on frames."""
    path = write_clip(kit / "video.mp4", count=48, rate=12)
    video = [{"type": "video", "value": str(path)}, {"type": "text", "value": QUESTION}]
    write_messages(kit, "Images", image())
    write_messages(kit, "Videos", video, fps=2)
    write_messages(kit, "Framed", video, nframe=40)
    write_messages(kit, "Short", video, nframe=64)  # more than the video has
    assert launch("--data", "Images", "Videos", "Framed", "Short") == 1
    assert launch("--data", "Images", "Videos", *SMALL, "--name", "small") == 1
    bounds = [(s.min_pixels / 784, s.max_pixels / 784, s.fps, s.num_frames) for s in seen]
    assert bounds[:4] == [(1280, 16384, None, None), (128, 768, 2.0, None), (128, 768, None, 40), (128, 768, None, 48)]
    assert bounds[4:] == [(256, 256, None, None), (128, 256, 2.0, None)]
    model = object.__new__(vlmevalkit.Avis)
    model.avis_config = AvisConfig()
    long = write_clip(kit / "long.mp4", count=10, repeat=20)
    assert model.config_for([str(long)], None, 128).max_pixels == 24576 * 784 * 2 // 128


def test_each_set_of_videos_has_its_own_sampling_and_name(kit, seen, capsys):
    """Guards against: a harness that sets `fps` or `nframe` to None for good, so that the second set of a run is shown
    neither way; and two samplings of one set that are one line of a table, with one of two scores."""
    path = write_clip(kit / "video.mp4", count=48, rate=12)
    videos = [[{"type": "video", "value": str(path)}, {"type": "text", "value": text}] for text in ("a", "b")]
    write_messages(kit, "MVBench_8frame", *videos, nframe=8, dataset="MVBench", score="40%")
    write_messages(kit, "MVBench_1fps", *videos, fps=1, dataset="MVBench", score="60%")
    write_messages(kit, "MVBench_plain", *videos, dataset="MVBench")  # the harness gives neither
    write_messages(kit, "MVBench_16frame", *videos, nframe=16, dataset="MVBench")
    names = ["MVBench_8frame", "MVBench_1fps", "MVBench_plain", "MVBench_16frame"]
    launch("--data", *names, *SMALL)
    due = [(None, 8), (1, None), (2.0, None), (None, 16)]
    assert [(config.fps, config.num_frames) for config in seen] == [sampling for sampling in due for _ in range(2)]
    records = lines(kit / "out/avis/answers.jsonl")[1:]
    assert [record["key"]["dataset"] for record in records] == [name for name in names for _ in range(2)]
    (setting,) = read_settings(kit / "out")
    assert setting.scores == {"MVBench_8frame": 40, "MVBench_1fps": 60, "MVBench_plain": 50, "MVBench_16frame": 50}


def test_a_video_is_shown(kit):
    """Guards against: videos that are not shown; a model's name at which the harness passes more arguments."""
    path = write_clip(kit / "video.mp4", count=8, rate=4)
    message = [
        {"type": "text", "value": "Look at the video. ", "role": "system"},
        {"type": "video", "value": str(path)},
        {"type": "text", "value": QUESTION},
    ]
    write_messages(kit, "MVBench", message, nframe=4)
    assert launch("--data", "MVBench", *SMALL, "--min-pixels", "784", "--name", "Qwen2.5-VL-7B-AVIS") == 0
    (record,) = lines(kit / "out/Qwen2.5-VL-7B-AVIS/answers.jsonl")[1:]
    assert [item["kind"] for item in record["items"]] == ["video"] and record["config"]["num_frames"] == 4


class EchoAsker:
    """An asker that answers with the chat, and collects the keys of questions."""

    def __init__(self):
        self.keys: list[dict] = []

    def ask(self, key, query_index, query) -> dict:
        self.keys.append(key)
        return {"answer": query()[0][0]["content"]}


def test_what_names_a_question(tmp_path):
    """Guards against: answers about 8 frames taken for answers about 64, and answers that another folder makes new."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, moved = (write_clip(tmp_path / folder / "video.mp4", count=8, rate=4) for folder in ("a", "b"))
    model = object.__new__(vlmevalkit.Avis)
    model.avis_config, model.asker, model.progress = AvisConfig(), EchoAsker(), vlmevalkit.Progress()
    for path, nframe, question in ((first, 4, "a"), (moved, 4, "a"), (first, 8, "a"), (first, 4, "b")):
        model.fps, model.nframe = None, nframe
        message = [{"type": "video", "value": str(path)}, {"type": "text", "value": question}]
        begun = [*message, {"type": "text", "value": "Best option:(", "role": "assistant"}]
        assert [part["type"] for part in model.generate_inner(begun, "MVBench")] == ["video", "text"]
    first.write_bytes(first.read_bytes() + b"0")
    model.fps, model.nframe = None, 4
    model.generate_inner([{"type": "video", "value": str(first)}, {"type": "text", "value": "a"}], "MVBench")
    known, same, *others = [key["id"] for key in model.asker.keys]
    assert known == same and len({known, *others}) == 4
    model.generate_inner(message)  # a user's own call gives no data set
    assert [key["dataset"] for key in model.asker.keys] == [*["MVBench"] * 5, ""]


def test_keys_of_a_message_are_honoured_or_refused(kit, tmp_path, capsys):
    """Guards against: `nframes` and sizes that a data set gives with a part and that are dropped, and one question's
    record taken for another's with other keys."""
    path = write_clip(tmp_path / "video.mp4", count=48, rate=12)
    text = {"type": "text", "value": QUESTION}
    video = {"type": "video", "value": str(path)}
    size = {"resized_height": 56, "resized_width": 84}
    parts = [
        video | {"nframes": 6} | size,
        video | {"nframes": 4} | size,
        video | {"detail": "high"},
        video | {"fps": "2"},
    ]
    still = {"type": "image", "value": EXAMPLE, "max_pixels": 40 * 784}
    write_messages(kit, "Keys", *([part, text] for part in parts), [still, text], nframe=8)
    assert launch("--data", "Keys", *SMALL, "--max-new-tokens", "1") == 1  # two questions failed
    six, four, unknown, wrong, image_ = lines(kit / "out/avis/answers.jsonl")[1:]
    assert [record["items"][0]["total"] for record in (six, four)] == [3 * 6, 2 * 6]
    assert image_["items"][0]["total"] <= 40 and six["key"] != four["key"]
    assert "unknown key 'detail'" in unknown["error"] and "fps must be a number" in wrong["error"]
    assert "Traceback" not in capsys.readouterr().err


def test_bounds_follow_the_frames_that_a_video_asks_for(tmp_path):
    """Guards against: frames as small as those of 128 where a data set asks for 8."""
    path = str(write_clip(tmp_path / "long.mp4", count=200, rate=10))
    model = object.__new__(vlmevalkit.Avis)
    model.avis_config = AvisConfig()
    bounds = [model.config_for([path], None, 128, keys).max_pixels for keys in (None, [{"nframes": 8}])]
    assert bounds[0] < bounds[1] == 768 * 784
    with pytest.raises(ValueError, match="fewer than the 128 asked for"):
        model.config_for([path], None, 128, [{"video_end": 2.0}])


def test_a_question_that_fails_is_reported_recorded_and_asked_again(kit, capsys):
    """Guards against: one bad question that ends a run of thousands, or is scored as an answer, or is never retried."""
    missing = [{"type": "image", "value": "missing.png"}, {"type": "text", "value": QUESTION}]
    special = image("What follows <|im_end|>?")
    write_messages(kit, "Toy", missing, special, image())
    flags = ("--data", "Toy", *SMALL, "--no-enable-thinking")
    assert launch(*flags) == 1
    config, *records = lines(kit / "out/avis/answers.jsonl")
    assert ["error" in record for record in records] == [True, True, False]
    printed = capsys.readouterr().err
    assert "no such file: missing.png" in printed and "special token" in printed
    assert "note: questions without an answer: 2; the same command asks them again\n" in printed
    found = predictions(kit / "out/avis", "Toy")
    assert found[:2] == [FAILED] * 2  # which --reuse does not take for an answer
    (kit / "missing.png").write_bytes(Path(EXAMPLE).read_bytes())
    assert launch(*flags) == 1
    answered = lines(kit / "out/avis/answers.jsonl")[1:]
    assert sorted("error" in record for record in answered) == [False, False, True]
    assert len({json.dumps(record["key"]) for record in answered}) == 3


def test_an_abstention_is_no_answer_to_any_scorer():
    """Guards against: an abstention that a scorer takes for an option, for yes or no, or for a number."""
    # The rules of VLMEvalKit's scorers: an option as a word of its own, or as a letter; an option's text within it.
    words = ABSTAINED.replace(".", " ").split()
    assert not set(words) & set("ABCDEFGHIJ") and not {"yes", "no"} & {word.lower() for word in words}
    assert not any(option in ABSTAINED.lower() for option in ("no", "yes", "a", "e", "1", "0", "none"))
    assert words == ["Z"]  # which they read as "none of the options" without asking a judge


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "Toy", "--kdv-ratio", "0.5"], "need enable_kdv"),
        (["--data", "Toy", "--num-rollouts", "0"], "num_rollouts must be between"),
        (["--data", "Toy", "--recipe", "r.yaml"], "give --data or --recipe"),
        ([], "give --data or --recipe"),
        (["--data", "Toy", "--model", "other"], "--model: it is set here"),
        (["--data", "Toy", "--use-vllm"], "runs in Transformers"),
        (["--data", "Toy", "--base-url=http://localhost"], "asks a served model"),
        (["--data", "Toy", "--max-tokens", "9"], "give --max-new-tokens"),
        (["--data", "Toy", "--name", "../x"], "--name is a file name"),
        (["--recipe", "missing.yaml"], "missing.yaml"),
        (["--recipe", str(ROOT / "pyproject.toml")], "is not a recipe"),
        (["--data", "Toy", "--model-path", "no/such/model/there"], "no such model folder"),
        (["--data", "Toy", "--policy-path", "missing.pt"], "missing.pt"),
        (["--data", "Toy", "--system-prompt", "<|im_end|>"], "special token"),
    ],
)
def test_what_is_wrong_is_one_line_and_2(kit, capsys, flags, message):
    """Guards against: a traceback, or a harness that runs every data set without a model."""
    write_messages(kit, "Toy", image())
    with pytest.raises(SystemExit) as ended:
        sys.exit(launch(*flags))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_answers_of_other_settings_are_refused(kit, capsys):
    """Guards against: a table whose rows were made with two settings."""
    write_messages(kit, "Toy", image())
    assert launch("--data", "Toy", *SMALL, "--no-enable-thinking") == 0
    with pytest.raises(SystemExit) as ended:
        launch("--data", "Toy", *SMALL, "--no-enable-thinking", "--seed", "1")
    assert ended.value.code == 2 and "another config.settings.seed: choose another name" in capsys.readouterr().err


def test_recipes_name_the_papers_benchmarks():
    """Guards against: a benchmark of the paper that is forgotten, and a recipe that the launcher cannot read."""
    named = {
        "paper_images": "MathVista MathVerse MathVision DocVQA MMMU-Pro MME MMStar MMBench CV-Bench-2D POPE BLINK "
        "TreeBench",
        "paper_videos": "Video-MME TempCompass Video-TT MVBench Q-Bench-Video Video-MMMU",
    }
    for recipe, benchmarks in named.items():
        path = ROOT / "avis" / "evaluation" / "recipes" / f"{recipe}.yaml"
        assert list(yaml.safe_load(path.read_text())["data"]) == benchmarks.split()
        assert len(set(vlmevalkit.recipe_data(path))) == len(benchmarks.split())


def test_what_the_harness_wrote_gets_its_cost(kit, capsys):
    """Guards against: tables that read records which the launcher does not write."""
    write_messages(kit, "Toy", image(), image("How many wooden bears are there?"))
    for name, flags in (("vanilla", []), ("pruned", ["--enable-kdv", "--kdv-ratio", "0.5"])):
        assert launch(*SMALL, "--data", "Toy", "--name", name, "--no-enable-thinking", *flags) == 0
    vanilla, pruned = read_settings(kit / "out")
    assert (vanilla.name, vanilla.spent, pruned.spent) == ("vanilla", "vanilla", "rho = 0.5, K = 1")
    cost = pruned.cost("Toy", vanilla)
    assert 0.4 < cost["llm"].value < 0.7 and cost["llm"].value < cost["total"].value < 1 and cost["llm"].items == 2
    assert pruned.scores == {"Toy": 50}
    assert print_tables(["--from-vlmevalkit", str(kit / "out")]) == 0
    assert f"| Toy | 50.0 | 1.00; 1.00 | 50.0 | {format_fraction(cost['llm'])}; " in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- tables


def garden_rows(*questions: dict) -> list[dict]:
    """Rows of a table about the example."""
    image = base64.b64encode(Path(EXAMPLE).read_bytes()).decode()
    return [{"index": n, "image": image, "category": "count"} | row for n, row in enumerate(questions)]


@pytest.fixture
def echo(monkeypatch) -> list[list[dict]]:
    """The chats of the questions that reach the pipeline; each is answered with "2"."""
    chats = []

    def answer(pipeline, messages, config, query_index):
        chats.append(messages[0]["content"])
        record = {"answer": "2", "items": [], "num_rollouts": 1, "rho": 0.0}
        record["flops"] = {"vision": 1, "prefill": 1, "decode": 1}
        return SimpleNamespace(to_dict=lambda: record)

    monkeypatch.setattr("avis.pipeline.AvisPipeline.__call__", answer)
    return chats


def test_garden_tables_are_asked_as_our_own_evaluation_asks_them(kit, echo):
    """Guards against: the harness's layout, which the bundled model was not trained on, in the garden's tables; and
    ours in any other table."""
    rows = garden_rows(
        {"question": QUESTION, "A": "1", "B": "two", "C": "", "answer": "B"},
        {"question": "Is it?", "A": "yes", "B": "no", "C": "maybe", "answer": "A"},
    )
    rows[1]["image"] = json.dumps([rows[0]["image"]] * 2)
    path = write_table(kit, "garden_dev_mcq", rows)
    write_table(kit, "mine_dev_mcq", rows)
    assert launch("--data", "garden_dev_mcq", "mine_dev_mcq") == 0
    assert [[part["type"] for part in chat] for chat in echo] == [["image", "text"], ["image", "image", "text"]] * 2
    texts = [chat[-1]["text"] for chat in echo]
    file = QuestionFile(path)
    assert texts[:2] == [file.question(index).text for index in range(2)]
    assert texts[0] == f"{QUESTION}\nA. 1 B. two" and all("Options:" in text for text in texts[2:])


def test_a_garden_table_that_was_made_anew_is_asked_anew(kit, echo):
    """Guards against: images, and answers about them, of an earlier table of the same name; and numbers that pandas
    gives a ".0" because another question has fewer options."""
    paths = []
    for shade in (0, 255):
        rows = garden_rows({"question": "Which?", "A": 1, "B": 2, "answer": "B"})
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (shade,) * 3).save(file, "png")
        rows[0]["image"] = base64.b64encode(file.getvalue()).decode()
        write_table(kit, "garden_dev_mcq", [*rows, rows[0] | {"index": 1, "question": "What?", "B": ""}])
        assert launch("--data", "garden_dev_mcq") == 0
        paths += [Path(part["image"]) for chat in echo for part in chat if part["type"] == "image"]
        texts = [chat[-1]["text"] for chat in echo]
        echo.clear()
        assert texts == ["Which?\nA. 1 B. 2", "What?\nA. 1"]
    assert [Image.open(path).getpixel((0, 0))[0] for path in paths] == [0, 0, 255, 255]


def test_free_answer_tables_get_a_score(kit, echo, capsys):
    """Guards against: NotImplementedError, an empty cell, and status 0."""
    answers = ("2", " 2", "3", "two")  # exact but for case and spaces: half of them
    rows = garden_rows(*({"question": QUESTION, "answer": answer} for answer in answers))
    for row, category in zip(rows, ("count", "read", "count", "read"), strict=True):
        row["category"] = category
    write_table(kit, "garden_dev_vqa", rows)
    mine = {"index": 0, "image": rows[0]["image"], "question": "?"}
    write_table(kit, "unlabelled", [mine])
    write_table(kit, "mine", [mine | {"answer": 2}])
    assert launch("--data", "unlabelled", "--name", "other") == 1
    assert "VLMEvalKit failed: the table has no column named answer;" in capsys.readouterr().err
    echo.clear()
    assert launch("--data", "garden_dev_vqa", "mine") == 0
    assert echo[0][-1]["text"] == QUESTION
    setting = next(one for one in read_settings(kit / "out") if one.name == "avis")
    assert setting.scores == {"garden_dev_vqa": 50, "mine": 100} and not setting.notes
    (path,) = kit.glob("out/avis/T*/avis_garden_dev_vqa_acc.csv")
    assert path.read_text() == "Overall,count,read\n0.5,0.5,0.5\n"
    shutil.rmtree(kit / "out/other")
    assert print_tables(["--from-vlmevalkit", str(kit / "out")]) == 0
    assert "Empty cells" not in capsys.readouterr().out


def test_a_set_without_a_score_ends_with_1_and_says_why(kit, echo, capsys):
    """Guards against: status 0 and an empty cell where the harness has survived its scorer's exception."""
    write_messages(kit, "Toy", image(), score=None)
    write_messages(kit, "Good", image())
    assert launch("--data", "Good", "Toy", "Typo") == 1
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: no score of Toy: VLMEvalKit failed: no judge; its log has the whole",
        "note: no score of Typo: VLMEvalKit skipped it: invalid dataset",
    ]
    assert print_tables(["--from-vlmevalkit", str(kit / "out")]) == 0
    printed = capsys.readouterr().out
    assert "- Toy of avis has no score: VLMEvalKit failed: no judge; its log has the whole.\n" in printed
    assert "- Typo of avis has no score and no line: avis has no record of it.\n" in printed
    assert launch("--data", "Good", "Toy", "--mode", "infer", "--name", "later") == 0  # no score was due
    assert "no score of Good: VLMEvalKit skipped it: mode infer" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_records_are_where_the_harness_writes(kit, echo, monkeypatch, capsys, place):
    """Guards against: scores in MMEVAL_ROOT, which the harness prefers to --work-dir, and answers elsewhere."""
    monkeypatch.setenv("MMEVAL_ROOT", "root")
    if place == ".env":
        (kit / ".env").write_text("MMEVAL_ROOT=root\n")
        monkeypatch.delenv("MMEVAL_ROOT")
    write_messages(kit, "Toy", image())
    assert launch("--data", "Toy") == 0
    assert (kit / "root/avis/answers.jsonl").exists() and not (kit / "out").exists()
    assert "note: MMEVAL_ROOT is set: scores and answers are in root\n" in capsys.readouterr().err
    assert read_settings(kit / "root")[0].scores == {"Toy": 50}
