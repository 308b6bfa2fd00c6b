"""AVIS as a model of VLMEvalKit, the harness of the paper, and the launcher that runs the harness with it::

    python -m avis.evaluation.adapters.vlmevalkit --model-path Qwen/Qwen2.5-VL-7B-Instruct --name avis \
        --data MMStar --work-dir out/vlmevalkit --enable-kdv --kdv-threshold 0.785 --num-rollouts 5

`docs/harnesses.md` says how VLMEvalKit is installed. Flags that are not the launcher's go to VLMEvalKit's own `run.py`:
`--mode`, `--reuse`, `--judge` and the rest. Every answer's record is a line of `<work-dir>/<name>/answers.jsonl` (see
`avis.evaluation.adapters.asker`); the same command with the same work-dir answers nothing twice.

Exit status 0: every data set has a score; 1: one has none, or a question has no answer (VLMEvalKit itself ends with 0);
2: bad input.

The pixel bounds are those that VLMEvalKit sets for Qwen2.5-VL-7B-Instruct, which the paper evaluates with: images of
1280 to 16384 tokens; frames of 128 to 768 tokens, of a video 24576 in all. Read in VLMEvalKit at commit e8e78f05.
"""

import argparse
import os
import re
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import yaml

from avis.checkpoint import check_model_folder
from avis.cli import ArgumentParser, run_command
from avis.config import VOTE_STOPS, VOTES, AvisConfig
from avis.evaluation.adapters.asker import require_fork
from avis.evaluation.adapters.vlmevalkit_checkout import import_harness
from avis.evaluation.adapters.vlmevalkit_model import Avis, Progress, exact_match
from avis.evaluation.adapters.vlmevalkit_results import read_statuses, why_no_score
from avis.prompts import ANSWER_FORMATS

# Of `AvisConfig`: the harness gives these with each data set of videos.
_GIVEN_BY_HARNESS = ("fps", "num_frames")
_CHOICES = {"vote": VOTES, "vote_stop": VOTE_STOPS, "answer_format": [one.name for one in ANSWER_FORMATS]}
_HELP = {
    "enable_kdv": "prune visual tokens before the language model",
    "kdv_ratio": "fraction of visual tokens PRUNED (default: 0.75)",
    "kdv_threshold": "adaptive pruning instead: an angle in radians",
    "pruner": "kdv or random",
    "num_rollouts": "K; 1: greedy, more: sampled, then a vote",
    "rollout_batch_size": "rollouts decoded side by side (default: all K)",
    "vote": "confidence: votes weigh as their tokens are probable",
    "vote_stop": "decided: end decoding when no rollout can change the vote",
    "answer_format": "form of the answer that is asked for (default: by the model's name)",
    "enable_thinking": "ask for the answer without reasoning",
    "max_new_tokens": "of each rollout",
    "temperature": "of sampling",
    "top_p": "of sampling",
    "min_pixels": "of an image or frame (default: VLMEvalKit's)",
    "max_pixels": "of an image or frame (default: VLMEvalKit's)",
    "seed": "of sampling",
}
_SERVED = "it asks a served model in place of AVIS"
# Flags of VLMEvalKit's run.py that would evaluate something else, or have no effect.
_REFUSED = {
    "--model": "it is set here: give --model-path",
    "--config": "it is set here: give --model-path and --data",
    "--use-vllm": "AVIS runs in Transformers",
    "--api-mode": _SERVED,
    "--base-url": _SERVED,
    "--max-tokens": "it is a served model's: give --max-new-tokens",
}
_PREFIX = "config."  # of parsed flags that are fields of `AvisConfig`


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag, named as in demo.py, for each field of `AvisConfig` that the harness does not give."""
    group = parser.add_argument_group("what to spend on a question")
    for field in fields(AvisConfig):
        if field.name in _GIVEN_BY_HARNESS:
            continue
        name, dest, text = field.name.replace("_", "-"), f"{_PREFIX}{field.name}", _HELP[field.name]
        if field.type is bool:
            flag, action = (f"--no-{name}", "store_false") if field.default else (f"--{name}", "store_true")
            group.add_argument(flag, dest=dest, action=action, help=text)
            continue
        kind: Any = next(kind for kind in get_args(field.type) or (field.type,) if kind is not type(None))
        if field.default is not None:
            text += f" (default: {field.default})"
        choices = _CHOICES.get(field.name)
        group.add_argument(f"--{name}", dest=dest, type=kind, default=field.default, choices=choices, help=text)


def build_parser() -> ArgumentParser:
    """Return the launcher's parser, which knows its own flags and not VLMEvalKit's."""
    parser = ArgumentParser(
        prog="python -m avis.evaluation.adapters.vlmevalkit",
        description="Run VLMEvalKit's run.py with AVIS as its model; other flags are passed on to it.",
    )
    add = parser.add_argument_group("model").add_argument
    add("--model-path", required=True, help="Qwen2.5-VL folder or hub name")
    add("--policy-path", help="policy checkpoint, which chooses K; with --enable-kdv it prunes adaptively")
    add("--system-prompt", help="of every question that has none")
    add("--device", help="default: cuda when there is one, else cpu")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: auto")
    attention = ("auto", "flash_attention_2", "sdpa", "eager")
    add("--attn-implementation", default="auto", choices=attention, help="default: auto")
    add = parser.add_argument_group("harness").add_argument
    add("--name", default="avis", help="of the model in VLMEvalKit's outputs; one for each setting (default: avis)")
    add("--data", nargs="+", help="data sets by VLMEvalKit's names")
    add("--recipe", type=Path, help="a YAML file whose `data` names them instead")
    add("--work-dir", type=Path, default=Path("outputs"), help="of scores and answers (default: outputs)")
    add_config_flags(parser)
    return parser


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return the launcher's flags, and those for VLMEvalKit's run.py. A mistake exits with one line and status 2."""
    parser = build_parser()
    args, others = parser.parse_known_args(arguments)
    for flag in (other.partition("=")[0] for other in others):
        if flag in _REFUSED:
            parser.error(f"{flag}: {_REFUSED[flag]}")
    if (args.data is None) == (args.recipe is None):
        parser.error("give --data or --recipe")
    if not re.fullmatch(r"[\w.+-]+", args.name):
        parser.error(f"--name is a file name, got {args.name[:100]}")
    return args, others


def recipe_data(path: Path) -> list[str]:
    """Return the names of a recipe's data sets.

    Raises:
        ValueError, OSError: with one line.
    """
    try:
        data = yaml.safe_load(path.read_text())["data"]
        names = list(data.values())
        if not names or not all(isinstance(name, str) for name in names):
            raise TypeError
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, yaml.YAMLError):
        raise ValueError(f"{path} is not a recipe: `data` maps each benchmark to VLMEvalKit's name of it") from None
    return names


def register(module: ModuleType, name: str, progress: Progress, **arguments: Any) -> None:
    """Add the model to VLMEvalKit's table, give its free-answer tables a scorer, and follow which data set it is at.

    Args:
        module: of `import_harness`.
        name: of the model.
        progress: `data` is set whenever the harness opens a data set.
        **arguments: of `Avis`.
    """
    from vlmeval.config import supported_VLM
    from vlmeval.dataset import CustomVQADataset
    from vlmeval.vlm.base import BaseModel

    supported_VLM[name] = partial(type("Avis", (Avis, BaseModel), {}), progress=progress, **arguments)
    CustomVQADataset.evaluate = exact_match
    build = module.build_dataset_from_cli

    def build_and_note(data: str, *others: Any) -> Any:
        progress.data = data
        return build(data, *others)

    setattr(module, "build_dataset_from_cli", build_and_note)


def work_folder(args: argparse.Namespace) -> Path:
    """Return the folder that VLMEvalKit writes to: MMEVAL_ROOT, which it prefers to --work-dir, where it is set."""
    set_root = os.environ.get("MMEVAL_ROOT")
    if set_root is None or Path(set_root) == args.work_dir:
        return args.work_dir
    print(f"note: MMEVAL_ROOT is set: scores and answers are in {set_root}", file=sys.stderr)
    return Path(set_root)


def run(args: argparse.Namespace, others: list[str]) -> int:
    """Register the model and run the harness.

    Args:
        args: of `parse`.
        others: flags of VLMEvalKit's run.py.

    Returns:
        0, or 1 when a data set has no score though one was due, or a question has no answer.

    Raises:
        ValueError, OSError: with one line.
    """
    values = {name.removeprefix(_PREFIX): value for name, value in vars(args).items() if name.startswith(_PREFIX)}
    config = AvisConfig(**values)
    data = args.data if args.recipe is None else recipe_data(args.recipe)
    check_model_folder(args.model_path)
    require_fork()
    module = import_harness()
    module.load_env()  # of a file .env in the checkout, MMEVAL_ROOT among others
    folder, progress = work_folder(args), Progress()
    register(
        module,
        args.name,
        progress,
        config=config,
        model_path=args.model_path,
        records=folder / args.name / "answers.jsonl",
        system_prompt=args.system_prompt,
        policy_path=args.policy_path,
        device=args.device,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
    )
    sys.argv = [str(module.__file__), "--model", args.name, "--work-dir", str(args.work_dir), "--data", *data, *others]
    module.main()
    return report(folder / args.name, data, progress)


def report(folder: Path, data: list[str], progress: Progress) -> int:
    """Print what has no score or answer, as the harness ends well whatever happens, and return the exit status.

    Args:
        folder: of the model's outputs.
        data: names of the data sets that were asked for.
        progress: of the run.
    """
    if int(os.environ.get("RANK", "0")):
        return 0  # the first process scores, and would be ended by another one's failure
    statuses = read_statuses(folder)
    failures = progress.failed
    for name in data:
        reason, is_due = why_no_score(statuses.get(name))
        if reason:
            print(f"note: no score of {name}: {reason}", file=sys.stderr)
        failures += is_due
    if progress.failed:
        print(
            f"note: questions without an answer: {progress.failed}; the same command asks them again", file=sys.stderr
        )
    return 1 if failures else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args, others = parse(arguments)
    return run_command(partial(run, args, others))


if __name__ == "__main__":
    sys.exit(main())
