"""Measure a model by a recipe: every way of pruning that its rows name, one greedy and K sampled rollouts each.

    python -m avis.evaluation.run --recipe avis/evaluation/recipes/dev.yaml --policy-path policy_checkpoint.pt \\
        --processes 2 --out avis/evaluation/results/dev.jsonl.gz

The file is `dev.jsonl` while the run is under way: a header with everything that the numbers depend on, then one
synced line an example. A killed run resumes with the same command; a larger `--limit` adds to what is there. The last
process packs the file, sorted, as `dev.jsonl.gz`. `accelerate launch --num_processes n -m avis.evaluation.run ..` deals
the examples to n processes with a model each; the records are the same. Scores are made from records alone
(`avis.evaluation.score`).

Exit status 0: everything is measured; 1: some examples failed, and the same command tries them again; 2: bad input;
130: Ctrl-C.
"""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from avis.cli import ArgumentParser, run_command
from avis.evaluation.measure import Evaluator
from avis.evaluation.recipe import Recipe, read_recipe
from avis.evaluation.writer import ResultWriter
from avis.processes import run_in_processes
from avis.prompts import answer_format_for

Example = tuple[int, int]  # place of the source among --tasks, and index of the question
Measured = tuple[Example, dict[str, Any] | Exception]  # the record, or why there is none

_evaluator: list[Evaluator] = []  # of a worker process: one, loaded when it starts


def _load_evaluator(
    model_path: str, policy_path: str | None, recipe: Recipe, tasks: list[str], device: str | None
) -> None:
    _evaluator[:] = [Evaluator(model_path, policy_path, recipe, tasks, device)]


def _measure_example(example: Example) -> dict[str, Any]:
    return _evaluator[0].measure(example[0], example[1])


def _measure_here(evaluator: Evaluator, examples: list[Example]) -> Iterator[Measured]:
    for example in examples:
        try:
            yield example, evaluator.measure(example[0], example[1])
        except (ValueError, OSError, MemoryError) as error:
            yield example, error


def _measure_in_processes(arguments: tuple, examples: list[Example], processes: int) -> Iterator[Measured]:
    for example, job in run_in_processes(_measure_example, examples, processes, _load_evaluator, arguments):
        try:
            yield example, job.result()
        except (ValueError, OSError, MemoryError) as error:
            yield example, error


def _resolve_recipe(args: argparse.Namespace) -> Recipe:
    """Return the recipe with the command line's changes, and without rows that need a missing policy."""
    recipe = read_recipe(args.recipe)
    recipe = replace(recipe, split=args.split or recipe.split, limit=args.limit or recipe.limit)
    if args.answer_format:
        answer_format_for("", args.answer_format)
        recipe = replace(recipe, settings=recipe.settings | {"answer_format": args.answer_format})
    if args.policy_path is None:
        without = [row.name for row in recipe.rows if row.needs_policy]
        if without:
            print(f"no --policy-path: left out are {', '.join(without)}", file=sys.stderr)
        recipe = replace(recipe, rows=tuple(row for row in recipe.rows if not row.needs_policy))
    return recipe


def _note_on_policy(config: dict[str, Any]) -> str | None:
    """Return a note when the whole hash of the weights differs where the quick fingerprint did not."""
    if config["policy"] is None or config["policy"]["fitted_on"] == config["weights_sha256"]:
        return None
    fitted_on, measured = config["policy"]["fitted_on"][:12], str(config["weights_sha256"])[:12]
    return f"the policy was fitted on other weights ({fitted_on}, the model's are {measured})"


def _describe_environment(evaluator: Evaluator, command: str) -> dict[str, Any]:
    device = evaluator.model.device
    return {
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _write_records(measured: Iterator[Measured], total: int, names: list[str], writer: ResultWriter) -> int:
    """Write records as they come. Returns the number of examples that failed."""
    failed = 0
    for (number, index), record in tqdm(measured, total=total, unit="example", disable=None):
        if isinstance(record, Exception):
            failed += 1
            reason = (str(record).splitlines() or [type(record).__name__])[0]
            tqdm.write(f"failed: {names[number]} {index}: {reason}", file=sys.stderr)
        else:
            writer.append(record)
    return failed


def evaluate(args: argparse.Namespace, command: str) -> int:
    """Measure what is missing.

    Args:
        args: the parsed command line.
        command: the command line as text, for the record.

    Returns:
        The exit status: 0, or 1 when some examples failed.

    Raises:
        ValueError, OSError, MemoryError: bad input, with one line.
    """
    for name in ("limit", "processes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    recipe = _resolve_recipe(args)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by `accelerate launch`
    if args.device == "auto" and max(args.processes, world) > 1:
        raise ValueError("--device auto spreads one model over all GPUs: it goes with one process")
    arguments = (args.model_path, args.policy_path, recipe, args.tasks, args.device)
    evaluator = Evaluator(args.model_path, args.policy_path, recipe, args.tasks, args.device)
    names = [source.name for source in evaluator.sources]
    if len(set(names)) < len(names):
        raise ValueError(f"two of --tasks have the same name: {', '.join(names)}")
    sizes = [min(len(source), recipe.limit or len(source)) for source in evaluator.sources]
    examples = [(number, index) for number, size in enumerate(sizes) for index in range(size)]

    out = args.out or Path("runs") / f"{recipe.name}-{'-'.join(names)}.jsonl.gz"
    config = evaluator.describe()
    with ResultWriter(out, config, _describe_environment(evaluator, command)) as writer:
        note = evaluator.note or _note_on_policy(config)
        if note and rank == 0:
            print(f"note: {note}", file=sys.stderr)
        missing = [(number, index) for number, index in examples if not writer.has(names[number], index)][rank::world]
        if args.processes > 1:
            measured = _measure_in_processes(arguments, missing, args.processes)
        else:
            measured = _measure_here(evaluator, missing)
        failed = _write_records(measured, len(missing), names, writer)
        packed = writer.pack({(names[number], index) for number, index in examples})
    if packed is not None:
        print(f"{out}: {packed} examples")
    if failed:
        print(f"{failed} examples failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def build_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(prog="python -m avis.evaluation.run", description="Measure a model by a recipe.")
    parser.add_argument("--recipe", type=Path, required=True, help="a file like those in avis/evaluation/recipes")
    parser.add_argument(
        "--model-path", default="models/garden-tiny", help="a folder or hub name (default: %(default)s)"
    )
    parser.add_argument("--device", help="default: each process's own GPU, else cpu; auto: one model over all GPUs")
    parser.add_argument("--policy-path", help="without it, rows that need a policy are left out")
    parser.add_argument("--answer-format", help="of avis.prompts; default: by the model's name")
    parser.add_argument("--tasks", nargs="+", default=["garden"], help="garden, garden2, or .jsonl or .tsv files")
    parser.add_argument("--split", help="of the garden, instead of the recipe's")
    parser.add_argument("--limit", type=int, help="the first n examples of each source, instead of the recipe's number")
    parser.add_argument("--processes", type=int, default=1, help="with one thread each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="ends with .jsonl.gz; default: in runs/")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    return run_command(lambda: evaluate(args, f"python -m avis.evaluation.run {shlex.join(argv)}"))


if __name__ == "__main__":
    sys.exit(main())
