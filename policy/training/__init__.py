"""Fit a policy to a model: find tau, draw rollouts, fit the predictors of solvability, and make the rule from p to K.

    python -m policy.training --model-path models/garden-tiny --data garden --dev garden:dev --max-new-tokens 160

runs all steps; `policy.training.tau`, `.collect`, `.fit` and `.calibrate` run one each. Each step leaves one JSON
report, which names the command, the seed, the versions, the hash of the weights, and the number of examples.
"""

import argparse
import shlex
from typing import Any


def report(step: str, args: argparse.Namespace, seed: int, weights: str | None, n: int) -> dict[str, Any]:
    """Return the entries that every report begins with.

    Args:
        step: the module that ran.
        args: its command line.
        seed: of everything random in it.
        weights: SHA-256 of the model's weights.
        n: how many examples it used.
    """
    from avis.provenance import versions

    words = ["python", "-m", f"policy.training.{step}"]
    for name, value in vars(args).items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return {
        "step": step,
        "command": shlex.join(words),
        "seed": seed,
        "versions": versions(),
        "weights_sha256": weights,
        "n": n,
    }
