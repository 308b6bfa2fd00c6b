"""What the repository says was measured: made with the shipped weights, and the same everywhere it is told."""

from collections import Counter
from pathlib import Path

from avis.evaluation.speed import BUNDLED_MIX
from avis.evaluation.tables import Store, check

ROOT = Path(__file__).resolve().parents[1]


def test_there_are_results():
    """Guards against: results that move, and documents that show tables of nothing."""
    assert set(Store(ROOT / "evaluation" / "results").names()) >= {"dev", "test"}


def test_documents_tell_what_was_measured_with_the_shipped_model():
    """Guards against: a retrained model or policy with the old numbers, and a table that was edited by hand."""
    assert check(ROOT) == []


def test_the_latency_tables_mix_is_the_policys():
    """Guards against: a policy that is fitted anew, and a table of speed with the K of the one before."""
    chosen = Counter(item["policy"]["rollouts"] for item in Store(ROOT / "evaluation" / "results").result("test").items)
    assert BUNDLED_MIX == {k: round(count / chosen.total(), 2) for k, count in chosen.items()}
