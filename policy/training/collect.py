"""Step 2 of fitting: how often the model answers each question rightly, and what the predictor may see of it.

    python -m policy.training.collect --model-path M --data garden --tau runs/policy/tau.json --out runs/policy/fitting
    accelerate launch -m policy.training.collect ..        # the same, sharded over the launched processes

Data is `garden` (its calibration split), `garden:dev` or another split, a VLMEvalKit table (`.tsv`), or JSONL as
`avis.questions` says.

Of each question, under adaptive pruning, one greedy and 16 sampled rollouts are drawn; a line goes to `shard-*.jsonl`,
synced before the next question, and visual embeddings and the prefill's last hidden state to `shard-*.safetensors`, in
half precision. After a kill the same command goes on: one question's rollouts are lost at most, and none is drawn
twice.
"""

import argparse
import fcntl
import hashlib
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import groupby
from multiprocessing.connection import wait
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers.models.qwen2_5_vl import flops
from transformers.models.qwen2_5_vl.key_diversity import key_diversity_scores
from transformers.models.qwen2_5_vl.shared_prefill import Prefill

from avis.answers import answers_match, extract_answer
from avis.config import AvisConfig
from avis.inputs import PIXEL_INPUTS, prepare_inputs
from avis.loading import load_model
from avis.provenance import versions, weights_sha256
from avis.questions import Question, QuestionFile
from policy.training import command_line, read_json, write_json

ROLLOUTS = 16
SHARD = 20  # questions at least; questions about one picture share a shard
DEFAULT_TAU = math.pi / 4
_loaded: list = []  # a worker's model, processor and data


# ------------------------------------------------------------------------------------------------------- the data


class Garden:
    """A split of the garden, drawn when it is asked for."""

    def __init__(self, split: str):
        from avis.garden import tasks

        if split not in tasks.SPLIT_SIZES:
            raise ValueError(f"the garden has splits {', '.join(tasks.SPLIT_SIZES)}, not {split}")
        self.name, self.split, self.size = f"garden:{split}", split, tasks.SPLIT_SIZES[split]
        self.item_for = tasks.item_for
        here = Path(tasks.__file__).parents[1]
        code = [here / "scenes.py", here / "render.py", here / "make.py", *sorted((here / "tasks").glob("*.py"))]
        self.sha256 = hashlib.sha256(b"".join([split.encode(), *(path.read_bytes() for path in code)])).hexdigest()

    def groups(self) -> Iterator[list[int]]:
        """Questions in order, those about one picture together."""
        for _, group in groupby(range(self.size), lambda index: self.item_for(self.split, index).scene_id):
            yield list(group)

    def question(self, index: int) -> Question:
        item = self.item_for(self.split, index)
        about = (item.task, str(item.level), item.form, item.medium, item.question)
        options = dict(zip(ascii_uppercase, item.options, strict=False)) or None
        return Question(index, str(item.scene_id), *about, options, item.answer, item.answerable)

    def media(self, index: int, folder: str) -> list[dict]:
        """What is shown, as parts of a chat; clips are written into `folder`."""
        from avis.garden.make import chat_parts

        return chat_parts(self.item_for(self.split, index).scenes, Path(folder))


class Table:
    """The questions of a file. Raises ValueError, with the number of the line, when there is one that is none."""

    def __init__(self, path: Path):
        self._file = QuestionFile(path)
        self.name, self.sha256 = path.name, self._file.sha256
        self._questions = [self._file.question(index) for index in range(len(self._file))]

    def groups(self) -> Iterator[list[int]]:
        """Questions in the order of their pictures' first occurrence, those about one picture together."""
        found: dict[str, list[int]] = {}
        for question in self._questions:
            found.setdefault(question.scene, []).append(question.index)
        return iter(found.values())

    def question(self, index: int) -> Question:
        return self._questions[index]

    def media(self, index: int, folder: str) -> list[dict]:
        """What is shown, as parts of a chat."""
        return self._file.parts(index)


def data_of(name: str) -> Garden | Table:
    """The questions that `--data` names. Raises ValueError for what cannot be read."""
    kind, _, split = name.partition(":")
    return Garden(split or "calibration") if kind == "garden" else Table(Path(name))


def shards_of(data: Garden | Table, items: int | None) -> list[list[int]]:
    """Questions by shard: the first `items` (None: all), rounded up to whole pictures, as these share their shard."""
    shards: list[list[int]] = [[]]
    for group in data.groups():
        if items is not None and sum(map(len, shards)) >= items:
            break
        if len(shards[-1]) >= SHARD:
            shards.append([])
        shards[-1] += group
    return shards


# --------------------------------------------------------------------------------------------------- the rollouts


def read_prompt(model, processor, question: Question, parts: list[dict], visual_items, tau: float) -> Prefill:
    """The question read under adaptive pruning. visual_items: of an earlier question about the same, or None."""
    settings = AvisConfig(enable_kdv=True, kdv_threshold=tau)
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question.text}]}]
    inputs = prepare_inputs(processor, messages, settings)
    if visual_items is not None:
        inputs = type(inputs)({name: value for name, value in inputs.items() if name not in PIXEL_INPUTS})
        inputs["visual_items"] = visual_items
    return model.prefill(**inputs.to(model.device), enable_kdv=True, kdv_threshold=tau)


def draw(model, processor, question: Question, prefill: Prefill, seed: int, max_new_tokens: int) -> dict[str, Any]:
    """The question's line: one greedy and 16 sampled rollouts, judged, and what they cost."""
    greedy = model.rollout(prefill, 1, max_new_tokens=max_new_tokens, temperature=0.0)
    defaults = AvisConfig()
    sampled = model.rollout(
        prefill,
        ROLLOUTS,
        max_new_tokens=max_new_tokens,
        temperature=defaults.temperature,
        top_p=defaults.top_p,
        seed=seed,
        item=question.index,
    )
    tokens, finished = greedy.tokens + sampled.tokens, greedy.finished + sampled.finished
    # As in `answer`: a template may open the thought itself.
    ends_open = processor.tokenizer.decode(prefill.input_ids[0, -8:]).rstrip().endswith("<think>")
    texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    answers = [
        extract_answer("<think>" * ends_open + text, finished=end) for text, end in zip(texts, finished, strict=True)
    ]
    judged = {answer: answers_match(answer, question.truth, question.options) for answer in set(answers)}
    right = [judged[answer] for answer in answers]
    lengths = [len(rollout) for rollout in tokens]

    config, items = model.config, prefill.visual_items
    merge = config.vision_config.spatial_merge_size
    grids = [(t, h * merge, w * merge) for t, h, w in (item.grid for item in items)]
    vanilla = flops.vanilla_cost(config, grids, prefill.prompt_length, lengths[0])
    decode = [flops.decode_flops(config.get_text_config(), prefill.kept_length, length) for length in lengths]
    visual, kept = sum(len(item.embeds) for item in items), sum(map(len, prefill.kept))
    names = ("index", "scene", "task", "level", "form", "medium", "answerable", "truth")
    return {name: getattr(question, name) for name in names} | {
        "greedy": {"answer": answers[0], "right": right[0], "tokens": lengths[0]},
        "rollouts": {
            "answers": answers[1:],
            "right": right[1:],
            "tokens": lengths[1:],
            "mean_logprobs": list(sampled.mean_logprobs),
        },
        "visual": visual,
        "kept": kept,
        "rho": 1 - kept / visual,
        "prompt_tokens": prefill.prompt_length,
        "kept_tokens": prefill.kept_length,
        "diversity": sum(key_diversity_scores(item.keys).sum().item() for item in items) / visual,
        "flops": {
            "vision": vanilla.vision,
            "prefill": flops.prefill_flops(config.get_text_config(), prefill.kept_length),
            "greedy": decode[0],
            "rollouts": decode[1:],
            "vanilla_llm": vanilla.llm,  # with the greedy rollout's length
        },
    }


def _half(values: torch.Tensor) -> torch.Tensor:
    return values.detach().float().clamp(-65504, 65504).half().cpu().contiguous()


def collect_shard(
    folder: Path, number: int, indices: Sequence[int], config: dict, tick: Callable[[], None] = lambda: None
) -> None:
    """Draw what this shard lacks. Its tensors are written last: a shard that has them is whole.

    A question that cannot be read has its `error` in place of rollouts. Questions whose line is there already are read
    again, which is cheap, and not rolled out.
    """
    model, processor, data = _loaded
    path = folder / f"shard-{number:05d}.jsonl"
    with path.open("ab+") as file, tempfile.TemporaryDirectory() as clips:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path} is being written by another run") from None
        if path.with_suffix(".safetensors").exists():
            return
        file.seek(0)
        held = file.read()
        held = held[: held.rfind(b"\n") + 1]  # a line that was cut off is drawn again
        file.truncate(len(held))
        lines = {line["index"]: line for line in map(json.loads, held.splitlines())}
        tensors: dict[str, torch.Tensor] = {}
        scene, parts, visual_items = None, [], None
        for index in indices:
            question = data.question(index)
            line = lines.get(index)
            try:
                if question.scene != scene:
                    scene, parts, visual_items = None, data.media(index, clips), None
                prefill = read_prompt(model, processor, question, parts, visual_items, config["tau"])
                scene, visual_items = question.scene, prefill.visual_items
                if line is None:
                    line = draw(model, processor, question, prefill, config["seed"], config["max_new_tokens"])
            except (ValueError, OSError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                line = line or {"index": index, "scene": question.scene, "error": reason}
            else:
                tensors[f"hidden/{index}"] = _half(prefill.last_hidden_state[0])
                for place, item in enumerate(visual_items):
                    tensors[f"embeds/{scene}/{place}"] = _half(item.embeds)
            if index not in lines:
                file.write((json.dumps(line) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
            tick()
        part = path.with_name(f".{path.stem}.part")
        save_file(tensors, part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path.with_suffix(".safetensors"))


def _end_with_parent() -> None:
    """Have this worker end when the program is killed, which could not tell it to."""
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([parent]), os._exit(1)), daemon=True).start()


def _start(model_path: str, device: str | None, data: str, is_worker: bool) -> None:
    if is_worker:
        _end_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program ends its workers itself
        torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    _loaded[:] = (*load_model(model_path, device), data_of(data))


# ------------------------------------------------------------------------------------------------- what was drawn


class Collected:
    """A folder of collected questions.

    Attributes:
        config: what they were drawn with. lines: of the questions that could be read, by index. failed: how many could
        not. sha256: of all lines.

    Raises ValueError when the folder is none, or not finished.
    """

    def __init__(self, folder: Path):
        self.config = read_json(folder / "collect.json", "run python -m policy.training.collect")["config"]
        paths = [folder / f"shard-{number:05d}.jsonl" for number in range(self.config["shards"])]
        missing = sum(not path.with_suffix(".safetensors").exists() for path in paths)
        if missing:
            raise ValueError(f"{folder} lacks {missing} of {len(paths)} shards: run collect again, which goes on")
        held = b"".join(path.read_bytes() for path in paths)
        self.sha256 = hashlib.sha256(held).hexdigest()
        lines = sorted(map(json.loads, held.splitlines()), key=lambda line: line["index"])
        self.lines = [line for line in lines if "error" not in line]
        self.failed = len(lines) - len(self.lines)
        if not self.lines:
            raise ValueError(f"none of the {len(lines)} questions of {folder} could be read: {lines[0]['error']}")
        self._files = {}  # by tensor's name, the file that it is in, mapped and not read
        for path in paths:
            file = safe_open(path.with_suffix(".safetensors"), "pt")
            self._files |= dict.fromkeys(file.keys(), file)

    def embeds(self, scene: str) -> list[torch.Tensor]:
        """The unpruned embeddings of a scene's pictures and clips, each `(N_i, D)` float32."""
        names = iter(f"embeds/{scene}/{place}" for place in range(len(self._files)))
        found = []
        while (name := next(names)) in self._files:
            found.append(self._files[name].get_tensor(name).float())
        return found

    def hidden(self, indices: Sequence[int]) -> torch.Tensor:
        """The prefills' last hidden states, `(questions, D_lm)` float32."""
        names = [f"hidden/{index}" for index in indices]
        return torch.stack([self._files[name].get_tensor(name) for name in names]).float()


# ------------------------------------------------------------------------------------------------------- the step


def collect(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError, with one line, for bad input."""
    if args.items is not None and args.items < 1:
        raise ValueError(f"--items must be at least 1, got {args.items}")
    AvisConfig(seed=args.seed, max_new_tokens=args.max_new_tokens)  # refuses what is out of range
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else None
    processes = args.processes or (1 if device or world > 1 else os.cpu_count() or 1)
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    data, weights = data_of(args.data), weights_sha256(args.model_path)
    tau, target = DEFAULT_TAU, None
    if args.tau:
        fitted = read_json(args.tau, "run python -m policy.training.tau")
        if fitted["weights_sha256"] != weights:
            raise ValueError(f"{args.tau} was fitted to another model: run python -m policy.training.tau for this one")
        tau, target = fitted["tau"], fitted["target_rho"]
    shards = shards_of(data, args.items)
    config = {
        "data": data.name,
        "data_sha256": data.sha256,
        "items": sum(map(len, shards)),
        "shards": len(shards),
        "weights_sha256": weights,
        "versions": versions(),
        "tau": tau,
        "target_rho": target,
        "seed": args.seed,
        "max_new_tokens": args.max_new_tokens,
        "rollouts": ROLLOUTS,
    }
    plan = args.out / "collect.json"
    if plan.exists():
        held = read_json(plan, "choose another folder")["config"]
        other = [name for name in config if held.get(name) != config[name]]
        if other:
            raise ValueError(f"{args.out} was collected with other {', '.join(other)}: choose another folder")
    else:
        write_json(plan, {"config": config})

    mine = [number for number in range(len(shards)) if number % world == rank]
    left = [number for number in mine if not (args.out / f"shard-{number:05d}.safetensors").exists()]
    total, done = (sum(len(shards[number]) for number in numbers) for numbers in (mine, set(mine) - set(left)))
    with tqdm(total=total, initial=done, unit="item", desc=config["data"], disable=None) as bar:
        if processes == 1 and left:
            _start(args.model_path, device, args.data, is_worker=False)
            for number in left:
                collect_shard(args.out, number, shards[number], config, bar.update)
        elif left:
            start = (args.model_path, device, args.data, True)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(processes, len(left)), context, _start, start) as pool:
                jobs = {pool.submit(collect_shard, args.out, n, shards[n], config): len(shards[n]) for n in left}
                try:
                    for job in as_completed(jobs):
                        job.result()
                        bar.update(jobs[job])
                except BaseException:  # Ctrl-C, or one that failed: what the others are at is drawn again
                    for worker in multiprocessing.active_children():
                        worker.terminate()
                    raise
    if world == 1:  # the other processes of a launch may still be at it
        found = Collected(args.out)
        print(f"{args.out}: {len(found.lines)} questions, {found.failed} could not be read", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """The command line; bad input is told in one line, and gives 2."""
    parser = argparse.ArgumentParser(
        prog="python -m policy.training.collect", description="Draw rollouts and keep what the predictor may see."
    )
    parser.add_argument("--model-path", required=True, help="a Qwen2.5-VL folder or hub name")
    parser.add_argument("--data", required=True, help="garden, garden:SPLIT, a VLMEvalKit .tsv, or JSONL")
    parser.add_argument("--tau", type=Path, help="the report of the step tau; without it the angle is pi/4")
    parser.add_argument("--items", type=int, help="the first so many questions, whole pictures; default all")
    parser.add_argument("--max-new-tokens", type=int, default=2048, help="of each rollout")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--processes", type=int, help="default: one on a GPU or when launched, else one a core")
    parser.add_argument("--out", type=Path, required=True, help="a folder: new, or begun by the same command")
    return command_line(parser, collect, argv)


if __name__ == "__main__":
    sys.exit(main())
