"""The binning rule from solvability p to K rollouts, piecewise constant (AVIS, Jeddi et al. 2026, arXiv 2606.11576)::

BinningRule(edges=(0.45, 0.6), num_rollouts=(1, 7, 1)).predict(0.5).num_rollouts     # 7

Needs no torch.
"""

from bisect import bisect_right
from dataclasses import dataclass

CHOICES = (1, 3, 5, 7)


@dataclass(frozen=True)
class Prediction:
    """What the policy says of one query.

    Attributes:
        p: solvability, the probability that one sampled rollout is right, in (0, 1).
        bin: the bin of the rule that p falls into, from 0.
        num_rollouts: K of that bin.
    """

    p: float
    bin: int
    num_rollouts: int


@dataclass(frozen=True)
class BinningRule:
    """A map from p to K that is constant between edges: bin b is `edges[b - 1] <= p < edges[b]`.

    Attributes:
        edges: ascending, each in (0, 1).
        num_rollouts: K of each bin, one of `CHOICES`; one more than edges.

    Raises:
        ValueError: other edges or other K.
    """

    edges: tuple[float, ...] = ()
    num_rollouts: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        is_inside = all(type(edge) is float and 0 < edge < 1 for edge in self.edges)
        is_ascending = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
        is_known = all(type(count) is int and count in CHOICES for count in self.num_rollouts)
        if not (is_inside and is_ascending and is_known and len(self.num_rollouts) == len(self.edges) + 1):
            raise ValueError(f"not a rule: K = {self.num_rollouts!r:.100} between edges {self.edges!r:.100}")

    def predict(self, p: float) -> Prediction:
        """Return the bin that p falls into, and its K."""
        place = bisect_right(self.edges, p)
        return Prediction(p, place, self.num_rollouts[place])
