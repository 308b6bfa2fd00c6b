"""The speed benchmark's command: a sweep of the tiny geometry, its document, goals and figures, and how it resumes."""

import copy
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from avis.evaluation.benchmark import geometry, plots
from avis.evaluation.benchmark.__main__ import main
from avis.evaluation.benchmark.goals import current_words, judge_goals
from avis.evaluation.benchmark.latency import PAPER_RATIOS
from avis.evaluation.benchmark.summary import prediction_errors, summarize

ROOT = Path(__file__).resolve().parents[1]
SWEEP = ["--geometry", "tiny", "--visual-tokens", "6,16", "--rho", "0,0.75", "--rollouts", "1,5"]
SWEEP += ["--video-tokens", "512", "--new-tokens", "3", "--rounds", "2", "--pairs", "2"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A small sweep, through the command itself: the document's path."""
    path = tmp_path_factory.mktemp("speed") / "tiny.json"
    assert main([*SWEEP, "--out", str(path)]) == 0
    return path


def test_document(sweep):
    """Guards against: a point of the sweep that is missing, stages that are missing from it, ratios that are not of the
    same round, and a document that is not JSON for others (NaN)."""
    text = sweep.read_text()
    assert "NaN" not in text and "Infinity" not in text
    document = json.loads(text)
    assert document.pop("command") == f"python -m avis.evaluation.benchmark {shlex.join([*SWEEP, '--out', str(sweep)])}"
    points = {(p["visual_tokens"], p["rho"], p["k"]): p for p in document["points"]}
    assert set(points) == {(n, rho, k) for n in (6, 16) for rho in (0.0, 0.75) for k in (1, 5)}
    for point in points.values():
        for stage in ("vision", "prefill", "decode_step", "whole"):
            assert point[stage]["n"] == 2 and 0 < point[stage]["least"] <= point[stage]["most"]
            assert point["floor"][stage] > 0 and point["predicted"][stage]["total"] > 0
            predicted = point["predicted"][stage]["total"]
            assert point["error"][stage] == pytest.approx(predicted / point[stage]["median"] - 1)
        assert point["kept"] == geometry.kept_length(point["visual_tokens"], point["rho"])
        assert point["cache_bytes"] > 0
        assert sys.platform != "linux" or min(point["peak_bytes"].values()) > 10 * 2**20
    assert points[16, 0.0, 1]["faster_than_vanilla"] == {"median": 1.0, "least": 1.0, "most": 1.0, "n": 2}
    assert all(stage["scoring"]["least"] > 0 for stage in document["stages"] if stage["rho"])
    assert not any("scoring" in stage for stage in document["stages"] if not stage["rho"])
    assert [row["setting"] for row in document["latency"]["rows"]] == list(PAPER_RATIOS)
    video = document["video_memory"]
    assert (video["frames"], video["kept"]) == (2, geometry.TEXT_TOKENS + 2 + 128)
    # By hand: 3 layers, 2 key heads of width 16; width 64, and 176 in the feed-forward part; float32.
    assert (video["cache"], video["layer"]) == (194 * 3 * 2 * 2 * 16 * 4, 194 * (2 * 64 + 3 * 176) * 4)
    if video["peak_bytes"] is not None:
        least = video["weights"] + video["cache"] + video["layer"]
        assert video["of_least"] == pytest.approx(video["peak_bytes"] / least)
        assert video["pixels"] == 4 * 512 * 1176 * 4  # four patches a token, of 3 * 2 * 14 * 14 values in float32
        with_pixels = (video["peak_bytes"] + video["pixels"]) / least
        assert video["of_least_with_pixels"] == pytest.approx(with_pixels) and video["peak_bytes"] > video["weights"]
    assert document["goals"] and document["internet_scale"]["estimate"] is True
    lines = [json.loads(line) for line in sweep.with_suffix(".jsonl").read_text().splitlines()]
    assert json.loads(json.dumps(summarize(lines))) == document
    rounds = [line for line in lines if line["kind"] == "round" and line["visual_tokens"] == 16]
    ratios = []
    for line in rounds:
        own = line["engine"][1]
        own = own["vision"] + own["prefill"] + own["rollouts"][1]["seconds"]
        ratios.append(line["upstream"][1]["seconds"] / own)
    assert points[16, 0.75, 5]["faster_than_upstream"]["median"] == pytest.approx(sum(ratios) / 2)


def test_a_stopped_sweep_resumes(sweep, tmp_path, capsys):
    """Guards against: a killed sweep that begins anew, measures a round twice, or trips over a cut-off line."""
    whole = sweep.with_suffix(".jsonl").read_text().splitlines(keepends=True)
    rounds = [i for i, line in enumerate(whole) if '"kind": "round"' in line]
    path = tmp_path / "tiny.json"
    held = whole[: rounds[2] + 1]
    path.with_suffix(".jsonl").write_text("".join(held) + whole[rounds[3]][:40])
    assert main([*SWEEP, "--out", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
    lines = path.with_suffix(".jsonl").read_text().splitlines(keepends=True)
    assert lines[: len(held)] == held
    added = [line for line in map(json.loads, lines[len(held) :]) if line["kind"] != "rates"]
    again = [(line["kind"], line.get("visual_tokens"), line.get("round", line.get("index"))) for line in added]
    assert again == [("round", 16, 1), ("pair", None, 0), ("pair", None, 1)]


def test_another_sweep_is_not_resumed(sweep, capsys):
    """Guards against: one document made of measurements with different settings."""
    before = sweep.read_bytes()
    assert main([*SWEEP[:-6], "--new-tokens", "4", "--out", str(sweep)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "another new_tokens: move it away" in error
    assert sweep.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [["--visual-tokens", "7"], ["--rho", "1.5"], ["--rho", "x"], ["--rollouts", "0"], ["--new-tokens", "1"]]
    + [["--k-mix", "1:0.5"], ["--rounds", "0"], ["--video-tokens", "300"], ["--out", "x.jsonl"]]
    + ([] if torch.cuda.is_available() else [["--device", "cuda"]]),
)
def test_bad_input_is_refused_in_one_line(arguments, capsys):
    """Guards against: a traceback, or minutes of measuring before a slip is reported."""
    try:
        status = main(["--geometry", "tiny", *arguments])
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and "error: " in error.splitlines()[-1]


def test_goals_are_judged_by_their_bounds(sweep):
    """Guards against: a goal that is called reached whatever was measured."""
    document = json.loads(sweep.read_text())
    for bound, reached in ((0.24, True), (-0.26, False)):
        changed = copy.deepcopy(document)
        for point in changed["points"]:
            point["error"] = dict.fromkeys(point["error"], bound)
        goal = [goal for goal in judge_goals(changed) if goal["goal"] == "largest error of the cost model"]
        assert [g["reached"] for g in goal] == [reached]
    changed["config"] |= {"geometry": "7b", "device": "cuda"}
    changed["latency"]["rows"] = [
        {"setting": name, "paper": paper, "faster_than_vanilla": 1.02} for name, paper in PAPER_RATIOS.items()
    ]
    judged = {goal["goal"]: goal["reached"] for goal in judge_goals(changed) if "over vanilla" in goal["goal"]}
    assert judged == {
        "(0.75, 1) over vanilla, 2 pairs": False,
        "(0.75, 5) over vanilla, 2 pairs": True,
        "AVIS-like over vanilla, 2 pairs": False,
    }


def test_figures(sweep, tmp_path):
    """Guards against: a figure that can no longer be drawn from the document, or that is empty."""
    assert plots.main([str(sweep), "--folder", str(tmp_path)]) == 0
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"speed_tiny_{name}.png" for name in ("rho", "rollouts", "roofline", "tokens")]
    for name in files:
        with Image.open(tmp_path / name) as image:
            assert image.convert("L").getextrema() == (0, 255)
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    assert plots.main([str(empty), "--folder", str(tmp_path)]) == 2


@pytest.mark.unit
@pytest.mark.parametrize("path", sorted((ROOT / "avis/evaluation/results/speed").glob("*.json")), ids=lambda p: p.stem)
def test_committed_documents_are_judged_alike(path):
    """Guards against: a cleaned goal or error that comes to another number than the one that was published."""
    document = json.loads(path.read_text())
    published = [goal | {"goal": current_words(goal["goal"])} for goal in document["goals"]]
    assert judge_goals(document) == published
    assert prediction_errors(document["points"]) == document["cost_model"]
