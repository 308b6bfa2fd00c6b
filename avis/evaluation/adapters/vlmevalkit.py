"""AVIS as a model of VLMEvalKit, the harness of the paper, and the launcher that runs the harness with it::

    python -m avis.evaluation.adapters.vlmevalkit --model-path Qwen/Qwen2.5-VL-7B-Instruct --name avis \
        --data MMStar --work-dir out/vlmevalkit --enable-kdv --kdv-threshold 0.785 --num-rollouts 5

`docs/harnesses.md` says how VLMEvalKit is installed. Flags that are not the launcher's go to VLMEvalKit's own `run.py`:
`--mode`, `--reuse`, `--judge` and the rest. Every answer's record is a line of `<work-dir>/<name>/answers.jsonl` (see
`avis.evaluation.adapters.asker`); the same command with the same work-dir answers nothing twice.

The pixel bounds are those that VLMEvalKit sets for Qwen2.5-VL-7B-Instruct, which the paper evaluates with: images of
1280 to 16384 tokens; frames of 128 to 768 tokens, of a video 24576 in all. Read in VLMEvalKit at commit e8e78f05.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import yaml

from avis.checkpoint import check_model_folder
from avis.cli import ArgumentParser, run_command
from avis.config import VOTE_STOPS, VOTES, AvisConfig
from avis.evaluation.adapters.asker import Asker, require_fork
from avis.messages import check_item_keys
from avis.prompts import ANSWER_FORMATS
from avis.video import open_video, sample_frame_indices

_TOKEN = 28 * 28  # pixels of one visual token
_IMAGE_PIXELS = (1280 * _TOKEN, 16384 * _TOKEN)
_FRAME_PIXELS = (128 * _TOKEN, 768 * _TOKEN)
_VIDEO_PIXELS = 24576 * _TOKEN
# The scorers get this for an abstention, so that they guess no answer from a thought that was cut off. They take it for
# no option, yes, no or number: it is their own letter for "none of the options".
ABSTAINED = "Z"

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
_PREFIX = "config."  # of parsed flags that are fields of `AvisConfig`


class Avis:
    """VLMEvalKit's model interface over `AvisPipeline`. `register` gives it the harness's `BaseModel` as its base."""

    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(self, config: AvisConfig, use_vllm: bool = False, **asker: Any):
        """Load the model.

        Args:
            config: for every question. Pixel bounds that are None are the paper's.
            use_vllm: the harness sets it for models with Qwen2.5-VL in their name; not used.
            **asker: the other arguments of `Asker`.
        """
        super().__init__()
        self.avis_config = config
        self.asker = Asker("vlmevalkit", config=config, **asker)
        # Where both are not None, the harness replaces one by its data set's and sets the other to None.
        self.fps: float | None = 2.0
        self.nframe: int | None = 128

    def generate_inner(self, message: list[dict], dataset: str | None = None) -> str:
        """Return the voted answer to one question, as the scorers are to see it.

        Args:
            message: parts `{"type": "text", "image" or "video", "value": text or path}`, in order.
            dataset: its name.
        """
        # MVBench begins the answer itself ("Best option:("), which nothing that thinks first can continue. All other
        # parts are the user's, a system role's too, as in the harness's own Qwen2.5-VL.
        parts = [part for part in message if part.get("role") != "assistant"]
        # The harness gives no number of a question, so its content names it: without folders, which differ between
        # machines, and with the number of frames, which the name of a data set of videos does not say.
        named: list = [[p["type"], p["value"] if p["type"] == "text" else Path(p["value"]).name] for p in parts]
        if any(part["type"] == "video" for part in parts):
            named.append([self.fps, self.nframe])
        if any(map(_own_keys, parts)):
            named.append([_own_keys(part) for part in parts])
        id = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
        record = self.asker.ask({"dataset": dataset, "id": id}, int(id, 16), partial(self._query, parts))
        return record.get("answer") or ABSTAINED

    def _query(self, parts: list[dict]) -> tuple[list[dict], AvisConfig]:
        # Some data sets give a part keys of qwen-vl-utils, as `nframes`.
        content = [{"type": part["type"], part["type"]: part["value"]} | _own_keys(part) for part in parts]
        videos = [part for part in parts if part["type"] == "video"]
        return [{"role": "user", "content": content}], self.config_for(
            [part["value"] for part in videos], [_own_keys(part) for part in videos]
        )

    def config_for(self, videos: list[str], keys: list[dict] | None = None) -> AvisConfig:
        """Return the configuration of a question: with its pixel bounds, and how its videos are sampled.

        Args:
            videos: files that the question shows; images are shown when there are none.
            keys: of each video its own, which replace the configuration's.

        Raises:
            ValueError: a video that cannot be read, or a key that cannot be honoured.
        """
        least, most = _IMAGE_PIXELS
        sampling: dict[str, Any] = {}
        if videos:
            found = [open_video(path) for path in videos]
            if self.fps is not None:
                sampling = {"fps": self.fps}
            elif self.nframe is not None:
                # As in the harness: a video with fewer frames shows those it has.
                available = [max(len(video.times), 2) // 2 * 2 for video in found]
                sampling = {"num_frames": min(self.nframe, *available)}
            requests = [_sampling(own, sampling) for own in keys or [{}] * len(videos)]
            count = max(
                len(sample_frame_indices(video, **request)[0]) for video, request in zip(found, requests, strict=True)
            )
            least = _FRAME_PIXELS[0]
            most = min(_FRAME_PIXELS[1], max(_VIDEO_PIXELS * 2 // count, int(1.05 * least)))
        set_least, set_most = self.avis_config.min_pixels, self.avis_config.max_pixels
        least = set_least if set_least is not None else min(least, set_most or least)
        most = set_most if set_most is not None else max(most, least)
        return replace(self.avis_config, min_pixels=least, max_pixels=most, **sampling)


def _own_keys(part: dict) -> dict[str, Any]:
    """Return the keys of a part of a harness's message that are no part of its form."""
    return {key: value for key, value in part.items() if key not in ("type", "value", "role")}


def _sampling(keys: dict, default: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `sample_frame_indices` for a video with these keys of its own. Raises ValueError."""
    values = check_item_keys("video", None, keys)
    names = {"fps": "fps", "nframes": "num_frames", "video_start": "video_start", "video_end": "video_end"}
    own = {names[key]: value for key, value in values.items() if key in names}
    return own if own.keys() & {"fps", "num_frames"} else default | own


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
    if "--use-vllm" in others:
        parser.error("--use-vllm: AVIS runs in Transformers")
    taken = {"--model", "--config"} & {other.partition("=")[0] for other in others}
    if taken:
        parser.error(f"{min(taken)} is set here: give --model-path")
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


def import_harness() -> ModuleType:
    """Import VLMEvalKit's run.py, which chooses the process's GPU: call this before torch is used.

    Raises:
        ValueError: VLMEvalKit is not installed, or lacks a requirement, in one line.
    """
    found = importlib.util.find_spec("vlmeval")
    if found is None or found.origin is None:
        raise ValueError("vlmeval cannot be imported: install VLMEvalKit's checkout, or put it on PYTHONPATH")
    path = Path(found.origin).parents[1] / "run.py"
    spec = importlib.util.spec_from_file_location("vlmeval_run", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"no {path}: VLMEvalKit is used from its checkout (pip install -e)")
    module = sys.modules["vlmeval_run"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ValueError(f"VLMEvalKit cannot be imported: {error}; install what its requirements name") from None
    return module


def register(name: str, **arguments: Any) -> None:
    """Add a model to VLMEvalKit's table.

    Args:
        name: of the model.
        **arguments: of `Avis`.
    """
    from vlmeval.config import supported_VLM
    from vlmeval.vlm.base import BaseModel

    supported_VLM[name] = partial(type("Avis", (Avis, BaseModel), {}), **arguments)


def run(args: argparse.Namespace, others: list[str]) -> None:
    """Register the model and run the harness.

    Args:
        args: of `parse`.
        others: flags of VLMEvalKit's run.py.

    Raises:
        ValueError, OSError: with one line.
    """
    values = {name.removeprefix(_PREFIX): value for name, value in vars(args).items() if name.startswith(_PREFIX)}
    config = AvisConfig(**values)
    data = args.data if args.recipe is None else recipe_data(args.recipe)
    check_model_folder(args.model_path)
    require_fork()
    module = import_harness()
    register(
        args.name,
        config=config,
        model_path=args.model_path,
        records=args.work_dir / args.name / "answers.jsonl",
        system_prompt=args.system_prompt,
        policy_path=args.policy_path,
        device=args.device,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
    )
    sys.argv = [str(module.__file__), "--model", args.name, "--work-dir", str(args.work_dir), "--data", *data, *others]
    module.load_env()
    module.main()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args, others = parse(arguments)
    return run_command(partial(run, args, others))


if __name__ == "__main__":
    sys.exit(main())
