"""Time a step of decoding with all matrices by MKL, and as the fork decides: few rows of a large model by oneDNN.

python docs/lab-notebook/onednn_steps.py --geometry mid
"""

import argparse
import statistics

from transformers.models.qwen2_5_vl import decoding

from avis.evaluation.benchmark.geometry import GEOMETRIES, build_model, build_prompt


def main() -> None:
    """Print milliseconds a step, both ways in turn, by K."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="mid")
    parser.add_argument("--rollouts", type=int, nargs="+", default=[1, 3, 7], help="values of K")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=6)
    args = parser.parse_args()
    model = build_model(args.geometry, "cpu")
    prefill = model.prefill(**build_prompt(model.config, 256, "cpu"))

    def step_seconds(num_rollouts: int, large: int) -> float:
        """Return the seconds of one step when a model counts as large from so many elements of a matrix on."""
        decoding.ONEDNN_MIN_WEIGHT_ELEMENTS = large
        temperature = 0.7 if num_rollouts > 1 else 0.0
        rollouts = model.rollout(prefill, num_rollouts, max_new_tokens=args.new_tokens, temperature=temperature)
        return rollouts.seconds / (args.new_tokens - 1)

    for num_rollouts in args.rollouts:
        pairs = [(step_seconds(num_rollouts, 2**62), step_seconds(num_rollouts, 2**20)) for _ in range(args.repeats)]
        by_mkl, by_rule = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"K = {num_rollouts}: MKL {by_mkl:.2f} ms, the fork's rule {by_rule:.2f} ms")


if __name__ == "__main__":
    main()
