"""What the repository says was measured: made with the shipped weights, and the same everywhere it is told."""

import json
from pathlib import Path

import pytest

from garden.accuracy import summarise
from policy.answer import weights_sha256

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "evaluation" / "results").glob("*.jsonl"))


def test_there_are_results():
    """Bug guarded: the results move, and every test below passes on nothing."""
    assert {path.stem for path in RESULTS} >= {"counting", "like-example", "example"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_belong_to_the_shipped_weights(path):
    """Bug guarded: the model is retrained and the old model's numbers stay in the README."""
    config = json.loads(path.read_text().splitlines()[0])
    assert config["weights_sha256"] == weights_sha256(str(ROOT / "models" / "garden-tiny"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_summaries_follow_from_their_lines(path):
    """Bug guarded: a summary that was edited, or made from other lines than those that are kept."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    made = json.loads(json.dumps(summarise(lines)))
    assert made == json.loads(path.with_suffix(".summary.json").read_text())


@pytest.mark.parametrize("name", ["counting", "like-example"])
def test_readme_tells_the_measured_numbers(name):
    """Bug guarded: a table in the README that no longer says what was measured."""
    readme = (ROOT / "README.md").read_text()
    summary = json.loads((ROOT / "evaluation" / "results" / f"{name}.summary.json").read_text())
    for setting, row in summary["settings"].items():
        low, high = row["ci95"]
        cell = f"| {setting} | {100 * row['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f}) |"
        assert cell in readme, f"README lacks: {cell}"
