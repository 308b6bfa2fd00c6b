"""A sweep: every peer measured once a round, in turn, each round one line of a file from which the sweep resumes::

    lines = measure(Sweep(geometry="tiny", visual_tokens=[256]), Path("runs/tiny.jsonl"))

The peers of a round are upstream's `generate`, our engine at every fraction pruned and number of rollouts, and the
vision encoder as upstream calls it. Ratios are taken within a round, so that a machine that slows down slows both.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.models.qwen2_5_vl.key_diversity import KdvConfig, VisualItem, patch_grids, pool_keys, prune_item
from transformers.models.qwen2_5_vl.shared_prefill import Prefill

from avis.evaluation.benchmark.counters import PeakMemory, count_operators, median_seconds, time_call
from avis.evaluation.benchmark.geometry import build_model, build_prompt
from avis.evaluation.benchmark.latency import measure_pair, spread_mix
from avis.evaluation.benchmark.queries import pruning_arguments, rollout_arguments, run_upstream
from avis.evaluation.benchmark.rates import measure_rates, rate_shapes
from avis.evaluation.benchmark.sweep import FRAME_TOKENS, Sweep, describe_run, tensor_bytes
from avis.journal import Journal

# On a CPU, upstream is left out above this many visual tokens times K: a call at `mid` takes 25 seconds there.
_UPSTREAM_TOKENS_ON_CPU = 7 * 1024

Line = dict[str, Any]


def measure(sweep: Sweep, path: Path) -> list[Line]:
    """Measure what a file of an earlier run lacks.

    Args:
        sweep: what is measured.
        path: the file: its first line is the configuration, every other one a "memory", "rates", "counts", "round" or
            "pair" record. It is created when missing.

    Returns:
        All lines of the file.

    Raises:
        ValueError: no CUDA device is there, or the file was measured with another configuration.
        OSError: the file cannot be written.
    """
    if sweep.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device {sweep.device}: there is no CUDA device")
    model = build_model(sweep.geometry, sweep.device, sweep.seed)
    config = describe_run(sweep, model)
    with Journal(path, config, key=_line_key, line_start='{"kind": ', remedy="move it away") as journal:
        _measure_missing(sweep, model, journal)
        return [config, *journal.records()]


def _line_key(line: Line) -> tuple:
    return line["kind"], line.get("visual_tokens"), line.get("process", line.get("round", line.get("index")))


def _measure_missing(sweep: Sweep, model, journal: Journal) -> None:
    rounds = [(n, number) for n in sweep.visual_tokens for number in range(sweep.rounds)]
    rounds = [(n, number) for n, number in rounds if ("round", n, number) not in journal.done]
    pairs = [index for index in range(sweep.pairs) if ("pair", None, index) not in journal.done]
    kinds = Counter(line["kind"] for line in journal.records())
    if sweep.video_tokens and not kinds["memory"]:
        memory = measure_video_memory(model, sweep.video_tokens, sweep.device, sweep.seed)
        journal.append({"kind": "memory", **memory})
    if rounds:  # rates are of the same process as the rounds
        shapes = rate_shapes(sweep.visual_tokens, sweep.rho, sweep.rollouts)
        rates = measure_rates(model, shapes, sweep.device)
        journal.append({"kind": "rates", "process": kinds["rates"], "rates": rates})
    with tqdm(total=len(rounds) + len(pairs), desc=f"{sweep.geometry} on {sweep.device}") as progress:
        for visual_tokens in dict.fromkeys(n for n, _ in rounds):
            numbers = [number for n, number in rounds if n == visual_tokens]
            _measure_rounds(sweep, model, journal, visual_tokens, numbers, progress)
        _measure_pairs(sweep, model, journal, pairs, progress)


def _measure_rounds(sweep: Sweep, model, journal: Journal, visual_tokens: int, numbers: list[int], progress) -> None:
    inputs = build_prompt(model.config, visual_tokens, sweep.device, sweep.seed)
    progress.set_postfix_str(f"{visual_tokens} visual tokens, warming up")
    counts = warm_up(model, inputs, sweep)
    if ("counts", visual_tokens, None) not in journal.done:
        journal.append({"kind": "counts", "visual_tokens": visual_tokens, "counts": counts})
    for number in numbers:
        progress.set_postfix_str(f"{visual_tokens} visual tokens, round {number + 1}")
        measured = measure_round(model, inputs, sweep, visual_tokens, number)
        journal.append({"kind": "round", "visual_tokens": visual_tokens, "round": number, **measured})
        progress.update()


def _measure_pairs(sweep: Sweep, model, journal: Journal, pairs: list[int], progress) -> None:
    mixed = spread_mix(sweep.k_mix, sweep.pairs, sweep.seed)
    for index in pairs:
        progress.set_postfix_str(f"pair {index + 1}")
        if index == pairs[0]:
            measure_pair(model, sweep, index, mixed[index])  # warms up
        settings = measure_pair(model, sweep, index, mixed[index])
        journal.append({"kind": "pair", "index": index, "settings": settings})
        progress.update()


@torch.no_grad()
def scoring_seconds(model, item: VisualItem, rho: float, device: str) -> float:
    """Return the seconds from the vision encoder's keys, as it has them, to kept indices: pooled, scored, selected."""
    window_index, _ = model.visual.get_window_index(patch_grids([item], item.kind, model.visual.spatial_merge_size))
    unit = model.visual.spatial_merge_unit
    keys = item.keys.transpose(0, 1)[window_index].repeat_interleave(unit, dim=0).to(model.dtype)

    def score() -> None:
        pooled = VisualItem(item.kind, item.grid, item.embeds, pool_keys(keys, window_index, unit))
        prune_item(pooled, KdvConfig(rho=rho))

    return median_seconds(score, device, times=5)


@torch.no_grad()
def warm_up(model, inputs: dict[str, torch.Tensor], sweep: Sweep) -> dict[str, Any]:
    """Run every stage of one image's settings once.

    Returns:
        Counts of `count_operators` in "vision", and by "rho" in "prefill" and in each K's "decode_step", with the peak
        memory of each.
    """
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    found: dict[str, Any] = {"rho": []}
    for rho in sweep.rho:
        peak = PeakMemory(sweep.device)
        items: list[VisualItem] = []
        prefills: list[Prefill] = []
        by_k = []
        encode = partial(model.model.encode_visual, inputs["pixel_values"], inputs["image_grid_thw"])
        found["vision"] = count_operators(lambda: items.extend(encode()))
        read = partial(model.prefill, **text, visual_items=tuple(items), **pruning_arguments(rho))
        counts = count_operators(lambda: prefills.append(read()))
        prefill_peak = peak.read()
        for k in sweep.rollouts:
            peak = PeakMemory(sweep.device)
            step = _count_decode_step(partial(model.rollout, prefills[0], k), k)
            by_k.append({"k": k, "decode_step": step, "peak_bytes": peak.read()})
        found["rho"].append({"rho": rho, "prefill": counts, "peak_bytes": prefill_peak, "rollouts": by_k})
    run_upstream(model, inputs, 1, 2)
    return found


def _count_decode_step(rollout: Callable, k: int) -> dict[str, int]:
    """Return what is counted in one step of decoding, as the difference of rollouts of several lengths.

    On CUDA the third step is captured, operator by operator, and later ones are replayed: "calls" are then those that
    choose the tokens, and the captured operators are "replayed".
    """
    two, three, four = (count_operators(partial(rollout, **rollout_arguments(k, n))) for n in (2, 3, 4))
    step = {key: three[key] - two[key] for key in two}
    step["replayed"] = step["calls"] - (four["calls"] - three["calls"])
    step["calls"] -= step["replayed"]
    return step


def measure_video_memory(model, visual_tokens: int, device: str, seed: int = 0) -> dict[str, Any]:
    """Measure the peak memory of reading a long video at rho = 0.75, beside what cannot be spared.

    Args:
        model: from `build_model`.
        visual_tokens: of the video, a multiple of `FRAME_TOKENS`.
        device: of the model.
        seed: of the video.

    Returns:
        peak_bytes: weights, and the most that prefill takes beyond weights and pixels, which are the caller's; None
            where the system does not report it.
        pixels: bytes of the pixels, which stay all the while.
        weights, cache: bytes that stay.
        layer: bytes of one language layer's activations at the kept length, at their largest: the stream, its norm, and
            the three products of the feed-forward part.
        seconds: of the stages.
    """
    frames, text, pruning = visual_tokens // FRAME_TOKENS, model.config.text_config, pruning_arguments(0.75)
    inputs = build_prompt(model.config, visual_tokens, device, seed, frames=frames)
    model.prefill(**build_prompt(model.config, FRAME_TOKENS, device, seed, frames=1), **pruning)  # warms up
    peak = PeakMemory(device)
    prefill = model.prefill(**inputs, **pruning)
    most = peak.read()
    weights = tensor_bytes(model.parameters())
    stream = prefill.kept_length * (2 * text.hidden_size + 3 * text.intermediate_size)
    return {
        "visual_tokens": visual_tokens,
        "frames": frames,
        "rho": 0.75,
        "kept": prefill.kept_length,
        "peak_bytes": None if most is None or peak.start is None else weights + most - peak.start,
        "weights": weights,
        "pixels": inputs["pixel_values_videos"].nbytes,
        "cache": tensor_bytes(x for layer in prefill.cache.layers for x in (layer.keys, layer.values)),
        "layer": model.dtype.itemsize * stream,
        "seconds": prefill.seconds,
    }


def measure_round(
    model, inputs: dict[str, torch.Tensor], sweep: Sweep, visual_tokens: int, number: int
) -> dict[str, Any]:
    """Measure every peer once, in turn; each round begins at another peer.

    Args:
        model: from `build_model`.
        inputs: of the image.
        sweep: what is measured.
        visual_tokens: of the image.
        number: of the round.
    """
    found: dict[str, Any] = {"upstream": [], "engine": []}
    turns: list[tuple[str, Any]] = [("upstream", k) for k in sweep.rollouts]
    turns += [("engine", rho) for rho in sweep.rho]
    turns.append(("looped", None))
    first = number % len(turns)
    for peer, value in turns[first:] + turns[:first]:
        if peer == "engine":
            found["engine"].append(_measure_engine(model, inputs, sweep, value))
        elif peer == "looped":
            found["vision_looped"] = _looped_vision_seconds(model, inputs, sweep.device)
        elif sweep.device != "cpu" or value * visual_tokens <= _UPSTREAM_TOKENS_ON_CPU:
            torch.manual_seed(sweep.seed)
            seconds = time_call(partial(run_upstream, model, inputs, value, sweep.new_tokens), sweep.device)
            found["upstream"].append({"k": value, "seconds": seconds})
    found["engine"].sort(key=lambda line: line["rho"])
    found["upstream"].sort(key=lambda line: line["k"])
    return found


def _measure_engine(model, inputs: dict[str, torch.Tensor], sweep: Sweep, rho: float) -> dict[str, Any]:
    """Measure our engine's stages at one fraction pruned, for every K."""
    prefill = model.prefill(**inputs, **pruning_arguments(rho))
    scoring = scoring_seconds(model, prefill.visual_items[0], rho, sweep.device) if rho else None
    found = {"rho": rho, "kept": prefill.kept_length, **prefill.seconds, "rollouts": [], "scoring": scoring}
    for k in sweep.rollouts:
        rollouts = model.rollout(prefill, k, **rollout_arguments(k, sweep.new_tokens), seed=sweep.seed)
        if {len(tokens) for tokens in rollouts.tokens} != {sweep.new_tokens}:
            raise RuntimeError("a rollout ended before its number of new tokens")
        measured = {"k": k, "seconds": rollouts.seconds, "cache_bytes": rollouts.cache_bytes}
        if sweep.device != "cpu":
            measured["capture"] = _capture_seconds(partial(model.rollout, prefill, k), k, sweep.device)
        found["rollouts"].append(measured)
    return found


def _capture_seconds(rollout: Callable, k: int, device: str) -> float:
    """Return the seconds of capturing a step as a CUDA graph: the second step is captured, and replayed once."""
    three, two = (time_call(partial(rollout, **rollout_arguments(k, n)), device) for n in (3, 2))
    return three - two


@torch.no_grad()
def _looped_vision_seconds(model, inputs: dict[str, torch.Tensor], device: str) -> float:
    """Return the seconds of the vision encoder as upstream calls attention: once for each window."""
    pixels = inputs["pixel_values"].to(model.dtype)
    return time_call(partial(model.visual, pixels, grid_thw=inputs["image_grid_thw"]), device)
