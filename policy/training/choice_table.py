"""The accuracy and the cost of each K for each question, and of a rule over all questions.

Accuracy at K is that of a majority vote (K = 1: of the greedy rollout), averaged exactly over all ways to draw K of the
rollouts without replacement. No rollout is stopped early here, so costs are upper bounds.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from avis.voting import majority_vote
from policy.binning import CHOICES, BinningRule
from policy.training.collected import Line
from policy.training.metrics import bootstrap_weights, summarize, weighted_mean
from policy.training.rule_search import best_rule

GAIN_BINS = 10


@lru_cache(maxsize=8)
def _draws(total: int, count: int) -> np.ndarray:
    """Return all ways to draw `count` of `total`: `(ways, total)` of 0 and 1."""
    chosen = np.array(list(combinations(range(total), count)))
    drawn: np.ndarray = np.zeros((len(chosen), total), np.float32)
    np.put_along_axis(drawn, chosen, 1, axis=1)
    return drawn


@lru_cache(maxsize=2**16)
def _vote_accuracy(total: int, forms: tuple[tuple[int, float], ...], count: int) -> float:
    """Return `vote_accuracy` from each answer's number of rollouts and the share of these that are judged right."""
    member: np.ndarray = np.zeros((total, len(forms)), np.float32)
    start = 0
    for place, (number, _) in enumerate(forms):
        member[start : start + number, place] = 1  # which rollouts they are does not matter
        start += number
    votes = _draws(total, count) @ member
    most = votes.max(axis=1, keepdims=True)
    wins = (votes == most) & (most > 0)  # when all abstain, nobody wins
    values = [value for _, value in forms]
    return float((wins * values).sum(axis=1) @ (1 / np.maximum(wins.sum(axis=1), 1)) / len(wins))


def vote_accuracy(answers: Sequence[str | None], right: Sequence[bool], count: int) -> float:
    """Return the chance that a majority vote of `count` of these rollouts is right, drawn in any order.

    Exact. Ties go to the answer that was drawn first. Over all orders of one draw, each of the tied answers is first
    equally often, and so is each rollout of an answer, whose judgement then counts.

    Args:
        answers: one a rollout, None abstains.
        right: whether each is judged right.
        count: drawn without replacement.
    """
    forms = majority_vote(answers).normalised
    numbers = Counter(form for form in forms if form is not None)
    if not numbers:
        return 0.0
    good = Counter(form for form, is_right in zip(forms, right, strict=True) if is_right)
    return _vote_accuracy(len(answers), tuple(sorted((n, good[form] / n) for form, n in numbers.items())), count)


class ChoiceTable:
    """Questions with their p, and the accuracy and cost of each K.

    Attributes:
        p: `(n,)`.
        accuracy: `(n, choices)`.
        decode: `(n, choices)`, decode FLOPs relative to vanilla's LLM FLOPs.
        prefill: `(n,)`, prefill FLOPs relative to the same.
        weights: `(1 + resamples, n)`, of the bootstrap over scenes.
    """

    def __init__(self, p: np.ndarray, lines: Sequence[Line], seed: int):
        """Compute the table.

        Args:
            p: `(n,)`.
            lines: the questions.
            seed: of the bootstrap.
        """
        self.p = p
        self.accuracy, decode = np.zeros((2, len(lines), len(CHOICES)))
        for row, line in enumerate(lines):
            rollouts, cost = line["rollouts"], line["flops"]
            for column, count in enumerate(CHOICES):
                if count == 1:
                    self.accuracy[row, column], decode[row, column] = line["greedy"]["right"], cost["greedy"]
                else:
                    self.accuracy[row, column] = vote_accuracy(rollouts["answers"], rollouts["right"], count)
                    decode[row, column] = count * np.mean(cost["rollouts"])
        vanilla = np.array([line["flops"]["vanilla_llm"] for line in lines], float)
        self.decode = decode / vanilla[:, None]
        self.prefill = np.array([line["flops"]["prefill"] for line in lines]) / vanilla
        self.weights = bootstrap_weights([line["scene"] for line in lines], seed)

    def best_rule(self, shape: str, price: float) -> BinningRule:
        """Return the best rule of a shape where decode FLOPs cost `price`."""
        return best_rule(self.p, self.accuracy - price * self.decode, shape)

    def chosen_columns(self, rule: BinningRule) -> np.ndarray:
        """Return the place in `CHOICES` of each question's K, `(n,)`."""
        places = np.array([CHOICES.index(count) for count in rule.num_rollouts])
        return places[np.searchsorted(rule.edges, self.p, side="right")]

    def mean_accuracy(self, rule: BinningRule) -> float:
        """Return the rule's accuracy."""
        return float(self.accuracy[np.arange(len(self.p)), self.chosen_columns(rule)].mean())

    def mean_flops(self, rule: BinningRule) -> float:
        """Return the rule's mean LLM FLOPs relative to vanilla's."""
        return float((self.prefill + self.decode[np.arange(len(self.p)), self.chosen_columns(rule)]).mean())

    def evaluate_rule(self, rule: BinningRule) -> dict[str, Any]:
        """Return accuracy and cost of the rule with intervals, and of the same Ks given to questions at random."""
        chosen = self.chosen_columns(rule)
        rows = np.arange(len(chosen))
        shares = np.bincount(chosen, minlength=len(CHOICES)) / len(chosen)
        got, at_random = self.accuracy[rows, chosen], self.accuracy @ shares
        return {
            "accuracy": self._summarize(got),
            "relative_llm": self._summarize(self.prefill + self.decode[rows, chosen]),
            "mean_k": self._summarize(np.array(CHOICES, float)[chosen]),
            "k_shares": {str(count): float(share) for count, share in zip(CHOICES, shares, strict=True)},
            "accuracy_k_permuted": self._summarize(at_random),
            "minus_k_permuted": self._summarize(got - at_random),
        }

    def compare_rules(self, one: BinningRule, other: BinningRule) -> dict[str, Any]:
        """Return accuracy and cost of one rule minus another's, paired, with intervals."""
        rows, a, b = np.arange(len(self.p)), self.chosen_columns(one), self.chosen_columns(other)
        return {
            "accuracy": self._summarize(self.accuracy[rows, a] - self.accuracy[rows, b]),
            "relative_llm": self._summarize(self.decode[rows, a] - self.decode[rows, b]),
        }

    def gain_curve(self) -> list[dict[str, Any]]:
        """Return what votes of K add to the greedy answer, by tenths of p."""
        found: list[dict[str, Any]] = []
        for rows in np.array_split(np.argsort(self.p, kind="stable"), min(GAIN_BINS, len(self.p))):
            accuracy, gain = {}, {}
            columns = self.accuracy[rows].T
            for count, column in zip(CHOICES, columns, strict=True):
                accuracy[str(count)] = self._summarize(column, rows)
                if count > 1:
                    gain[str(count)] = self._summarize(column - columns[0], rows)
            p = self.p[rows]
            about = {"p": float(p.mean()), "from": float(p.min()), "to": float(p.max()), "n": len(rows)}
            found.append(about | {"accuracy": accuracy, "gain": gain})
        return found

    def _summarize(self, values: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, Any] | None:
        """Return the mean of values of some rows with its interval."""
        return summarize(weighted_mean(values, self.weights[:, rows]))
