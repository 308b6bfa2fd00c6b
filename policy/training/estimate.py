"""What fitting a policy to a published Qwen2.5-VL costs: rollouts, FLOPs and GPU hours, by the closed-form cost model::

    python -m policy.training.estimate --shape 7b --questions 3000 --visual-tokens 1024 --new-tokens 300

Hours are FLOPs over two assumed rates, one for the vision encoder and the prefill, one for decoding. Decoding reads all
weights at every step for 16 rollouts side by side, and so runs at a small part of the rate of a prefill. The steps
`fit` and `calibrate` run no part of the model.
"""

import argparse
import math
import sys
from functools import partial

from transformers.models.qwen2_5_vl import flops
from transformers.models.qwen2_5_vl.key_diversity import keep_count

from avis.cli import ArgumentParser, run_command
from policy.training.collect import ROLLOUTS
from policy.training.shapes import SHAPES, published_config
from policy.training.tau import ITEMS

TERA = 10**12


def estimate_flops(
    shape: str, questions: int, visual_tokens: int, text_tokens: int, rho: float, new_tokens: int
) -> dict[str, int]:
    """Return the FLOPs of the steps tau and collect by stage: "vision", "prefill" and "decode".

    Args:
        shape: one of `SHAPES`.
        questions: each about one image of its own.
        visual_tokens: of an image, the square of a whole number.
        text_tokens: of a prompt.
        rho: fraction of visual tokens pruned.
        new_tokens: of a rollout, on average.

    Raises:
        ValueError: a number out of range.
    """
    side = math.isqrt(max(visual_tokens, 0))
    if visual_tokens < 1 or side * side != visual_tokens:
        raise ValueError(f"--visual-tokens is the square of a whole number, got {visual_tokens}")
    if min(questions, text_tokens, new_tokens) < 1:
        raise ValueError("--questions, --text-tokens and --new-tokens must be at least 1")
    if not 0 <= rho <= 1:
        raise ValueError(f"--rho is the fraction pruned, in [0, 1], got {rho}")
    config = published_config(shape)
    kept = keep_count(visual_tokens, rho) + text_tokens
    one = flops.cost(
        config, [(1, 2 * side, 2 * side)], visual_tokens + text_tokens, kept, [new_tokens] * (ROLLOUTS + 1)
    )
    return {
        "vision": one.vision * (questions + min(questions, ITEMS)),  # the step tau encodes its images, too
        "prefill": one.prefill * questions,
        "decode": one.decode * questions,
    }


def print_estimate(args: argparse.Namespace) -> None:
    """Print the estimate.

    Raises:
        ValueError: a number out of range.
    """
    if not (0 < args.prefill_tflops < math.inf and 0 < args.decode_tflops < math.inf):
        raise ValueError("--prefill-tflops and --decode-tflops must be above 0")
    spent = estimate_flops(args.shape, args.questions, args.visual_tokens, args.text_tokens, args.rho, args.new_tokens)
    rates = {"vision": args.prefill_tflops, "prefill": args.prefill_tflops, "decode": args.decode_tflops}
    hours = {stage: value / (rates[stage] * TERA) / 3600 for stage, value in spent.items()}
    rollouts = args.questions * (ROLLOUTS + 1)
    print(f"rollouts {rollouts:,} of {args.new_tokens} tokens")
    for stage, value in spent.items():
        print(f"{stage:8} {value:.2e} FLOPs, {hours[stage]:.2f} GPU hours at {rates[stage]:g} TFLOP/s")
    print(f"total    {sum(spent.values()):.2e} FLOPs, {sum(hours.values()):.2f} GPU hours")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input, which is reported in one line."""
    parser = ArgumentParser(
        prog="python -m policy.training.estimate", description="Estimate what fitting a policy costs."
    )
    parser.add_argument("--shape", choices=SHAPES, default="7b", help="Qwen2.5-VL of this size; default 7b")
    parser.add_argument("--questions", type=int, default=3000, help="one image each; default 3000")
    parser.add_argument("--visual-tokens", type=int, default=1024, help="of an image, a square number; default 1024")
    parser.add_argument("--text-tokens", type=int, default=128, help="of a prompt; default 128")
    parser.add_argument("--rho", type=float, default=0.75, help="fraction pruned; default 0.75")
    parser.add_argument("--new-tokens", type=int, default=300, help="of a rollout, on average; default 300")
    parser.add_argument(
        "--prefill-tflops", type=float, default=200, help="assumed TFLOP/s of vision encoder and prefill; default 200"
    )
    parser.add_argument("--decode-tflops", type=float, default=10, help="assumed TFLOP/s of decoding; default 10")
    return run_command(partial(print_estimate, parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
