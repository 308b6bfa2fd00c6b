"""How long a query takes, by stage: beside upstream's `generate`, beside the machine's limits and beside a cost model.

    python -m avis.evaluation.speed --geometry mid --visual-tokens 256,1024,4096 --rho 0,0.75 --rollouts 1,5,7 \\
        --new-tokens 64 --out evaluation/results/speed/mid.json
    python -m avis.evaluation.speed --geometry mid --visual-tokens 256,1024 --rho 0 --rollouts 1 --rounds 1 \\
        --new-tokens 64 --video-tokens 0 --pairs 100 --out evaluation/results/speed/pairs.json
    python -m avis.evaluation.speed --geometry tiny --out evaluation/results/speed/tiny.json
    python -m avis.evaluation.speed --geometry 7b --device cuda --visual-tokens 1024 --rho 0,0.75 --pairs 100 \\
        --out evaluation/results/speed/7b.json

Random weights of true shapes (see `geometry.py`), a picture of N visual tokens, a fixed number of new tokens. One round
measures every peer once, in turn, and ratios are taken within a round, so that a machine that slows down slows both:

- upstream: `generate(num_return_sequences=K)` with KDV off, which is upstream's own path bit for bit. It cannot prune.
- vanilla: our engine at rho = 0, K = 1.
- floor: the least time that the machine's limits allow: FLOPs (of causal attention the half that is not masked) over
  the best matrix rate, weights and cache over the copy bandwidth, whichever is longer. Both rates are of the same run.

Before the rounds, once, a long video is read for the memory that it takes: see `video_memory`.

The cost model's prediction is finer than the floor, and still made of closed-form FLOPs, counted bytes and measured
rates: see `predicted`. The document (stdout, and `--out`) is made from the lines of the work file alone, which lies
beside `--out` with the ending `.jsonl` and holds one line a round: stopped in any way, the same command goes on there.
"""

import argparse
import copy
import ctypes
import json
import os
import random
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm
from transformers.models.qwen2_5_vl import cuda_graphs, flops
from transformers.models.qwen2_5_vl.decoding import onednn_for_few_rows
from transformers.models.qwen2_5_vl.key_diversity import (
    KdvConfig,
    VisualItem,
    keep_count,
    patch_grids,
    pool_keys,
    prune_item,
)

from avis.evaluation.geometry import GEOMETRIES, TEXT_TOKENS, build, build_config, grid_of, prompt
from avis.provenance import versions

SAMPLING = {"temperature": 0.7, "top_p": 0.9}
# On a CPU, upstream is left out where its K-fold work is on more visual tokens: so many take `mid` 25 seconds a call.
UPSTREAM_TOKENS_ON_CPU = 7 * 1024
RATE_ROWS = 512  # of matrix products whose rate is measured; more rows are not faster
RATE_LENGTH = 4096  # of sequences whose attention's rate is measured
SIDE = 4096  # of the square matrices whose product is the best that the machine does
COPIED = 2**28  # elements at most, of the copy whose bandwidth is measured
ELEMENTS = 2**18  # at least, of products element by element: most of the time of a smaller one is its start
FRAME_TOKENS = 256  # of each frame of the video whose memory is measured
BUNDLED_MIX = {1: 0.82, 7: 0.18}  # of K, as the bundled policy chose it on the 1,000 items of the split `test`
PAPER_RATIOS = {"(0, 1)": 1.0, "(0, 5)": 0.98, "(0.75, 1)": 1.42, "(0.75, 5)": 1.01, "AVIS-like": 1.05}


# ------------------------------------------------------------------------------------------------ clocks and memory


def now(device: str) -> float:
    """Seconds, after all that was asked of the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(call: Callable, device: str) -> float:
    """Seconds that one call takes."""
    start = now(device)
    call()
    return now(device) - start


def typical(call: Callable, device: str, times: int = 3) -> float:
    """The median seconds of some calls after a first one that warms up."""
    call()
    return statistics.median(timed(call, device) for _ in range(times))


class Peak:
    """Most memory, in bytes, that the process (on CUDA: its tensors) takes from now on; None where that is unknown.

    start: what it takes now; None where that is unknown.
    """

    def __init__(self, device: str):
        self.device = device
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        else:
            try:
                # What was freed goes back; never before what is timed, it would pay for it.
                ctypes.CDLL(None).malloc_trim(0)
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is taken now
            except (OSError, AttributeError):  # not Linux, another C library, or not allowed
                self.device = None
        self.start = self.read()

    def read(self) -> int | None:
        if self.device is None:
            return None
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


# ------------------------------------------------------------------------------------------------ counted work


class Work(TorchDispatchMode):
    """Counts what runs inside it: operator calls, and the bytes read and written by those that are no matrix product.

    Views are no calls; the bytes of a sort are not counted, because its time is measured.
    """

    _MATRIX = re.compile(r"mm$|bmm$|^addmv$|^mv$|convolution|scaled_dot_product|_linear_pointwise|flash_attn")

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        aliases = [value.alias_info for value in func._schema.returns]
        if name.startswith("empty") or name == "_unsafe_view" or any(a is not None and not a.is_write for a in aliases):
            return result
        self.calls += 1
        if not self._MATRIX.search(name) and name != "sort":
            read = [args[1]] if name == "embedding" else args  # of its table, only what is written is read
            if name == "index_copy_":
                read = [args[2], args[3], args[3]]  # of where it goes, only so much is written
            written = [] if any(aliases) else result  # in place: the output is an argument
            self.bytes += _bytes_of(read) + _bytes_of(written) * (2 if name == "embedding" else 1)
        return result


def _bytes_of(values) -> int:
    """Of all tensors in nested lists and tuples; what is expanded counts as what is stored."""
    if isinstance(values, torch.Tensor):
        return min(values.numel() * values.element_size(), values.untyped_storage().nbytes())
    return sum(map(_bytes_of, values)) if isinstance(values, (list, tuple)) else 0


def counted(call: Callable) -> dict[str, int]:
    """`calls` and `bytes` of a call, as `Work` counts them."""
    with Work() as work:
        call()
    return {"calls": work.calls, "bytes": work.bytes}


def attention_flops(vision_config, grid: Sequence[int]) -> tuple[int, int]:
    """FLOPs of the tower's attention over one (t, h, w) in patches: of blocks with full attention, and of windows."""
    t, h, w = grid
    per_block = 4 * vision_config.hidden_size * t * (h * w) ** 2
    full = per_block * len({block for block in vision_config.fullatt_block_indexes if block < vision_config.depth})
    everywhere = copy.copy(vision_config)
    everywhere.fullatt_block_indexes = list(range(vision_config.depth))
    matrices = flops.vision_encoder_flops(everywhere, [grid]) - per_block * vision_config.depth
    return full, flops.vision_encoder_flops(vision_config, [grid]) - matrices - full


# ------------------------------------------------------------------------------------------------ measured rates


def needed_rows(tokens: Sequence[int], rhos: Sequence[float], rollouts: Sequence[int]) -> dict[str, list[int]]:
    """At which sizes rates are measured: `rows` of decoding and `prefill` lengths, `patches` of pictures."""
    return {
        "rows": sorted(set(rollouts)),
        "prefill": sorted({kept_length(n, rho) for n in tokens for rho in rhos}),
        "patches": sorted({4 * n for n in tokens}),
    }


def kept_length(visual_tokens: int, rho: float) -> int:
    """Tokens that the language model reads of a prompt of `geometry.prompt`: its text, two marks, what is kept."""
    return TEXT_TOKENS + 2 + keep_count(visual_tokens, rho)


@torch.no_grad()
def measure_rates(model, needed: dict[str, list[int]], device: str) -> dict:
    """What this machine does in a second, at the shapes of this model.

    Returns:
        copy: bytes read and written by a copy of as many elements as the language model has, `COPIED` at most, per
            second.
        matrix: FLOPs per second of the model's own matrices, all of them in turn (so that no cache holds them), by
            number of rows: "language" and "vision". best_matrix: the highest of them and of two square matrices.
        attention: FLOPs per second (a causal mask not taken off) by length: "language", "vision", and of "windows".
        elementwise: bytes per second of a product of two activations into a third, by rows: "language" and "vision".
            What the allocator takes for a large new one (on a CPU its pages' first touch) is not in it.
        call: seconds that an operator takes beside its work, as the model's modules call it: of the `tiny` geometry,
            which has hardly any work. replayed: the same in a CUDA graph; 0 on a CPU, which has none.
        sort: seconds of a sort of K rows of logits.
    """
    config, dtype = model.config, model.dtype
    text, vision = config.text_config, config.vision_config

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    def rate(amount: float, call: Callable) -> float:
        return amount / typical(call, device)

    language = [*model.model.language_model.layers.modules(), model.lm_head]
    language = [module.weight for module in language if isinstance(module, torch.nn.Linear)]
    tower = [module.weight for module in model.visual.blocks.modules() if isinstance(module, torch.nn.Linear)]

    def matrix_rate(weights: list[torch.Tensor], rows: int) -> float:
        inputs = {width: random(rows, width) for width in {weight.shape[1] for weight in weights}}

        def products() -> None:
            with onednn_for_few_rows(model):  # as a step of decoding makes them
                for weight in weights:
                    F.linear(inputs[weight.shape[1]], weight)

        return rate(sum(2 * rows * weight.numel() for weight in weights), products)

    def attention_rate(batch: int, heads: int, key_heads: int, length: int, width: int, causal: bool) -> float:
        query, key = random(batch, heads, length, width), random(batch, key_heads, length, width)
        key = key.repeat_interleave(heads // key_heads, dim=1)
        amount = 4 * batch * heads * width * length**2
        return rate(amount, lambda: F.scaled_dot_product_attention(query, key, key, is_causal=causal))

    def elementwise_rate(rows: int, width: int) -> float:
        left, right = (random(max(rows, -(-ELEMENTS // width)), width) for _ in range(2))
        product = torch.empty_like(left)
        return rate(3 * left.numel() * left.element_size(), lambda: torch.mul(left, right, out=product))

    heads, key_heads = text.num_attention_heads, text.num_key_value_heads
    prefill_rows = sorted({min(length, RATE_ROWS) for length in needed["prefill"]})
    tower_rows = sorted({min(patches, RATE_ROWS) for patches in needed["patches"]})
    tower_width = vision.hidden_size // vision.num_heads
    window = (vision.window_size // vision.patch_size) ** 2
    source = random(min(COPIED, sum(weight.numel() for weight in language)))
    target = torch.empty_like(source)
    tiny = build("tiny", device).model.language_model
    one = torch.zeros(1, 1, dtype=torch.long, device=device)
    calls, replayed = counted(lambda: tiny(one))["calls"], 0.0
    if device != "cpu":
        replayed = typical(cuda_graphs.capture_cuda_graph(lambda: tiny(one)[0], one.device), device, times=21) / calls
    found = {
        "copy": rate(2 * source.numel() * source.element_size(), lambda: target.copy_(source)),
        "matrix": {
            "language": {n: matrix_rate(language, n) for n in sorted({*needed["rows"], *prefill_rows})},
            "vision": {n: matrix_rate(tower, n) for n in tower_rows},
        },
        "attention": {
            "language": {
                n: attention_rate(1, heads, key_heads, n, text.hidden_size // heads, True)
                for n in sorted({min(length, RATE_LENGTH) for length in needed["prefill"]})
            },
            "vision": {
                n: attention_rate(1, vision.num_heads, vision.num_heads, n, tower_width, False)
                for n in sorted({min(patches, RATE_LENGTH) for patches in needed["patches"]})
            },
            "windows": attention_rate(16, vision.num_heads, vision.num_heads, window, tower_width, False),
        },
        "elementwise": {
            "language": {n: elementwise_rate(n, text.intermediate_size) for n in {*needed["rows"], *needed["prefill"]}},
            "vision": {n: elementwise_rate(n, vision.intermediate_size) for n in needed["patches"]},
        },
        "call": typical(lambda: tiny(one), device, times=21) / calls,
        "replayed": replayed,
        "sort": {},
    }
    for rows in needed["rows"]:
        logits = random(rows, text.vocab_size).float()
        found["sort"][rows] = typical(logits.sort, device)
    square, into = random(SIDE, SIDE), random(SIDE, SIDE)
    best = rate(2 * SIDE**3, lambda: torch.mm(square, square, out=into))
    found["best_matrix"] = max(best, *(rate for by_rows in found["matrix"].values() for rate in by_rows.values()))
    return found


def median_of_rates(measured: Sequence[dict]) -> dict:
    """The median, number by number, of what `measure_rates` found in each process of a sweep."""
    first = measured[0]
    return {
        key: median_of_rates([one[key] for one in measured])
        if isinstance(first[key], dict)
        else statistics.median(one[key] for one in measured)
        for key in first
    }


# ------------------------------------------------------------------------------------------------ the cost model


@dataclass(frozen=True)
class Task:
    """What a stage has to do.

    matrices: FLOPs of its weights' products, of `rows` rows. attention: (FLOPs, name, length) of its kinds. bytes:
    weights and cache, once. calls, traffic: operators that are called, and bytes of those that are no matrix product.
    sorts: rows of logits that are sorted, 0 for none. replayed: operators of a CUDA graph, which nobody calls.
    """

    part: str
    matrices: int
    rows: int
    attention: tuple[tuple[int, str, int], ...]
    bytes: int
    calls: int
    traffic: int
    sorts: int = 0
    replayed: int = 0

    @property
    def flops(self) -> int:
        return self.matrices + sum(amount for amount, _, _ in self.attention)

    @property
    def least_flops(self) -> float:
        """Without the half of causal attention that the mask takes away, which `flops` counts, as the paper does."""
        return self.flops - sum(amount for amount, name, _ in self.attention if name == "language") / 2


def tasks(config, weights: dict, counts: dict, n: int, rho: float, k: int, new_tokens: int) -> dict[str, Task]:
    """The stages `vision`, `prefill` and `decode_step` of a query at batch size 1.

    Args:
        config: of the model. weights: bytes of "vision" and "language" (with the head, without the input embeddings),
            and of one "element".
        counts: of `Work`: "vision", "prefill" and "decode_step".
        n, rho, k, new_tokens: visual tokens, fraction pruned, rollouts, tokens of each.
    """
    text, vision = config.text_config, config.vision_config
    grid = (1, *(side * vision.spatial_merge_size for side in grid_of(n)))
    full, windows = attention_flops(vision, grid)
    length, steps = kept_length(n, rho), new_tokens - 1
    text_pairs = 4 * text.num_hidden_layers * text.hidden_size
    head_width = text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_width * weights["element"]
    step_attention = k * text_pairs * (length + (steps + 1) / 2)
    step_flops = k * flops.decode_flops(text, length, new_tokens) / steps
    patches = grid[1] * grid[2]
    return {
        "vision": Task(
            "vision",
            flops.vision_encoder_flops(vision, [grid]) - full - windows,
            patches,
            ((full, "vision", patches), (windows, "windows", 0)),
            weights["vision"],
            counts["vision"]["calls"],
            counts["vision"]["bytes"],
        ),
        "prefill": Task(
            "language",
            flops.prefill_flops(text, length) - text_pairs * length**2,
            length,
            ((text_pairs * length**2, "language", length),),
            weights["language"] + cache * length,
            counts["prefill"]["calls"],
            counts["prefill"]["bytes"],
        ),
        "decode_step": Task(
            "language",
            round(step_flops - step_attention),
            k,
            ((round(step_attention), "decode", length),),
            round(weights["language"] + cache * (length + k * (steps + 1) / 2)),
            counts["decode_step"]["calls"],
            counts["decode_step"]["bytes"],
            sorts=k if k > 1 else 0,
            replayed=counts["decode_step"]["replayed"],
        ),
    }


def floor_seconds(task: Task, rates: dict) -> float:
    """The least seconds: FLOPs at the best matrix rate or bytes at the copy bandwidth, whichever takes longer."""
    return max(task.least_flops / rates["best_matrix"], task.bytes / rates["copy"])


def predicted(task: Task, rates: dict, device: str) -> dict[str, float]:
    """Seconds by cause, and their `total`: what FLOPs, bytes and the measured rates say a stage takes.

    Matrix products at the rate of so many rows; attention at its own, in decoding by FLOPs or cache bytes, whichever
    take longer; all other operators by the bytes they move; a sort as measured; and each operator's own start. A CPU
    does all this in turn; a GPU's work is started ahead of it, so there the shorter of the two hides, but for what a
    graph starts.
    """
    part = rates["matrix"][task.part]
    seconds = {"matrices": task.matrices / part[str(min(task.rows, max(map(int, part))))], "attention": 0.0}
    for amount, name, length in task.attention:
        if name == "windows":
            seconds["attention"] += amount / rates["attention"]["windows"]
        elif name == "decode":
            of_cache = task.bytes - rates["language_bytes"]
            seconds["attention"] += max(amount / rates["best_matrix"], of_cache / rates["copy"])
        else:
            seconds["attention"] += amount / rates["attention"][name][str(min(length, RATE_LENGTH))]
    seconds["elementwise"] = task.traffic / rates["elementwise"][task.part][str(task.rows)]
    seconds["sort"] = rates["sort"][str(task.sorts)] if task.sorts else 0.0
    starts = task.calls * rates["call"]
    seconds["replayed"] = task.replayed * rates["replayed"]
    work = sum(seconds.values())
    seconds["starts"] = starts if device == "cpu" else max(0.0, starts - work)
    return seconds | {"total": work + seconds["starts"]}


@dataclass(frozen=True)
class Machine:
    """What an estimate assumes of one GPU: FLOPs and bytes per second that are reached, bytes of memory."""

    name: str
    flops: float
    bandwidth: float
    memory: int


# The maker's figures (dense bfloat16), of which half the FLOPs and 70% of the bandwidth are assumed to be reached.
H200 = Machine(
    "H200, assumed to reach half of 989 TFLOP/s and 70% of 4.8 TB/s", 0.5 * 989e12, 0.7 * 4.8e12, 141 * 10**9
)


def internet_scale(
    geometry: str, machine: Machine, settings: dict[str, tuple[float, dict[int, float]]], n: int, new_tokens: int
) -> dict:
    """An estimate on paper, never a measurement: GPUs for a million image questions an hour.

    Decoding is batched over as many questions as memory has room for, whose rollouts share the reading of the weights.

    Args:
        settings: by name (rho, {K: share of the questions}).
        n, new_tokens: visual tokens of a question, tokens of a rollout.
    """
    config = build_config(geometry)
    text, vision = config.text_config, config.vision_config
    weights = 2 * sum(weight.numel() for weight in build(geometry, "meta").parameters())
    grid = (1, *(side * vision.spatial_merge_size for side in grid_of(n)))
    cache = 4 * text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    rows = []
    for name, (rho, mix) in settings.items():
        length = kept_length(n, rho)
        mean_k = sum(k * share for k, share in mix.items())
        question_cache = cache * (length + mean_k * new_tokens)
        batch = max(1, int((0.9 * machine.memory - weights) // question_cache))
        steps = new_tokens - 1
        compute = mean_k * flops.decode_flops(text, length, new_tokens) / machine.flops
        traffic = steps * (weights / batch + cache * (length + mean_k * new_tokens / 2)) / machine.bandwidth
        seconds = {
            "vision": flops.vision_encoder_flops(vision, [grid]) / machine.flops,
            "prefill": flops.prefill_flops(text, length) / machine.flops,
            "decode": max(compute, traffic),
        }
        total = sum(seconds.values())
        rows.append(
            {"setting": name, "rho": rho, "mean_k": mean_k, "batch": batch}
            | {"seconds": seconds, "gpus": 1e6 * total / 3600}
        )
    return {
        "estimate": True,
        "assumptions": [
            f"{machine.name}; bfloat16; 90% of {machine.memory / 1e9:.0f} GB for weights and caches",
            f"a question: {n} visual tokens of one picture, {TEXT_TOKENS + 2} others, {new_tokens} tokens a rollout",
            "full batches around the clock, no queueing, no network, no failures, no early stop of a vote",
        ],
        "geometry": geometry,
        "rows": rows,
    }


# ------------------------------------------------------------------------------------------------ measuring


def settings_of(k: int, new_tokens: int) -> dict:
    """Of a rollout, as `policy.answer.answer` chooses them: greedy for one, sampled for more."""
    return {"max_new_tokens": new_tokens, "temperature": 0.0 if k == 1 else SAMPLING["temperature"], "top_p": 0.9}


def kdv_of(rho: float) -> dict:
    """Arguments of `model.prefill` for a fraction pruned; nothing is pruned at 0, and KDV is off then."""
    return {"enable_kdv": True, "kdv_ratio": rho} if rho else {}


def upstream(model, inputs: dict, k: int, new_tokens: int) -> torch.Tensor:
    """K answers by upstream's own `generate`, sampled as ours are."""
    if k > 1:
        sampling = {"do_sample": True, "top_k": 0, "num_return_sequences": k, **SAMPLING}
    else:
        sampling = {"do_sample": False}
    return model.generate(**inputs, max_new_tokens=new_tokens, **sampling)


@torch.no_grad()
def scoring_seconds(model, item: VisualItem, rho: float, device: str) -> float:
    """Seconds from the tower's keys, as it holds them, to a picture's kept indices: pooled, scored, selected."""
    window_index, _ = model.visual.get_window_index(patch_grids([item], item.kind, model.visual.spatial_merge_size))
    unit = model.visual.spatial_merge_unit
    keys = item.keys.transpose(0, 1)[window_index].repeat_interleave(unit, dim=0).to(model.dtype)

    def score():
        prune_item(
            VisualItem(item.kind, item.grid, item.embeds, pool_keys(keys, window_index, unit)), KdvConfig(rho=rho)
        )

    return typical(score, device, times=5)


@torch.no_grad()
def warm_up(model, inputs: dict, args: argparse.Namespace) -> dict:
    """What `Work` counts in every stage of one picture's settings, and the most memory that each takes."""
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    found: dict = {"rho": []}
    for rho in args.rho:
        peak, items, read, by_k = Peak(args.device), [], [], []
        pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"]
        found["vision"] = counted(lambda: items.extend(model.model.encode_visual(pixels, grids)))
        prefill = counted(lambda: read.append(model.prefill(**text, visual_items=tuple(items), **kdv_of(rho))))
        prefill_peak = peak.read()
        for k in args.rollouts:
            peak = Peak(args.device)
            two, three, four = (counted(lambda: model.rollout(read[0], k, **settings_of(k, n))) for n in (2, 3, 4))
            step = {key: three[key] - two[key] for key in two}
            # On CUDA the third step is captured, operator by operator, and later ones are replayed: what is still
            # called then is the choice of the tokens.
            step["replayed"] = step["calls"] - (four["calls"] - three["calls"])
            step["calls"] -= step["replayed"]
            by_k.append({"k": k, "decode_step": step, "peak_bytes": peak.read()})
        found["rho"].append({"rho": rho, "prefill": prefill, "peak_bytes": prefill_peak, "rollouts": by_k})
    upstream(model, inputs, 1, 2)
    return found


def video_memory(model, args: argparse.Namespace) -> dict:
    """Most memory that reading a long video at rho = 0.75 takes, beside what cannot be spared.

    Returns:
        peak_bytes: weights, and the most that prefill takes beyond weights and pixels, which are the caller's. None
            where the system does not tell. pixels: bytes of those, which are held all the while.
        weights, cache: bytes that stay. layer: bytes of one language layer's activations at the kept length, where they
            are the most: the stream, its norm, and the three products of the feed-forward part.
        seconds: of the stages.
    """
    frames, text, size = args.video_tokens // FRAME_TOKENS, model.config.text_config, model.dtype.itemsize
    inputs = prompt(model.config, args.video_tokens, args.device, args.seed, frames=frames)
    model.prefill(**prompt(model.config, FRAME_TOKENS, args.device, args.seed, frames=1), **kdv_of(0.75))  # warms up
    peak = Peak(args.device)
    prefill = model.prefill(**inputs, **kdv_of(0.75))
    most = peak.read()
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    cache = sum(x.numel() * x.element_size() for layer in prefill.cache.layers for x in (layer.keys, layer.values))
    return {
        "visual_tokens": args.video_tokens,
        "frames": frames,
        "rho": 0.75,
        "kept": prefill.kept_length,
        "peak_bytes": None if most is None else weights + most - peak.start,
        "weights": weights,
        "pixels": inputs["pixel_values_videos"].nbytes,
        "cache": cache,
        "layer": size * prefill.kept_length * (2 * text.hidden_size + 3 * text.intermediate_size),
        "seconds": prefill.seconds,
    }


def measure_round(model, inputs: dict, args: argparse.Namespace, n: int, number: int) -> dict:
    """Every peer once, in turn; the turn begins elsewhere in each round."""
    device = args.device
    found: dict = {"upstream": [], "engine": []}

    def run_upstream(k: int) -> None:
        if device == "cpu" and k * n > UPSTREAM_TOKENS_ON_CPU:
            return
        torch.manual_seed(args.seed)
        found["upstream"].append(
            {"k": k, "seconds": timed(lambda: upstream(model, inputs, k, args.new_tokens), device)}
        )

    def run_engine(rho: float) -> None:
        prefill = model.prefill(**inputs, **kdv_of(rho))
        line = {"rho": rho, "kept": prefill.kept_length, **prefill.seconds, "rollouts": []}
        line["scoring"] = scoring_seconds(model, prefill.visual_items[0], rho, device) if rho else None
        for k in args.rollouts:
            rollouts = model.rollout(prefill, k, **settings_of(k, args.new_tokens), seed=args.seed)
            if {len(tokens) for tokens in rollouts.tokens} != {args.new_tokens}:
                raise RuntimeError("a rollout ended before its number of new tokens")
            took = {"k": k, "seconds": rollouts.seconds, "cache_bytes": rollouts.cache_bytes}
            if device != "cpu":  # the second step is captured, and replayed once
                two, one = (timed(lambda: model.rollout(prefill, k, **settings_of(k, n)), device) for n in (3, 2))
                took["capture"] = two - one
            line["rollouts"].append(took)
        found["engine"].append(line)

    def run_looped() -> None:
        """The tower as upstream calls attention: once for each window."""
        pixels = inputs["pixel_values"].to(model.dtype)
        with torch.no_grad():
            found["vision_looped"] = timed(lambda: model.visual(pixels, grid_thw=inputs["image_grid_thw"]), device)

    turns = [lambda k=k: run_upstream(k) for k in args.rollouts] + [lambda rho=rho: run_engine(rho) for rho in args.rho]
    turns.append(run_looped)
    first = number % len(turns)
    for turn in turns[first:] + turns[:first]:
        turn()
    found["engine"].sort(key=lambda line: line["rho"])
    found["upstream"].sort(key=lambda line: line["k"])
    return found


def measure_pair(model, args: argparse.Namespace, index: int, mixed_k: int) -> list[dict]:
    """One picture and question under every setting of the latency table, in turn."""
    inputs = prompt(model.config, args.visual_tokens[index % len(args.visual_tokens)], args.device, seed=index)
    turns = [("(0, 1)", 0.0, 1), ("(0, 5)", 0.0, 5), ("(0.75, 1)", 0.75, 1), ("(0.75, 5)", 0.75, 5)]
    turns.append(("AVIS-like", 0.75, mixed_k))
    first = index % len(turns)
    found = []
    for name, rho, k in turns[first:] + turns[:first]:
        settings = settings_of(k, args.new_tokens)

        def answer():
            model.rollout(model.prefill(**inputs, **kdv_of(rho)), k, **settings, seed=args.seed, item=index)

        found.append({"setting": name, "k": k, "seconds": timed(answer, args.device)})
    return found


def spread_mix(mix: dict[int, float], count: int, seed: int) -> list[int]:
    """`count` values of K in the shares of a mix, as exactly as whole numbers allow, in a seeded order."""
    exact = {k: share * count for k, share in mix.items()}
    given = {k: int(amount + 1e-9) for k, amount in exact.items()}
    for k in sorted(exact, key=lambda k: given[k] - exact[k])[: count - sum(given.values())]:
        given[k] += 1
    values = [k for k, times in given.items() for _ in range(times)]
    random.Random(seed).shuffle(values)
    return values


class Lines:
    """The work file: what is done already, and where more goes. Without a path, lines are only held in memory."""

    def __init__(self, path: Path | None, config: dict):
        self.path, self.lines = path, []
        if path is not None and path.exists():
            held = path.read_bytes()
            whole = held[: held.rfind(b"\n") + 1]  # a line that was cut off is measured again
            if whole != held:
                path.write_bytes(whole)
            self.lines = [json.loads(line) for line in whole.splitlines()]
            if self.lines and self.lines[0] != config:
                raise ValueError(f"{path} was measured with other settings, versions or hardware: move it away")
        if not self.lines:
            self.add(config)

    def add(self, line: dict) -> None:
        line = json.loads(json.dumps(line))  # what is held is what will be read
        self.lines.append(line)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def of(self, kind: str) -> list[dict]:
        return [line for line in self.lines if line["kind"] == kind]


def hardware(device: str) -> str:
    """The name of what the model runs on."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0] if names else "unknown CPU"


def configuration(args: argparse.Namespace, model) -> dict:
    """The first line of a work file: all that makes two measurements comparable."""
    language = [*model.model.language_model.layers.parameters(), *model.model.language_model.norm.parameters()]
    sizes = {"vision": model.visual.parameters(), "language": [*language, *model.lm_head.parameters()]}
    weights = {part: sum(w.numel() * w.element_size() for w in values) for part, values in sizes.items()}
    text, vision = model.config.text_config, model.config.vision_config
    return {
        "kind": "config",
        "geometry": args.geometry,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "layers": {"language": text.num_hidden_layers, "vision": vision.depth},
        "width": {"language": text.hidden_size, "vision": vision.hidden_size},
        "heads": {
            "language": text.num_attention_heads,
            "language_keys": text.num_key_value_heads,
            "vision": vision.num_heads,
        },
        "intermediate": {"language": text.intermediate_size, "vision": vision.intermediate_size},
        "vocabulary": text.vocab_size,
        "weights": weights | {"element": model.dtype.itemsize},
        "visual_tokens": args.visual_tokens,
        "rho": args.rho,
        "rollouts": args.rollouts,
        "new_tokens": args.new_tokens,
        "text_tokens": TEXT_TOKENS + 2,
        "video_tokens": args.video_tokens,
        "pairs": args.pairs,
        "k_mix": {str(k): share for k, share in args.k_mix.items()},
        "seed": args.seed,
        "device": args.device,
        "hardware": hardware(args.device),
        "memory_bytes": None if args.device == "cpu" else torch.cuda.get_device_properties(0).total_memory,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "versions": versions(),
    }


def measure(args: argparse.Namespace) -> list[dict]:
    """Do what the work file lacks; returns all its lines."""
    if args.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device {args.device}: no CUDA device is there")
    model = build(args.geometry, args.device, args.seed)
    lines = Lines(args.out.with_suffix(".jsonl") if args.out else None, configuration(args, model))
    done = {(line["visual_tokens"], line["round"]) for line in lines.of("round")}
    todo = [(n, number) for n in args.visual_tokens for number in range(args.rounds) if (n, number) not in done]
    pairs = range(len(lines.of("pair")), args.pairs)
    if args.video_tokens and not lines.of("memory"):
        lines.add({"kind": "memory", **video_memory(model, args)})
    if todo:
        needed = needed_rows(args.visual_tokens, args.rho, args.rollouts)
        lines.add({"kind": "rates", "rates": measure_rates(model, needed, args.device)})
    warm = None
    progress = tqdm(total=len(todo) + len(pairs), desc=f"{args.geometry} on {args.device}")
    for n, number in todo:
        progress.set_postfix_str(f"{n} visual tokens, round {number + 1}")
        if n != warm:
            inputs = prompt(model.config, n, args.device, args.seed)
            counts = warm_up(model, inputs, args)
            if n not in {line["visual_tokens"] for line in lines.of("counts")}:
                lines.add({"kind": "counts", "visual_tokens": n, "counts": counts})
            warm = n
        measured = measure_round(model, inputs, args, n, number)
        lines.add({"kind": "round", "visual_tokens": n, "round": number, **measured})
        progress.update()
    mixed = spread_mix(args.k_mix, args.pairs, args.seed) if args.pairs else []
    for index in pairs:
        progress.set_postfix_str(f"pair {index + 1}")
        if index == pairs.start:
            measure_pair(model, args, index, mixed[index])  # warms up
        lines.add({"kind": "pair", "index": index, "settings": measure_pair(model, args, index, mixed[index])})
        progress.update()
    progress.close()
    return lines.lines


# ------------------------------------------------------------------------------------------------ the document


def middle(values: Sequence[float]) -> dict[str, float]:
    """Median and spread of some measured values."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "n": len(values)}


def summarise(lines: Sequence[dict]) -> dict:
    """The document, from the lines of a work file."""
    config = lines[0]
    kinds = ("memory", "rates", "counts", "round", "pair")
    of = {kind: [line for line in lines if line["kind"] == kind] for kind in kinds}
    document: dict = {"config": config, "points": [], "stages": []}
    machine = H200
    for line in of["memory"]:
        document["video_memory"] = {key: value for key, value in line.items() if key != "kind"}
        if line["peak_bytes"] is not None:
            least = line["weights"] + line["cache"] + line["layer"]
            document["video_memory"]["of_least"] = line["peak_bytes"] / least
            document["video_memory"]["of_least_with_pixels"] = (line["peak_bytes"] + line["pixels"]) / least
    if of["round"]:
        rates = median_of_rates([line["rates"] for line in of["rates"]])
        document["rates"] = rates
        if config["device"] != "cpu" and config["geometry"] == "7b":
            name = f"{config['hardware']}, rates measured in this run"
            machine = Machine(name, rates["best_matrix"], rates["copy"], config["memory_bytes"])
        rates = rates | {"language_bytes": config["weights"]["language"]}
        model_config = build_config(config["geometry"])
        for line in of["counts"]:
            rounds = [r for r in of["round"] if r["visual_tokens"] == line["visual_tokens"]]
            if rounds:
                stages, points = _points(config, model_config, rates, line, rounds)
                document["stages"] += stages
                document["points"] += points
        document["cost_model"] = _errors(document["points"])
    if of["pair"]:
        document["latency"] = _latency(of["pair"], config)
    if of["round"]:
        document["goals"] = goals(document)
    mix = {int(k): share for k, share in config["k_mix"].items()}
    document["internet_scale"] = internet_scale(
        "7b",
        machine,
        {"vanilla": (0.0, {1: 1.0}), "fixed (0.75, 5)": (0.75, {5: 1.0}), "AVIS-like": (0.75, mix)},
        n=1024,
        new_tokens=config["new_tokens"],
    )
    return document


def _points(config: dict, model_config, rates: dict, line: dict, rounds: Sequence[dict]) -> tuple[list, list]:
    """Stages and points of one number of visual tokens, over its rounds."""
    n, stages, points = line["visual_tokens"], [], []
    unpruned = {rho: index for index, rho in enumerate(config["rho"])}.get(0.0)
    for index, rho in enumerate(config["rho"]):
        runs, pruned = [r["engine"][index] for r in rounds], line["counts"]["rho"][index]
        scored = [run["scoring"] for run in runs if run["scoring"] is not None]
        tower = [statistics.mean(run["vision"] for run in r["engine"]) for r in rounds]
        stage = {"visual_tokens": n, "rho": rho, "kept": runs[0]["kept"], "vision": middle(tower)}
        stage["prefill"] = middle([run["prefill"] for run in runs])
        stage["windows_batched_gain"] = middle([r["vision_looped"] / s for r, s in zip(rounds, tower)])
        if scored:
            stage["scoring"] = middle(scored)
            stage["scoring_share_of_tower"] = middle([run["scoring"] / s for run, s in zip(runs, tower)])
        for column, k in enumerate(config["rollouts"]):
            counts = line["counts"] | pruned | pruned["rollouts"][column]
            work = tasks(model_config, config["weights"], counts, n, rho, k, config["new_tokens"])
            steps = config["new_tokens"] - 1
            whole = [run["vision"] + run["prefill"] + run["rollouts"][column]["seconds"] for run in runs]
            point = {
                "visual_tokens": n,
                "rho": rho,
                "k": k,
                "kept": runs[0]["kept"],
                "whole": middle(whole),
                "vision": middle([run["vision"] for run in runs]),
                "prefill": stage["prefill"],
                "decode_step": middle([run["rollouts"][column]["seconds"] / steps for run in runs]),
                "cache_bytes": runs[0]["rollouts"][column]["cache_bytes"],
                "capture": middle(captures) if (captures := _captures(runs, column)) else None,
                "peak_bytes": {"prefill": pruned["peak_bytes"], "decode": pruned["rollouts"][column]["peak_bytes"]},
                "flops": {name: task.flops for name, task in work.items()},
                "least_flops": {name: task.least_flops for name, task in work.items()},
                "bytes": {name: task.bytes for name, task in work.items()},
                "floor": {name: floor_seconds(task, rates) for name, task in work.items()},
                "predicted": {name: predicted(task, rates, config["device"]) for name, task in work.items()},
            }
            for sums in (point["floor"], predictions := {name: p["total"] for name, p in point["predicted"].items()}):
                sums["whole"] = sums["vision"] + sums["prefill"] + steps * sums["decode_step"]
            point["predicted"]["whole"] = {"total": predictions["whole"]}
            point["error"] = {name: predictions[name] / point[name]["median"] - 1 for name in predictions}
            point["of_floor"] = {name: point["floor"][name] / point[name]["median"] for name in predictions}
            peers = [[u["seconds"] for u in r["upstream"] if u["k"] == k] for r in rounds]
            if all(peers):
                point["upstream"] = middle([seconds for (seconds,) in peers])
                point["faster_than_upstream"] = middle([seconds / own for (seconds,), own in zip(peers, whole)])
            else:
                point["upstream"] = None  # left out: see UPSTREAM_TOKENS_ON_CPU
            if unpruned is not None and 1 in config["rollouts"]:
                first = config["rollouts"].index(1)
                vanilla = [r["engine"][unpruned] for r in rounds]
                vanilla = [v["vision"] + v["prefill"] + v["rollouts"][first]["seconds"] for v in vanilla]
                point["faster_than_vanilla"] = middle([v / own for v, own in zip(vanilla, whole)])
            points.append(point)
        if unpruned is not None:
            base = points[unpruned * len(config["rollouts"])]
            by_flops = points[-1]["flops"]["prefill"] / base["flops"]["prefill"]
            times = [run["prefill"] / r["engine"][unpruned]["prefill"] for run, r in zip(runs, rounds)]
            stage["prefill_over_its_flops"] = middle([ratio / by_flops for ratio in times])
            flop_time = points[-1]["flops"]["prefill"] / rates["best_matrix"]
            stage["prefill_is_compute_bound"] = flop_time > 2 * config["weights"]["language"] / rates["copy"]
        stages.append(stage)
    return stages, points


def _captures(runs: Sequence[dict], column: int) -> list[float]:
    """Seconds that a CUDA graph of a step took to make, its first replay included; none on a CPU."""
    return [run["rollouts"][column]["capture"] for run in runs if "capture" in run["rollouts"][column]]


def _errors(points: Sequence[dict]) -> dict:
    """How far predictions are off, and every point and stage where it is 25% or more, with what dominates there."""
    off = []
    for point in points:
        for name, error in point["error"].items():
            if abs(error) >= 0.25:
                causes = {cause: s for cause, s in point["predicted"][name].items() if cause != "total"}
                where = {key: point[key] for key in ("visual_tokens", "rho", "k")}
                most = max(causes, key=causes.get) if causes else None
                off.append({**where, "stage": name, "error": error, "largest_predicted_part": most})
    stages = {name: middle([abs(point["error"][name]) for point in points]) for name in points[0]["error"]}
    return {"absolute_error": stages, "off_by_a_quarter": off}


def _latency(pairs: Sequence[dict], config: dict) -> dict:
    """The table of 100 image-question pairs: total seconds, and how many times faster than vanilla."""
    names = list(PAPER_RATIOS)
    by_name = [{line["setting"]: line["seconds"] for line in pair["settings"]} for pair in pairs]
    seconds = {name: [pair[name] for pair in by_name] for name in names}
    generator, rows = random.Random(config["seed"]), []
    draws = [[generator.randrange(len(pairs)) for _ in pairs] for _ in range(1000)]
    for name in names:
        ratios = sorted(sum(seconds["(0, 1)"][i] for i in draw) / sum(seconds[name][i] for i in draw) for draw in draws)
        rows.append(
            {
                "setting": name,
                "seconds": sum(seconds[name]),
                "faster_than_vanilla": sum(seconds["(0, 1)"]) / sum(seconds[name]),
                "ci95": [ratios[25], ratios[974]],
                "paper": PAPER_RATIOS[name],
            }
        )
    return {"pairs": len(pairs), "k_mix": config["k_mix"], "rows": rows}


def goals(document: dict) -> list[dict]:
    """What was to be reached, of what this sweep measured: wanted, measured, and whether it is reached."""
    config, found = document["config"], []
    points = {(p["visual_tokens"], p["rho"], p["k"]): p for p in document["points"]}

    def add(goal: str, measured: float | None, wanted: float, at_least: bool) -> None:
        if measured is not None:
            reached = measured >= wanted if at_least else measured <= wanted
            line = {"goal": goal, "wanted": wanted, "at_least": at_least, "measured": measured, "reached": reached}
            found.append(line)

    def ratio_of(key: str, *where) -> float | None:
        return points[where][key]["median"] if where in points and points[where].get(key) else None

    for stage in document["stages"]:
        where = f"N = {stage['visual_tokens']}, rho = {stage['rho']}"
        if stage["visual_tokens"] == 4096 and "scoring" in stage:
            add(f"scoring over the tower's time, {where}", stage["scoring_share_of_tower"]["median"], 0.01, False)
        if stage["rho"] == 0.75 and stage.get("prefill_is_compute_bound"):
            off = abs(stage["prefill_over_its_flops"]["median"] - 1)
            add(f"prefill off what its FLOPs predict from rho = 0, {where}", off, 0.15, False)
        if stage["rho"] == 0 and stage["visual_tokens"] >= 1024 and config["device"] == "cpu":
            add(f"tower over upstream's loop, {where}", stage["windows_batched_gain"]["median"], 1.5, True)
    scored = {s["visual_tokens"]: s["scoring"]["median"] for s in document["stages"] if s["rho"] == 0.75}
    if {1024, 4096} <= scored.keys():
        add("scoring's time a token at N = 4096 over that at N = 1024", scored[4096] / scored[1024] / 4, 1.0, False)
    # Cache: 4,096 prefix tokens are asked for; a picture of 4,096 visual tokens has a few more.
    pair = [points.get((4096, 0.0, k)) for k in (1, 7)]
    if all(pair) and config["new_tokens"] == 128:
        add("cache bytes at K = 7 over K = 1, N = 4096", pair[1]["cache_bytes"] / pair[0]["cache_bytes"], 1.25, False)
    pair = [points.get((1024, 0.0, k)) for k in (1, 7)]
    seven = pair[1]["whole"]["median"] / pair[0]["whole"]["median"] if all(pair) else None
    if config["device"] == "cpu" and config["geometry"] == "mid" and config["new_tokens"] == 64:
        add("K = 5 at rho = 0 over upstream, N = 1024", ratio_of("faster_than_upstream", 1024, 0.0, 5), 2.5, True)
        add("K = 5 at rho = 0.75 over upstream, N = 1024", ratio_of("faster_than_upstream", 1024, 0.75, 5), 3.5, True)
        add("time of K = 7 over K = 1, N = 1024", seven, 2.0, False)
    if config["device"] != "cpu" and config["geometry"] == "7b":
        for (n, rho, k), point in points.items():
            if n == 1024 and rho == 0:
                add(f"floor over a step's time, N = 1024, K = {k}", point["of_floor"]["decode_step"], 0.7, True)
        add("time of K = 7 over K = 1, N = 1024", seven, 1.15, False)
        add("K = 5 at rho = 0.75 over upstream, N = 1024", ratio_of("faster_than_upstream", 1024, 0.75, 5), 5.0, True)
        for row in document.get("latency", {"rows": []})["rows"][2:]:
            goal = f"{row['setting']} over vanilla, {document['latency']['pairs']} pairs"
            add(goal, row["faster_than_vanilla"], row["paper"], True)
    video = document.get("video_memory", {})
    if video.get("visual_tokens") == 16384:
        for key, told in (("of_least", "the video's pixels aside"), ("of_least_with_pixels", "with its pixels")):
            goal = f"peak memory, {told}, over weights, pruned cache and one layer, N = 16384, rho = 0.75"
            add(goal, video.get(key), 1.3, False)
    worst = max((abs(error) for point in points.values() for error in point["error"].values()), default=None)
    add("largest error of the cost model", worst, 0.25, False)
    return found


# ------------------------------------------------------------------------------------------------ the command


def _numbers(kind: type, least: float, most: float) -> Callable[[str], list]:
    def read(text: str) -> list:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"numbers with commas between them, got {text!r}") from None
        if not all(least <= value <= most for value in values):
            raise argparse.ArgumentTypeError(f"numbers from {least} to {most}, got {text!r}")
        return sorted(set(values))

    return read


def _pictures(text: str) -> list[int]:
    values = _numbers(int, 1, 16384)(text)
    try:
        for value in values:
            grid_of(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return values


def _mix(text: str) -> dict[int, float]:
    try:
        mix = {int(k): float(share) for k, share in (part.split(":") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"K:share with commas between them, got {text!r}") from None
    if min(mix) < 1 or min(mix.values()) < 0 or abs(sum(mix.values()) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"K is at least 1 and shares sum to 1, got {text!r}")
    return mix


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the speed of a Qwen2.5-VL with random weights.")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="mid")
    parser.add_argument("--visual-tokens", type=_pictures, default=[256, 1024, 4096])
    parser.add_argument("--rho", type=_numbers(float, 0, 1), default=[0.0, 0.5, 0.75, 0.9], help="fractions pruned")
    parser.add_argument("--rollouts", type=_numbers(int, 1, 64), default=[1, 3, 5, 7])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="how often every peer is measured")
    parser.add_argument("--video-tokens", type=int, default=16384, help="of the video that fills memory; 0: none")
    parser.add_argument("--pairs", type=int, default=0, help="also the latency table, of so many questions")
    parser.add_argument("--k-mix", type=_mix, default=BUNDLED_MIX, help="of its AVIS-like row")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the document; the work file lies beside it, with the ending .jsonl")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    try:
        if args.new_tokens < 2 or args.rounds < 1 or args.pairs < 0 or args.seed < 0:
            raise ValueError("--new-tokens is at least 2, --rounds 1, --pairs and --seed 0")
        if not 0 <= args.video_tokens <= 65536 or args.video_tokens % FRAME_TOKENS:
            raise ValueError(f"--video-tokens is a multiple of {FRAME_TOKENS}, at most 65536, got {args.video_tokens}")
        if args.out and args.out.suffix != ".json":  # .jsonl is the work file
            raise ValueError(f"--out ends in .json, got {args.out}")
        document = {"command": f"python -m avis.evaluation.speed {shlex.join(argv)}"} | summarise(measure(args))
        text = json.dumps(document, indent=1)
        if args.out:
            part = args.out.with_suffix(".part")
            part.write_text(text + "\n")
            os.replace(part, args.out)
    except (ValueError, OSError, RuntimeError) as error:
        lacks_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if isinstance(error, RuntimeError) and not lacks_memory:
            raise
        told = "out of memory: take a smaller geometry or fewer visual tokens" if lacks_memory else error
        print(f"error: {told}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
