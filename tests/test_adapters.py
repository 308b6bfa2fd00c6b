"""What the adapters to other harnesses share; and lmms-eval, where it is installed (the extra `lmms-eval`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from avis.config import AvisConfig
from avis.evaluation.adapters.asker import AnswerFile, Asker, rank_path, require_fork

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = str(ROOT / "models" / "garden-tiny")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    """Guards against: an answer doubled or lost when the process is killed while it writes."""
    path = tmp_path / "answers.jsonl"
    records = AnswerFile(path, {"a": 1})
    records.append({"key": {"id": 1}, "answer": "x"})
    with pytest.raises(ValueError, match="another run"):
        AnswerFile(path, {"a": 1})
    records.append({"key": {"id": 2}, "error": "no such file"})
    del records  # closes it, as the end of a process does
    whole = path.read_bytes()
    for cut in (b'{"key": {"id": 3}, "ans', b'{"key"'):
        path.write_bytes(whole + cut)
        again = AnswerFile(path, {"a": 1})
        assert again.get({"id": 1}) == {"key": {"id": 1}, "answer": "x"}
        assert again.get({"id": 2}) is None and again.get({"id": 3}) is None
        del again
        assert [record.get("key") for record in lines(path)] == [None, {"id": 1}]


def test_a_question_that_failed_is_answered_later_in_the_run(tmp_path):
    """Guards against: an answer that is not on the disk, because the same question had failed before it."""
    path = tmp_path / "answers.jsonl"
    answers = AnswerFile(path, {"a": 1})
    for record in ({"key": {"id": 1}, "error": "no such file"}, {"key": {"id": 1}, "answer": "x"}):
        answers.append(record)
    assert answers.get({"id": 1}) == {"key": {"id": 1}, "answer": "x"}
    assert lines(path) == [{"config": {"a": 1}}, {"key": {"id": 1}, "answer": "x"}]


@pytest.mark.parametrize("text", ["notes of mine", '{"config": {"a": 2}}\n', '{"config": {"a": 1}}\n[]\n'])
def test_records_never_replace_another_file(tmp_path, text):
    """Guards against: a user's file that is overwritten because it was named by mistake."""
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="choose another name"):
        AnswerFile(path, {"a": 1})
    assert path.read_text() == text


def test_answers_of_0_1_get_one_clear_line(tmp_path):
    """Guards against: "another config.settings.rollout_batch_size" where nothing was changed but the version."""
    path = tmp_path / "answers.jsonl"
    text = '{"config": {"settings": {"num_rollouts": 1, "early_stop": true}}}\n'
    path.write_text(text)
    with pytest.raises(ValueError, match="written by AVIS 0.1, .*: choose another name"):
        AnswerFile(path, {"settings": {"num_rollouts": 1, "vote_stop": "decided"}})
    assert path.read_text() == text


def test_weights_are_hashed_for_records_alone(monkeypatch, tmp_path, bundled):
    """Guards against: 16 GB read before the first answer of a run that records nothing."""
    output = SimpleNamespace(answer="2", prompt_tokens=300, new_tokens=40, to_dict=lambda: {"answer": "2"})
    hashed = []
    monkeypatch.setattr("avis.pipeline.load_model", lambda *_: bundled)
    monkeypatch.setattr("avis.pipeline.AvisPipeline.__call__", lambda *_, **__: output)
    monkeypatch.setattr("avis.provenance.weights_sha256", lambda path: hashed.append(path) or "0" * 64)
    monkeypatch.setattr("avis.outputs.weights_sha256", lambda path: hashed.append(path) or "0" * 64)
    query = ([{"role": "user", "content": "How many?"}], AvisConfig())
    record = Asker("test", BUNDLED, AvisConfig()).ask({"id": 1}, 1, lambda: query)
    assert record == {"key": {"id": 1}, "answer": "2", "prompt_tokens": 300, "new_tokens": 40} and not hashed
    asker = Asker("test", BUNDLED, AvisConfig(), tmp_path / "answers.jsonl")
    assert asker.ask({"id": 1}, 1, lambda: query) == {"key": {"id": 1}, "answer": "2"} and len(hashed) == 1


def test_each_process_of_a_run_has_its_own_file(monkeypatch):
    """Guards against: two processes of one run that wait for, or write into, the same file."""
    monkeypatch.delenv("RANK", raising=False)
    assert rank_path(Path("out/a.jsonl")) == Path("out/a.jsonl")
    monkeypatch.setenv("RANK", "0")
    assert rank_path(Path("out/a.jsonl")) == Path("out/a.jsonl")
    monkeypatch.setenv("RANK", "2")
    assert rank_path(Path("out/a.jsonl")) == Path("out/a.2.jsonl")


def test_a_replaced_fork_is_reported_in_one_line(tmp_path):
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
