"""What stands in a table's cells, and the groups of examples that tables show apart."""

from collections.abc import Callable
from typing import Any

from avis.evaluation.score import Outcome, Record, Results
from avis.statistics import Difference, Interval

# What the records say of an example's difficulty; those of results that are older than the second garden have no axes.
DIFFICULTIES = ("level", "see", "think")


def format_percent(share: Interval | None, digits: int = 1) -> str:
    """Return `35.6 (30 to 42)`; nothing where there are no examples."""
    if share is None:
        return ""
    return f"{100 * share.value:.{digits}f} ({100 * share.low:.0f} to {100 * share.high:.0f})"


def format_points(found: Difference) -> str:
    """Return a difference in percentage points: `+1.2 (-0.9 to +3.4)`."""
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def format_p_value(value: float) -> str:
    """Return a p-value with three digits, or `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_fraction(share: Interval) -> str:
    """Return `0.42 (0.40 to 0.44)`; without an interval where there is nothing to vary, as for vanilla itself."""
    interval = f" ({share.low:.2f} to {share.high:.2f})" if share.high - share.low > 1e-9 else ""
    return f"{share.value:.2f}{interval}"


def format_measure(found: dict[str, Any] | None) -> str:
    """Return a measure of a policy report, `0.612 (0.580 to 0.643)`; nothing where it is missing."""
    if not found:
        return ""
    return f"{found['value']:.3f} ({found['ci95'][0]:.3f} to {found['ci95'][1]:.3f})"


def format_spread(found: dict[str, float] | None, digits: int = 2) -> str:
    """Return median, least and most of a speed report, `1.50 (1.40 to 1.70)`; nothing where it is missing."""
    if not found:
        return ""
    median, least, most = (f"{found[name]:.{digits}f}" for name in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def flops_cells(outcome: Outcome, vanilla: Outcome) -> list[str]:
    """Return FLOPs relative to vanilla's in both accountings: LLM-only and total."""
    cost = outcome.relative(vanilla)
    return [format_fraction(cost["llm"]), format_fraction(cost["total"])]


def is_video(record: Record) -> bool:
    """Return whether an example shows a video."""
    return record["medium"] == "video"


def is_image(record: Record) -> bool:
    """Return whether an example shows one or more images."""
    return record["medium"] != "video"


def has_value(name: str, value: Any) -> Callable[[Record], bool]:
    """Return the test whether a part of an example's record has this value."""
    return lambda record: record.get(name) == value


def largest_vote(results: Results) -> tuple[str, Outcome]:
    """Return name and outcome of the recipe's vote without pruning that has most rollouts.

    Raises:
        KeyError: the recipe has no such row.
    """
    rows = [row for row in results.rows.values() if row.run == "rho=0" and isinstance(row.rollouts, int)]
    most = max(rows, key=lambda row: row.sampled)
    if not most.sampled:
        raise KeyError("vote")
    return f"vote of {most.sampled}", results.outcome_of(most)


def distinct_values(results: Results, name: str) -> list:
    """Return the values that a part of the records has, in order of first appearance; those of difficulty ascending."""
    found = list(dict.fromkeys(record[name] for record in results.records if record.get(name) is not None))
    return sorted(found) if name in DIFFICULTIES else found


def difficulty_groups(results: Results) -> list[tuple[str, Callable[[Record], bool]]]:
    """Return every level, and every value of the two axes of the second garden, each with its name."""
    return [
        (f"{name} {value}", has_value(name, value)) for name in DIFFICULTIES for value in distinct_values(results, name)
    ]
