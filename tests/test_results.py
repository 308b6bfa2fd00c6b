"""What the repository says was measured: made with the shipped weights, and the same everywhere it is told."""

import json
from pathlib import Path

import pytest

from garden.accuracy import settings_table, summarise, tasks_table
from policy.answer import weights_sha256

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "evaluation" / "results").glob("*.jsonl"))


def summary_of(name: str) -> dict:
    return json.loads((ROOT / "evaluation" / "results" / f"{name}.summary.json").read_text())


def test_there_are_results():
    """Bug guarded: the results move, and every test below passes on nothing."""
    assert {path.stem for path in RESULTS} >= {"dev", "test"}


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
    assert made == summary_of(path.stem)


def test_tables_tell_the_measured_numbers():
    """Bug guarded: a table in the README or the model card that no longer says what was measured."""
    assert settings_table(summary_of("test")) in (ROOT / "README.md").read_text()
    card = (ROOT / "models" / "garden-tiny" / "MODEL_CARD.md").read_text()
    assert tasks_table(summary_of("dev")) in card and settings_table(summary_of("dev")) in card
