"""Fitting the policy, all of it: from a command to a checkpoint that its reader takes."""

import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from policies import one_line
from safetensors.torch import save_file
from transformers.models.qwen2_5_vl import flops

import demo
from avis.garden.source import GardenSource
from avis.provenance import quick_fingerprint
from policy.policy_model import CHOICES, PolicyModel
from policy.training import __main__ as whole
from policy.training import calibrate, collect, estimate, fit, overhead, report, tau
from policy.training.collected import CollectedRollouts

MODEL = str(demo.BUNDLED)


def test_fitting_from_end_to_end(bundled, tmp_path, capsys, monkeypatch):
    """Guards against: steps that do not fit together, a checkpoint that its reader refuses, reports that lack what says
    how they were made, and a second run that begins anew. Two processes draw."""
    monkeypatch.setattr(fit, "EPOCHS", 3)
    monkeypatch.setattr(collect, "SHARD", 4)
    monkeypatch.setattr(GardenSource, "sha256", "d" * 64)  # of all items, which takes seconds at every step
    out = tmp_path / "policy.pt"
    flags = ["--model-path", MODEL, "--data", "garden", "--items", "12", "--max-new-tokens", "8", "--processes", "2"]
    flags += ["--folder", str(tmp_path / "folder"), "--lambda", "0.05", "--out", str(out)]
    assert whole.main(flags) == 0
    policy = PolicyModel(out)
    model = bundled[0]
    angle, fitted, calibrated = (
        json.loads(path.read_text())
        for path in (tmp_path / "folder" / "tau.json", tmp_path / "folder" / "networks.json", out.with_suffix(".json"))
    )
    assert policy.check(model.config.vision_config.out_hidden_size, quick_fingerprint(MODEL)) is None
    assert policy.weights_sha256 == angle["weights_sha256"]
    assert policy.tau == angle["tau"] and policy.rho == angle["target_rho"] == 0.75
    assert angle["rho"] == pytest.approx(0.75, abs=0.01)
    assert angle["curve"][0]["rho"] <= angle["rho"] <= angle["curve"][-1]["rho"]
    for reported in (angle, fitted, calibrated):
        assert {"command", "seed", "versions", "weights_sha256", "n"} <= reported.keys()
    assert set(fitted["evaluation"]["rule"]["predictors"]) == {
        *("visual", "question", "constant", "tokens and diversity", "task label")
    }
    rule = calibrated["networks"][policy.metadata["default"]]["solutions"]["inverted U"]
    collected = CollectedRollouts(tmp_path / "folder" / "fitting")
    assert [line["index"] for line in collected.lines] == list(range(14))  # 12, and the rest of the last scene's
    items = collected.embeds(collected.lines[0]["scene"])
    assert policy.predict(items, collected.hidden([0])).num_rollouts in rule["num_rollouts"]
    assert policy(items[0][None]) in CHOICES

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "folder" / "fitting").iterdir()}
    assert whole.main(flags) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "folder" / "fitting").iterdir()}
    assert PolicyModel(out).predict(items, collected.hidden([0])) == policy.predict(items, collected.hidden([0]))

    steps = ["--networks", tmp_path / "folder" / "networks.pt", "--out", tmp_path / "other.pt"]
    steps += ["--collected", tmp_path / "folder" / "fitting"]
    assert "--budget" in one_line(capsys, calibrate.main, *steps, "--budget", "0.0001")
    assert "that is fitted on" in one_line(capsys, calibrate.main, *steps, "--dev", steps[-1])
    shard = next((tmp_path / "folder" / "fitting").glob("*.jsonl"))
    shard.write_bytes(shard.read_bytes().replace(b'"free"', b'"choice"').replace(b'"level": "1"', b'"level": "2"'))
    assert "was not fitted on" in one_line(capsys, calibrate.main, *steps)


def test_what_judges_is_not_fitted_on(tmp_path, capsys):
    """Guards against: a policy that is fitted on dev or test and then measured there; a folder that is none."""
    folder = tmp_path / "dev"
    folder.mkdir()
    line = {"index": 0, "scene": "0"}
    (folder / "shard-00000.jsonl").write_text(json.dumps(line) + "\n")
    save_file({"hidden/0": torch.zeros(2)}, folder / "shard-00000.safetensors")
    (folder / "collect.json").write_text(
        json.dumps({"config": {"shards": 1, "data": "garden-dev", "fingerprint": "f"}})
    )
    assert "to choose or to judge" in one_line(capsys, fit.main, "--collected", folder, "--out", tmp_path / "n.pt")
    assert "run python -m policy.training.collect" in one_line(
        capsys, fit.main, "--collected", tmp_path, "--out", tmp_path / "n.pt"
    )


@pytest.mark.parametrize("step", [whole, tau, collect, fit, calibrate, overhead, estimate])
def test_every_step_explains_itself(step, capsys):
    """Guards against: a flag without a word, and a percent sign that breaks the help."""
    with pytest.raises(SystemExit) as end:
        step.main(["--help"])
    assert end.value.code == 0 and "policy.training" in capsys.readouterr().out


def test_only_collecting_is_launched_on_several(monkeypatch, capsys):
    """Guards against: as many processes that fit and write the same checkpoint."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = ["--model-path", MODEL, "--data", "garden", "--out", "policy.pt"]
    assert "collect" in one_line(capsys, whole.main, *flags)


def test_a_report_repeats_its_command():
    """Guards against: a command in a report that cannot be run again."""

    args = Namespace(model_path="m", target_rho=0.5, items=None, out=Path("o.json"))
    reported = report("tau", args, 0, "w", 3)["command"]
    assert reported == "python -m policy.training.tau --model-path m --target-rho 0.5 --out o.json"


def test_an_older_folder_is_refused(tmp_path, capsys):
    """Guards against: a folder of version 0.1 that fails deep inside, after the networks have been fitted."""
    (tmp_path / "collect.json").write_text(json.dumps({"config": {"shards": 1, "data": "garden:calibration"}}))
    refused = one_line(capsys, fit.main, "--collected", tmp_path, "--out", tmp_path / "n.pt")
    assert "version 0.1" in refused and "collect again" in refused


def test_the_estimate_counts_what_collecting_counts(bundled, tmp_path, monkeypatch):
    """Guards against: an estimate by other formulas than the FLOPs of a line, or without the greedy rollout."""
    config = bundled[0].config
    monkeypatch.setattr(estimate, "published_config", lambda shape: config)
    found = estimate.estimate_flops("7b", 3, visual_tokens=16, text_tokens=10, rho=0.75, new_tokens=5)
    text = config.get_text_config()
    assert found["prefill"] == 3 * flops.prefill_flops(text, 14)
    assert found["decode"] == 3 * 17 * flops.decode_flops(text, 14, 5)
    assert found["vision"] == 6 * flops.vision_encoder_flops(config.vision_config, [(1, 8, 8)])


@pytest.mark.parametrize(
    "flags", [["--visual-tokens", "17"], ["--rho", "75"], ["--questions", "0"], ["--decode-tflops", "0"]]
)
def test_estimates_of_nothing(capsys, flags):
    """Guards against: a traceback or a negative cost."""
    assert flags[0] in one_line(capsys, estimate.main, *flags)


def test_the_page_shows_what_the_estimate_prints(capsys):
    """Guards against: a page whose cost is of another model, or of another time."""
    page = (demo.ROOT / "docs" / "policy.md").read_text()
    pattern = r"```bash\n\S+ -m policy\.training\.estimate ([^\n]*)\n```\n+```text\n(.*?)```"
    blocks = re.findall(pattern, page, re.DOTALL)
    assert len(blocks) == 2
    for arguments, shown in blocks:
        assert estimate.main(arguments.split()) == 0
        assert capsys.readouterr().out == shown
