"""VLMEvalKit's own files: what is said when they cannot be imported, and AVIS in a real checkout, where one is named.

`AVIS_VLMEVALKIT=../VLMEvalKit python -m pytest -m slow -k vlmevalkit tests`, with its requirements installed
(`docs/harnesses.md`), runs the last test.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from avis.evaluation.adapters import vlmevalkit
from avis.evaluation.adapters.vlmevalkit_checkout import missing_modules
from avis.evaluation.adapters.vlmevalkit_results import read_settings

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = str(ROOT / "models" / "garden-tiny")


def launch_error(capsys) -> str:
    """Run the launcher, which fails; return its line."""
    assert vlmevalkit.main(["--model-path", BUNDLED, "--data", "Toy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_without_the_harness_the_launcher_says_what_to_install(monkeypatch, capsys):
    """Guards against: a ModuleNotFoundError where there is no checkout of VLMEvalKit."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vlmeval" else real(name))
    line = launch_error(capsys)
    assert "vlmeval cannot be imported: install it with the command in docs/harnesses.md" in line


MODULES = {
    "run.py": """
        import json, numpy, absent_one
        from absent_two.part import thing
        from vlmeval.dataset import build_dataset
        if __name__ == "__main__":
            import absent_main
        """,
    "vlmeval/__init__.py": "from .tools import cli\n",
    "vlmeval/tools.py": "import absent_tools as tools\ndef cli():\n    import absent_later\n",
    "vlmeval/dataset/__init__.py": "from .image import *\nfrom . import video\nfrom ..smp import log\n",
    "vlmeval/dataset/image.py": """
        from typing import TYPE_CHECKING
        try:
            import absent_optional
        except (ImportError, OSError):
            absent_optional = None
        try:
            import Absent_needed
        finally:
            pass
        class Image:
            import absent_class
        if TYPE_CHECKING:
            import absent_typing
        """,
    "vlmeval/dataset/video.py": "from ..smp.log import log\nimport absent_one.more\n",
    "vlmeval/smp/__init__.py": "",
    "vlmeval/smp/log.py": "import absent_log\n",
    "vlmeval/unused.py": "import absent_unused\n",
}


def test_all_missing_modules_are_in_one_line(kit, capsys):
    """Guards against: one missing module a run of the launcher; and modules named that nothing needs."""
    for name, text in MODULES.items():
        path = kit / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(line.removeprefix("        ") for line in text.splitlines()) + "\n")
    (kit / "vlmeval/dataset.py").unlink()
    due = "absent_class absent_log Absent_needed absent_one absent_tools absent_two".split()
    assert missing_modules(kit / "run.py") == due
    assert f"these modules are missing: {', '.join(due)}; install it with the command in" in launch_error(capsys)


@pytest.mark.parametrize(
    "text, message",
    [
        ("raise AttributeError('no PyExtensionType\\nand more')", "AttributeError: no PyExtensionType; install it"),
        ("assert 1 > 2", "AssertionError: without a message; install it"),
        ("import sys; sys.exit(0)", "SystemExit: 0; install it"),
        ("import json.absent", "ModuleNotFoundError: No module named 'json.absent'"),
        ("from json import absent", "ImportError: cannot import name 'absent' from 'json'"),
        ("def (", "SyntaxError: invalid syntax"),
        ("", "has no load_env, main, build_dataset_from_cli: the adapter was written for VLMEvalKit's commit e8e78f05"),
    ],
)
def test_any_failure_of_the_import_is_one_line(kit, capsys, text, message):
    """Guards against: a traceback from the inside of the harness, or status 0, where a requirement is too old."""
    (kit / "run.py").write_text(text + "\n")
    assert message in launch_error(capsys)


# ------------------------------------------------------------------------------------------------- the real VLMEvalKit

SETTINGS = ("--min-pixels", "3136", "--max-pixels", "200704", "--max-new-tokens", "160")
real = pytest.mark.skipif("AVIS_VLMEVALKIT" not in os.environ, reason="AVIS_VLMEVALKIT names no checkout of VLMEvalKit")
# A set of the garden's videos in the real harness, under two names, as its own sets are for their samplings.
VIDEO_SET = """
import json, sys
from functools import partial
from pathlib import Path
from vlmeval.dataset.video_base import VideoBaseDataset
from vlmeval.dataset.video_dataset_config import supported_video_datasets
from avis.evaluation.adapters.vlmevalkit import main

class Garden(VideoBaseDataset):
    TYPE = "Video-VQA"

    @classmethod
    def supported_datasets(cls):
        return ["Garden"]

    def prepare_dataset(self, name):
        return {"root": ".", "data_file": "videos.tsv"}

    def build_prompt(self, line, video_llm):
        row = self.data.iloc[line]
        return [dict(type="video", value=row["video"]), dict(type="text", value=row["question"])]

    def evaluate(self, eval_file, **judge):
        score = {"overall": "60%" if self.nframe else "40%"}
        Path(eval_file).with_name(Path(eval_file).stem + "_rating.json").write_text(json.dumps(score))
        return score

for name, sampling in (("Garden_4frame", {"nframe": 4}), ("Garden_1fps", {"fps": 1})):
    supported_video_datasets[name] = partial(Garden, dataset="Garden", **sampling)
sys.exit(main())
"""


def run_real(folder: Path, *flags: str, code: tuple[str, ...] = ("-m", "avis.evaluation.adapters.vlmevalkit")):
    """Run the launcher in the checkout that AVIS_VLMEVALKIT names, with tables of a folder `dev`."""
    checkout = Path(os.environ["AVIS_VLMEVALKIT"]).resolve()
    environment = os.environ | {"LMUData": str(folder / "dev"), "PYTHONPATH": f"{ROOT}:{checkout}"}
    environment.pop("MMEVAL_ROOT", None)
    command = [sys.executable, *code, "--model-path", BUNDLED, "--device", "cpu", "--dtype", "float32"]
    command += ["--work-dir", "out", "--judge", "exact_matching", *SETTINGS, *flags]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def garden(tmp_path_factory) -> Path:
    """A folder with `dev`, the first items of that split."""
    from avis.garden.make import make

    folder = tmp_path_factory.mktemp("garden")
    make("dev", folder / "dev", limit=30, processes=1)
    return folder


@pytest.mark.slow
@real
def test_vlmevalkit_scores_garden_tables_as_we_do(garden, bundled):
    """Guards against: a layout, an image or an answer that changes on its way through the harness, and its scorers."""
    from avis.answers import answers_match
    from avis.config import AvisConfig
    from avis.pipeline import AvisPipeline
    from avis.questions import QuestionFile

    names = ["garden_dev_mcq", "garden_dev_vqa"]
    policy = ("--enable-kdv", "--policy-path", str(ROOT / "policy_checkpoint.pt"))
    for name, flags in (("vanilla", ()), ("avis", policy)):
        done = run_real(garden, "--name", name, *flags, "--data", *names)
        assert done.returncode == 0, done.stderr[-3000:]
    vanilla, avis = read_settings(garden / "out")
    assert vanilla.scores.keys() == avis.scores.keys() == set(names) and not vanilla.notes and not avis.notes
    assert all(avis.cost(name, vanilla)["llm"].value < 0.8 for name in names)
    pipeline, config = AvisPipeline(*bundled), AvisConfig(min_pixels=3136, max_pixels=200704, max_new_tokens=160)
    for name in names:
        source = QuestionFile(garden / "dev" / f"{name}.tsv")
        questions = [source.question(index) for index in range(len(source))]
        found = [pipeline(one.messages(source.media(one.index)), config=config).answer for one in questions]
        right = sum(answers_match(a, q.label.truth, q.label.options) for a, q in zip(found, questions, strict=True))
        assert right > 0 and vanilla.scores[name] == pytest.approx(100 * right / len(source))
    again = run_real(garden, "--name", "vanilla", "--data", *names, "Typo", "--reuse")
    assert again.returncode == 1 and "note: no score of Typo: VLMEvalKit skipped it: invalid dataset" in again.stderr
    assert "note: no score of garden" not in again.stderr


@pytest.mark.slow
@real
def test_vlmevalkit_shows_each_set_of_videos_in_its_own_sampling(garden):
    """Guards against: a second set of videos that is shown at no rate, and two scores on one line."""
    items = [json.loads(line) for line in (garden / "dev/items.jsonl").read_text().splitlines()]
    videos = [item for item in items if item["medium"] == "video"][:2]
    rows = ["\t".join(["index", "video", "question", "answer"])]
    rows += ["\t".join([str(n), f"dev/{v['files'][0]}", v["question_text"], v["value"]]) for n, v in enumerate(videos)]
    (garden / "videos.tsv").write_text("\n".join(rows) + "\n")
    names = ["Garden_4frame", "Garden_1fps"]
    done = run_real(garden, "--name", "videos", "--data", *names, code=("-c", VIDEO_SET))
    assert done.returncode == 0, done.stderr[-3000:]
    (setting,) = (one for one in read_settings(garden / "out") if one.name == "videos")
    assert setting.scores == {"Garden_4frame": 60, "Garden_1fps": 40}
    sampled = {
        name: {(r["config"]["fps"], r["config"]["num_frames"]) for r in setting.records[name].values()}
        for name in names
    }
    assert sampled == {"Garden_4frame": {(None, 4)}, "Garden_1fps": {(1.0, None)}}
