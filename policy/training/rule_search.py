"""The best binning rule of a shape, found exactly by dynamic programming::

best_rule(p, accuracy - price * decode_flops, "inverted U")     # a BinningRule
"""

import numpy as np

from policy.binning import CHOICES, BinningRule

CELLS = 20  # of equal numbers of questions, between which edges may stand
MAX_BINS = 7  # as many as an inverted U over 1, 3, 5, 7 can have
SHAPES = ("inverted U", "unconstrained", "constant")

State = tuple[int, int]  # the choice of a cell's K, and the stage that the shape is in
Path = tuple[int, ...]  # the choices of all cells so far


def candidate_edges(p: np.ndarray) -> np.ndarray:
    """Return where edges may stand: half-way between the questions at which cells of equal numbers meet.

    Args:
        p: `(n,)`.

    Returns:
        Ascending edges in (0, 1), fewer than `CELLS`; none on a question's p.
    """
    ordered = np.sort(p)
    places = np.unique((np.arange(1, CELLS) * len(p) / CELLS).round().astype(int))
    places = places[(places > 0) & (places < len(p))]
    edges = (ordered[places - 1] + ordered[places]) / 2
    is_between = (ordered[places - 1] < edges) & (edges < ordered[places]) & (edges > 0) & (edges < 1)
    return np.unique(edges[is_between])


def best_rule(p: np.ndarray, value: np.ndarray, shape: str) -> BinningRule:
    """Return the rule with the highest sum of values among all rules whose edges are `candidate_edges`.

    Exact: a dynamic programme over the cells between these edges, in ascending p. The state is the cell's K and a
    stage: for "unconstrained" the number of changes so far (fewer than `MAX_BINS`), for "inverted U" whether K has
    fallen. Among equal sums the rule with smaller K is returned.

    Args:
        p: `(n,)`.
        value: `(n, choices)`, of each question with each K.
        shape: one of `SHAPES`.
    """
    edges = candidate_edges(p) if shape != "constant" else np.array([])
    cell = np.searchsorted(edges, p, side="right")
    cells = np.stack([np.bincount(cell, column, len(edges) + 1) for column in value.T], axis=1)
    best: dict[State, tuple[float, Path]] = {(k, 0): (cells[0, k], (k,)) for k in range(len(CHOICES))}
    for values in cells[1:]:
        following: dict[State, tuple[float, Path]] = {}
        for (before, stage), (total, path) in best.items():
            for k in range(len(CHOICES)):
                after = _next_stage(shape, stage, before, k)
                found = total + values[k]
                if after is not None and ((k, after) not in following or found > following[k, after][0]):
                    following[k, after] = (found, (*path, k))
        best = following
    chosen = max(sorted(best.items()), key=lambda state: state[1][0])[1][1]
    changes = [place for place in range(1, len(chosen)) if chosen[place] != chosen[place - 1]]
    return BinningRule(
        tuple(float(edges[place - 1]) for place in changes),
        tuple(CHOICES[chosen[place]] for place in [0, *changes]),
    )


def _next_stage(shape: str, stage: int, before: int, k: int) -> int | None:
    """Return the stage after choosing `k` for the cell that follows one with `before`; None: not of this shape."""
    if shape == "inverted U":
        after = max(stage, int(k < before))
        return None if after and k > before else after
    after = stage + int(k != before)
    return after if after < MAX_BINS else None
