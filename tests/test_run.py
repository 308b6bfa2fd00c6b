"""Runs of the evaluation: they survive a kill, share their examples out, and record what `answer()` says.

They are of the bundled model, on few examples and tokens.
"""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from policies import write_policy
from safetensors.torch import load_file, save_file

from avis.config import AvisConfig
from avis.evaluation import measure, run
from avis.evaluation.score import read_results, stopping_length
from avis.evaluation.tables.documents import find_disagreements, make_block
from avis.evaluation.tables.store import Store
from avis.evaluation.writer import ResultWriter
from avis.garden.source import open_source
from avis.pipeline import answer
from avis.voting import confidence_weight

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """Runs change settings of torch for their own process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
    torch.set_flush_denormal(False)


RECIPE = """
settings: {max_new_tokens: 10}
rows:
  - {name: vanilla}
  - {name: VRS K=3, rollouts: 3}
  - {name: KDV rho=0.75, rho: 0.75}
  - {name: random rho=0.75, rho: 0.75, pruner: random}
  - {name: smaller rho=0.75, rho: 0.75, pruner: downsample}
  - {name: AVIS, tau: policy, rollouts: policy}
  - {name: AVIS smaller, tau: policy, rollouts: policy, pruner: downsample}
"""
EXAMPLES = 5  # the fifth shows a video


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """A folder with a recipe and a policy with random weights."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "small.yaml").write_text(RECIPE)
    write_policy(folder / "policy.pt", num_rollouts=(3, 5), edges=(0.5,), tau=0.8, rho=0.6)
    return folder


def arguments(bench: Path, out: Path, *more: str) -> list[str]:
    told = ["--recipe", bench / "small.yaml", "--policy-path", bench / "policy.pt", "--limit", EXAMPLES, "--out", out]
    return [*map(str, told), "--model-path", str(ROOT / "models" / "garden-tiny"), *more]


def records(path: Path) -> list[dict]:
    """Return the records without their seconds, which are never the same twice."""
    found = list(read_results(path).records)
    for record in found:
        for name in record["runs"]:
            for of_seed in record["runs"][name]:
                del of_seed["seconds"]
    return found


@pytest.fixture(scope="module")
def whole(bench) -> Path:
    """A run in one go, in this process."""
    out = bench / "whole.jsonl.gz"
    assert run.main(arguments(bench, out)) == 0
    return out


def test_records_are_what_answer_says(whole, bundled, tmp_path):
    """Guards against: rollouts, tokens or costs that differ from those of `answer()` with the same settings."""
    results, settings = read_results(whole), AvisConfig(max_new_tokens=10, vote_stop="off")
    model, processor = bundled
    pruned = AvisConfig(max_new_tokens=10, vote_stop="off", enable_kdv=True, kdv_ratio=0.75)
    sampled = AvisConfig(max_new_tokens=10, vote_stop="off", num_rollouts=3)
    for name, one in (("vanilla", settings), ("KDV rho=0.75", pruned), ("VRS K=3", sampled)):
        outcome, vanilla = results.outcome(name), results.outcome("vanilla")
        for index in (0, EXAMPLES - 1):
            source = open_source("garden", "dev")
            messages = source.question(index).messages(source.media(index, tmp_path))
            said = answer(model, processor, messages, one, index)
            record = results.records[index]["runs"][outcome.row.run][0]
            drawn = slice(0, 1) if one.num_rollouts == 1 else slice(1, 4)
            assert record["answers"][drawn] == [rollout.answer for rollout in said.rollouts]
            assert record["tokens"][drawn] == [rollout.tokens for rollout in said.rollouts]
            assert record["kept"] == [part.kept for part in said.items]
            weights = [round(confidence_weight(rollout.mean_logprob), 4) for rollout in said.rollouts]
            assert record["confidence"][drawn] == weights and 0 < min(weights) <= max(weights) < 1
            assert (
                outcome.decode[0, index] == said.flops["decode"] and outcome.prefill[0, index] == said.flops["prefill"]
            )
            if name == "vanilla":
                assert vanilla.vision[0, index] == said.flops["vision"]
    said = said.to_dict()
    assert results.config["weights_sha256"] == said["weights_sha256"]
    assert results.config["versions"] == said["versions"]


def test_live_avis_agrees_with_its_offline_vote(whole):
    """Guards against: a policy row that no user would get, since it is put together from other rollouts."""
    results = read_results(whole)
    assert find_disagreements(results) == []
    for item in results.records:
        assert item["policy"]["rollouts"] in (3, 5)
        run_of, k = item["runs"]["tau=policy"][0], item["policy"]["rollouts"]
        stop = stopping_length(run_of["answers"][1 : k + 1], run_of["tokens"][1 : k + 1])
        assert item["policy"]["tokens"] == [min(n, stop) for n in run_of["tokens"][1 : k + 1]]
    for item in results.records:
        item["policy"]["right"] = 1 - item["policy"]["right"]
    assert len(find_disagreements(results)) == 1


def test_smaller_images_are_recorded_with_what_they_leave_out(whole):
    """Guards against: a baseline that is said to prune nothing, or is run on the full image."""
    for item in read_results(whole).records:
        for name in ("rho=0.75", "tau=policy"):
            small, kdv = item["runs"][f"{name} downsample"][0], item["runs"][name][0]
            assert small["visual"] == kdv["visual"]
            assert sum(small["kept"]) == pytest.approx(sum(kdv["kept"]), rel=0.15) and small["vision"] < kdv["vision"]


def test_a_killed_run_resumes(bench, whole):
    """Guards against: items that are lost, doubled or torn when a run is killed, and workers that outlive it."""
    out = bench / "killed.jsonl.gz"
    journal = out.with_suffix("")
    command = [sys.executable, "-m", "avis.evaluation.run", *arguments(bench, out, "--processes", "2")]
    with (bench / "stderr").open("wb") as told:
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=told, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, (bench / "stderr").read_text()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # the program alone: its workers have to notice
    process.wait()
    while _group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    held = journal.read_bytes()
    assert not out.exists() and 1 <= held.count(b"\n") - 1 < EXAMPLES
    journal.write_bytes(held + b'{"source":"garden-dev","item":4,"ta')  # the power went in the middle of a line
    assert run.main(arguments(bench, out)) == 0
    assert not journal.exists()
    assert records(out) == records(whole)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_shards_give_the_same_records(bench, whole):
    """Guards against: processes of `accelerate launch` that all do the same items, or leave some out."""
    out = bench / "shards.jsonl.gz"
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1".split()
    launch += "--mixed_precision no --dynamo_backend no --main_process_port 0".split()
    command = [sys.executable, *launch, "-m", "avis.evaluation.run", *arguments(bench, out)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert records(out) == records(whole)


def test_packing_gives_the_same_bytes_and_a_larger_limit_adds(bench, whole, tmp_path, monkeypatch):
    """Guards against: results that change in the repository although nothing was measured, or are measured again."""
    out = tmp_path / "again.jsonl.gz"
    out.write_bytes(whole.read_bytes())
    monkeypatch.setattr(measure.Evaluator, "measure", lambda self, *_: pytest.fail("measured again"))
    assert run.main(arguments(bench, out)) == 0
    assert out.read_bytes() == whole.read_bytes() and not out.with_suffix("").exists()
    asked = []

    def made_up(self, source: int, index: int) -> dict:
        asked.append(index)
        return {"source": "garden-dev", "item": index}

    monkeypatch.setattr(measure.Evaluator, "measure", made_up)
    assert run.main([*arguments(bench, out), "--limit", str(EXAMPLES + 2)]) == 0
    assert asked == [EXAMPLES, EXAMPLES + 1]
    assert [item["item"] for item in read_results(out).records] == list(range(EXAMPLES + 2))
    assert f"--limit {EXAMPLES + 2}" in read_results(out).environment["command"]


def test_what_fails_is_told_and_tried_again(bench, tmp_path, monkeypatch, capsys):
    """Guards against: an image that cannot be read and ends the run, or counts as a wrong answer."""
    out, fails = tmp_path / "some.jsonl.gz", [True]

    def made_up(self, source: int, index: int) -> dict:
        if fails and index == 1:
            raise ValueError("cannot read it\nand more")
        return {"source": "garden-dev", "item": index}

    monkeypatch.setattr(measure.Evaluator, "measure", made_up)
    assert run.main(arguments(bench, out)) == 1
    assert not out.exists() and "garden-dev 1: cannot read it" in capsys.readouterr().err
    fails.clear()
    assert run.main(arguments(bench, out)) == 0
    assert [item["item"] for item in read_results(out).records] == list(range(EXAMPLES))


def test_two_writers_leave_one_line_an_example(tmp_path):
    """Guards against: the same command started twice by mistake, which would count examples twice."""
    path, config = tmp_path / "a.jsonl.gz", {"seeds": [0]}
    with ResultWriter(path, config, {}) as one, ResultWriter(path, config, {}) as other:
        one.append({"source": "s", "item": 0})
        other.append({"source": "s", "item": 0})
        other.append({"source": "s", "item": 1})
        assert not one.pack({("s", 0), ("s", 1), ("s", 2)})
        one.append({"source": "s", "item": 2})
        assert other.pack({("s", 0), ("s", 1), ("s", 2)}) and one.pack({("s", 0), ("s", 1), ("s", 2)})
        lines = gzip.decompress(path.read_bytes()).splitlines()
        assert [json.loads(line).get("item") for line in lines] == [None, 0, 1, 2]
        with pytest.raises(OSError, match="completed by another run"):
            one.append({"source": "s", "item": 3})  # it would be lost


def test_packed_results_have_the_bytes_of_0_1_but_for_the_version(tmp_path):
    """Guards against: committed results that change when a longer run takes them up and packs them."""
    path, config = tmp_path / "a.jsonl.gz", {"seeds": [0]}
    records = [{"source": "s", "item": item, "p": 0.1 + item, "answers": ["a", None]} for item in (0, 1)]
    with ResultWriter(path, config, {"command": "first"}) as writer:
        for record in reversed(records):
            writer.append(record)
        assert writer.pack({("s", 0), ("s", 1)}) == 2
    header = {"version": 2, "config": config, "environment": {"command": "first"}}
    lines = [json.dumps(value, separators=(",", ":")) + "\n" for value in [header, *records]]
    packed = gzip.compress("".join(lines).encode(), mtime=0)
    assert path.read_bytes() == packed
    with ResultWriter(path, config, {"command": "second"}) as writer:
        assert writer.has("s", 1) and not writer.has("s", 2) and writer.pack({("s", 0)}) == 2
    assert path.read_bytes() == packed


@pytest.mark.parametrize("is_packed", [True, False])
def test_results_of_0_1_are_not_continued(tmp_path, is_packed):
    """Guards against: a file whose first half has other settings than its header names."""
    path, config = tmp_path / "a.jsonl.gz", {"seeds": [0]}
    line = json.dumps({"config": config, "environment": {}}, separators=(",", ":")).encode() + b"\n"
    if is_packed:
        path.write_bytes(gzip.compress(line))
    else:
        path.with_suffix("").write_bytes(line)
    with pytest.raises(ValueError, match="was measured by AVIS 0.1, .*: move it away, or choose another --out$"):
        ResultWriter(path, config, {})
    assert path.exists() == is_packed and path.with_suffix("").exists() != is_packed


def test_bad_input_is_one_line(bench, whole, tmp_path, capsys):
    """Guards against: a traceback, or hours under another model's or recipe's name."""
    other = tmp_path / "small.yaml"
    other.write_text(RECIPE.replace("rollouts: 3", "rollouts: 5"))
    nameless = tmp_path / "nameless.yaml"
    nameless.write_text("rows: [{name: vanilla}, {rho: 0.5}]")
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("rows: [{name: vanilla}]\nsettings: {beams: 3}")
    junk = tmp_path / "junk.jsonl.gz"
    junk.write_bytes(gzip.compress(b"[1]\n"))
    wrong = {
        "another rows": [*arguments(bench, whole), "--recipe", str(other)],
        "a row has a name": ["--recipe", str(nameless)],
        "beams": ["--recipe", str(unknown)],
        "No such file": ["--recipe", str(tmp_path / "none.yaml")],
        "--limit must be": [*arguments(bench, whole), "--limit", "0"],
        "questions are garden": [*arguments(bench, whole), "--tasks", "mmmu"],
        "split must be": [*arguments(bench, whole), "--split", "best"],
        "ends with .jsonl.gz": [*arguments(bench, tmp_path / "a.json")],
        "damaged": [*arguments(bench, junk)],
        "one process": [*arguments(bench, tmp_path / "c.jsonl.gz", "--processes", "2"), "--device", "auto"],
        "no CUDA": [*arguments(bench, tmp_path / "d.jsonl.gz"), "--device", "cuda"],
        "not a policy": [*arguments(bench, tmp_path / "b.jsonl.gz"), "--policy-path", str(other)],
    }
    for words, argv in wrong.items():
        assert run.main(argv) == 2, words
        told = capsys.readouterr().err
        assert words in told and told.startswith("error: ") and told.count("\n") == 1, told
    assert not whole.with_suffix("").exists()  # a refused run leaves nothing behind


def test_another_backbone_in_another_form(bench, tmp_path, monkeypatch, capsys):
    """Guards against: a second model that is asked in the first one's form, whose answers are not read, whose policy is
    the first one's without a word, or whose table looks like the first one's."""
    folder, recipe, out = tmp_path / "second", tmp_path / "backbones.yaml", tmp_path / "backbone-second.jsonl.gz"
    shutil.copytree(ROOT / "models" / "garden-tiny", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.001
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    recipe.write_text(
        "split: test\nsettings: {max_new_tokens: 160}\nrows: [{name: vanilla}, {name: VRS K=5, rollouts: 5}, "
        "{name: AVIS, tau: policy, rollouts: policy}]"
    )
    truth = open_source("garden", "test").question(0).label.truth
    real, prompts = measure.load_model, []

    def boxed(*arguments):
        """The model, as if it had learnt to answer so."""
        model, processor = real(*arguments)
        told = rf"<think>it is {truth}</think> \boxed{{{truth}}}"
        monkeypatch.setattr(processor.tokenizer, "batch_decode", lambda rows, **_: [told] * len(rows))
        template = processor.apply_chat_template
        note = lambda chat, **flags: prompts.append(template(chat, **flags)) or prompts[-1]  # noqa: E731
        monkeypatch.setattr(processor, "apply_chat_template", note)
        return model, processor

    monkeypatch.setattr(measure, "load_model", boxed)
    flags = ["--recipe", recipe, "--model-path", folder, "--policy-path", bench / "policy.pt", "--out", out]
    flags = [*map(str, flags), "--limit", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.main([*flags, "--answer-format", "vl-rethinker"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(told) == 1 and "fitted on other weights" in told[0]
    assert prompts and all(r"\boxed{}" in prompt for prompt in prompts)
    (item,) = read_results(out).records
    for (record,) in item["runs"].values():
        assert record["right"] == record["finished"] and 1 in record["right"]
    shown = make_block("backbones", "backbone-second", Store(tmp_path))
    assert [line.split(" | ")[0] for line in shown.splitlines()[2:5]] == ["| vanilla", "| VRS K=5", "| AVIS"]
    assert "model second (" in shown and "answer format vl-rethinker, policy fitted on other weights" in shown
    assert run.main([*flags, "--answer-format", "nobody's"]) == 2
    assert "answer_format must be" in capsys.readouterr().err
