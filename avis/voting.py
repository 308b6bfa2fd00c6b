"""From the answers of K rollouts to one winner: the vote, its weights, and when it is decided::

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
        winner: the winning canonical form; None when every rollout abstained.
        answer: the winner as its first rollout wrote it.
        index: that rollout's index, the lowest of the winner's.
        counts: votes per canonical form, in the order of their first rollouts; of a weighted vote the sums of weights.
        abstained: number of rollouts without a vote.
        normalised: every rollout's canonical form, None where it abstained.
    """

    winner: str | None
    answer: str | None
    index: int | None
    counts: dict[str, float]
    abstained: int
    normalised: tuple[str | None, ...]


def majority_vote(
    answers: Sequence[str | None],
    options: Options = None,
    weights: Sequence[float] | None = None,
    question: str | None = None,
) -> Vote:
    """Count canonical answers; the most frequent wins, a tie goes to the lowest rollout index.

    Args:
        answers: one per rollout, in index order (never in order of finishing); None abstains, and so does an answer of
            which nothing visible is left.
        options: as in `extract_answer`.
        weights: what each rollout's vote counts for, in [0, 1]; without them each counts 1.
        question: as in `normalise_answer`.

    Returns:
        The `Vote`; its winner is None when all abstain or there are no answers.

    Raises:
        ValueError: more than 26 unlettered options, or a weight outside [0, 1].
    """
    keys = tuple(vote_key(answer, options, question) for answer in answers)
    voters = _voters_by_key(dict(enumerate(keys)))
    if weights is None:
        counts: dict[str, float] = {key: len(indices) for key, indices in voters.items()}
    else:
        counts = {key: _total_weight(weights, indices) for key, indices in voters.items()}
    # max() keeps the first of equals, and `counts` is in the order of first rollouts: the tie rule.
    winner = max(counts, key=counts.__getitem__, default=None)
    index = None if winner is None else voters[winner][0]
    return Vote(winner, None if index is None else answers[index], index, counts, keys.count(None), keys)


def is_decided(keys: Mapping[int, str | None], num_rollouts: int, weights: Mapping[int, float] | None = None) -> bool:
    """Return whether the winner of the vote stands, whatever the missing rollouts will answer.

    True exactly when no completion can change the winner. The missing rollouts may vote for any answer, a new one too,
    or abstain, each with any weight up to 1. The strongest completion against the leader gives all of them, at full
    weight, to one rival; so it is tried with each rival, and with a new answer. Only the winner's spelling can differ
    from the full vote's, when a missing rollout of a lower index would have given the same answer.

    Args:
        keys: by rollout index, the canonical forms (`avis.answers.vote_key`) of the rollouts that have ended.
        num_rollouts: K.
        weights: by rollout index, for a weighted vote, in [0, 1].

    Raises:
        ValueError: a weight outside [0, 1].
    """
    missing = num_rollouts - len(keys)
    voters = _voters_by_key(keys)
    if not missing or not voters:
        return not missing
    weights = dict.fromkeys(keys, 1.0) if weights is None else weights
    first_missing = next(index for index in range(num_rollouts) if index not in keys)
    # As in `majority_vote`: more weight wins, then the lower first index.
    standings = {key: (_total_weight(weights, indices), -indices[0]) for key, indices in voters.items()}
    leader = max(standings, key=standings.__getitem__)
    rivals = [indices for key, indices in voters.items() if key != leader]
    for indices in [*rivals, []]:  # the last one: a new answer
        first = min([*indices[:1], first_missing])
        if standings[leader] <= (_total_weight(weights, indices, missing), -first):
            return False
    return True


def confidence_weight(mean_logprob: float) -> float:
    """Return the weight of a vote, in [0, 1]: the geometric mean of its tokens' probabilities.

    Args:
        mean_logprob: of the rollout's tokens under the model's own distribution (`Rollouts.mean_logprobs`), at most 0
            up to rounding.
    """
    return min(1.0, exp(mean_logprob))


def _voters_by_key(keys: Mapping[int, str | None]) -> dict[str, list[int]]:
    """Return the ascending indices of each answer's rollouts; answers in the order of their first rollouts."""
    voters: dict[str, list[int]] = {}
    for index in sorted(keys):
        key = keys[index]
        if key is not None:
            voters.setdefault(key, []).append(index)
    return voters


def _total_weight(weights: Mapping[int, float] | Sequence[float], indices: Sequence[int], missing: int = 0) -> float:
    """Return the summed weight of these rollouts, and 1 for each that is missing.

    The exact sum, rounded once: so that more votes never weigh less by rounding, and a bound on a sum holds.
    """
    chosen = [weights[index] for index in indices]
    if not all(0 <= weight <= 1 for weight in chosen):
        raise ValueError(f"the weight of a vote is in [0, 1], got {chosen}")
    return fsum([*chosen, *[1.0] * missing])
