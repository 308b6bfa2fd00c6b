"""Time prefill at several lengths, and a step of decoding at several K.

python docs/lab-notebook/step_time.py --geometry mid

Run it with another checkout's fork first in PYTHONPATH to compare two versions.
"""

import argparse

from avis.evaluation.benchmark.geometry import GEOMETRIES, build_model, build_prompt


def step_seconds(model, prefill, num_rollouts: int, new_tokens: int) -> float:
    """Return the seconds of one step of decoding."""
    temperature = 0.7 if num_rollouts > 1 else 0.0
    rollouts = model.rollout(prefill, num_rollouts, max_new_tokens=new_tokens, temperature=temperature)
    return rollouts.seconds / (new_tokens - 1)


def main() -> None:
    """Print seconds of both stages of prefill, and milliseconds a step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="mid")
    parser.add_argument("--visual-tokens", type=int, nargs="*", default=[1024, 4096], help="of the prefills")
    parser.add_argument("--rollouts", type=int, nargs="*", default=[7, 1], help="values of K")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=4)
    args = parser.parse_args()
    model = build_model(args.geometry, "cpu")
    for count in args.visual_tokens:
        for _ in range(args.repeats):
            seconds = model.prefill(**build_prompt(model.config, count, "cpu")).seconds
            print(f"{count} visual tokens: vision {seconds['vision']:.3f} s, prefill {seconds['prefill']:.3f} s")
    prefill = model.prefill(**build_prompt(model.config, 256, "cpu"))
    for num_rollouts in args.rollouts:
        step_seconds(model, prefill, num_rollouts, 8)  # warm up
        found = [step_seconds(model, prefill, num_rollouts, args.new_tokens) for _ in range(args.repeats)]
        print(f"K = {num_rollouts}:", ", ".join(f"{1000 * value:.2f} ms" for value in found), "a step")


if __name__ == "__main__":
    main()
