"""Replay recorded rollouts: the tokens that the early stop and small batches of rollouts save.

python docs/lab-notebook/rollout_batches.py --results avis/evaluation/results/dev.jsonl.gz
"""

import argparse
import gzip
import json
import random
from pathlib import Path

from avis.answers import vote_key
from avis.voting import is_decided

K = 7


def tokens_spent(keys: list[str | None], lengths: list[int], batch_size: int) -> int:
    """Return the tokens that are decoded until the vote over these rollouts is decided.

    Args:
        keys: per rollout its canonical answer; None abstains.
        lengths: per rollout its tokens; running rollouts write one token each in a step.
        batch_size: rollouts that run side by side.
    """
    ended: dict[int, str | None] = {}
    spent = 0
    for first in range(0, len(keys), batch_size):
        batch = range(first, min(first + batch_size, len(keys)))
        for step in sorted({lengths[i] for i in batch}):
            ended |= {i: keys[i] for i in batch if lengths[i] <= step}
            if is_decided(ended, len(keys)):
                return spent + sum(min(lengths[i], step) for i in batch)
        spent += sum(lengths[i] for i in batch)
    return spent


def share_saved(pairs: list[tuple[int, int]]) -> float:
    """Return the saved share of all tokens, of (spent, all) per question."""
    return 1 - sum(spent for spent, _ in pairs) / sum(every for _, every in pairs)


def main() -> None:
    """Print shares saved with 95% bootstrap intervals, and what greedy decoding and votes get right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "avis/evaluation/results/dev.jsonl.gz"
    parser.add_argument("--results", type=Path, default=default, help="of a recipe with K = 7 and no pruning")
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    _, *lines = map(json.loads, gzip.decompress(args.results.read_bytes()).splitlines())
    runs = [line["runs"]["rho=0"][0] for line in lines]  # a run's first answer is greedy, the others are sampled
    for batch_size in (7, 3, 2, 1):
        pairs = []
        for run in runs:
            lengths = run["tokens"][1 : K + 1]
            keys = [vote_key(answer) for answer in run["answers"][1 : K + 1]]
            pairs.append((tokens_spent(keys, lengths, batch_size), sum(lengths)))
        generator = random.Random(0)
        draws = sorted(share_saved(generator.choices(pairs, k=len(pairs))) for _ in range(args.resamples))
        low, high = draws[args.resamples // 40], draws[-args.resamples // 40 - 1]
        print(f"batches of {batch_size}: {share_saved(pairs):.1%} saved ({low:.1%} to {high:.1%})")
    wrong = [run for run in runs if not run["right"][0]]
    sampled = sum(sum(run["right"][1 : K + 1]) / K for run in runs) / len(runs)
    print(f"greedy right {1 - len(wrong) / len(runs):.1%}, one sampled rollout {sampled:.1%}")
    unanimous = sum(len(set(run["answers"][1 : K + 1])) == 1 for run in wrong)
    print(f"of {len(wrong)} questions that greedy decoding gets wrong, {unanimous} have {K} equal rollouts")


if __name__ == "__main__":
    main()
