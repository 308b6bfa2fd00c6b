"""The adapters to VLMEvalKit and lmms-eval: what reaches `answer()`, what the scorers get, what is on the disk.

VLMEvalKit is on no package index: a stand-in with its interface takes its place. lmms-eval is tested where it is
installed (the extra `lmms-eval`).
"""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from clips import write_clip

import avis.evaluation.adapters
from avis.config import AvisConfig
from avis.evaluation import tables
from avis.evaluation.adapters import Records, require_fork, vlmevalkit, vlmevalkit_results

ANSWER = sys.modules["policy.answer"]  # `policy.answer` itself is the function
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
                        print("the stand-in goes on after", type(error).__name__, error)
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
    monkeypatch.setattr(ANSWER, "load", lambda *_: bundled)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("vlmeval", "vlmeval_run")]:
        del sys.modules[name]


def data_set(folder: Path, name: str, *messages: list[dict], nframe: int | None = None) -> None:
    (folder / f"{name}.json").write_text(json.dumps({"messages": messages, "nframe": nframe}))


def picture(question: str = QUESTION) -> list[dict]:
    return [{"type": "image", "value": EXAMPLE}, {"type": "text", "value": question}]


def launch(*arguments: str) -> int:
    return vlmevalkit.main(["--model-path", BUNDLED, "--work-dir", "out", "--max-new-tokens", "160", *arguments])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------- VLMEvalKit


def test_launcher_runs_the_harness_with_every_answer_recorded(kit, monkeypatch):
    """Guards against: settings that do not reach `answer()`, scorers that see the thought, answers that are lost, and
    a second run that computes what is on the disk."""
    data_set(kit, "Toy", picture(), picture("How many wooden bears are there?"))
    flags = (*SMALL, "--data", "Toy", "--enable-kdv", "--kdv-ratio", "0.5", "--num-rollouts", "3", "--mode", "infer")
    assert launch(*flags) == 0
    found = json.loads((kit / "out/avis/Toy.predictions.json").read_text())
    config, *records = lines(kit / "out/avis/answers.jsonl")
    assert config["config"]["settings"]["kdv_ratio"] == 0.5 and config["config"]["weights_sha256"]
    assert [record["answer"] or vlmevalkit.ABSTAINED for record in records] == found
    assert not any("<" in answer for answer in found)
    for record in records:
        assert record["num_rollouts"] == len(record["rollouts"]) == 3 and record["rho"] == pytest.approx(0.5, abs=0.01)
        assert record["item"] == int(record["key"]["id"], 16) and record["key"]["dataset"] == "Toy"
    assert records[0]["item"] != records[1]["item"]
    assert (kit / "env").exists()  # the harness's own preparation was run
    monkeypatch.setattr(ANSWER, "answer", lambda *_: pytest.fail("asked again"))
    before = (kit / "out/avis/answers.jsonl").read_bytes()
    assert launch(*flags) == 0
    assert (kit / "out/avis/answers.jsonl").read_bytes() == before
    assert json.loads((kit / "out/avis/Toy.predictions.json").read_text()) == found


def test_pixel_bounds_are_the_papers_unless_given(kit, monkeypatch):
    """Guards against: a table made at the processor's own resolution, and a picture's bounds put on frames."""
    clip = write_clip(kit / "clip.mp4", count=48, rate=12)
    seen = []

    def answer(model, processor, messages, settings, *_):
        seen.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr(ANSWER, "answer", answer)
    video = [{"type": "video", "value": str(clip)}, {"type": "text", "value": QUESTION}]
    data_set(kit, "Pictures", picture())
    data_set(kit, "Videos", video)  # 2 a second, as the harness's own Qwen2.5-VL
    data_set(kit, "Framed", video, nframe=40)
    data_set(kit, "Short", video, nframe=64)  # more than the clip has
    assert launch("--data", "Pictures", "Videos", "Framed", "Short") == 0
    assert launch("--data", "Pictures", "Videos", *SMALL, "--name", "small") == 0
    bounds = [(s.min_pixels / 784, s.max_pixels / 784, s.fps, s.num_frames) for s in seen]
    assert bounds[:4] == [(1280, 16384, None, None), (128, 768, 2.0, None), (128, 768, None, 40), (128, 768, None, 48)]
    assert bounds[4:] == [(256, 256, None, None), (128, 256, 2.0, None)]
    model = object.__new__(vlmevalkit.Avis)
    model.settings, model.fps, model.nframe = AvisConfig(), None, 128
    long = write_clip(kit / "long.mp4", count=10, repeat=20)
    assert model._settings([str(long)]).max_pixels == 24576 * 784 * 2 // 128


def test_a_video_is_shown(kit):
    """Guards against: videos that are not shown; a model's name at which the harness passes more arguments."""
    clip = write_clip(kit / "clip.mp4", count=8, rate=4)
    message = [
        {"type": "text", "value": "Look at the clip. ", "role": "system"},
        {"type": "video", "value": str(clip)},
        {"type": "text", "value": QUESTION},
    ]
    data_set(kit, "MVBench", message, nframe=4)
    assert launch("--data", "MVBench", *SMALL, "--min-pixels", "784", "--name", "Qwen2.5-VL-7B-AVIS") == 0
    (record,) = lines(kit / "out/Qwen2.5-VL-7B-AVIS/answers.jsonl")[1:]
    assert [item["kind"] for item in record["items"]] == ["video"] and record["settings"]["num_frames"] == 4


class Told:
    """An asker that answers with the chat, and keeps what names the questions."""

    def __init__(self):
        self.keys: list[dict] = []

    def ask(self, key, item, query) -> dict:
        self.keys.append(key)
        return {"answer": query()[0][0]["content"]}


def test_what_names_a_question(tmp_path):
    """Guards against: answers about 8 frames taken for answers about 64, and answers that another folder makes new."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    clip, moved = (write_clip(tmp_path / folder / "clip.mp4", count=8, rate=4) for folder in ("a", "b"))
    model = object.__new__(vlmevalkit.Avis)
    model.settings, model.asker = AvisConfig(), Told()
    for path, nframe, question in ((clip, 4, "a"), (moved, 4, "a"), (clip, 8, "a"), (clip, 4, "b")):
        model.fps, model.nframe = None, nframe
        message = [{"type": "video", "value": str(path)}, {"type": "text", "value": question}]
        begun = [*message, {"type": "text", "value": "Best option:(", "role": "assistant"}]
        assert [part["type"] for part in model.generate_inner(begun, "MVBench")] == ["video", "text"]
    first, same, *others = [key["id"] for key in model.asker.keys]
    assert first == same and len({first, *others}) == 3


def test_a_question_that_fails_is_told_recorded_and_asked_again(kit, capsys):
    """Guards against: one bad question that ends a run of thousands, or is scored as an answer, or is never retried."""
    missing = [{"type": "image", "value": "missing.png"}, {"type": "text", "value": QUESTION}]
    special = picture("What follows <|im_end|>?")
    data_set(kit, "Toy", missing, special, picture())
    flags = ("--data", "Toy", *SMALL, "--no-enable-thinking")
    assert launch(*flags) == 0
    config, *records = lines(kit / "out/avis/answers.jsonl")
    assert ["error" in record for record in records] == [True, True, False]
    told = capsys.readouterr().err
    assert "no such file: missing.png" in told and "special token" in told
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
    "flags, told",
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
def test_what_is_wrong_is_one_line_and_2(kit, capsys, flags, told):
    """Guards against: a traceback, or a harness that goes on over every data set without a model."""
    data_set(kit, "Toy", picture())
    with pytest.raises(SystemExit) as ended:
        sys.exit(launch(*flags))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and told in line


def test_answers_of_other_settings_are_refused(kit, capsys):
    """Guards against: a table whose rows were made with two settings."""
    data_set(kit, "Toy", picture())
    assert launch("--data", "Toy", *SMALL, "--no-enable-thinking") == 0
    with pytest.raises(SystemExit) as ended:
        launch("--data", "Toy", *SMALL, "--no-enable-thinking", "--seed", "1")
    assert ended.value.code == 2 and "another model, version or setting" in capsys.readouterr().err


def test_without_the_harness_the_launcher_says_what_is_missing(monkeypatch, capsys):
    """Guards against: a ModuleNotFoundError for whoever has no checkout of VLMEvalKit."""
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
        path = ROOT / "evaluation" / "recipes" / f"{recipe}.yaml"
        assert list(yaml.safe_load(path.read_text())["data"]) == benchmarks.split()
        assert len(set(vlmevalkit.recipe_data(path))) == len(benchmarks.split())


# ---------------------------------------------------------------------------------- tables from VLMEvalKit's outputs

SETTINGS = {"kdv_threshold": None, "kdv_ratio": None, "pruner": "kdv", "num_rollouts": 1, "early_stop": True}


def work_folder(root: Path, name: str, spent: dict, costs: dict[str, list[int]], **config) -> Path:
    """A setting's folder with a record a question; `costs` are by data set the FLOPs of the language model."""
    folder = root / name
    folder.mkdir(parents=True)
    settings = SETTINGS | {"enable_kdv": False} | spent
    head = {
        "model_path": "some/model",
        "weights_sha256": "0" * 64,
        "policy_sha256": None,
        "settings": settings,
    } | config
    records = []
    for data, values in costs.items():
        kind = "video" if data.endswith("frame") else "image"
        for id, llm in enumerate(values):
            record = {
                "key": {"dataset": data, "id": str(id)},
                "flops": {"vision": 100, "prefill": llm - 10, "decode": 10},
            }
            records.append(record | {"items": [{"kind": kind}], "num_rollouts": settings["num_rollouts"], "rho": 0.5})
    lines = [{"config": head}, *records, {"key": {"dataset": "MMStar", "id": "9"}, "error": "no such file"}]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"key": {"da')
    return folder


def test_the_papers_tables_from_a_work_folder(tmp_path, capsys):
    """Guards against: scores of another setting, data set or day, and FLOPs relative to those of other questions."""
    plain = {"MMStar": [1000, 3000], "MathVista_MINI": [500], "MME": [800], "MVBench_64frame": [4000]}
    pruned = {"MMStar": [600, 1000, 77], "MathVista_MINI": [250], "MME": [800], "MVBench_64frame": [1000]}
    kdv = {"enable_kdv": True, "kdv_ratio": 0.75, "num_rollouts": 5}
    for name, spent, costs, shift in (("a", {}, plain, 0), ("b", kdv, pruned, 0.02)):
        folder = work_folder(tmp_path / "out", name, spent, costs)
        (folder / f"{name}_MMStar_acc.csv").write_text(f'"split","Overall","math"\n"none","{0.5 + shift}","0.1"\n')
        old, new = folder / "T20260101_G12345678", folder / "T20260201_G12345678"
        for day, score in ((old, 11), (new, 60 + 100 * shift)):
            day.mkdir()
            lines = [f"Overall,9,{score}", "geometry,4,3.5"]
            (day / f"{name}_MathVista_MINI_gpt-4o-mini_score.csv").write_text("\n".join(["Task&Skill,tot,acc", *lines]))
        (folder / f"{name}_MME_score.csv").write_text("perception,reasoning,OCR\n1500.5,600,140\n")
        (folder / f"{name}_MMErr_acc.csv").write_text('"split","Overall"\n"none","0.9"\n')
        rating = {"action": [1, 2, "50.0%"], "overall": [3, 5, f"{40 + 100 * shift}%"]}
        (folder / f"{name}_MVBench_64frame_rating.json").write_text(json.dumps(rating))
    assert tables.main(["--from-vlmevalkit", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|") and "---" not in line]
    by_name = {row[0]: row[1:] for row in rows}
    assert rows[0][1] == "a (vanilla)" and rows[0][3] == "b (rho = 0.75, K = 5)"
    # #F: 1600 of 4000, and with the vision tower's 100 a question 1800 of 4200; the third question has no vanilla.
    assert by_name["MMStar"][0:3] == ["50.0", "1.00; 1.00", "52.0"]
    assert by_name["MMStar"][3].startswith("0.40 (") and "; 0.43 (" in by_name["MMStar"][3]
    assert by_name["MathVista"][0] == "60.0" and by_name["MathVista"][2] == "62.0"  # of the newest day
    assert by_name["MME"][0] == "75.0" and by_name["MVBench"][0] == "40.0" and by_name["MVBench"][2] == "42.0"
    assert [row[0] for row in rows[1:5]] == ["MathVista", "MME", "MMStar", "MVBench"]  # the paper's order
    pictures, clips, gain, llm, _, k, rho = by_name["b (rho = 0.75, K = 5)"]
    assert (pictures, clips, gain) == (f"{(52 + 62 + 2100.5 / 28) / 3:.1f}", "42.0", "+1.5")
    assert float(llm) == pytest.approx((0.4 + 0.5 + 1 + 0.25) / 4, abs=0.006) and (k, rho) == ("5.00", "0.50")
    assert "Failed questions, scored as wrong: a 1, b 1." in text and "with early stop of the vote" in text


def test_what_the_harness_wrote_gets_its_cost(kit, capsys):
    """Guards against: tables that read records which the launcher does not write."""
    data_set(kit, "Toy", picture(), picture("How many wooden bears are there?"))
    for name, flags in (("vanilla", []), ("pruned", ["--enable-kdv", "--kdv-ratio", "0.5"])):
        assert launch(*SMALL, "--data", "Toy", "--name", name, "--no-enable-thinking", *flags) == 0
    vanilla, pruned = vlmevalkit_results.read_settings(kit / "out")
    assert (vanilla.name, vanilla.spent, pruned.spent) == ("vanilla", "vanilla", "rho = 0.5, K = 1")
    cost = pruned.cost("Toy", vanilla)
    assert 0.4 < cost["llm"].value < 0.7 and cost["llm"].value < cost["total"].value < 1 and cost["llm"].items == 2
    assert pruned.scores == {"Toy": None}  # the stand-in scores nothing
    assert tables.main(["--from-vlmevalkit", str(kit / "out")]) == 0
    assert f"| Toy |  | 1.00; 1.00 |  | {tables.fraction(cost['llm'])}; " in capsys.readouterr().out


@pytest.mark.parametrize(
    "metrics, score",
    [
        ({"split=dev|Overall": 0.8, "split=dev|AR": 0.7}, 80),
        ({"split=Overall|Overall": 86.1, "split=Overall|acc": 87.0, "split=random|Overall": 90.0}, 86.1),
        ({"overall|overall": 0.61, "overall|domain|Knowledge": 0.5, "short|overall": 0.7}, 61),
        ({"Task&Skill=Overall|tot": 1000.0, "Task&Skill=Overall|hit": 681.0, "Task&Skill=Overall|acc": 68.1}, 68.1),
        ({"split=dev|Overall": 0.8, "split=test|Overall": 0.7}, None),
        ({"Subject=algebra|acc": 40.0}, None),
        ({}, None),
    ],
)
def test_the_overall_score_or_none(metrics, score):
    """Guards against: a part's score that is told as the whole's, and a guess where it is not clear."""
    found = vlmevalkit_results.overall(metrics)
    assert found is None if score is None else found == pytest.approx(score)


def test_work_folders_that_cannot_be_told_are_one_line(tmp_path, capsys):
    """Guards against: a traceback, or #F relative to a run that is not vanilla's."""
    (tmp_path / "none").mkdir()
    work_folder(tmp_path / "pruned", "b", {"enable_kdv": True}, {"MMStar": [10]})
    junk = tmp_path / "junk" / "a"
    junk.mkdir(parents=True)
    (junk / "answers.jsonl").write_text('{"a": 1}\n')
    for name, words in (
        ("none", "no */answers.jsonl"),
        ("pruned", "no vanilla run of some/model"),
        ("junk", "not a file"),
    ):
        assert tables.main(["--from-vlmevalkit", str(tmp_path / name)]) == 2
        told = capsys.readouterr().err
        assert words in told and told.startswith("error: ") and told.count("\n") == 1


# ------------------------------------------------------------------------------------------------ what adapters share


def test_records_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    """Guards against: an answer doubled or lost when the process is killed while it writes."""
    path = tmp_path / "answers.jsonl"
    records = Records(path, {"a": 1})
    records.append({"key": {"id": 1}, "answer": "x"})
    with pytest.raises(ValueError, match="another run"):
        Records(path, {"a": 1})
    records.append({"key": {"id": 2}, "error": "told"})
    del records  # closes it, as the end of a process does
    whole = path.read_bytes()
    for cut in (b'{"key": {"id": 3}, "ans', b'{"key"'):
        path.write_bytes(whole + cut)
        again = Records(path, {"a": 1})
        assert again.get({"id": 1}) == {"key": {"id": 1}, "answer": "x"}
        assert again.get({"id": 2}) is None and again.get({"id": 3}) is None
        del again
        assert [record.get("key") for record in lines(path)] == [None, {"id": 1}]


@pytest.mark.parametrize("text", ["notes of mine", '{"config": {"a": 2}}\n', '{"config": {"a": 1}}\n[]\n'])
def test_records_never_replace_another_file(tmp_path, text):
    """Guards against: a user's file that is overwritten because it was named by mistake."""
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="choose another name"):
        Records(path, {"a": 1})
    assert path.read_text() == text


def test_each_process_of_a_run_has_its_own_file(monkeypatch):
    """Guards against: two processes of one run that wait for, or write into, the same file."""
    monkeypatch.delenv("RANK", raising=False)
    assert avis.evaluation.adapters.rank_path(Path("out/a.jsonl")) == Path("out/a.jsonl")
    monkeypatch.setenv("RANK", "0")
    assert avis.evaluation.adapters.rank_path(Path("out/a.jsonl")) == Path("out/a.jsonl")
    monkeypatch.setenv("RANK", "2")
    assert avis.evaluation.adapters.rank_path(Path("out/a.jsonl")) == Path("out/a.2.jsonl")


def test_a_replaced_fork_is_told_in_one_line(tmp_path):
    """Guards against: an ImportError from deep inside where another package's installation has replaced the fork."""
    require_fork()
    package = tmp_path / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "5.0.0"\n')
    code = "from avis.evaluation.adapters import vlmevalkit; import sys; sys.exit(vlmevalkit.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "--model-path", BUNDLED, "--data", "Toy"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "not AVIS's fork" in line and "setup.sh" in line


# --------------------------------------------------------------------------------------------------------- lmms-eval


TASK = """
dataset_path: json
dataset_kwargs:
  data_files: {{test: {items}}}
task: garden_test
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visuals
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
UTILS = """
from pathlib import Path
from PIL import Image


def visuals(doc):
    return [path if path.endswith(".mp4") else Image.open(path) for path in doc["paths"]]
"""


def write_task(folder: Path, count: int = 3) -> list[dict]:
    """A task folder for `--include_path` with a split's first items; returns them."""
    from avis.garden.make import make

    make("test", folder / "split", limit=count, processes=1)
    items = lines(folder / "split" / "items.jsonl")
    for item in items:
        item["paths"] = [str(folder / "split" / name) for name in item["files"]]
    kept = [{name: item[name] for name in ("question", "answer", "paths")} for item in items]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in kept))
    (folder / "garden_test.yaml").write_text(TASK.format(items=folder / "items.jsonl"))
    (folder / "utils.py").write_text(UTILS)
    return items


@pytest.mark.slow
def test_lmms_eval_runs_a_local_task(tmp_path):
    """Guards against: a plugin that lmms-eval does not find, or cannot run from its own command line."""
    pytest.importorskip("lmms_eval", reason="the extra lmms-eval is not installed")
    items = write_task(tmp_path)
    settings = "enable_kdv=true,kdv_ratio=0.5,num_rollouts=3,max_new_tokens=160"
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval", "--model", "avis", "--tasks", "garden_test", "--batch_size", "1"]
        + ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--device", "cpu"]
        + ["--model_args", f"pretrained={BUNDLED},{settings},records={tmp_path / 'answers.jsonl'}"],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    config, *records = lines(tmp_path / "answers.jsonl")
    assert [record["key"]["id"] for record in records] == list(range(len(items)))
    assert all(record["num_rollouts"] == 3 and "error" not in record for record in records)
    right = sum(record["answer"] == item["answer"] for record, item in zip(records, items, strict=True))
    (results,) = (tmp_path / "out").rglob("*results.json")
    measured = json.loads(results.read_text())["results"]["garden_test"]["exact_match,none"]
    assert measured == pytest.approx(right / len(items))
