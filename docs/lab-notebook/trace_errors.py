"""Count which half of a reasoning trace fails on scenes like the example: the list of animals, or the running count.

python docs/lab-notebook/trace_errors.py --scenes 100
"""

import argparse
import re
from collections import Counter

from avis import AvisPipeline
from avis.garden.example import IMAGE_ANIMALS
from avis.garden.placement import place
from avis.garden.render import render
from avis.garden.scenes import LEVELS, rng_for

QUESTION = "How many wooden rabbits are wearing glasses?"


def main() -> None:
    """Print how often the list of animals and the running count are right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", default="models/garden-tiny")
    parser.add_argument("--scenes", type=int, default=100)
    args = parser.parse_args()
    avis = AvisPipeline.from_pretrained(args.model_path, device="cpu")
    seen: Counter = Counter()
    for index in range(args.scenes):
        scene = place(rng_for("dev", 77, index), LEVELS[0], 392, 504, IMAGE_ANIMALS)
        text = avis(render(scene), QUESTION, max_new_tokens=128).text
        rows = [(kind, wears, int(count)) for kind, wears, count in re.findall(r"\d (\w+) (\w+) (\d+)", text)]
        animals = Counter((animal.kind, animal.wears) for animal in scene.animals)
        is_list_right = Counter((kind, wears) for kind, wears, _ in rows) == animals
        running = 0
        is_count_right = bool(rows)
        for kind, wears, count in rows:
            running += (kind, wears) == ("rabbit", "glasses")
            is_count_right &= count == running
        seen[is_list_right, is_count_right] += 1
    for (is_list_right, is_count_right), count in sorted(seen.items(), reverse=True):
        animals, counts = ("right" if is_right else "wrong" for is_right in (is_list_right, is_count_right))
        print(f"animals {animals}, count {counts}: {count}")


if __name__ == "__main__":
    main()
