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


@pytest.mark.slow
@pytest.mark.skipif("AVIS_VLMEVALKIT" not in os.environ, reason="AVIS_VLMEVALKIT names no checkout of VLMEvalKit")
def test_vlmevalkit_scores_garden_tables_as_we_do(tmp_path, bundled):
    """Guards against: a layout, an image or an answer that changes on its way through the harness, and its scorers."""
    from avis.answers import answers_match
    from avis.config import AvisConfig
    from avis.garden.make import make
    from avis.pipeline import AvisPipeline
    from avis.questions import QuestionFile

    make("dev", tmp_path / "dev", limit=30, processes=1)
    names = ["garden_dev_mcq", "garden_dev_vqa"]
    command = [sys.executable, "-m", "avis.evaluation.adapters.vlmevalkit", "--model-path", BUNDLED, "--device", "cpu"]
    command += ["--dtype", "float32", "--work-dir", "out", "--judge", "exact_matching", *SETTINGS, "--data", *names]
    checkout = Path(os.environ["AVIS_VLMEVALKIT"]).resolve()
    environment = os.environ | {"LMUData": str(tmp_path / "dev"), "PYTHONPATH": f"{ROOT}:{checkout}"}
    environment.pop("MMEVAL_ROOT", None)
    for name, flags in (
        ("vanilla", []),
        ("avis", ["--enable-kdv", "--policy-path", str(ROOT / "policy_checkpoint.pt")]),
    ):
        done = subprocess.run(
            [*command, "--name", name, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    avis, vanilla = sorted(read_settings(tmp_path / "out"), key=lambda one: one.name)
    assert vanilla.scores.keys() == avis.scores.keys() == set(names) and not vanilla.notes and not avis.notes
    assert all(avis.cost(name, vanilla)["llm"].value < 0.8 for name in names)
    pipeline, config = AvisPipeline(*bundled), AvisConfig(min_pixels=3136, max_pixels=200704, max_new_tokens=160)
    for name in names:
        source = QuestionFile(tmp_path / "dev" / f"{name}.tsv")
        right = 0
        for index in range(len(source)):
            question = source.question(index)
            found = pipeline(question.messages(source.media(index)), config=config).answer
            right += answers_match(found, question.label.truth, question.label.options)
        assert right > 0 and vanilla.scores[name] == pytest.approx(100 * right / len(source))
    status = subprocess.run(
        [*command, "--name", "typo", "--data", "Typo"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert status.returncode == 1 and "note: no score of Typo: " in status.stderr
    records = [json.loads(line) for line in (tmp_path / "out/avis/answers.jsonl").read_text().splitlines()[1:]]
    assert {record["key"]["dataset"] for record in records} == set(names)
