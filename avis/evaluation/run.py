"""Measures a model by a recipe: every way of pruning that its rows name, one greedy and K sampled rollouts each.

    python -m avis.evaluation.run --recipe evaluation/recipes/dev.yaml --policy-path policy_checkpoint.pt --processes 2 \\
        --out evaluation/results/dev.jsonl.gz

While it is under way the output is `dev.jsonl`: what the numbers hang on first, then a line an item, written and
synced before it counts. Killed at any moment, the same command goes on; a larger `--limit` adds to what is there. The
last process packs it, sorted, as `dev.jsonl.gz`. `accelerate launch --num_processes n -m avis.evaluation.run ..` shares the
items out, one model a process; the records are the same. Scores are made from the records alone (`score.py`).

Exit status 0: all measured; 1: some items failed, which the same command tries again; 2: refused; 130: Ctrl-C.
"""

import argparse
import fcntl
import gzip
import hashlib
import json
import multiprocessing
import os
import platform
import re
import shlex
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm
from transformers.models.qwen2_5_vl.key_diversity import keep_count
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from avis.answers import answers_match
from avis.config import AvisConfig
from avis.evaluation.score import Row, row_of
from avis.evaluation.tasks import load_source
from avis.inputs import pixel_bounds
from avis.loading import load_model
from avis.outputs import AvisOutput
from avis.pipeline import answer
from avis.prompts import answer_format_for
from avis.provenance import versions, weights_sha256
from avis.session import VisionCache
from avis.voting import confidence_weight
from policy.policy_model import PolicyModel

TOKEN = 28  # pixels a side of a merged visual token
# What rows and seeds decide, and what makes rollouts that cannot be voted on afterwards for every K.
DECIDED = {
    *("enable_kdv", "kdv_ratio", "kdv_threshold", "pruner", "num_rollouts", "seed"),
    *("early_stop", "rollout_batch_size", "vote"),
}
# Of the language model's configuration, what FLOPs hang on.
SHAPE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "layer_types"),
)


# --------------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """rows: of the table, vanilla first. seeds: of sampling. settings: of `AvisConfig`, for all rows. split: of
    the garden. limit: items of each source, None for all."""

    name: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    split: str
    limit: int | None


def read_recipe(path: Path) -> Recipe:
    """A recipe's file. Raises ValueError or OSError with one line."""
    try:
        value = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    known = {"rows", "seeds", "settings", "split", "limit"}
    if not isinstance(value, dict) or not isinstance(value.get("rows"), list) or not set(value) <= known:
        raise ValueError(f"{path} is not a recipe: it has rows, and any of seeds, settings, split, limit")
    try:
        rows = tuple(map(row_of, value["rows"]))
        seeds, settings, limit = value.get("seeds", [0]), value.get("settings", {}), value.get("limit")
        if len({row.name for row in rows}) < len(rows):
            raise ValueError("two rows have the same name")
        if not rows or rows[0] != Row("vanilla"):
            raise ValueError("the first row is vanilla, which the others are compared with")
        kdv = {row.run for row in rows if row.pruner == "kdv"}
        for row in rows:
            if row.pruner == "downsample" and row.tau is not None and row.run.removesuffix(" downsample") not in kdv:
                raise ValueError(f"row {row.name}: downsampling to what tau keeps needs a row that prunes by it")
        if not isinstance(seeds, list) or not seeds or len(set(seeds)) < len(seeds):
            raise ValueError("seeds is a list of different whole numbers")
        if not isinstance(settings, dict) or DECIDED & set(settings):
            raise ValueError(f"settings are those of AvisConfig that rows do not decide, got {settings!r:.100}")
        for seed in seeds:
            AvisConfig(**settings, seed=seed)
        if limit is not None and not (type(limit) is int and limit >= 1):
            raise ValueError(f"limit is a whole number from 1, got {limit!r}")
        return Recipe(path.stem, rows, tuple(seeds), settings, str(value.get("split", "dev")), limit)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


# ---------------------------------------------------------------------------------------------------- measuring items


@dataclass(frozen=True)
class Run:
    """One way of pruning, and how many sampled rollouts it gets. row: any of the rows that share it."""

    name: str
    row: Row
    sampled: int

    def settings(self, base: AvisConfig, policy: PolicyModel | None) -> AvisConfig:
        """Of all pruners but downsampling, which hangs on the picture."""
        rho = policy.rho if self.row.rho == "policy" else self.row.rho
        tau = policy.tau if self.row.tau == "policy" else self.row.tau
        if rho is None and tau is None:
            return base
        return replace(base, enable_kdv=True, kdv_ratio=rho, kdv_threshold=tau, pruner=self.row.pruner)


def runs_of(rows: Sequence[Row]) -> list[Run]:
    """The runs that rows need, in an order in which one encoding serves all that show the same picture."""
    found: dict[str, Run] = {}
    for row in rows:
        sampled = max(row.sampled, found[row.run].sampled if row.run in found else 0)
        found[row.run] = Run(row.run, row, sampled)
    # Pruning needs the keys, which an encoding without pruning does not keep; smaller pictures come last.
    return sorted(found.values(), key=lambda run: (run.row.pruner == "downsample", run.name == "rho=0"))


def downsampled_pixels(grids: Sequence[tuple[int, int, int]], wanted: int) -> int:
    """The `max_pixels` that brings pictures as close as their sides allow to this many visual tokens in all.

    Args:
        grids: (t, h, w) in merged tokens, of the pictures as they are.
        wanted: tokens; at least one a frame is left. Of two counts equally close the smaller is taken.
    """

    def tokens(pixels: int) -> int:
        sides = [smart_resize(h * TOKEN, w * TOKEN, TOKEN, TOKEN * TOKEN, pixels) for _, h, w in grids]
        return sum(t * (h // TOKEN) * (w // TOKEN) for (t, _, _), (h, w) in zip(grids, sides, strict=True))

    budgets = [TOKEN * TOKEN * n for n in range(1, max(h * w for _, h, w in grids) + 1)]
    return min(budgets, key=lambda pixels: (abs(tokens(pixels) - wanted), pixels))


class Bench:
    """A model with what it is to be measured with."""

    def __init__(
        self,
        model_path: str,
        policy_path: str | None,
        recipe: Recipe,
        tasks: Sequence[str],
        device: str | None = None,
    ):
        """Loads everything; device: as for `load`, None for each process's own GPU. Raises ValueError, OSError or
        MemoryError with one line."""
        device = device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
        if device == "cpu" or not torch.cuda.is_available():
            torch.set_num_threads(1)  # the same sums whatever else the machine does; processes are what scales
            torch.set_flush_denormal(True)
        self.sources = [load_source(name, recipe.split) for name in tasks]
        self.model, self.processor = load_model(model_path, device)
        self.policy = PolicyModel(policy_path, self.model.device) if policy_path else None
        self.recipe, self.runs = recipe, runs_of(recipe.rows)
        self.model_path, self.policy_path = model_path, policy_path
        self.note: str | None = None  # what is to be told about the policy
        if self.policy:
            width = self.model.config.vision_config.out_hidden_size
            self.note = self.policy.check(width, weights_sha256(model_path))
        if self.note:  # told once by who started the run, not by every process for every answer
            warnings.filterwarnings("ignore", message=re.escape(self.note))

    def config(self) -> dict[str, Any]:
        """Everything that the numbers hang on."""
        base = AvisConfig(**self.recipe.settings)
        policy = self.policy_path and {
            "sha256": hashlib.sha256(Path(self.policy_path).read_bytes()).hexdigest(),
            "tau": self.policy.tau,
            "rho": self.policy.rho,
            "fitted_on": self.policy.fingerprint,
        }
        return {
            "recipe": self.recipe.name,
            "rows": [
                {name: value for name, value in asdict(row).items() if value is not None} for row in self.recipe.rows
            ],
            "seeds": list(self.recipe.seeds),
            "settings": self.recipe.settings,
            "sources": {source.name: source.digest for source in self.sources},
            "model": Path(self.model_path).name,
            "weights_sha256": weights_sha256(self.model_path),
            "policy": policy,
            "versions": versions(),
            "backend": {
                "dtype": str(self.model.dtype).removeprefix("torch."),
                "device": self.model.device.type,
                "attention": self.model.config._attn_implementation,
                "threads": torch.get_num_threads(),
            },
            "pixel_bounds": {
                "image": list(pixel_bounds(self.processor.image_processor, base)),
                "video": list(pixel_bounds(self.processor.video_processor, base)),
            },
            "text_config": {name: getattr(self.model.config.get_text_config(), name) for name in SHAPE},
        }

    def measure(self, source_number: int, index: int) -> dict[str, Any]:
        """The record of one item. Raises as `answer` does."""
        source = self.sources[source_number]
        with tempfile.TemporaryDirectory() as folder:
            asked = source.ask(index, Path(folder))
            memory, runs = VisionCache(), {}

            def ask(settings: AvisConfig, memory: VisionCache, policy: PolicyModel | None = None) -> AvisOutput:
                return answer(self.model, self.processor, asked.messages, settings, index, memory, policy)

            base = AvisConfig(**self.recipe.settings, vote_stop="off")
            for run in self.runs:
                if run.row.pruner == "downsample":
                    kept = runs[run.name.removesuffix(" downsample")][0]["kept"] if run.row.tau else None
                    settings, seen = self._downsampled(run, base, memory, kept), VisionCache()
                else:
                    settings, seen = run.settings(base, self.policy), memory
                runs[run.name] = self._run(run, settings, seen, ask, asked)
                for record in runs[run.name]:
                    record["visual"] = [len(item.embeds) for item in memory.items]
            record = {"source": source.name, "item": index, **asked.facts}
            if self.policy:
                record["policy"] = self._policy(base, memory, ask, asked)
        return record | {"runs": runs}

    def _downsampled(self, run: Run, base: AvisConfig, memory: VisionCache, kept: list[int] | None) -> AvisConfig:
        rho = self.policy.rho if run.row.rho == "policy" else run.row.rho
        grids = [item.grid for item in memory.items]
        wanted = sum(kept) if kept else sum(keep_count(t * h * w, rho) for t, h, w in grids)
        pixels = downsampled_pixels(grids, wanted)
        return replace(base, min_pixels=TOKEN * TOKEN, max_pixels=pixels)

    def _run(self, run: Run, settings: AvisConfig, memory: VisionCache, ask, asked) -> list[dict[str, Any]]:
        """For each seed what one way of pruning gave: rollout 0 is the greedy one, the others are sampled."""
        records = []
        for seed in self.recipe.seeds:
            seeded = replace(settings, seed=seed)
            found = []
            if not records or run.row.pruner == "random":
                greedy = ask(seeded, memory)
            found.append(greedy)
            if run.sampled:
                found.append(ask(replace(seeded, num_rollouts=run.sampled), memory))
            rollouts = [rollout for one in found for rollout in one.rollouts]
            records.append(
                {
                    "kept": [item.kept for item in greedy.items],
                    "read": greedy.kept_tokens,
                    "vision": greedy.flops["vision"],
                    "answers": [rollout.answer for rollout in rollouts],
                    "right": [int(answers_match(r.answer, asked.facts["truth"], asked.options)) for r in rollouts],
                    # What a rollout weighs in a vote by confidence.
                    "confidence": [round(confidence_weight(rollout.mean_logprob), 4) for rollout in rollouts],
                    "tokens": [rollout.tokens for rollout in rollouts],
                    "finished": [int(rollout.finished) for rollout in rollouts],
                    "seconds": [round(sum(one.seconds.values()), 3) for one in found],
                }
            )
        return records

    def _policy(self, base: AvisConfig, memory: VisionCache, ask, asked) -> dict[str, Any]:
        """Full AVIS as a user runs it, with early stop: its K, and what the offline vote is checked against."""
        settings = replace(
            base, enable_kdv=True, kdv_threshold=self.policy.tau, vote_stop="decided", seed=self.recipe.seeds[0]
        )
        found = ask(settings, memory, self.policy)
        return {
            "p": round(found.p, 4),
            "bin": found.bin,
            "rollouts": found.num_rollouts,
            "answer": found.answer,
            "right": int(answers_match(found.answer, asked.facts["truth"], asked.options)),
            "tokens": [rollout.tokens for rollout in found.rollouts],
        }


_bench: list[Bench] = []  # a worker's


def _start(*arguments) -> None:
    """A worker's beginning. It ends with the program, which could not tell it when it is killed."""
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([parent]), os._exit(1)), daemon=True).start()
    _bench[:] = [Bench(*arguments)]


def _measure(source_number: int, index: int) -> dict[str, Any]:
    return _bench[0].measure(source_number, index)


# ------------------------------------------------------------------------------------------------------------ the file


class Journal:
    """A results file under way. Any number of processes may write to it; each line is whole, synced, and there once."""

    def __init__(self, path: Path, config: dict[str, Any], environment: dict[str, Any]):
        """Takes up what an earlier run has left, packed or not.

        Args:
            path: ends with .jsonl.gz; the lines are beside it, without .gz, until they are packed.

        Raises:
            ValueError: it was measured with another configuration, or is something else. OSError: it cannot be written.
        """
        if not path.name.endswith(".jsonl.gz"):
            raise ValueError(f"--out ends with .jsonl.gz, got {path}")
        self.packed, self.path = path, path.with_suffix("")
        self.done: set[tuple[str, int]] = set()
        self.config: dict[str, Any] | None = None
        self._environment, self._has_added = environment, False
        self._read = 0
        wanted, held = json.loads(json.dumps(config)), b""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not self.path.exists():
            held = gzip.decompress(path.read_bytes())
            self._check(_parsed(path, held.splitlines()[:1])[0], wanted)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        with self._locked():
            if self.config is None:
                self._write(held or _line({"config": config, "environment": environment}))
                self._catch_up()
        self._check(self.config, wanted)

    def _check(self, held: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name, value in wanted.items():
            if held.get(name) != value:
                raise ValueError(
                    f"{self.packed} was measured with another {name}: move it away, or choose another --out"
                )

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, unless another process has written this item meanwhile.

        Raises:
            OSError: it cannot be written, or a run of fewer items has packed the file.
        """
        with self._locked():
            if (record["source"], record["item"]) not in self.done:
                if not self._is_there():
                    raise OSError(f"another run has packed {self.path}: the same command goes on")
                self._write(_line(record))
                self._has_added = True
                self._catch_up()

    def pack(self, wanted: set[tuple[str, int]]) -> bool:
        """Whether all of these items are there; then the lines are packed in their order, the same bytes every time.

        A run that has added items to an earlier one's tells its own command, where that measures them all.
        """
        with self._locked():
            if not wanted <= self.done:
                return False
            if self._is_there():  # else another process has packed it
                head, *lines = os.pread(self._fd, self._read, 0).splitlines(keepends=True)
                if self._has_added and self.done <= wanted:
                    head = _line({"config": self.config, "environment": self._environment})
                lines.sort(key=lambda line: (lambda record: (record["source"], record["item"]))(json.loads(line)))
                part = self.packed.with_suffix(".part")
                with part.open("wb") as file:
                    file.write(gzip.compress(b"".join([head, *lines]), mtime=0))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(part, self.packed)
                self.path.unlink()
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the file, and knowing all that is in it."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._catch_up()
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _catch_up(self) -> None:
        """Read the lines since the last look. A line torn by a kill is cut off: nobody else is writing."""
        new = os.pread(self._fd, os.fstat(self._fd).st_size - self._read, self._read)
        whole = new[: new.rfind(b"\n") + 1]
        if len(whole) < len(new):
            os.ftruncate(self._fd, self._read + len(whole))
        config, done = _parsed(self.path, whole.splitlines(), self.config)
        self.config, self.done = config, self.done | done
        self._read += len(whole)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]
        os.fsync(self._fd)


def _parsed(path: Path, lines: list[bytes], config: dict | None = None) -> tuple[dict | None, set[tuple[str, int]]]:
    """The configuration, which comes first when it is not known, and the items of lines. Raises ValueError."""
    done = set()
    try:
        for line in lines:
            record = json.loads(line)
            if config is None:
                config = record["config"]
            else:
                done.add((record["source"], record["item"]))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged, or not a file of results: move it away") from None
    return config, done


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


# ------------------------------------------------------------------------------------------------------------- the run


def _shared_out(items: list, records: Iterator[dict[str, Any] | Exception], journal: Journal) -> int:
    """Write records as they come; returns how many items failed."""
    failed = 0
    for record in tqdm(records, total=len(items), unit="item", disable=None):
        if isinstance(record, Exception):
            failed += 1
            tqdm.write(f"failed: {str(record).splitlines()[0]}", file=sys.stderr)
        else:
            journal.append(record)
    return failed


def _one_by_one(bench: Bench, items: list[tuple[int, int]]) -> Iterator[dict[str, Any] | Exception]:
    for source, index in items:
        try:
            yield bench.measure(source, index)
        except (ValueError, OSError, MemoryError) as error:
            yield type(error)(f"{bench.sources[source].name} {index}: {error}")


def _by_workers(processes: int, arguments: tuple, items: list) -> Iterator[dict[str, Any] | Exception]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=arguments)
    try:
        jobs = {pool.submit(_measure, source, index): index for source, index in items}
        for job in as_completed(jobs):
            try:
                yield job.result()
            except (ValueError, OSError, MemoryError) as error:
                yield type(error)(f"item {jobs[job]}: {error}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run(args: argparse.Namespace, command: str) -> int:
    """Measure what is missing; returns the number of items that failed. Raises ValueError or OSError with one line."""
    recipe = read_recipe(args.recipe)
    recipe = replace(recipe, split=args.split or recipe.split, limit=args.limit or recipe.limit)
    if args.profile:
        answer_format_for("", args.profile)
        recipe = replace(recipe, settings=recipe.settings | {"profile": args.profile})
    if args.policy_path is None:
        without = [row.name for row in recipe.rows if row.needs_policy]
        if without:
            print(f"no --policy-path: left out are {', '.join(without)}", file=sys.stderr)
        recipe = replace(recipe, rows=tuple(row for row in recipe.rows if not row.needs_policy))
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by `accelerate launch`
    if args.device == "auto" and max(args.processes, world) > 1:
        raise ValueError("--device auto spreads one model over all GPUs: it goes with one process")
    arguments = (args.model_path, args.policy_path, recipe, args.tasks, args.device)
    bench = Bench(*arguments)
    names = [source.name for source in bench.sources]
    if len(set(names)) < len(names):
        raise ValueError(f"two of --tasks have the same name: {', '.join(names)}")
    sizes = [min(len(source), recipe.limit or len(source)) for source in bench.sources]
    items = [(number, index) for number, size in enumerate(sizes) for index in range(size)]

    environment = {
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(bench.model.device) if bench.model.device.type == "cuda" else None,
    }
    out = args.out or Path("runs") / f"{recipe.name}-{'-'.join(names)}.jsonl.gz"
    journal = Journal(out, bench.config(), environment)
    if bench.note and rank == 0:
        print(f"note: {bench.note}", file=sys.stderr)
    left = [(number, index) for number, index in items if (names[number], index) not in journal.done][rank::world]
    if args.processes > 1:
        records = _by_workers(args.processes, arguments, left)
    else:
        records = _one_by_one(bench, left)
    failed = _shared_out(left, records, journal)
    if journal.pack({(names[number], index) for number, index in items}):
        print(f"{out}: {len(journal.done)} items")
    return failed


def main(argv: list[str] | None = None) -> int:
    """The command line; bad input is told in one line, and gives 2."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m avis.evaluation.run", description="Measure a model by a recipe.")
    parser.add_argument("--recipe", type=Path, required=True, help="a file as those in evaluation/recipes")
    parser.add_argument("--model-path", default="models/garden-tiny")
    parser.add_argument("--device", help="default: each process's own GPU, else cpu; auto: one model over all GPUs")
    parser.add_argument("--policy-path", help="without it, rows that need a policy are left out")
    parser.add_argument("--profile", help="form of the answer, of avis.prompts; default: by the model's name")
    parser.add_argument("--tasks", nargs="+", default=["garden"], help="garden, or .jsonl or VLMEvalKit's .tsv files")
    parser.add_argument("--split", help="of the garden, instead of the recipe's")
    parser.add_argument("--limit", type=int, help="the first n items of each source, instead of the recipe's number")
    parser.add_argument("--processes", type=int, default=1, help="with one thread each")
    parser.add_argument("--out", type=Path, help="ends with .jsonl.gz; default: in runs/")
    args = parser.parse_args(argv)
    try:
        for name in ("limit", "processes"):
            value = getattr(args, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        failed = run(args, f"python -m avis.evaluation.run {shlex.join(argv)}")
    except (ValueError, OSError, MemoryError, BrokenProcessPool) as error:
        print(f"error: {(str(error).splitlines() or [type(error).__name__])[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    if failed:
        print(f"{failed} items failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
