"""What the repository says was measured: made with the shipped weights, and the same everywhere it is told."""

from pathlib import Path

from evaluation.tables import Store, check

ROOT = Path(__file__).resolve().parents[1]


def test_there_are_results():
    """Guards against: results that move, and documents that show tables of nothing."""
    assert set(Store(ROOT / "evaluation" / "results").names()) >= {"dev", "test"}


def test_documents_tell_what_was_measured_with_the_shipped_model():
    """Guards against: a retrained model or policy with the old numbers, and a table that was edited by hand."""
    assert check(ROOT) == []
