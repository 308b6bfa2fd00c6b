"""Run all steps of fitting, one after the other; stopped, the same command resumes::

python -m policy.training --model-path M --data garden --dev garden:dev --out policy_checkpoint.pt
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from avis.cli import ArgumentParser, run_command
from policy.training import calibrate, collect, fit, tau

Step = tuple[Callable[[list[str]], int], list[str]]


def plan_steps(args: argparse.Namespace) -> list[Step]:
    """Return the main function of every step with its command line."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    flags = {name: [f"--{name.replace('_', '-')}", str(value)] for name, value in given.items()}
    angle, fitting, held_out = (str(args.folder / name) for name in ("tau.json", "fitting", "dev"))
    networks, seed = str(args.folder / "networks.pt"), flags["seed"]
    point = flags.get("lambda", flags.get("budget", []))
    encoded = ["--items", str(min(args.items or tau.ITEMS, tau.ITEMS))]
    drawing = ["--tau", angle, *seed]
    for name in ("model_path", "items", "max_new_tokens", "processes"):
        drawing += flags.get(name, [])
    fitted_on = ["--collected", fitting]
    if args.dev:
        fitted_on += ["--dev", held_out]
    steps: list[Step] = [
        (tau.main, [*flags["model_path"], *flags["data"], *flags["target_rho"], *encoded, "--out", angle]),
        (collect.main, [*drawing, *flags["data"], "--out", fitting]),
    ]
    if args.dev:
        steps.append((collect.main, [*drawing, "--data", args.dev, "--out", held_out]))
    steps.append((fit.main, [*fitted_on, *seed, "--out", networks]))
    steps.append((calibrate.main, ["--networks", networks, *fitted_on, *point, *seed, *flags["out"]]))
    return steps


def run_steps(args: argparse.Namespace) -> int:
    """Run all steps; return the status of the first that fails, else 0.

    Raises:
        ValueError: launched on several processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("of the steps only python -m policy.training.collect can be launched on several processes")
    for main_of_step, arguments in plan_steps(args):
        status = main_of_step(arguments)
        if status:
            return status
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input, which is reported in one line."""
    parser = ArgumentParser(prog="python -m policy.training", description="Fit the policy to a model.")
    parser.add_argument("--model-path", required=True, help="a Qwen2.5-VL folder or hub name")
    parser.add_argument("--data", required=True, help="garden, garden:SPLIT, garden2:SPLIT, .tsv or JSONL")
    parser.add_argument("--dev", help="other data, to choose and measure on")
    parser.add_argument("--target-rho", type=float, default=0.75, help="mean fraction pruned; default 0.75")
    parser.add_argument("--items", type=int, help="the first so many questions of data and of dev; default all")
    parser.add_argument("--max-new-tokens", type=int, default=2048, help="of each rollout; default 2048")
    parser.add_argument("--seed", type=int, default=0, help="of sampling, split, weights and intervals; default 0")
    parser.add_argument("--processes", type=int, help="that draw rollouts; default: one on a GPU, else one a core")
    point = parser.add_mutually_exclusive_group()
    point.add_argument("--lambda", type=float, help="accuracy that vanilla's FLOPs are worth")
    point.add_argument("--budget", type=float, help="mean LLM FLOPs relative to vanilla's; default 0.5")
    parser.add_argument("--folder", type=Path, default=Path("runs/policy"), help="of the steps' files")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint; its report is beside it, as .json")
    return run_command(partial(run_steps, parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
