"""From the answers of K rollouts to one winner: the vote, its weights, and when it is decided.

    >>> from avis.answers import extract_answer
    >>> texts = ["<think>a, b, c</think><answer>3</answer>", "The answer is three.", "<think>1, 2, 3, 4"]
    >>> vote = majority_vote([extract_answer(text) for text in texts])
    >>> vote.winner, vote.counts, vote.abstained
    ('3', {'3': 2}, 1)

Rollouts that are still being decoded need not be awaited when they cannot change the winner (`is_decided`).

Source: self-consistency, Wang et al. 2022 (arXiv 2203.11171); the weighted vote, Taubenfeld et al. 2025 (CISC,
arXiv 2502.06233).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum

from avis.answers import Options, vote_key


@dataclass(frozen=True)
class Vote:
    """The outcome of a vote.

    Attributes:
        winner: the winning normal form; None when every rollout abstained.
        answer: the winner as its first rollout wrote it.
        index: that rollout's index, the lowest of the winner's.
        counts: votes per normal form, in the order of their first rollouts; of a weighted vote the sums of weights.
        abstained: rollouts without a vote.
        normalised: every rollout's normal form, None where it abstained.
    """

    winner: str | None
    answer: str | None
    index: int | None
    counts: dict[str, float]
    abstained: int
    normalised: tuple[str | None, ...]


def majority_vote(
    answers: Sequence[str | None], options: Options = None, weights: Sequence[float] | None = None
) -> Vote:
    """Count normalised answers; the most frequent wins, a tie goes to the lowest rollout index.

    Args:
        answers: one per rollout, in index order (never in order of finishing); None abstains, and so does
            an answer of which nothing visible is left.
        options: as in `extract_answer`.
        weights: what each rollout's vote counts for, in [0, 1]; without them each counts 1.

    Returns:
        The `Vote`; its winner is None when all abstain or there are no answers.

    Raises:
        ValueError: more than 26 unlettered options, or a weight outside [0, 1].
    """
    forms = tuple(vote_key(answer, options) for answer in answers)
    voters = _voters(dict(enumerate(forms)))
    if weights is None:
        counts: dict[str, float] = {form: len(mine) for form, mine in voters.items()}
    else:
        counts = {form: _weight(weights, mine) for form, mine in voters.items()}
    # max() keeps the first of equals, and `counts` stands in the order of first rollouts: the tie rule.
    winner = max(counts, key=counts.__getitem__, default=None)
    index = None if winner is None else voters[winner][0]
    return Vote(winner, None if index is None else answers[index], index, counts, forms.count(None), forms)


def is_decided(forms: Mapping[int, str | None], num_rollouts: int, weights: Mapping[int, float] | None = None) -> bool:
    """Whether the winner of the vote stands, whatever the rollouts that are still missing will say.

    True exactly when no completion can change the winner: the missing ones may vote for any answer, a new one too, or
    abstain, each with any weight up to 1. The strongest completion against the leader gives all of them, at
    full weight, to one rival; so each rival is tried with that, and a new answer. Of the winner only the spelling can
    differ from the full vote's, when a missing rollout of a lower index would have given the same answer.

    Args:
        forms: by rollout index, the normal forms (`avis.answers.vote_key`) of the rollouts that are there.
        num_rollouts: K.
        weights: by rollout index, for a weighted vote, in [0, 1].

    Raises:
        ValueError: a weight outside [0, 1].
    """
    missing = num_rollouts - len(forms)
    voters = _voters(forms)
    if not missing or not voters:
        return not missing
    weights = dict.fromkeys(forms, 1.0) if weights is None else weights
    first_missing = next(index for index in range(num_rollouts) if index not in forms)
    # As in `majority_vote`: more weight wins, then the lower first index.
    now = {form: (_weight(weights, mine), -mine[0]) for form, mine in voters.items()}
    leader = max(now, key=now.__getitem__)
    rivals = [mine for form, mine in voters.items() if form != leader]
    return all(
        now[leader] > (_weight(weights, mine, missing), -min([*mine[:1], first_missing])) for mine in [*rivals, []]
    )


def confidence_weight(mean_logprob: float) -> float:
    """A vote's weight in [0, 1]: the geometric mean of its tokens' probabilities.

    Args:
        mean_logprob: of the rollout's tokens under the model's own distribution (`Rollouts.mean_logprobs`), at most 0
            up to rounding.
    """
    return min(1.0, exp(mean_logprob))


def _voters(forms: Mapping[int, str | None]) -> dict[str, list[int]]:
    """The ascending indices of each answer's rollouts; answers in the order of their first rollouts."""
    voters: dict[str, list[int]] = {}
    for index in sorted(forms):
        if forms[index] is not None:
            voters.setdefault(forms[index], []).append(index)
    return voters


def _weight(weights: Mapping[int, float] | Sequence[float], indices: Sequence[int], missing: int = 0) -> float:
    """The summed weight of these rollouts, and 1 for each that is missing.

    The exact sum, rounded once: so that more votes never weigh less by rounding, and a bound on a sum holds.
    """
    mine = [weights[index] for index in indices]
    if not all(0 <= weight <= 1 for weight in mine):
        raise ValueError(f"the weight of a vote is in [0, 1], got {mine}")
    return fsum([*mine, *[1.0] * missing])
