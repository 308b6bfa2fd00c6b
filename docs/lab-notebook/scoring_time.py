"""Time KDV's scoring per token against the number of tokens, on random keys.

python docs/lab-notebook/scoring_time.py --geometry mid --sides 16 32 48 64 96 128
"""

import argparse

import torch
from transformers.models.qwen2_5_vl.key_diversity import KdvConfig, VisualItem, patch_grids, pool_keys, prune_item

from avis.evaluation.benchmark.counters import median_seconds
from avis.evaluation.benchmark.geometry import GEOMETRIES, build_model


@torch.no_grad()
def scoring_seconds(model, side: int) -> float:
    """Return the median seconds from the vision encoder's keys of a square image to its kept indices.

    Args:
        model: a Qwen2.5-VL on the CPU.
        side: merged tokens of a side.
    """
    vision = model.config.vision_config
    unit = model.visual.spatial_merge_unit
    keys = torch.randn(side**2 * unit, vision.num_heads, vision.hidden_size // vision.num_heads)
    embeds = torch.randn(side**2, vision.out_hidden_size)
    item = VisualItem("image", (1, side, side), embeds, None)
    window_index, _ = model.visual.get_window_index(patch_grids([item], "image", model.visual.spatial_merge_size))

    def score() -> None:
        pooled = pool_keys(keys, window_index, unit)
        prune_item(VisualItem("image", item.grid, embeds, pooled), KdvConfig(rho=0.75))

    return median_seconds(score, "cpu", times=5)


def main() -> None:
    """Print nanoseconds a token, five times for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="mid")
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 48, 64, 96, 128], help="merged tokens a side")
    args = parser.parse_args()
    model = build_model(args.geometry, "cpu")
    for side in args.sides:
        found = sorted(1e9 * scoring_seconds(model, side) / side**2 for _ in range(5))
        print(f"{side**2} tokens:", ", ".join(f"{value:.0f} ns" for value in found))


if __name__ == "__main__":
    main()
