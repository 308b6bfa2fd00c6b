"""All steps of fitting, one after the other; stopped, the same command goes on.

python -m policy.training --model-path M --data garden --dev garden:dev --out policy_checkpoint.pt
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from policy.training import calibrate, collect, fit, tau


def steps(args: argparse.Namespace) -> list[tuple[Callable[[list[str]], int], list[str]]]:
    """Every step and its command line."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    flags = {name: [f"--{name.replace('_', '-')}", str(value)] for name, value in given.items()}
    angle, fitting, held_out = (str(args.folder / name) for name in ("tau.json", "fitting", "dev"))
    networks, seed = str(args.folder / "networks.pt"), flags["seed"]
    point = flags.get("lambda", flags.get("budget", []))
    pictures = ["--items", str(min(args.items or tau.ITEMS, tau.ITEMS))]
    drawing = ["--tau", angle, *seed]
    for name in ("model_path", "items", "max_new_tokens", "processes"):
        drawing += flags.get(name, [])
    fitted_on = ["--collected", fitting, *(["--dev", held_out] if args.dev else [])]
    found = [
        (tau.main, [*flags["model_path"], *flags["data"], *flags["target_rho"], *pictures, "--out", angle]),
        (collect.main, [*drawing, *flags["data"], "--out", fitting]),
        (fit.main, [*fitted_on, *seed, "--out", networks]),
        (calibrate.main, ["--networks", networks, *fitted_on, *point, *seed, *flags["out"]]),
    ]
    if args.dev:
        found.insert(2, (collect.main, [*drawing, "--data", args.dev, "--out", held_out]))
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line; the status is that of the first step that fails, else 0."""
    parser = argparse.ArgumentParser(prog="python -m policy.training", description="Fit the policy to a model.")
    parser.add_argument("--model-path", required=True, help="a Qwen2.5-VL folder or hub name")
    parser.add_argument("--data", required=True, help="garden, garden:SPLIT, a VLMEvalKit .tsv, or JSONL")
    parser.add_argument("--dev", help="other data, to choose and measure on")
    parser.add_argument("--target-rho", type=float, default=0.75, help="mean fraction pruned")
    parser.add_argument("--items", type=int, help="the first so many questions of data and of dev; default all")
    parser.add_argument("--max-new-tokens", type=int, default=2048, help="of each rollout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, help="that draw rollouts; default: one on a GPU, else one a core")
    point = parser.add_mutually_exclusive_group()
    point.add_argument("--lambda", type=float, help="accuracy that vanilla's FLOPs are worth")
    point.add_argument("--budget", type=float, help="mean LLM FLOPs relative to vanilla's; default 0.5")
    parser.add_argument("--folder", type=Path, default=Path("runs/policy"), help="for what the steps leave")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint; its report is beside it, as .json")
    args = parser.parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        print("error: of the steps only python -m policy.training.collect can be launched on several", file=sys.stderr)
        return 2
    for step, arguments in steps(args):
        status = step(arguments)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
