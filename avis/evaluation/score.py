"""From recorded rollouts to numbers: every row of a table, for every K, without a model.

    results = read_results(Path("avis/evaluation/results/test.jsonl.gz"))
    avis, vanilla = results.outcome("AVIS"), results.outcome("vanilla")
    avis.accuracy(), avis.relative(vanilla)["llm"].value, difference(avis, vanilla)

A run of `avis.evaluation.run` records, for every example and way of pruning, one greedy rollout and as many sampled
ones as any row asks for. K = 1 is the greedy one; K > 1 is the vote over the first K sampled ones, by majority or by
confidence.
"""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl import flops

from avis.answers import vote_key
from avis.evaluation.recipe import Row, parse_row
from avis.statistics import Difference, Interval, paired_difference, ratio_interval, wilson_interval
from avis.voting import is_decided, majority_vote
from policy.policy_model import CHOICES

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of one row. Arrays are `(seeds, examples)` of floats.

    Attributes:
        row: of the table.
        records: of the examples, for grouping.
        right: 1 or 0; between them where K is an expectation.
        rollouts: K.
        rho: fraction of an example's visual tokens that was pruned.
        vision: FLOPs of the vision encoder.
        prefill: FLOPs of the prefill.
        decode: FLOPs of decoding.
        decode_stopped: FLOPs of decoding that ends when the vote is decided.
        tokens: written by all rollouts.
        tokens_stopped: written by all rollouts when decoding ends with the vote.
    """

    row: Row
    records: tuple[Record, ...]
    right: np.ndarray
    rollouts: np.ndarray
    rho: np.ndarray
    vision: np.ndarray
    prefill: np.ndarray
    decode: np.ndarray
    decode_stopped: np.ndarray
    tokens: np.ndarray
    tokens_stopped: np.ndarray

    def where(self, is_wanted: Callable[[Record], bool]) -> "Outcome":
        """Return the outcome on the examples whose record is wanted."""
        wanted = np.array([is_wanted(record) for record in self.records], dtype=bool)
        values = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        arrays: dict[str, Any] = {name: value[:, wanted] for name, value in values.items()}
        return replace(self, records=tuple(filter(is_wanted, self.records)), **arrays)

    def accuracy(self) -> Interval | None:
        """Return the mean over seeds and examples, with Wilson's interval for as many trials as scenes.

        Returns:
            None for no examples.
        """
        if not self.records:
            return None
        value = float(self.right.mean())
        scenes = len({record["scene"] for record in self.records})
        low, high = wilson_interval(value * scenes, scenes)
        return Interval(value, low, high, len(self.records))

    def relative(self, vanilla: "Outcome", stopped: bool = False) -> dict[str, Interval]:
        """Return FLOPs over all examples as a fraction of vanilla's on the same examples, which may well exceed 1.

        Args:
            vanilla: on the same examples.
            stopped: decoding ends when the vote is decided.

        Returns:
            "llm" (the paper's #F) and "total", with percentile intervals over resampled scenes.
        """
        spent, base = self._sum_flops(stopped), vanilla._sum_flops(False)
        scenes = [record["scene"] for record in self.records]
        found = {}
        for name in spent:
            low, high = ratio_interval(spent[name], base[name], scenes)
            found[name] = Interval(float(spent[name].sum() / base[name].sum()), low, high, len(self.records))
        return found

    def _sum_flops(self, stopped: bool) -> dict[str, np.ndarray]:
        """Return FLOPs of each example, averaged over seeds, in both accountings."""
        llm = (self.prefill + (self.decode_stopped if stopped else self.decode)).mean(axis=0)
        return {"llm": llm, "total": llm + self.vision.mean(axis=0)}

    def saved_tokens(self) -> float:
        """Return the share of tokens that need not be written when decoding ends as soon as the vote is decided."""
        return float(1 - self.tokens_stopped.sum() / self.tokens.sum())


def difference(a: Outcome, b: Outcome) -> Difference:
    """Return the accuracy of `a` minus that of `b` on the same examples, averaged over seeds."""
    return paired_difference((a.right - b.right).mean(axis=0), [record["scene"] for record in a.records])


class Results:
    """One results file.

    Attributes:
        config: everything that the numbers depend on; files of 0.1 have the old names of settings.
        environment: the command and the machine.
        records: one an example.
        rows: of the recipe, by name.
        by_task: K by task, chosen on dev, for rows that need it; None until it is set.
    """

    def __init__(self, config: dict[str, Any], environment: dict[str, Any], records: Sequence[Record]):
        """Take the header's two parts and the records."""
        self.config, self.environment = config, environment
        self.records = tuple(records)
        self.rows = {value["name"]: parse_row(value) for value in config["rows"]}
        self.by_task: dict[str, int] | None = None
        self._outcomes: dict[tuple, dict[str, np.ndarray]] = {}
        self._decode_flops: dict[tuple[int, int], int] = {}

    @property
    def answer_format(self) -> str | None:
        """The answer format asked for; None: by the model's name. Files of 0.1 call it profile."""
        settings = self.config["settings"]
        return settings.get("answer_format", settings.get("profile"))

    @cached_property
    def _text_config(self) -> Qwen2_5_VLTextConfig:
        return Qwen2_5_VLTextConfig(**self.config["text_config"])

    def _decode(self, prefix: int, new: int) -> int:
        if (prefix, new) not in self._decode_flops:
            self._decode_flops[prefix, new] = flops.decode_flops(self._text_config, prefix, new)
        return self._decode_flops[prefix, new]

    def outcome(self, name: str) -> Outcome | None:
        """Return the outcome of a row.

        Returns:
            None when the recipe has no such row, or the row needs what was chosen on dev and that is not known.
        """
        row = self.rows.get(name)
        if row is None or (row.rollouts == "by_task" and self.by_task is None):
            return None
        return self.outcome_of(row)

    def vanilla(self) -> Outcome:
        """Return the outcome of the first row, which every recipe has."""
        return self.outcome_of(self.rows["vanilla"])

    def outcome_of(self, row: Row, weighted: bool = False) -> Outcome:
        """Return the outcome of any row with a recorded run.

        Args:
            row: of this recipe or another.
            weighted: votes weigh their rollouts' confidence; only for rows whose K is a number.

        Raises:
            ValueError: the run has fewer rollouts than the row needs.
        """
        if isinstance(row.rollouts, int):
            return Outcome(row, self.records, **self._vote_all(row.run, row.rollouts, weighted))
        by_k = {k: self._vote_all(row.run, k) for k in CHOICES}
        if row.rollouts == "permuted":
            # The expectation over all ways to deal the policy's Ks to the examples: exact, without drawing one.
            chosen = self._policy_choice()
            share = {k: float((chosen == k).mean()) for k in CHOICES}
            arrays = {name: sum(share[k] * by_k[k][name] for k in CHOICES) for name in by_k[1]}
            return Outcome(row, self.records, **arrays)
        if row.rollouts == "policy":
            chosen = self._policy_choice()
        elif row.rollouts == "by_task":
            chosen = self._choice_by_task()
        else:
            right = np.stack([by_k[k]["right"] for k in CHOICES])
            chosen = np.where(right.any(axis=0), np.array(CHOICES)[right.argmax(axis=0)], 1)
        is_chosen = [chosen == k for k in CHOICES]
        arrays = {name: np.select(is_chosen, [by_k[k][name] for k in CHOICES]) for name in by_k[1]}
        return Outcome(row, self.records, **arrays)

    def _policy_choice(self) -> np.ndarray:
        return self._for_all_seeds([record["policy"]["rollouts"] for record in self.records])

    def _choice_by_task(self) -> np.ndarray:
        if self.by_task is None:
            raise ValueError("K by task was not chosen on dev")
        return self._for_all_seeds([self.by_task[record["task"]] for record in self.records])

    def _for_all_seeds(self, values: list[int]) -> np.ndarray:
        return np.broadcast_to(values, (len(self.config["seeds"]), len(values)))

    def _vote_all(self, run: str, k: int, weighted: bool = False) -> dict[str, np.ndarray]:
        """Vote on every example with one way of pruning and one K. Rows share what this returns."""
        if (run, k, weighted) not in self._outcomes:
            seeds = range(len(self.config["seeds"]))
            found = [[self._vote(one["runs"][run][seed], k, weighted) for one in self.records] for seed in seeds]
            self._outcomes[run, k, weighted] = {
                name: np.array([[one[name] for one in of_seed] for of_seed in found], dtype=np.float64)
                for name in found[0][0]
            }
        return self._outcomes[run, k, weighted]

    def _vote(self, record: Record, k: int, weighted: bool) -> dict[str, float]:
        voters = slice(0, 1) if k == 1 else slice(1, k + 1)
        # Records of 0.1 have no votes; the canonical form of a vote is itself.
        answers, tokens = (record.get("votes") or record["answers"])[voters], record["tokens"][voters]
        if len(answers) < k:
            raise ValueError(f"K = {k} needs {k} sampled rollouts, the results have {len(record['tokens']) - 1}")
        weights = record["confidence"][voters] if weighted else None
        index = majority_vote(answers, weights=weights).index
        read = record["read"]
        stop = stopping_length(answers, tokens, weights)
        return {
            "right": 0 if index is None else record["right"][voters][index],
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
        """Return for each task the K of `CHOICES` with the best accuracy in a run, the smallest of equals."""
        right = {k: self._vote_all(run, k)["right"].mean(axis=0) for k in CHOICES}
        tasks = [record["task"] for record in self.records]
        found = {}
        for task in sorted(set(tasks)):
            is_of_task = np.array([name == task for name in tasks])
            rank = {k: (round(float(right[k][is_of_task].sum()), 6), -k) for k in CHOICES}
            found[task] = max(CHOICES, key=rank.__getitem__)
        return found


def stopping_length(
    answers: Sequence[str | None], tokens: Sequence[int], weights: Sequence[float] | None = None
) -> int:
    """Return how many tokens each of these rollouts writes at most when decoding ends with the decision of the vote.

    All rollouts write one token a step, and vote when they end.

    Args:
        answers: one a rollout; None abstains.
        tokens: the length of each.
        weights: of their votes; None: each counts 1.
    """
    if len(answers) == 1:
        return tokens[0]
    keys = [vote_key(answer) for answer in answers]
    for length in sorted(set(tokens)):
        ended = [index for index, own in enumerate(tokens) if own <= length]
        weights_of_ended = None if weights is None else {index: weights[index] for index in ended}
        if is_decided({index: keys[index] for index in ended}, len(answers), weights_of_ended):
            return length
    raise AssertionError("a vote is decided when every rollout has ended")


def constant_guess(records: Sequence[Record]) -> float:
    """Return the share of examples that constant answers get, the best one for each task and form."""
    seen: dict[tuple, dict[str, int]] = {}
    for record in records:
        counts = seen.setdefault((record["task"], record["form"]), {})
        counts[record["truth"]] = counts.get(record["truth"], 0) + 1
    return sum(max(counts.values()) for counts in seen.values()) / len(records)


def read_results(path: Path) -> Results:
    """Return the results of a file, packed or not. Raises ValueError or OSError with one line."""
    data = path.read_bytes()
    try:
        lines = [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]
        return Results(lines[0]["config"], lines[0]["environment"], lines[1:])
    except (ValueError, KeyError, TypeError, IndexError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a file of results: {error}") from None
