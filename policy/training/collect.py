"""Step 2 of fitting: how often the model answers each question rightly, and what the predictor may read of it::

    python -m policy.training.collect --model-path M --data garden --tau runs/policy/tau.json --out runs/policy/fitting
    accelerate launch -m policy.training.collect ..        # the same, sharded over the launched processes

Data is `garden` (its calibration split), `garden:dev` or another split, a VLMEvalKit table (`.tsv`), or JSONL as
`avis.questions` describes.

Under adaptive pruning, one greedy and 16 sampled rollouts are drawn for each question. A line goes to `shard-*.jsonl`,
synced before the next question; visual embeddings and the prefill's last hidden state go to `shard-*.safetensors`, in
half precision. After a kill the same command resumes: one question's rollouts are lost at most, and none is drawn
twice.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers.models.qwen2_5_vl import flops
from transformers.models.qwen2_5_vl.key_diversity import VisualItem, key_diversity_scores
from transformers.models.qwen2_5_vl.shared_prefill import Prefill

from avis.answers import answers_match, extract_answer
from avis.cli import ArgumentParser, run_command
from avis.config import AvisConfig
from avis.costs import patch_grids
from avis.files import read_json, write_json
from avis.garden.source import GardenSource, open_source
from avis.inputs import PIXEL_INPUTS, opened_thought, prepare_inputs
from avis.journal import Journal
from avis.loading import load_model
from avis.processes import run_in_processes
from avis.provenance import quick_fingerprint, versions, weights_sha256
from avis.questions import Label, Question, QuestionFile
from policy.training.collected import CollectedRollouts, Line, shard_path
from policy.training.tau import DEFAULT_TAU

ROLLOUTS = 16
SHARD = 20  # questions at least; questions about one scene share a shard

# ---------------------------------------------------------------------------------------------------- one question


def read_prompt(
    model, processor, question: Question, parts: list[dict], visual_items: tuple[VisualItem, ...] | None, tau: float
) -> Prefill:
    """Return the prefill of a question under adaptive pruning.

    Args:
        model: the model.
        processor: the model's.
        question: to read.
        parts: what it shows, as parts of a turn.
        visual_items: encoded for an earlier question about the same scene; None: they are encoded here.
        tau: angle in radians.
    """
    config = AvisConfig(enable_kdv=True, kdv_threshold=tau)
    inputs = prepare_inputs(processor, question.messages(parts), config)
    if visual_items is not None:
        inputs = type(inputs)({name: value for name, value in inputs.items() if name not in PIXEL_INPUTS})
        inputs["visual_items"] = visual_items
    return model.prefill(**inputs.to(model.device), enable_kdv=True, kdv_threshold=tau)


def draw_rollouts(model, processor, question: Question, prefill: Prefill, seed: int, max_new_tokens: int) -> Line:
    """Return a question's line: one greedy and `ROLLOUTS` sampled rollouts, judged, and what they cost.

    Args:
        model: the model.
        processor: the model's.
        question: that was read.
        prefill: of the question.
        seed: of sampling.
        max_new_tokens: of each rollout.
    """
    greedy = model.rollout(prefill, 1, max_new_tokens=max_new_tokens, temperature=0.0)
    defaults = AvisConfig()
    sampled = model.rollout(
        prefill,
        ROLLOUTS,
        max_new_tokens=max_new_tokens,
        temperature=defaults.temperature,
        top_p=defaults.top_p,
        seed=seed,
        query_index=question.index,
    )
    opening = opened_thought(processor, prefill.input_ids)
    tokens, finished = greedy.tokens + sampled.tokens, greedy.finished + sampled.finished
    texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    answers = [
        extract_answer(opening + text, finished=end, question=question.text)
        for text, end in zip(texts, finished, strict=True)
    ]
    label = _label(question)
    judged = {answer: answers_match(answer, label.truth, label.options, question.text) for answer in set(answers)}
    right = [judged[answer] for answer in answers]
    lengths = [len(rollout) for rollout in tokens]
    visual, kept = sum(len(item.embeds) for item in prefill.visual_items), sum(map(len, prefill.kept))
    return {
        "index": question.index,
        "scene": str(label.scene),
        "task": label.task,
        "level": None if label.level is None else str(label.level),
        "see": None if label.see is None else str(label.see),
        "think": None if label.think is None else str(label.think),
        "form": label.form,
        "medium": label.medium,
        "answerable": label.answerable,
        "truth": label.truth,
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
        "diversity": sum(key_diversity_scores(item.keys).sum().item() for item in prefill.visual_items) / visual,
        "flops": _rollout_flops(model.config, prefill, lengths),
    }


def _rollout_flops(model_config, prefill: Prefill, lengths: Sequence[int]) -> dict[str, Any]:
    """Return FLOPs by stage; vanilla's are those of the greedy rollout's length, which is the first of `lengths`."""
    text_config = model_config.get_text_config()
    grids = patch_grids(model_config, prefill.visual_items)
    vanilla = flops.vanilla_cost(model_config, grids, prefill.prompt_length, lengths[0])
    decode = [flops.decode_flops(text_config, prefill.kept_length, length) for length in lengths]
    return {
        "vision": vanilla.vision,
        "prefill": flops.prefill_flops(text_config, prefill.kept_length),
        "greedy": decode[0],
        "rollouts": decode[1:],
        "vanilla_llm": vanilla.llm,
    }


def _label(question: Question) -> Label:
    assert question.label is not None  # `open_source` refuses questions without an answer
    return question.label


# ------------------------------------------------------------------------------------------------------- one shard


@dataclass
class _Shown:
    """The images and videos of the question before.

    Attributes:
        scene: of that question; None when there is none, or it could not be read.
        parts: of a turn.
        visual_items: encoded.
    """

    scene: str | None = None
    parts: list[dict] = field(default_factory=list)
    visual_items: tuple[VisualItem, ...] | None = None


class ShardCollector:
    """A loaded model that collects the questions of one shard after the other."""

    def __init__(self, model_path: str, device: str | None, data: str, folder: Path, config: dict[str, Any]):
        """Load the model and open the questions.

        Args:
            model_path: of the model.
            device: as in `load_model`.
            data: name of the questions, as `open_source` takes it.
            folder: that shards are written into.
            config: of the folder's `collect.json`.
        """
        torch.set_flush_denormal(True)
        self.model, self.processor = load_model(model_path, device)
        self.source, self.folder, self.config = open_source(data), folder, config

    def collect(self, number: int, indices: Sequence[int], tick: Callable[[], Any] | None = None) -> None:
        """Draw what a shard lacks. Its tensors are written last: a shard that has them is complete.

        A question that cannot be read has its `error` in place of rollouts. Questions whose line is there already are
        read again, which is cheap, and no rollouts are drawn for them.

        Args:
            number: of the shard.
            indices: of its questions.
            tick: called after each question.

        Raises:
            ValueError: another run is writing this shard.
            OSError: it cannot be written.
        """
        path = shard_path(self.folder, number)
        journal = Journal(path, key=lambda line: line["index"], line_start='{"index"', remedy="choose another folder")
        with journal, tempfile.TemporaryDirectory() as media:
            if path.with_suffix(".safetensors").exists():
                return
            lines = {line["index"]: line for line in journal.records()}
            tensors: dict[str, torch.Tensor] = {}
            shown = _Shown()
            for index in indices:
                line = self._collect_question(index, lines.get(index), shown, Path(media), tensors)
                if index not in lines:
                    journal.append(line)
                if tick is not None:
                    tick()
            _write_tensors(path.with_suffix(".safetensors"), tensors)

    def _collect_question(
        self, index: int, line: Line | None, shown: _Shown, media: Path, tensors: dict[str, torch.Tensor]
    ) -> Line:
        """Return a question's line, drawn unless it is given, and add the question's tensors."""
        question = self.source.question(index)
        scene = str(_label(question).scene)
        try:
            if scene != shown.scene:
                shown.scene, shown.parts, shown.visual_items = None, self.source.media(index, media), None
            tau, seed = self.config["tau"], self.config["seed"]
            prefill = read_prompt(self.model, self.processor, question, shown.parts, shown.visual_items, tau)
            shown.scene, shown.visual_items = scene, prefill.visual_items
            if line is None:
                most = self.config["max_new_tokens"]
                line = draw_rollouts(self.model, self.processor, question, prefill, seed, most)
        except (ValueError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return line or {"index": index, "scene": scene, "error": reason}
        tensors[f"hidden/{index}"] = _as_half(prefill.last_hidden_state[0])
        for place, item in enumerate(prefill.visual_items):
            tensors[f"embeds/{scene}/{place}"] = _as_half(item.embeds)
        return line


def _as_half(values: torch.Tensor) -> torch.Tensor:
    return values.detach().float().clamp(-65504, 65504).half().cpu().contiguous()


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    part = path.with_name(f".{path.stem}.part")
    save_file(tensors, part)
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(part, path)


_worker: list[ShardCollector] = []  # of a worker process, one


def _start_worker(model_path: str, device: str | None, data: str, folder: Path, config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    _worker[:] = [ShardCollector(model_path, device, data, folder, config)]


def _collect_in_worker(task: tuple[int, list[int]]) -> None:
    number, indices = task
    _worker[0].collect(number, indices)


# -------------------------------------------------------------------------------------------------------- the step


def plan_shards(source: GardenSource | QuestionFile, items: int | None) -> list[list[int]]:
    """Return the questions of each shard.

    Args:
        source: of questions.
        items: the first so many, rounded up to whole scenes, as a scene's questions share their shard; None: all.
    """
    shards: list[list[int]] = [[]]
    for group in source.groups():
        if items is not None and sum(map(len, shards)) >= items:
            break
        if len(shards[-1]) >= SHARD:
            shards.append([])
        shards[-1] += group
    return shards


def collect_rollouts(args: argparse.Namespace) -> None:
    """Run the step.

    Raises:
        ValueError, OSError: bad input, in one line.
    """
    if args.items is not None and args.items < 1:
        raise ValueError(f"--items must be at least 1, got {args.items}")
    AvisConfig(seed=args.seed, max_new_tokens=args.max_new_tokens)  # refuses values out of range
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else None
    processes = args.processes or (1 if device or world > 1 else os.cpu_count() or 1)
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    source = open_source(args.data)
    shards = plan_shards(source, args.items)
    config = _folder_config(args, source, shards)
    _claim_folder(args.out, config)

    mine = [number for number in range(len(shards)) if number % world == rank]
    left = [number for number in mine if not shard_path(args.out, number).with_suffix(".safetensors").exists()]
    total = sum(len(shards[number]) for number in mine)
    done = total - sum(len(shards[number]) for number in left)
    with tqdm(total=total, initial=done, unit="question", desc=config["data"], disable=None) as bar:
        if processes == 1 and left:
            collector = ShardCollector(args.model_path, device, args.data, args.out, config)
            for number in left:
                collector.collect(number, shards[number], bar.update)
        elif left:
            tasks = [(number, shards[number]) for number in left]
            loading = (args.model_path, device, args.data, args.out, config)
            for (_, indices), job in run_in_processes(_collect_in_worker, tasks, processes, _start_worker, loading):
                job.result()
                bar.update(len(indices))
    if world == 1:  # the other processes of a launch may not have ended
        found = CollectedRollouts(args.out)
        print(f"{args.out}: {len(found.lines)} questions, {found.failed} could not be read", file=sys.stderr)


def _folder_config(
    args: argparse.Namespace, source: GardenSource | QuestionFile, shards: list[list[int]]
) -> dict[str, Any]:
    """Return what the folder's rollouts depend on."""
    weights = weights_sha256(args.model_path)
    tau, target = DEFAULT_TAU, None
    if args.tau:
        fitted = read_json(args.tau, "run python -m policy.training.tau")
        if fitted["weights_sha256"] != weights:
            raise ValueError(f"{args.tau} was fitted to another model: run python -m policy.training.tau for this one")
        tau, target = fitted["tau"], fitted["target_rho"]
    return {
        "data": source.name,
        "data_sha256": source.sha256,
        "items": sum(map(len, shards)),
        "shards": len(shards),
        "weights_sha256": weights,
        "fingerprint": quick_fingerprint(args.model_path),
        "versions": versions(),
        "tau": tau,
        "target_rho": target,
        "seed": args.seed,
        "max_new_tokens": args.max_new_tokens,
        "rollouts": ROLLOUTS,
    }


def _claim_folder(folder: Path, config: dict[str, Any]) -> None:
    """Write the folder's configuration, or check that it is the same as an earlier run's."""
    path = folder / "collect.json"
    if not path.exists():
        write_json(path, {"config": config})
        return
    earlier = read_json(path, "choose another folder")["config"]
    differing = [name for name in config if earlier.get(name) != config[name]]
    if differing:
        raise ValueError(f"{folder} was collected with other {', '.join(differing)}: choose another folder")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input, which is reported in one line."""
    parser = ArgumentParser(
        prog="python -m policy.training.collect", description="Draw rollouts, and save what the predictor may read."
    )
    parser.add_argument("--model-path", required=True, help="a Qwen2.5-VL folder or hub name")
    parser.add_argument("--data", required=True, help="garden, garden:SPLIT, garden2:SPLIT, .tsv or JSONL")
    parser.add_argument("--tau", type=Path, help="the report of the step tau; without it the angle is pi/4")
    parser.add_argument("--items", type=int, help="the first so many questions, whole scenes; default all")
    parser.add_argument("--max-new-tokens", type=int, default=2048, help="of each rollout; default 2048")
    parser.add_argument("--seed", type=int, default=0, help="of sampling; default 0")
    parser.add_argument("--processes", type=int, help="default: one on a GPU or when launched, else one a core")
    parser.add_argument("--out", type=Path, required=True, help="a folder: new, or begun by the same command")
    return run_command(partial(collect_rollouts, parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
