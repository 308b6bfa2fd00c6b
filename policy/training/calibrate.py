"""Step 4 of fitting: the rule that maps p to K, and the policy checkpoint.

    python -m policy.training.calibrate --networks runs/policy/networks.pt --collected runs/policy/fitting \\
        --dev runs/policy/dev --budget 0.5 --out policy_checkpoint.pt

The rule maximises accuracy - lambda * decode FLOPs on the scenes that `fit` left for it, FLOPs being relative to those
of the vanilla model's language part (rho = 0, K = 1, as long as the greedy rollout). Three solutions are reported, as
the shape is a claim to test: K rises and then falls with p (inverted U; the one that ships), no constraint but the
number of bins, and one K for all. `--lambda` chooses the point, or `--budget`: of all lambdas the smallest whose mean
FLOPs, prefill included, are within it on dev (without dev: on the scenes that it was made on).

Accuracy at K is that of a majority vote (K = 1: of the greedy rollout), exactly averaged over all ways to draw K of the
rollouts without replacement. No rollout is stopped early here, so costs are upper bounds.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from avis.voting import majority_vote
from policy.policy_model import CHOICES, Checkpoint, Rule, read_checkpoint
from policy.training import command_line, report, write_json
from policy.training.collect import Collected
from policy.training.fit import check_same, predict, split
from policy.training.metrics import cluster_weights, mean, summary

CELLS = 20  # of equal numbers of questions: where edges may stand
MAX_BINS = 7  # as many as an inverted U over 1, 3, 5, 7 can have
LAMBDAS = (0.0, *np.geomspace(1e-4, 10, 51).tolist())
SHAPES = ("inverted U", "unconstrained", "constant")
GAIN_BINS = 10
DEFAULT_BUDGET = 0.5


# ------------------------------------------------------------------------------------------------- votes and costs


@lru_cache(maxsize=8)
def _draws(total: int, count: int) -> np.ndarray:
    """All ways to draw `count` of `total`: `(ways, total)` of 0 and 1."""
    chosen = np.array(list(combinations(range(total), count)))
    drawn = np.zeros((len(chosen), total), np.float32)
    np.put_along_axis(drawn, chosen, 1, axis=1)
    return drawn


@lru_cache(maxsize=2**16)
def _vote_accuracy(total: int, forms: tuple[tuple[int, float], ...], count: int) -> float:
    """forms: of each answer its number of rollouts, and the share of these that are judged right."""
    member = np.zeros((total, len(forms)), np.float32)
    start = 0
    for place, (number, _) in enumerate(forms):
        member[start : start + number, place] = 1  # which rollouts they are does not matter
        start += number
    votes = _draws(total, count) @ member
    most = votes.max(axis=1, keepdims=True)
    wins = (votes == most) & (most > 0)  # when all abstain, nobody wins
    return float((wins * [value for _, value in forms]).sum(axis=1) @ (1 / np.maximum(wins.sum(axis=1), 1)) / len(wins))


def vote_accuracy(answers: Sequence[str | None], right: Sequence[bool], count: int) -> float:
    """The chance that a majority vote of `count` of these rollouts is right, drawn in any order without replacement.

    Exact. Ties go to the answer that was drawn first; over all orders of one draw, each of the tied answers is first
    equally often, and so is each rollout of an answer, which then stands for it.

    Args:
        answers: one a rollout, None abstains. right: whether each is judged right.
    """
    forms = majority_vote(answers).normalised
    numbers = Counter(form for form in forms if form is not None)
    if not numbers:
        return 0.0
    good = Counter(form for form, is_right in zip(forms, right, strict=True) if is_right)
    return _vote_accuracy(len(answers), tuple(sorted((n, good[form] / n) for form, n in numbers.items())), count)


def tables(lines: Sequence[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each choice of K brings and costs.

    Returns:
        Accuracy `(n, choices)`; decode FLOPs `(n, choices)` and prefill FLOPs `(n,)`, relative to vanilla's.
    """
    accuracy, decode = np.zeros((2, len(lines), len(CHOICES)))
    for row, line in enumerate(lines):
        rollouts, cost = line["rollouts"], line["flops"]
        for column, count in enumerate(CHOICES):
            if count == 1:
                accuracy[row, column], decode[row, column] = line["greedy"]["right"], cost["greedy"]
            else:
                accuracy[row, column] = vote_accuracy(rollouts["answers"], rollouts["right"], count)
                decode[row, column] = count * np.mean(cost["rollouts"])
    vanilla = np.array([line["flops"]["vanilla_llm"] for line in lines], float)
    return accuracy, decode / vanilla[:, None], np.array([line["flops"]["prefill"] for line in lines]) / vanilla


# ------------------------------------------------------------------------------------------------------- the rule


def candidate_edges(p: np.ndarray) -> np.ndarray:
    """Where edges may stand: half-way between the neighbours at which cells of equal numbers of questions meet."""
    ordered = np.sort(p)
    places = np.unique((np.arange(1, CELLS) * len(p) / CELLS).round().astype(int))
    places = places[(places > 0) & (places < len(p))]
    edges = (ordered[places - 1] + ordered[places]) / 2
    is_between = (ordered[places - 1] < edges) & (edges < ordered[places]) & (edges > 0) & (edges < 1)
    return np.unique(edges[is_between])


def best_rule(p: np.ndarray, value: np.ndarray, shape: str) -> Rule:
    """The rule with the highest sum of values, of all whose edges are `candidate_edges`; exact.

    A dynamic programme over the cells between these edges, in ascending p; the state is the cell's K, and for
    "unconstrained" how many bins there are so far (at most `MAX_BINS`), for "inverted U" whether K has fallen yet.
    Of equal sums it takes one with smaller K.

    Args:
        p: `(n,)`. value: `(n, choices)`, of each question with each K.
        shape: one of `SHAPES`.
    """
    edges = candidate_edges(p) if shape != "constant" else np.array([])
    cell = np.searchsorted(edges, p, side="right")
    cells = np.stack([np.bincount(cell, column, len(edges) + 1) for column in value.T], axis=1)
    choices = range(len(CHOICES))
    # Of every state (choice, stage) the best sum that ends in it, and the choices that lead there.
    best = {(k, 0): (cells[0, k], (k,)) for k in choices}
    for values in cells[1:]:
        following: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (before, stage), (total, path) in best.items():
            for k in choices:
                if shape == "inverted U":
                    after = max(stage, int(k < before))
                    allowed = not (after and k > before)
                else:
                    after = stage + (k != before)
                    allowed = after < MAX_BINS
                found = total + values[k]
                if allowed and ((k, after) not in following or found > following[k, after][0]):
                    following[k, after] = (found, (*path, k))
        best = following
    path = max(sorted(best.items()), key=lambda state: state[1][0])[1][1]
    changes = [place for place in range(1, len(path)) if path[place] != path[place - 1]]
    return Rule(
        tuple(float(edges[place - 1]) for place in changes),
        tuple(CHOICES[path[place]] for place in [0, *changes]),
    )


class Points:
    """Questions with their p, and what each K would bring and cost them."""

    def __init__(self, p: np.ndarray, lines: Sequence[dict], seed: int):
        self.p = p
        self.accuracy, self.decode, self.prefill = tables(lines)
        self.weights = cluster_weights([line["scene"] for line in lines], seed)

    def rule(self, shape: str, price: float) -> Rule:
        """The best of a shape where decode FLOPs cost `price`."""
        return best_rule(self.p, self.accuracy - price * self.decode, shape)

    def choices(self, rule: Rule) -> np.ndarray:
        """Per question the place of its K in `CHOICES`, `(n,)`."""
        places = np.array([CHOICES.index(count) for count in rule.num_rollouts])
        return places[np.searchsorted(rule.edges, self.p, side="right")]

    def flops(self, rule: Rule) -> float:
        """Mean LLM FLOPs relative to vanilla."""
        return float((self.prefill + self.decode[np.arange(len(self.p)), self.choices(rule)]).mean())

    def judged(self, rule: Rule) -> dict[str, Any]:
        """Accuracy and cost of the rule with intervals, and of the same Ks given to questions at random."""
        chosen = self.choices(rule)
        rows = np.arange(len(chosen))
        shares = np.bincount(chosen, minlength=len(CHOICES)) / len(chosen)
        got, at_random = self.accuracy[rows, chosen], self.accuracy @ shares
        return {
            "accuracy": summary(mean(got, self.weights)),
            "relative_llm": summary(mean(self.prefill + self.decode[rows, chosen], self.weights)),
            "mean_k": summary(mean(np.array(CHOICES, float)[chosen], self.weights)),
            "k_shares": {str(count): float(share) for count, share in zip(CHOICES, shares, strict=True)},
            "accuracy_k_permuted": summary(mean(at_random, self.weights)),
            "minus_k_permuted": summary(mean(got - at_random, self.weights)),
        }

    def difference(self, one: Rule, other: Rule) -> dict[str, Any]:
        """Accuracy and cost of one rule minus another's, paired."""
        rows, a, b = np.arange(len(self.p)), self.choices(one), self.choices(other)
        pairs = {"accuracy": self.accuracy, "relative_llm": self.decode}
        return {name: summary(mean(table[rows, a] - table[rows, b], self.weights)) for name, table in pairs.items()}

    def gains(self) -> list[dict]:
        """The gain curve: by tenths of p, what votes of K add to the greedy answer."""
        found = []
        for rows in np.array_split(np.argsort(self.p, kind="stable"), min(GAIN_BINS, len(self.p))):
            weights = self.weights[:, rows]
            accuracy = {
                str(count): summary(mean(column, weights))
                for count, column in zip(CHOICES, self.accuracy[rows].T, strict=True)
            }
            gain = {
                str(count): summary(mean(self.accuracy[rows, place] - self.accuracy[rows, 0], weights))
                for place, count in enumerate(CHOICES)
                if place
            }
            p = self.p[rows]
            found.append(
                {
                    "p": float(p.mean()),
                    "from": float(p.min()),
                    "to": float(p.max()),
                    "n": len(rows),
                    "accuracy": accuracy,
                    "gain": gain,
                }
            )
        return found


def choose(on: Points, test: Points, budget: float) -> float:
    """The smallest lambda whose inverted-U rule, made `on` some questions, keeps the budget on those to `test`.

    Raises ValueError when none does.
    """
    for price in LAMBDAS:
        if test.flops(on.rule("inverted U", price)) <= budget:
            return price
    least = test.flops(Rule())
    raise ValueError(f"no rule keeps --budget {budget}: K = 1 throughout takes {least:.3f} of vanilla's FLOPs")


def solutions(points: dict[str, Points], price: float) -> dict[str, Any]:
    """The three solutions at one lambda, judged on every set of questions; made on the first."""
    made = {shape: next(iter(points.values())).rule(shape, price) for shape in SHAPES}
    found: dict[str, Any] = {"lambda": price}
    for shape, rule in made.items():
        found[shape] = {
            "edges": list(rule.edges),
            "num_rollouts": list(rule.num_rollouts),
            **{name: among.judged(rule) for name, among in points.items()},
        }
    found["differences"] = {
        name: {
            f"{one} minus {other}": among.difference(made[one], made[other])
            for one, other in (("inverted U", "constant"), ("inverted U", "unconstrained"))
        }
        for name, among in points.items()
    }
    return found


def frontier(points: dict[str, Points]) -> list[dict[str, Any]]:
    """Accuracy and cost of every shape over all lambdas, without intervals; equal rules are told once."""
    first, found = next(iter(points.values())), {}
    for shape in SHAPES:
        for price in LAMBDAS:
            rule = first.rule(shape, price)
            row = {"shape": shape, "lambda": price, "edges": list(rule.edges), "num_rollouts": list(rule.num_rollouts)}
            for name, among in points.items():
                accuracy = float(among.accuracy[np.arange(len(among.p)), among.choices(rule)].mean())
                row[name] = {"accuracy": accuracy, "relative_llm": among.flops(rule)}
            found.setdefault((shape, rule), row)
    return list(found.values())


def calibrate(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError, with one line, for bad input."""
    price, budget = vars(args)["lambda"], DEFAULT_BUDGET if args.budget is None else args.budget
    if price is not None and not 0 <= price < np.inf:
        raise ValueError(f"--lambda must be finite and at least 0, got {price}")
    if not 0 < budget < np.inf:
        raise ValueError(f"--budget is FLOPs relative to vanilla's, above 0, got {budget}")
    held, data = read_checkpoint(args.networks), Collected(args.collected)
    dev = Collected(args.dev) if args.dev else None
    if dev:
        check_same(data, dev)
    if held.metadata.get("collected_sha256") != data.sha256:
        raise ValueError(f"{args.networks} was not fitted on {args.collected}: run python -m policy.training.fit")
    seed = held.metadata["seed"]  # of the split
    judged = "dev" if dev else "rule"
    sets = {"rule": (data, split(data.lines, seed)["rule"])} | ({"dev": (dev, dev.lines)} if dev else {})
    rules, found = {}, {}
    for name, network in held.networks.items():
        points = {
            among: Points(predict(network, collected, lines, name == "question"), lines, args.seed)
            for among, (collected, lines) in sets.items()
        }
        at = choose(points["rule"], points[judged], budget) if price is None else price
        rules[name] = points["rule"].rule("inverted U", at)
        found[name] = {
            "solutions": solutions(points, at),
            "frontier": frontier(points),
            "gains": {among: of.gains() for among, of in points.items()},
        }
    n = {among: len(lines) for among, (_, lines) in sets.items()}
    result = report("calibrate", args, args.seed, held.fingerprint, sum(n.values())) | {
        "questions": n,
        "chosen_on": judged,
        "default": held.default,
        "networks": found,
    }
    chosen = found[held.default]["solutions"]
    about = {"command": result["command"], "lambda": chosen["lambda"], "judged": chosen["inverted U"]}
    if price is None:
        about["budget"] = budget
    final: Checkpoint = replace(held, rules=rules, metadata=held.metadata | {"calibrate": about})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    final.save(args.out)
    write_json(args.out.with_suffix(".json"), result)
    rule = rules[held.default]
    edges = ", ".join(f"{edge:.3f}" for edge in rule.edges)
    print(f"{args.out}: {held.default}, K = {rule.num_rollouts} between p = ({edges})", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """The command line; bad input is told in one line, and gives 2."""
    parser = argparse.ArgumentParser(
        prog="python -m policy.training.calibrate", description="Make the rule from p to K, and the checkpoint."
    )
    parser.add_argument("--networks", type=Path, required=True, help="what the step fit wrote")
    parser.add_argument("--collected", type=Path, required=True, help="the folder that it was fitted on")
    parser.add_argument("--dev", type=Path, help="another one, to choose the point and measure on")
    point = parser.add_mutually_exclusive_group()
    point.add_argument("--lambda", type=float, help="accuracy that vanilla's FLOPs are worth")
    point.add_argument("--budget", type=float, help="mean LLM FLOPs relative to vanilla's; default 0.5")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint; the report is beside it, as .json")
    return command_line(parser, calibrate, argv)


if __name__ == "__main__":
    sys.exit(main())
