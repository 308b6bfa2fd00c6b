"""Step 4 of fitting: the rule that maps p to K, and the policy checkpoint::

    python -m policy.training.calibrate --networks runs/policy/networks.pt --collected runs/policy/fitting \\
        --dev runs/policy/dev --budget 0.5 --out policy_checkpoint.pt

The rule maximises accuracy - lambda * decode FLOPs on the scenes that `fit` left for it, FLOPs being relative to those
of the vanilla model's language part (rho = 0, K = 1, as long as the greedy rollout). Three solutions are reported, as
the shape is a claim to test: K rises and then falls with p (inverted U; the one that ships), no constraint but the
number of bins, and one K for all. `--lambda` sets the point, or `--budget` does: the smallest lambda whose mean FLOPs,
prefill included, are within it on dev (without dev: on the scenes that the rule was made on).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avis.cli import ArgumentParser, run_command
from avis.files import write_json
from policy.binning import BinningRule
from policy.checkpoint import PolicyCheckpoint, read_checkpoint
from policy.training import report
from policy.training.choice_table import ChoiceTable
from policy.training.collected import CollectedRollouts, Line, check_same_drawing, split_by_scene
from policy.training.fit import predict
from policy.training.rule_search import SHAPES

LAMBDAS = (0.0, *np.geomspace(1e-4, 10, 51).tolist())
DEFAULT_BUDGET = 0.5
QuestionSets = dict[str, tuple[CollectedRollouts, Sequence[Line]]]


def choose_price(made_on: ChoiceTable, tested_on: ChoiceTable, budget: float) -> float:
    """Return the smallest lambda whose inverted-U rule is within a budget.

    Args:
        made_on: questions that the rule is made on.
        tested_on: questions whose FLOPs count.
        budget: mean LLM FLOPs relative to vanilla's.

    Raises:
        ValueError: no lambda is within it.
    """
    for price in LAMBDAS:
        if tested_on.mean_flops(made_on.best_rule("inverted U", price)) <= budget:
            return price
    least = tested_on.mean_flops(BinningRule())
    raise ValueError(f"no rule is within --budget {budget}: K = 1 throughout takes {least:.3f} of vanilla's FLOPs")


def solve(tables: dict[str, ChoiceTable], price: float) -> dict[str, Any]:
    """Return the three solutions at one lambda, made on the first set of questions and evaluated on every one."""
    first = next(iter(tables.values()))
    rules = {shape: first.best_rule(shape, price) for shape in SHAPES}
    found: dict[str, Any] = {"lambda": price}
    for shape, rule in rules.items():
        found[shape] = {
            "edges": list(rule.edges),
            "num_rollouts": list(rule.num_rollouts),
            **{name: table.evaluate_rule(rule) for name, table in tables.items()},
        }
    best, differences = rules["inverted U"], {}
    for name, table in tables.items():
        differences[name] = {
            "inverted U minus constant": table.compare_rules(best, rules["constant"]),
            "inverted U minus unconstrained": table.compare_rules(best, rules["unconstrained"]),
        }
    return found | {"differences": differences}


def trace_frontier(tables: dict[str, ChoiceTable]) -> list[dict[str, Any]]:
    """Return accuracy and cost of every shape over all lambdas, without intervals; equal rules are listed once."""
    first = next(iter(tables.values()))
    found: dict[tuple[str, BinningRule], dict[str, Any]] = {}
    for shape in SHAPES:
        for price in LAMBDAS:
            rule = first.best_rule(shape, price)
            row = {"shape": shape, "lambda": price, "edges": list(rule.edges), "num_rollouts": list(rule.num_rollouts)}
            for name, table in tables.items():
                row[name] = {"accuracy": table.mean_accuracy(rule), "relative_llm": table.mean_flops(rule)}
            found.setdefault((shape, rule), row)
    return list(found.values())


def calibrate_rules(args: argparse.Namespace) -> None:
    """Run the step.

    Raises:
        ValueError, OSError: bad input, in one line.
    """
    price, budget = vars(args)["lambda"], DEFAULT_BUDGET if args.budget is None else args.budget
    if price is not None and not 0 <= price < np.inf:
        raise ValueError(f"--lambda must be finite and at least 0, got {price}")
    if not 0 < budget < np.inf:
        raise ValueError(f"--budget is FLOPs relative to vanilla's, above 0, got {budget}")
    fitted = read_checkpoint(args.networks)
    sets = _question_sets(fitted, args)
    rules, found = {}, {}
    for name in fitted.networks:
        rules[name], found[name] = _calibrate_network(fitted, name, sets, price, budget, args.seed)
    numbers = {name: len(lines) for name, (_, lines) in sets.items()}
    result = report("calibrate", args, args.seed, fitted.weights_sha256, sum(numbers.values())) | {
        "questions": numbers,
        "chosen_on": "dev" if "dev" in sets else "rule",
        "default": fitted.default,
        "networks": found,
    }
    chosen = found[fitted.default]["solutions"]
    about = {"command": result["command"], "lambda": chosen["lambda"], "judged": chosen["inverted U"]}
    if price is None:
        about["budget"] = budget
    args.out.parent.mkdir(parents=True, exist_ok=True)
    replace(fitted, rules=rules, metadata=fitted.metadata | {"calibrate": about}).save(args.out)
    write_json(args.out.with_suffix(".json"), result)
    rule = rules[fitted.default]
    edges = ", ".join(f"{edge:.3f}" for edge in rule.edges)
    print(f"{args.out}: {fitted.default}, K = {rule.num_rollouts} between p = ({edges})", file=sys.stderr)


def _question_sets(fitted: PolicyCheckpoint, args: argparse.Namespace) -> QuestionSets:
    """Return the scenes that `fit` left for the rule and, when there is one, dev. Raises ValueError for other data."""
    data = CollectedRollouts(args.collected)
    dev = CollectedRollouts(args.dev) if args.dev else None
    if dev:
        check_same_drawing(data, dev)
    if fitted.metadata.get("collected_sha256") != data.sha256:
        raise ValueError(f"{args.networks} was not fitted on {args.collected}: run python -m policy.training.fit")
    sets: QuestionSets = {"rule": (data, split_by_scene(data.lines, fitted.metadata["seed"])["rule"])}
    if dev:
        sets["dev"] = (dev, dev.lines)
    return sets


def _calibrate_network(
    fitted: PolicyCheckpoint, name: str, sets: QuestionSets, price: float | None, budget: float, seed: int
) -> tuple[BinningRule, dict[str, Any]]:
    """Return a network's rule and its part of the report."""
    network, tables = fitted.networks[name], {}
    for among, (data, lines) in sets.items():
        tables[among] = ChoiceTable(predict(network, data, lines, name == "question"), lines, seed)
    if price is None:
        price = choose_price(tables["rule"], tables.get("dev", tables["rule"]), budget)
    return tables["rule"].best_rule("inverted U", price), {
        "solutions": solve(tables, price),
        "frontier": trace_frontier(tables),
        "gains": {among: table.gain_curve() for among, table in tables.items()},
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input, which is reported in one line."""
    parser = ArgumentParser(
        prog="python -m policy.training.calibrate", description="Make the rule from p to K, and the checkpoint."
    )
    parser.add_argument("--networks", type=Path, required=True, help="the file that the step fit wrote")
    parser.add_argument("--collected", type=Path, required=True, help="the folder that they were fitted on")
    parser.add_argument("--dev", type=Path, help="another one, to choose the point and measure on")
    point = parser.add_mutually_exclusive_group()
    point.add_argument("--lambda", type=float, help="accuracy that vanilla's FLOPs are worth")
    point.add_argument("--budget", type=float, help="mean LLM FLOPs relative to vanilla's; default 0.5")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals; default 0")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint; the report is beside it, as .json")
    return run_command(partial(calibrate_rules, parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
