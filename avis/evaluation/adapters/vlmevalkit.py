"""AVIS as a model of VLMEvalKit, the harness of the paper, and the launcher that runs the harness with it.

    python -m avis.evaluation.adapters.vlmevalkit --model-path Qwen/Qwen2.5-VL-7B-Instruct --name avis \
        --data MMStar --work-dir out/vlmevalkit --enable-kdv --kdv-threshold 0.785 --num-rollouts 5

VLMEvalKit is on no package index; its checkout has to be importable (`pip install --constraint .. -e VLMEvalKit`, or on
PYTHONPATH). Flags that are not the launcher's go to VLMEvalKit's own `run.py`: `--mode`, `--reuse`, `--judge` and the
rest. Every answer's record is a line of `<work-dir>/<name>/answers.jsonl`, see `avis.evaluation.adapters`; the same command
with the same work-dir answers nothing twice.

The pixel bounds are those that VLMEvalKit sets for Qwen2.5-VL-7B-Instruct, which the paper evaluates with: pictures of
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
from avis.config import AvisConfig
from avis.evaluation.adapters import Asker, require_fork
from avis.video import open_video, sample_frame_indices

TOKEN = 28 * 28  # pixels of one visual token
PICTURE = (1280 * TOKEN, 16384 * TOKEN)
FRAME = (128 * TOKEN, 768 * TOKEN)
VIDEO = 24576 * TOKEN
# To the scorers an answer that is wrong and is not taken for an option, yes, no or a number: their own letter for
# "none of the options". An abstention must not be guessed from what was written before it was cut off.
ABSTAINED = "Z"
# The harness gives these with each data set of videos.
_OF_DATASET = ("fps", "num_frames")


class Avis:
    """VLMEvalKit's model interface over `answer()`. `register` gives it the harness's `BaseModel` as its base."""

    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(self, settings: AvisConfig, use_vllm: bool = False, **asker: Any):
        """Load the model.

        Args:
            settings: for every question. Pixel bounds that are None are the paper's.
            use_vllm: the harness sets it for models with Qwen2.5-VL in their name.
            asker: the other arguments of `Asker`.
        """
        super().__init__()
        self.settings = settings
        self.asker = Asker("vlmevalkit", settings=settings, **asker)
        # The harness replaces one of them by its data set's and sets the other to None, where they are not None.
        self.fps: float | None = 2.0
        self.nframe: int | None = 128

    def generate_inner(self, message: list[dict], dataset: str | None = None) -> str:
        """The voted answer to one question, as the scorers are to see it.

        Args:
            message: parts `{"type": "text", "image" or "video", "value": text or path}`, in order.
            dataset: its name.
        """
        # MVBench begins the answer itself ("Best option:("), which nothing that thinks first can continue. All other
        # parts are the user's, a system role's too, as in the harness's own Qwen2.5-VL.
        parts = [part for part in message if part.get("role") != "assistant"]
        # The harness does not tell a question's number. Folders differ between machines, files' names do not; and the
        # name of a data set of videos does not tell how many frames are shown.
        named: list = [[p["type"], p["value"] if p["type"] == "text" else Path(p["value"]).name] for p in parts]
        if any(part["type"] == "video" for part in parts):
            named.append([self.fps, self.nframe])
        id = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
        record = self.asker.ask({"dataset": dataset, "id": id}, int(id, 16), partial(self._query, parts))
        return record.get("answer") or ABSTAINED

    def _query(self, parts: list[dict]) -> tuple[list[dict], AvisConfig]:
        content = [{"type": part["type"], part["type"]: part["value"]} for part in parts]
        clips = [part["value"] for part in parts if part["type"] == "video"]
        return [{"role": "user", "content": content}], self._settings(clips)

    def _settings(self, clips: list[str]) -> AvisConfig:
        """The settings with pixel bounds for a question about these videos, or about pictures when there are none."""
        least, most = PICTURE
        sampling: dict[str, Any] = {}
        if clips:
            found = [open_video(path) for path in clips]
            if self.fps is not None:
                sampling = {"fps": self.fps}
            elif self.nframe is not None:
                # As in the harness: a clip with fewer frames shows what it has.
                sampling = {"num_frames": min(self.nframe, *(max(len(clip.times), 2) // 2 * 2 for clip in found))}
            count = max(len(sample_frame_indices(clip, **sampling)[0]) for clip in found)
            least, most = FRAME[0], min(FRAME[1], max(VIDEO * 2 // count, int(1.05 * FRAME[0])))
        set_least, set_most = self.settings.min_pixels, self.settings.max_pixels
        least = set_least if set_least is not None else min(least, set_most or least)
        most = set_most if set_most is not None else max(most, least)
        return replace(self.settings, min_pixels=least, max_pixels=most, **sampling)


def settings_flags() -> list[tuple[str, str, dict[str, Any]]]:
    """(field, flag, arguments of `add_argument`) of each setting that a harness does not give, named as in demo.py."""
    flags: list[tuple[str, str, dict[str, Any]]] = []
    for field in fields(AvisConfig):
        name = {"thinking": "enable_thinking"}.get(field.name, field.name).replace("_", "-")
        if field.name in _OF_DATASET:
            continue
        if field.type is bool:
            flag, action = (f"--no-{name}", "store_false") if field.default else (f"--{name}", "store_true")
            flags.append((field.name, flag, {"action": action}))
        else:
            kind = next(kind for kind in get_args(field.type) or (field.type,) if kind is not type(None))
            flags.append((field.name, f"--{name}", {"type": kind, "default": field.default}))
    return flags


class Parser(argparse.ArgumentParser):
    """An argument parser that tells a mistake in one line, without the list of all flags."""

    def error(self, message: str):
        self.exit(2, f"error: {message} (see --help)\n")


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's flags, and those for VLMEvalKit's run.py. Exits with 2 and one line on a mistake."""
    parser = Parser(
        prog="python -m avis.evaluation.adapters.vlmevalkit",
        description="Run VLMEvalKit's run.py with AVIS as its model; other flags are passed on to it.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model-path", required=True, help="Qwen2.5-VL folder or hub name")
    add("--name", default="avis", help="of the model in VLMEvalKit's outputs; one for each setting")
    add("--data", nargs="+", help="data sets by VLMEvalKit's names")
    add("--recipe", type=Path, help="a YAML file whose `data` names them instead")
    add("--work-dir", type=Path, default=Path("outputs"))
    add("--system-prompt")
    add("--policy-path", help="policy checkpoint, which chooses K; with --enable-kdv it prunes adaptively")
    add("--device")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--attn-implementation", default="auto", choices=("auto", "flash_attention_2", "sdpa", "eager"))
    for name, flag, options in settings_flags():
        add(flag, dest=f"settings.{name}", **options)
    args, others = parser.parse_known_args(arguments)
    if "--use-vllm" in others:
        parser.error("--use-vllm: AVIS runs in Transformers")
    if taken := {"--model", "--config"} & {other.partition("=")[0] for other in others}:
        parser.error(f"{min(taken)} is set here: give --model-path")
    if (args.data is None) == (args.recipe is None):
        parser.error("give --data or --recipe")
    if not re.fullmatch(r"[\w.+-]+", args.name):
        parser.error(f"--name is a file name, got {args.name[:100]}")
    return args, others


def recipe_data(path: Path) -> list[str]:
    """The names of a recipe's data sets. Raises ValueError or OSError with one line."""
    try:
        data = yaml.safe_load(path.read_text())["data"]
        names = list(data.values())
        if not names or not all(isinstance(name, str) for name in names):
            raise TypeError
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, yaml.YAMLError):
        raise ValueError(f"{path} is not a recipe: `data` maps each benchmark to VLMEvalKit's name of it") from None
    return names


def harness() -> ModuleType:
    """VLMEvalKit's run.py, imported and not yet run. It chooses the process's GPU, so it comes before torch is used."""
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
    """Have VLMEvalKit know a model by this name. `arguments`: of `Avis`."""
    from vlmeval.config import supported_VLM
    from vlmeval.vlm.base import BaseModel

    supported_VLM[name] = partial(type("Avis", (Avis, BaseModel), {}), **arguments)


def run(args: argparse.Namespace, others: list[str]) -> None:
    """Register the model and run the harness. Raises ValueError or OSError with one line."""
    settings = AvisConfig(
        **{key.removeprefix("settings."): v for key, v in vars(args).items() if key[:9] == "settings."}
    )
    data = args.data if args.recipe is None else recipe_data(args.recipe)
    check_model_folder(args.model_path)
    require_fork()
    module = harness()
    register(
        args.name,
        settings=settings,
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
    args, others = parse(arguments)
    try:
        run(args, others)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
