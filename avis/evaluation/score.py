"""From recorded rollouts to numbers: every row of a table, for every K, without a model.

    results = read(Path("evaluation/results/test.jsonl.gz"))
    avis, vanilla = results.outcome("AVIS"), results.outcome("vanilla")
    avis.accuracy(), avis.relative(vanilla)["llm"].value, difference(avis, vanilla)

A run of `avis.evaluation.run` records, for every item and way of pruning, one greedy rollout and as many sampled ones as any
row asks for. K = 1 is the greedy one, K > 1 the vote over the first K sampled ones: by majority, or by confidence.
"""

import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl import flops

from avis.answers import vote_key
from avis.voting import is_decided, majority_vote
from policy.policy_model import CHOICES

PRUNERS = ("kdv", "random", "downsample")
# What else than a number a row's K can be. The policy's; the policy's, dealt to other items; the best for the task on
# dev; the smallest that is right, which nobody can know beforehand.
ALLOCATIONS = ("policy", "permuted", "by_task", "oracle")
Z = 1.959963984540054  # of a two-sided 95% interval
RESAMPLES, CHUNK = 10_000, 500


@dataclass(frozen=True)
class Row:
    """One row of a table: what to spend. Values that do not go together raise ValueError with one line.

    Attributes:
        name: unique in its recipe.
        rho: the fraction pruned, or "policy": the mean that the policy was fitted for. tau: radians, or "policy". At
            most one of them; neither prunes nothing.
        pruner: "kdv", "random" (as many tokens, drawn), or "downsample" (the picture made smaller, to about as many).
        rollouts: K, or one of `ALLOCATIONS`.
    """

    name: str
    rho: float | str | None = None
    tau: float | str | None = None
    pruner: str = "kdv"
    rollouts: int | str = 1

    def __post_init__(self):
        for name, most in (("rho", 1), ("tau", math.pi)):
            value = getattr(self, name)
            if not (value is None or value == "policy" or (type(value) in (int, float) and 0 < value < most)):
                raise ValueError(f"row {self.name}: {name} is between 0 and {most:.4g}, or policy, got {value!r}")
        if self.rho is not None and self.tau is not None:
            raise ValueError(f"row {self.name}: rho and tau exclude each other")
        if self.pruner not in PRUNERS:
            raise ValueError(f"row {self.name}: pruner is one of {', '.join(PRUNERS)}, got {self.pruner!r}")
        if self.pruner != "kdv" and self.rho is None and self.tau is None:
            raise ValueError(f"row {self.name}: {self.pruner} needs rho or tau")
        if self.rollouts not in ALLOCATIONS and not (type(self.rollouts) is int and 1 <= self.rollouts <= 64):
            raise ValueError(
                f"row {self.name}: rollouts is 1 to 64, or one of {', '.join(ALLOCATIONS)}, got {self.rollouts!r}"
            )

    @property
    def run(self) -> str:
        """The name of its way of pruning; rows with the same one share their rollouts."""
        amount = "rho=0" if self.rho is None else f"rho={self.rho}"
        amount = amount if self.tau is None else f"tau={self.tau}"
        return amount if self.pruner == "kdv" else f"{amount} {self.pruner}"

    @property
    def needs_policy(self) -> bool:
        return "policy" in (self.rho, self.tau) or self.rollouts in ("policy", "permuted")

    @property
    def sampled(self) -> int:
        """How many sampled rollouts it needs."""
        if self.rollouts in ALLOCATIONS:
            return max(CHOICES)
        return self.rollouts if self.rollouts > 1 else 0


def row_of(value: Any) -> Row:
    """A row from its dictionary. Raises ValueError with one line."""
    known = [field.name for field in fields(Row)]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError(f"a row has a name and any of {', '.join(known[1:])}, got {value!r:.100}")
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ValueError(f"row {value['name']}: no such setting: {unknown[0]}")
    return Row(**value)


# ------------------------------------------------------------------------------------------------------- intervals


@dataclass(frozen=True)
class Share:
    """A share, or FLOPs relative to vanilla's, with its 95% interval, of `items` items."""

    value: float
    low: float
    high: float
    items: int


def wilson(right: float, total: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927); `right` need not be whole, as when two seeds are averaged."""
    p, z2 = right / total, Z * Z
    middle, centre = p + z2 / (2 * total), 1 + z2 / total
    half = Z * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return max(0.0, (middle - half) / centre), min(1.0, (middle + half) / centre)


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its 95% bootstrap interval and two-sided bootstrap p-value."""

    value: float
    low: float
    high: float
    p: float


@lru_cache(maxsize=4)
def _weights(clusters: int) -> np.ndarray:
    """How often each resample draws each cluster, `(RESAMPLES, clusters)`; the same for every comparison."""
    rng = np.random.default_rng(0)
    drawn = [rng.multinomial(clusters, np.full(clusters, 1 / clusters), CHUNK) for _ in range(RESAMPLES // CHUNK)]
    return np.concatenate(drawn).astype(np.float32)


def paired_difference(values: np.ndarray, clusters: Sequence[Any]) -> Difference:
    """The mean of differences, with a percentile interval over resampled clusters.

    Args:
        values: `(n,)`, one difference an item.
        clusters: `(n,)`, the scene of each; items of one scene are drawn together.
    """
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(inverse, values).astype(np.float64)
    sizes = np.bincount(inverse).astype(np.float64)
    weights = _weights(len(sums))
    means = (weights @ sums) / (weights @ sizes)
    low, high = np.quantile(means, (0.025, 0.975))
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (len(means) + 1))
    return Difference(float(values.mean()), float(low), float(high), float(p))


def ratio_interval(a: np.ndarray, b: np.ndarray, clusters: Sequence[Any]) -> tuple[float, float]:
    """The 95% percentile interval of sum(a) / sum(b) over resampled clusters.

    Args:
        a, b: `(n,)`, one value an item.
        clusters: `(n,)`, as for `paired_difference`.
    """
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    weights = _weights(int(inverse.max()) + 1)
    low, high = np.quantile((weights @ np.bincount(inverse, a)) / (weights @ np.bincount(inverse, b)), (0.025, 0.975))
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for a family of comparisons (Holm 1979), in their order."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


# -------------------------------------------------------------------------------------------------------- outcomes


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one row did. Arrays are `(seeds, items)`; FLOPs are floats.

    right: 1 or 0 (between them where K is an expectation). rollouts: K. rho: the fraction pruned of an item's visual
    tokens. vision, prefill, decode: FLOPs. tokens: written by all rollouts. decode_stopped, tokens_stopped: of decoding
    that ends when the vote is decided. items: the records, for grouping.
    """

    row: Row
    items: tuple[dict, ...]
    right: np.ndarray
    rollouts: np.ndarray
    rho: np.ndarray
    vision: np.ndarray
    prefill: np.ndarray
    decode: np.ndarray
    decode_stopped: np.ndarray
    tokens: np.ndarray
    tokens_stopped: np.ndarray

    def where(self, keep: Callable[[dict], bool]) -> "Outcome":
        """The same, of some of the items."""
        kept = np.array([keep(item) for item in self.items], dtype=bool)
        arrays = {name: value[:, kept] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, items=tuple(item for item in self.items if keep(item)), **arrays)

    def accuracy(self) -> Share | None:
        """The mean over seeds and items, with Wilson's interval for as many trials as scenes; None of no items."""
        if not self.items:
            return None
        value = float(self.right.mean())
        scenes = len({item["scene"] for item in self.items})
        return Share(value, *wilson(value * scenes, scenes), len(self.items))

    def relative(self, vanilla: "Outcome", stopped: bool = False) -> dict[str, Share]:
        """FLOPs over all items as a fraction of vanilla's on the same items: "llm" (the paper's #F) and "total".

        With percentile intervals over resampled scenes; a fraction may well exceed 1.
        """
        mine, base = self._spent(stopped), vanilla._spent(False)
        scenes = [item["scene"] for item in self.items]
        return {
            name: Share(
                float(mine[name].sum() / base[name].sum()),
                *ratio_interval(mine[name], base[name], scenes),
                len(self.items),
            )
            for name in mine
        }

    def _spent(self, stopped: bool) -> dict[str, np.ndarray]:
        """FLOPs of each item, seeds averaged, in both accountings."""
        llm = (self.prefill + (self.decode_stopped if stopped else self.decode)).mean(axis=0)
        return {"llm": llm, "total": llm + self.vision.mean(axis=0)}

    def saved(self) -> float:
        """The share of tokens that need not be written when decoding ends as soon as the vote is decided."""
        return float(1 - self.tokens_stopped.sum() / self.tokens.sum())


def difference(a: Outcome, b: Outcome) -> Difference:
    """Accuracy of `a` minus that of `b` on the same items, seeds averaged."""
    return paired_difference((a.right - b.right).mean(axis=0), [item["scene"] for item in a.items])


class Results:
    """One results file. config: what the numbers hang on. environment: the command and where it ran. items: records."""

    def __init__(self, config: dict, environment: dict, items: Sequence[dict]):
        self.config, self.environment = config, environment
        self.items = tuple(items)
        self.rows = {value["name"]: row_of(value) for value in config["rows"]}
        # Set by whoever has them: K by task, for rows that need what was chosen on dev.
        self.by_task: dict[str, int] | None = None
        self._tried: dict[tuple, dict[str, np.ndarray]] = {}

    @cached_property
    def _text_config(self) -> Qwen2_5_VLTextConfig:
        return Qwen2_5_VLTextConfig(**self.config["text_config"])

    @cached_property
    def _decode(self) -> Callable[[int, int], int]:
        return lru_cache(maxsize=None)(lambda prefix, new: flops.decode_flops(self._text_config, prefix, new))

    def outcome(self, name: str) -> Outcome | None:
        """What a row did; None when the recipe lacks it, or it needs what was chosen on dev and that is not known."""
        row = self.rows.get(name)
        if row is None or (row.rollouts == "by_task" and self.by_task is None):
            return None
        return self.outcome_of(row)

    def outcome_of(self, row: Row, weighted: bool = False) -> Outcome:
        """What any row with a recorded run did. Raises ValueError when the run has fewer rollouts than it needs.

        Args:
            weighted: votes weigh their rollouts' confidence; only for rows whose K is a number.
        """
        if type(row.rollouts) is int:
            return Outcome(row, self.items, **self._try(row.run, row.rollouts, weighted))
        tried = {k: self._try(row.run, k) for k in CHOICES}
        shape = (len(self.config["seeds"]), len(self.items))
        if row.rollouts == "permuted":
            # The expectation over all ways to deal the policy's Ks to the items: exact, without drawing one.
            chosen = self._policy_choice()
            share = {k: float((chosen == k).mean()) for k in CHOICES}
            arrays = {name: sum(share[k] * tried[k][name] for k in CHOICES) for name in tried[1]}
            return Outcome(row, self.items, **arrays)
        if row.rollouts == "policy":
            chosen = self._policy_choice()
        elif row.rollouts == "by_task":
            chosen = np.broadcast_to([self.by_task[item["task"]] for item in self.items], shape)
        else:
            right = np.stack([tried[k]["right"] for k in CHOICES])
            chosen = np.where(right.any(axis=0), np.array(CHOICES)[right.argmax(axis=0)], 1)
        arrays = {
            name: np.select([chosen == k for k in CHOICES], [tried[k][name] for k in CHOICES]) for name in tried[1]
        }
        return Outcome(row, self.items, **arrays)

    def _policy_choice(self) -> np.ndarray:
        chosen = np.array([item["policy"]["rollouts"] for item in self.items])
        return np.broadcast_to(chosen, (len(self.config["seeds"]), len(chosen)))

    def _try(self, run: str, k: int, weighted: bool = False) -> dict[str, np.ndarray]:
        """One way of pruning with one K on every item; kept, since rows share it."""
        if (run, k, weighted) not in self._tried:
            seeds = range(len(self.config["seeds"]))
            found = [[self._vote(item["runs"][run][seed], k, weighted) for item in self.items] for seed in seeds]
            self._tried[run, k, weighted] = {
                name: np.array([[one[name] for one in of_seed] for of_seed in found], dtype=np.float64)
                for name in found[0][0]
            }
        return self._tried[run, k, weighted]

    def _vote(self, record: dict, k: int, weighted: bool) -> dict[str, float]:
        drawn = slice(0, 1) if k == 1 else slice(1, k + 1)
        answers, tokens = record["answers"][drawn], record["tokens"][drawn]
        if len(answers) < k:
            raise ValueError(f"K = {k} was asked for, {len(record['answers']) - 1} rollouts were sampled")
        weights = record["confidence"][drawn] if weighted else None
        index = majority_vote(answers, weights=weights).index
        read = record["read"]
        stop = stopping_length(answers, tokens, weights)
        return {
            "right": 0 if index is None else record["right"][drawn][index],
            "rollouts": k,
            "rho": 1 - sum(record["kept"]) / sum(record["visual"]),
            "vision": record["vision"],
            "prefill": flops.prefill_flops(self._text_config, read),
            "decode": sum(self._decode(read, length) for length in tokens),
            "decode_stopped": sum(self._decode(read, min(length, stop)) for length in tokens),
            "tokens": sum(tokens),
            "tokens_stopped": sum(min(length, stop) for length in tokens),
        }

    def best_by_task(self, run: str = "rho=0") -> dict[str, int]:
        """For each task the K of `CHOICES` with the best accuracy in a run; of equals the smallest."""
        right = {k: self._try(run, k)["right"].mean(axis=0) for k in CHOICES}
        tasks = [item["task"] for item in self.items]
        found = {}
        for task in sorted(set(tasks)):
            mine = np.array([name == task for name in tasks])
            found[task] = max(CHOICES, key=lambda k: (round(float(right[k][mine].sum()), 6), -k))
        return found


def stopping_length(
    answers: Sequence[str | None], tokens: Sequence[int], weights: Sequence[float] | None = None
) -> int:
    """How many tokens each of these rollouts writes at most, when decoding ends as soon as the vote is decided.

    All rollouts write one token a step, and vote when they end; with weights, as heavily as these say.
    """
    if len(answers) == 1:
        return tokens[0]
    forms = [vote_key(answer) for answer in answers]
    for length in sorted(set(tokens)):
        ended = [i for i, own in enumerate(tokens) if own <= length]
        weighed = None if weights is None else {i: weights[i] for i in ended}
        if is_decided({i: forms[i] for i in ended}, len(answers), weighed):
            return length
    raise AssertionError("a vote is decided when every rollout has ended")


def constant_guess(items: Sequence[dict]) -> float:
    """The share of items that constant answers get, the best one for each task and form."""
    seen: dict[tuple, dict[str, int]] = {}
    for item in items:
        counts = seen.setdefault((item["task"], item["form"]), {})
        counts[item["truth"]] = counts.get(item["truth"], 0) + 1
    return sum(max(counts.values()) for counts in seen.values()) / len(items)


def read(path: Path) -> Results:
    """A results file. Raises ValueError or OSError with one line."""
    data = path.read_bytes()
    try:
        lines = [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]
        return Results(lines[0]["config"], lines[0]["environment"], lines[1:])
    except (ValueError, KeyError, TypeError, IndexError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a file of results: {error}") from None
