"""What the repository says was measured: made with the shipped weights, and the same everywhere it is shown."""

from collections import Counter
from pathlib import Path

from avis.evaluation.benchmark.sweep import BUNDLED_MIX
from avis.evaluation.tables.documents import check_documents
from avis.evaluation.tables.store import RESULTS, Store

ROOT = Path(__file__).resolve().parents[1]


def test_there_are_results():
    """Guards against: results that move, and documents that show tables of nothing."""
    assert set(Store(ROOT / RESULTS).names) >= {"dev", "test"}


def test_documents_show_what_was_measured_with_the_shipped_model():
    """Guards against: a retrained model or policy with the old numbers, and a table that was edited by hand."""
    assert check_documents(ROOT) == []


def test_the_latency_tables_mix_is_the_policys():
    """Guards against: a policy that is fitted anew, and a table of speed with the K of the one before."""
    chosen = Counter(record["policy"]["rollouts"] for record in Store(ROOT / RESULTS).result("test").records)
    assert BUNDLED_MIX == {k: round(count / chosen.total(), 2) for k, count in chosen.items()}
