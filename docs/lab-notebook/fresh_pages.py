"""Compare the speed of a product of two tensors into a new tensor and into one that exists.

python docs/lab-notebook/fresh_pages.py
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch


def median_seconds(call: Callable[[], object]) -> float:
    """Return the median seconds of seven calls after a first one."""
    found = []
    for _ in range(8):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def main() -> None:
    """Print gigabytes a second, by number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1090, 2000, 4162, 8000], help="of 4,736 numbers each")
    args = parser.parse_args()
    for rows in args.rows:
        a, b = torch.randn(2, rows, 4736)
        out = torch.empty_like(a)
        moved = 12 * a.numel() / 1e9
        new = moved / median_seconds(lambda a=a, b=b: a * b)
        existing = moved / median_seconds(lambda a=a, b=b, out=out: torch.mul(a, b, out=out))
        print(f"{4 * a.numel() / 1e6:.0f} MB: {new:.1f} GB/s into a new tensor, {existing:.1f} into an existing one")


if __name__ == "__main__":
    main()
