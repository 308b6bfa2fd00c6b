"""The adapter to VLMEvalKit: what reaches `answer()`, what the scorers get, what is on the disk.

VLMEvalKit is on no package index: a stand-in with its interface takes its place.
"""

import importlib.util
import json
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from clips import write_clip

from avis.config import AvisConfig
from avis.evaluation.adapters import vlmevalkit
from avis.evaluation.adapters.vlmevalkit_results import read_settings

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = str(ROOT / "example.jpg")
BUNDLED = str(ROOT / "models" / "garden-tiny")
QUESTION = "How many wooden rabbits are wearing glasses?"
SMALL = ("--max-pixels", "200704")  # the example at the paper's bounds is 1280 tokens

# What VLMEvalKit has at commit e8e78f05, as far as a model meets it: a base class, a table of constructors, and a
# program that makes the model by its name, asks it once a question, and survives what a data set raises.
STAND_IN = {
    "vlmeval/__init__.py": "",
    "vlmeval/config.py": "supported_VLM = {}\n",
    "vlmeval/vlm/__init__.py": "",
    "vlmeval/vlm/base.py": """
        class BaseModel:
            INTERLEAVE = False
            allowed_types = ["text", "image", "video"]

            def __init__(self):
                self.dump_image_func = None

            def use_custom_prompt(self, dataset):
                return False

            def generate(self, message, dataset=None):
                assert all(part["type"] in self.allowed_types for part in message)
                return self.generate_inner(message, dataset)
        """,
    "run.py": """
        import argparse, json
        from pathlib import Path
        from vlmeval.config import supported_VLM

        def load_env():
            Path("env").touch()

        def main():
            parser = argparse.ArgumentParser()
            parser.add_argument("--data", nargs="+")
            parser.add_argument("--model", nargs="+")
            parser.add_argument("--work-dir")
            parser.add_argument("--mode", default="all", choices=["all", "infer", "eval"])
            args = parser.parse_args()
            for name in args.model:
                model = None
                for data in args.data:
                    try:
                        held = json.loads(Path(data + ".json").read_text())
                        kwargs = {"use_vllm": False} if "Qwen2.5-VL" in name else {}
                        model = model or supported_VLM[name](**kwargs)
                        if held.get("nframe"):
                            model.nframe, model.fps = held["nframe"], None
                        found = [model.generate(message=message, dataset=data) for message in held["messages"]]
                        folder = Path(args.work_dir) / name
                        folder.mkdir(parents=True, exist_ok=True)
                        (folder / (data + ".predictions.json")).write_text(json.dumps(found))
                    except Exception as error:
                        print("the stand-in runs its next data set after", type(error).__name__, error)
        """,
}


@pytest.fixture
def kit(tmp_path, monkeypatch, bundled):
    """A checkout of the stand-in, importable, with the bundled model already loaded; returns its folder."""
    for name, text in STAND_IN.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr("avis.pipeline.load_model", lambda *_: bundled)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("vlmeval", "vlmeval_run")]:
        del sys.modules[name]


def data_set(folder: Path, name: str, *messages: list[dict], nframe: int | None = None) -> None:
    (folder / f"{name}.json").write_text(json.dumps({"messages": messages, "nframe": nframe}))


def image(question: str = QUESTION) -> list[dict]:
    return [{"type": "image", "value": EXAMPLE}, {"type": "text", "value": question}]


def launch(*arguments: str) -> int:
    return vlmevalkit.main(["--model-path", BUNDLED, "--work-dir", "out", "--max-new-tokens", "160", *arguments])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_launcher_runs_the_harness_with_every_answer_recorded(kit, monkeypatch):
    """Guards against: settings that do not reach `answer()`, scorers that see the thought, answers that are lost, and
    a second run that computes what is on the disk."""
    data_set(kit, "Toy", image(), image("How many wooden bears are there?"))
    flags = (*SMALL, "--data", "Toy", "--enable-kdv", "--kdv-ratio", "0.5", "--num-rollouts", "3", "--mode", "infer")
    assert launch(*flags) == 0
    found = json.loads((kit / "out/avis/Toy.predictions.json").read_text())
    config, *records = lines(kit / "out/avis/answers.jsonl")
    assert config["config"]["settings"]["kdv_ratio"] == 0.5 and config["config"]["weights_sha256"]
    assert [record["answer"] or vlmevalkit.ABSTAINED for record in records] == found
    assert not any("<" in answer for answer in found)
    for record in records:
        assert record["num_rollouts"] == len(record["rollouts"]) == 3 and record["rho"] == pytest.approx(0.5, abs=0.01)
        assert record["query_index"] == int(record["key"]["id"], 16) and record["key"]["dataset"] == "Toy"
    assert records[0]["query_index"] != records[1]["query_index"]
    assert (kit / "env").exists()  # the harness's own preparation was run
    monkeypatch.setattr("avis.pipeline.AvisPipeline.__call__", lambda *_, **__: pytest.fail("asked again"))
    before = (kit / "out/avis/answers.jsonl").read_bytes()
    assert launch(*flags) == 0
    assert (kit / "out/avis/answers.jsonl").read_bytes() == before
    assert json.loads((kit / "out/avis/Toy.predictions.json").read_text()) == found


def test_pixel_bounds_are_the_papers_unless_given(kit, monkeypatch):
    """Guards against: a table made at the processor's own resolution, and an image's bounds put on frames."""
    path = write_clip(kit / "video.mp4", count=48, rate=12)
    seen = []

    def answer(pipeline, messages, config, query_index):
        seen.append(config)
        raise ValueError("enough")

    monkeypatch.setattr("avis.pipeline.AvisPipeline.__call__", answer)
    video = [{"type": "video", "value": str(path)}, {"type": "text", "value": QUESTION}]
    data_set(kit, "Images", image())
    data_set(kit, "Videos", video)  # 2 a second, as the harness's own Qwen2.5-VL
    data_set(kit, "Framed", video, nframe=40)
    data_set(kit, "Short", video, nframe=64)  # more than the video has
    assert launch("--data", "Images", "Videos", "Framed", "Short") == 0
    assert launch("--data", "Images", "Videos", *SMALL, "--name", "small") == 0
    bounds = [(s.min_pixels / 784, s.max_pixels / 784, s.fps, s.num_frames) for s in seen]
    assert bounds[:4] == [(1280, 16384, None, None), (128, 768, 2.0, None), (128, 768, None, 40), (128, 768, None, 48)]
    assert bounds[4:] == [(256, 256, None, None), (128, 256, 2.0, None)]
    model = object.__new__(vlmevalkit.Avis)
    model.avis_config, model.fps, model.nframe = AvisConfig(), None, 128
    long = write_clip(kit / "long.mp4", count=10, repeat=20)
    assert model.config_for([str(long)]).max_pixels == 24576 * 784 * 2 // 128


def test_a_video_is_shown(kit):
    """Guards against: videos that are not shown; a model's name at which the harness passes more arguments."""
    path = write_clip(kit / "video.mp4", count=8, rate=4)
    message = [
        {"type": "text", "value": "Look at the video. ", "role": "system"},
        {"type": "video", "value": str(path)},
        {"type": "text", "value": QUESTION},
    ]
    data_set(kit, "MVBench", message, nframe=4)
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
    model.avis_config, model.asker = AvisConfig(), EchoAsker()
    for path, nframe, question in ((first, 4, "a"), (moved, 4, "a"), (first, 8, "a"), (first, 4, "b")):
        model.fps, model.nframe = None, nframe
        message = [{"type": "video", "value": str(path)}, {"type": "text", "value": question}]
        begun = [*message, {"type": "text", "value": "Best option:(", "role": "assistant"}]
        assert [part["type"] for part in model.generate_inner(begun, "MVBench")] == ["video", "text"]
    known, same, *others = [key["id"] for key in model.asker.keys]
    assert known == same and len({known, *others}) == 3


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
    data_set(kit, "Keys", *([part, text] for part in parts), [still, text], nframe=8)
    assert launch("--data", "Keys", *SMALL, "--max-new-tokens", "1") == 0
    six, four, unknown, wrong, image_ = lines(kit / "out/avis/answers.jsonl")[1:]
    assert [record["items"][0]["total"] for record in (six, four)] == [3 * 6, 2 * 6]
    assert image_["items"][0]["total"] <= 40 and six["key"] != four["key"]
    assert "unknown key 'detail'" in unknown["error"] and "fps must be a number" in wrong["error"]
    assert "Traceback" not in capsys.readouterr().err


def test_bounds_follow_the_frames_that_a_video_asks_for(tmp_path):
    """Guards against: frames as small as those of 128 where a data set asks for 8."""
    path = str(write_clip(tmp_path / "long.mp4", count=200, rate=10))
    model = object.__new__(vlmevalkit.Avis)
    model.avis_config, model.fps, model.nframe = AvisConfig(), None, 128
    assert model.config_for([path]).max_pixels < model.config_for([path], [{"nframes": 8}]).max_pixels == 768 * 784
    with pytest.raises(ValueError, match="fewer than the 128 asked for"):
        model.config_for([path], [{"video_end": 2.0}])


def test_a_question_that_fails_is_reported_recorded_and_asked_again(kit, capsys):
    """Guards against: one bad question that ends a run of thousands, or is scored as an answer, or is never retried."""
    missing = [{"type": "image", "value": "missing.png"}, {"type": "text", "value": QUESTION}]
    special = image("What follows <|im_end|>?")
    data_set(kit, "Toy", missing, special, image())
    flags = ("--data", "Toy", *SMALL, "--no-enable-thinking")
    assert launch(*flags) == 0
    config, *records = lines(kit / "out/avis/answers.jsonl")
    assert ["error" in record for record in records] == [True, True, False]
    printed = capsys.readouterr().err
    assert "no such file: missing.png" in printed and "special token" in printed
    found = json.loads((kit / "out/avis/Toy.predictions.json").read_text())
    assert found[:2] == [vlmevalkit.ABSTAINED] * 2
    (kit / "missing.png").write_bytes(Path(EXAMPLE).read_bytes())
    assert launch(*flags) == 0
    answered = lines(kit / "out/avis/answers.jsonl")[1:]
    assert sorted("error" in record for record in answered) == [False, False, True]
    assert len({json.dumps(record["key"]) for record in answered}) == 3


def test_an_abstention_is_no_answer_to_any_scorer():
    """Guards against: an abstention that a scorer takes for an option, for yes or no, or for a number."""
    # The rules of VLMEvalKit's scorers: an option as a word of its own, or as a letter; an option's text within it.
    words = vlmevalkit.ABSTAINED.replace(".", " ").split()
    assert not set(words) & set("ABCDEFGHIJ") and not {"yes", "no"} & {word.lower() for word in words}
    assert not any(option in vlmevalkit.ABSTAINED.lower() for option in ("no", "yes", "a", "e", "1", "0", "none"))
    assert words == ["Z"]  # which they read as "none of the options" without asking a judge


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "Toy", "--kdv-ratio", "0.5"], "need enable_kdv"),
        (["--data", "Toy", "--num-rollouts", "0"], "num_rollouts must be between"),
        (["--data", "Toy", "--recipe", "r.yaml"], "give --data or --recipe"),
        ([], "give --data or --recipe"),
        (["--data", "Toy", "--model", "other"], "--model is set here"),
        (["--data", "Toy", "--use-vllm"], "runs in Transformers"),
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
    data_set(kit, "Toy", image())
    with pytest.raises(SystemExit) as ended:
        sys.exit(launch(*flags))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_answers_of_other_settings_are_refused(kit, capsys):
    """Guards against: a table whose rows were made with two settings."""
    data_set(kit, "Toy", image())
    assert launch("--data", "Toy", *SMALL, "--no-enable-thinking") == 0
    with pytest.raises(SystemExit) as ended:
        launch("--data", "Toy", *SMALL, "--no-enable-thinking", "--seed", "1")
    assert ended.value.code == 2 and "another config.settings.seed: choose another name" in capsys.readouterr().err


def test_without_the_harness_the_launcher_says_what_is_missing(monkeypatch, capsys):
    """Guards against: a ModuleNotFoundError where there is no checkout of VLMEvalKit."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vlmeval" else real(name))
    assert launch("--data", "Toy") == 2
    assert "vlmeval cannot be imported" in capsys.readouterr().err


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
    data_set(kit, "Toy", image(), image("How many wooden bears are there?"))
    for name, flags in (("vanilla", []), ("pruned", ["--enable-kdv", "--kdv-ratio", "0.5"])):
        assert launch(*SMALL, "--data", "Toy", "--name", name, "--no-enable-thinking", *flags) == 0
    vanilla, pruned = read_settings(kit / "out")
    assert (vanilla.name, vanilla.spent, pruned.spent) == ("vanilla", "vanilla", "rho = 0.5, K = 1")
    cost = pruned.cost("Toy", vanilla)
    assert 0.4 < cost["llm"].value < 0.7 and cost["llm"].value < cost["total"].value < 1 and cost["llm"].items == 2
    assert pruned.scores == {"Toy": None}  # the stand-in scores nothing
    from avis.evaluation.tables.__main__ import main as print_tables
    from avis.evaluation.tables.cells import format_fraction

    assert print_tables(["--from-vlmevalkit", str(kit / "out")]) == 0
    assert f"| Toy |  | 1.00; 1.00 |  | {format_fraction(cost['llm'])}; " in capsys.readouterr().out
