"""What the predictor costs beside Qwen2.5-VL-7B, whose shape stands below: parameters, FLOPs, and time on this machine.

    python -m policy.training.overhead --tokens 1024 --out evaluation/results/predictor-cost.json

Vanilla is taken at its cheapest, with one new token. Its time is a lower bound too: that of one layer of the language
model with random weights, times the layers, without the vision tower and the vocabulary.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import flops
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from avis.provenance import versions
from policy.policy_model import Network
from policy.training import command_line, write_json

TEXT_TOKENS = 64  # of the prompt
REPEATS = 5
# What Qwen/Qwen2.5-VL-7B-Instruct's config.json says of its size.
TEXT_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
VISION_7B = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def shares(config: Qwen2_5_VLConfig, tokens: int, reads_hidden: bool) -> dict[str, float]:
    """The predictor's parameters and FLOPs, and these as parts of the model's. Nothing is computed.

    Args:
        tokens: visual ones, the square of a whole number.
        reads_hidden: the question-aware form.
    """
    width, side = config.vision_config.out_hidden_size, math.isqrt(max(tokens, 0))
    if tokens < 1 or side * side != tokens:
        raise ValueError(f"--tokens is the square of a whole number, got {tokens}")
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
        network = Network(width, config.get_text_config().hidden_size if reads_hidden else None)
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


def _seconds(run: Callable[[], Any]) -> float:
    """The median of `REPEATS` times, after one that is not counted."""
    found = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found[1:])


@torch.no_grad()
def times(config: Qwen2_5_VLConfig, tokens: int) -> dict[str, float]:
    """Seconds of either predictor and of a layer of the language model on the CPU, float32, and shares of the layers'.

    tokens: visual ones.
    """
    width = config.vision_config.out_hidden_size
    text = config.get_text_config()
    layers = text.num_hidden_layers
    text = type(text)(**text.to_dict() | {"num_hidden_layers": 1, "layer_types": None, "vocab_size": 8})
    text.pad_token_id, text._attn_implementation = 0, "sdpa"
    layer = Qwen2_5_VLTextModel._from_config(text).eval()
    prompt = torch.randn(1, tokens + TEXT_TOKENS, text.hidden_size)
    items, hidden = [torch.randn(tokens, width)], torch.randn(1, text.hidden_size)
    visual, question = Network(width).eval(), Network(width, text.hidden_size).eval()
    found = {
        "layer_seconds": _seconds(lambda: layer(inputs_embeds=prompt, use_cache=False)),
        "visual_seconds": _seconds(lambda: visual(items)),
        "question_seconds": _seconds(lambda: question(items, hidden)),
    }
    for name in ("visual", "question"):
        found[f"{name}_share_of_time_at_most"] = found[f"{name}_seconds"] / (layers * found["layer_seconds"])
    return found


def cost(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError, with one line, for bad input."""
    config = Qwen2_5_VLConfig(text_config=TEXT_7B, vision_config=VISION_7B)
    torch.manual_seed(0)
    found = {
        "command": f"python -m policy.training.overhead --tokens {args.tokens} --out {args.out}",
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "tokens": args.tokens,
        "visual": shares(config, args.tokens, reads_hidden=False),
        "question": shares(config, args.tokens, reads_hidden=True),
        "time": times(config, args.tokens),
    }
    write_json(args.out, found)
    most = max(found[name]["share_of_parameters"] for name in ("visual", "question"))
    slowest = max(found["time"][f"{name}_share_of_time_at_most"] for name in ("visual", "question"))
    print(f"{args.out}: {most:.5%} of the parameters, at most {slowest:.5%} of the time", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """The command line; bad input is told in one line, and gives 2."""
    parser = argparse.ArgumentParser(
        prog="python -m policy.training.overhead", description="What the predictor costs beside Qwen2.5-VL-7B."
    )
    parser.add_argument("--tokens", type=int, default=1024, help="visual ones, a square number; default 1024")
    parser.add_argument("--out", type=Path, required=True, help="the report, JSON")
    return command_line(parser, cost, argv)


if __name__ == "__main__":
    sys.exit(main())
