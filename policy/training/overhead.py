"""The predictor's cost beside Qwen2.5-VL-7B: parameters, FLOPs, and time on this machine::

    python -m policy.training.overhead --tokens 1024 --out avis/evaluation/results/predictor-cost.json

Vanilla is taken at its cheapest, with one new token. Its time is a lower bound too: that of one layer of the language
model with random weights, times the layers, without the vision encoder and the vocabulary.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import flops
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from avis.cli import ArgumentParser, run_command
from avis.files import write_json
from avis.provenance import versions
from policy.networks import SolvabilityNetwork
from policy.training.shapes import published_config

TEXT_TOKENS = 64  # of the prompt
REPEATS = 5


def measure_shares(config: Qwen2_5_VLConfig, tokens: int, reads_hidden: bool) -> dict[str, float]:
    """Return the predictor's parameters and FLOPs, and their shares of the model's. Nothing is computed.

    Args:
        config: the model's.
        tokens: visual tokens, the square of a whole number.
        reads_hidden: whether the predictor is the question-aware one.

    Raises:
        ValueError: another number of tokens.
    """
    width, side = config.vision_config.out_hidden_size, math.isqrt(max(tokens, 0))
    if tokens < 1 or side * side != tokens:
        raise ValueError(f"--tokens is the square of a whole number, got {tokens}")
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
        network = SolvabilityNetwork(width, config.get_text_config().hidden_size if reads_hidden else None)
        with FlopCounterMode(display=False) as counter:
            network([torch.empty(tokens, width)], torch.empty(1, width) if reads_hidden else None)
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (network, model)]
    vanilla = flops.vanilla_cost(config, [(1, 2 * side, 2 * side)], tokens + TEXT_TOKENS, 1)
    spent = counter.get_total_flops()
    return {
        "parameters": sizes[0],
        "share_of_parameters": sizes[0] / sizes[1],
        "flops": spent,
        "share_of_llm_flops": spent / vanilla.llm,
        "share_of_total_flops": spent / vanilla.total,
    }


def _median_seconds(run: Callable[[], Any]) -> float:
    """Return the median of `REPEATS` times, after one that is not counted."""
    found = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found[1:])


@torch.no_grad()
def measure_times(config: Qwen2_5_VLConfig, tokens: int) -> dict[str, float]:
    """Return seconds of both predictors and of one layer of the language model, and shares of all layers' seconds.

    Measured on the CPU in float32.

    Args:
        config: the model's.
        tokens: visual tokens.
    """
    width = config.vision_config.out_hidden_size
    text = config.get_text_config()
    layers = text.num_hidden_layers
    text = type(text)(**text.to_dict() | {"num_hidden_layers": 1, "layer_types": None, "vocab_size": 8})
    text.pad_token_id, text._attn_implementation = 0, "sdpa"
    layer = Qwen2_5_VLTextModel._from_config(text).eval()
    prompt = torch.randn(1, tokens + TEXT_TOKENS, text.hidden_size)
    items, hidden = [torch.randn(tokens, width)], torch.randn(1, text.hidden_size)
    visual = SolvabilityNetwork(width).eval()
    question = SolvabilityNetwork(width, text.hidden_size).eval()
    found = {
        "layer_seconds": _median_seconds(partial(layer, inputs_embeds=prompt, use_cache=False)),
        "visual_seconds": _median_seconds(partial(visual, items)),
        "question_seconds": _median_seconds(partial(question, items, hidden)),
    }
    for name in ("visual", "question"):
        found[f"{name}_share_of_time_at_most"] = found[f"{name}_seconds"] / (layers * found["layer_seconds"])
    return found


def report_overhead(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError, OSError: bad input, in one line.
    """
    config = published_config("7b")
    torch.manual_seed(0)
    shares = {
        "visual": measure_shares(config, args.tokens, reads_hidden=False),
        "question": measure_shares(config, args.tokens, reads_hidden=True),
    }
    times = measure_times(config, args.tokens)
    result = {
        "command": f"python -m policy.training.overhead --tokens {args.tokens} --out {args.out}",
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "tokens": args.tokens,
        **shares,
        "time": times,
    }
    write_json(args.out, result)
    most = max(share["share_of_parameters"] for share in shares.values())
    slowest = max(times[f"{name}_share_of_time_at_most"] for name in shares)
    print(f"{args.out}: {most:.5%} of the parameters, at most {slowest:.5%} of the time", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input, which is reported in one line."""
    parser = ArgumentParser(
        prog="python -m policy.training.overhead", description="Measure the predictor's cost beside Qwen2.5-VL-7B."
    )
    parser.add_argument("--tokens", type=int, default=1024, help="visual tokens, a square number; default 1024")
    parser.add_argument("--out", type=Path, required=True, help="the report, JSON")
    return run_command(partial(report_overhead, parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
