"""Measure the peak memory of reading a long video at rho = 0.75, over weights, pruned cache and one layer.

python docs/lab-notebook/video_memory.py --geometry mid --max-patches 8192
"""

import argparse

from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from avis.evaluation.benchmark.geometry import GEOMETRIES, build_model
from avis.evaluation.benchmark.measure import measure_video_memory


def main() -> None:
    """Print the ratio, without and with the video's pixels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="mid")
    parser.add_argument("--video-tokens", type=int, default=16384)
    parser.add_argument("--max-patches", type=int, default=8192, help="of one call of the vision encoder")
    args = parser.parse_args()
    modeling_qwen2_5_vl.MAX_PATCHES = args.max_patches
    found = measure_video_memory(build_model(args.geometry, "cpu"), args.video_tokens, "cpu")
    if found["peak_bytes"] is None:
        print("this system does not report a process's peak memory")
        return
    needed = found["weights"] + found["cache"] + found["layer"]
    print(f"peak over weights, pruned cache and one layer: {found['peak_bytes'] / needed:.2f}")
    print(f"with the video's pixels: {(found['peak_bytes'] + found['pixels']) / needed:.2f}")


if __name__ == "__main__":
    main()
