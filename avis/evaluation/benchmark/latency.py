"""The latency table, in the form of the paper's table 3: seconds for pairs of an image and a question::

line = measure_pair(model, sweep, index=0, mixed_k=7)  # every setting once
latency_table(lines, seed=0, k_mix={"1": 0.82, "7": 0.18})
"""

import random
from collections.abc import Sequence
from typing import Any

from avis.evaluation.benchmark.counters import time_call
from avis.evaluation.benchmark.geometry import build_prompt
from avis.evaluation.benchmark.queries import pruning_arguments, rollout_arguments
from avis.evaluation.benchmark.sweep import Sweep

VANILLA, ADAPTIVE = "(0, 1)", "AVIS-like"
# Times faster than vanilla by setting, (rho, K): the paper's, of Qwen2.5-VL-7B on one L40 with vLLM.
PAPER_RATIOS = {VANILLA: 1.0, "(0, 5)": 0.98, "(0.75, 1)": 1.42, "(0.75, 5)": 1.01, ADAPTIVE: 1.05}
_RESAMPLES = 1000


def spread_mix(mix: dict[int, float], count: int, seed: int) -> list[int]:
    """Return `count` values of K in the shares of a mix, as exactly as whole numbers allow, in a seeded order."""
    exact = {k: share * count for k, share in mix.items()}
    given = {k: int(amount + 1e-9) for k, amount in exact.items()}
    for k in sorted(exact, key=lambda k: given[k] - exact[k])[: count - sum(given.values())]:
        given[k] += 1
    values = [k for k, times in given.items() for _ in range(times)]
    random.Random(seed).shuffle(values)
    return values


def measure_pair(model, sweep: Sweep, index: int, mixed_k: int) -> list[dict[str, Any]]:
    """Measure one image and question under every setting of the table, in turn.

    Args:
        model: from `build_model`.
        sweep: what is measured; the number of visual tokens alternates between its numbers.
        index: of the pair, which fixes image, question and where the turn begins.
        mixed_k: K of the AVIS-like setting.

    Returns:
        "setting", "k" and "seconds" of each.
    """
    visual_tokens = sweep.visual_tokens[index % len(sweep.visual_tokens)]
    inputs = build_prompt(model.config, visual_tokens, sweep.device, seed=index)
    turns = [(VANILLA, 0.0, 1), ("(0, 5)", 0.0, 5), ("(0.75, 1)", 0.75, 1), ("(0.75, 5)", 0.75, 5)]
    turns.append((ADAPTIVE, 0.75, mixed_k))
    first = index % len(turns)
    found = []
    for name, rho, k in turns[first:] + turns[:first]:

        def answer(rho: float = rho, k: int = k) -> None:
            prefill = model.prefill(**inputs, **pruning_arguments(rho))
            model.rollout(prefill, k, **rollout_arguments(k, sweep.new_tokens), seed=sweep.seed, query_index=index)

        found.append({"setting": name, "k": k, "seconds": time_call(answer, sweep.device)})
    return found


def latency_table(pairs: Sequence[dict[str, Any]], seed: int, k_mix: dict[str, float]) -> dict[str, Any]:
    """Return the table: total seconds, and how many times faster than vanilla, with a 95% interval over pairs.

    Args:
        pairs: records with the "settings" of `measure_pair`.
        seed: of the resamples.
        k_mix: of the AVIS-like setting, for the record.
    """
    by_name = [{line["setting"]: line["seconds"] for line in pair["settings"]} for pair in pairs]
    seconds = {name: [pair[name] for pair in by_name] for name in PAPER_RATIOS}
    generator = random.Random(seed)
    draws = [[generator.randrange(len(pairs)) for _ in pairs] for _ in range(_RESAMPLES)]
    rows = []
    for name, paper in PAPER_RATIOS.items():
        ratios = sorted(sum(seconds[VANILLA][i] for i in draw) / sum(seconds[name][i] for i in draw) for draw in draws)
        rows.append(
            {
                "setting": name,
                "seconds": sum(seconds[name]),
                "faster_than_vanilla": sum(seconds[VANILLA]) / sum(seconds[name]),
                "ci95": [ratios[25], ratios[974]],
                "paper": paper,
            }
        )
    return {"pairs": len(pairs), "k_mix": k_mix, "rows": rows}
