"""Time all matrices of a language model with few rows, by MKL and by oneDNN.

python docs/lab-notebook/few_rows.py --geometry mid
"""

import argparse

import torch
import torch.nn.functional as F

from avis.evaluation.benchmark.counters import median_seconds
from avis.evaluation.benchmark.geometry import GEOMETRIES, build_model


def onednn_linear(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return `inputs @ weight.T` by oneDNN's own operator."""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, None, "none", [], "")


def product_seconds(linear, weights: list[torch.Tensor], rows: int) -> float:
    """Return the median seconds of one product with each weight in turn."""
    inputs = {width: torch.randn(rows, width) for width in {weight.shape[1] for weight in weights}}

    def multiply() -> None:
        for weight in weights:
            linear(inputs[weight.shape[1]], weight)

    return median_seconds(multiply, "cpu", times=7)


@torch.no_grad()
def main() -> None:
    """Print milliseconds by number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="mid")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 4, 5, 7, 8])
    args = parser.parse_args()
    model = build_model(args.geometry, "cpu")
    modules = [*model.model.language_model.layers.modules(), model.lm_head]
    weights = [module.weight.detach() for module in modules if isinstance(module, torch.nn.Linear)]
    for rows in args.rows:
        by_mkl = product_seconds(F.linear, weights, rows)
        by_onednn = product_seconds(onednn_linear, weights, rows)
        print(f"{rows} rows: MKL {1000 * by_mkl:.2f} ms, oneDNN {1000 * by_onednn:.2f} ms")


if __name__ == "__main__":
    main()
