"""Step 1 of fitting: the angle at which adaptive pruning prunes a wanted fraction of the visual tokens, on average::

    python -m policy.training.tau --model-path M --data garden --target-rho 0.75 --out runs/policy/tau.json

Needs the vision encoder only. Keys lie differently in every model, so that an angle that prunes three quarters in one
prunes a tenth in another. The report has the curve of mean rho against tau.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers.models.qwen2_5_vl.key_diversity import keep_diverse, key_diversity_scores

from avis.cli import ArgumentParser, run_command
from avis.config import AvisConfig
from avis.files import read_json, write_json
from avis.garden.source import open_source
from avis.inputs import PIXEL_INPUTS, prepare_inputs
from avis.loading import load_model
from avis.provenance import weights_sha256
from policy.training import report

DEFAULT_TAU = math.pi / 4
ITEMS = 500
CURVE_POINTS = 63  # between 0 and pi


def mean_rho(scores: Sequence[torch.Tensor], tau: float) -> float:
    """Return the mean over visual items of the fraction that adaptive pruning prunes.

    Args:
        scores: KDV scores of every item, each `(N_i,)`.
        tau: angle in radians.
    """
    return float(np.mean([1 - len(keep_diverse(item, tau)) / len(item) for item in scores]))


def find_tau(scores: Sequence[torch.Tensor], target_rho: float) -> float:
    """Return the smallest angle at which the mean rho is at least the target.

    Mean rho is a step function of tau that rises where tau passes a token's angle to its anchor, by 1 / N of its item.
    The most diverse token of an item is never pruned. The result is exact: it lies half-way to the next step.

    Args:
        scores: KDV scores of every visual item, each `(N_i,)`.
        target_rho: in (0, 1).

    Raises:
        ValueError: a target out of range, or one that cannot be met because every item keeps a token.
    """
    if not 0 < target_rho < 1:
        raise ValueError(f"--target-rho is the mean fraction pruned, between 0 and 1, got {target_rho}")
    angles, steps = [], []
    for item in scores:
        values = np.sort(item.double().cpu().numpy())[:-1]  # without the token that is never pruned
        angles.append(np.arccos(np.clip(-values, -1, 1)))
        steps.append(np.full(len(values), 1 / len(item) / len(scores)))
    order = np.argsort(np.concatenate(angles), kind="stable")
    angle, rho = np.concatenate(angles)[order], np.concatenate(steps)[order].cumsum()
    if not len(rho) or rho[-1] < target_rho - 1e-9:
        most = rho[-1] if len(rho) else 0.0
        raise ValueError(f"a mean rho of {target_rho} cannot be met: every item keeps a token, {most:.4f} is the most")
    last = angle[np.searchsorted(rho, target_rho - 1e-9)]
    following = angle[angle > last]
    return float((last + (following[0] if len(following) else math.pi)) / 2)


def score_items(model_path: str, data: str, items: int) -> tuple[list[str], list[torch.Tensor]]:
    """Return kinds and KDV scores of every image and video of the first questions, each encoded once.

    Args:
        model_path: of the model.
        data: name of the questions, as `open_source` takes it.
        items: how many questions, rounded up to whole scenes.

    Returns:
        "image" or "video" of each item, and its scores `(N_i,)`.
    """
    source, (model, processor) = open_source(data), load_model(model_path)
    first = []
    for group in source.groups():
        if items <= 0:
            break
        items -= len(group)
        first.append(group[0])
    kinds, scores = [], []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for index in tqdm(first, desc="tau", unit="scene", disable=None):
            shown = source.media(index, Path(folder))
            messages = [{"role": "user", "content": [*shown, {"type": "text", "text": "?"}]}]
            inputs = prepare_inputs(processor, messages, AvisConfig()).to(model.device)
            encoded = model.model.encode_visual(**{name: inputs[name] for name in PIXEL_INPUTS if name in inputs})
            for item in encoded:
                kinds.append(item.kind)
                scores.append(key_diversity_scores(item.keys).cpu())
    return kinds, scores


def fit_tau(args: argparse.Namespace) -> None:
    """Run the step.

    Raises:
        ValueError, OSError: bad input, in one line.
    """
    if args.items < 1:
        raise ValueError(f"--items must be at least 1, got {args.items}")
    if not 0 < args.target_rho < 1:
        raise ValueError(f"--target-rho is the mean fraction pruned, between 0 and 1, got {args.target_rho}")
    begun = report("tau", args, 0, weights_sha256(args.model_path), 0)
    if args.out.exists():  # the last digits differ from run to run, and collected rollouts depend on them
        earlier = read_json(args.out, "remove it")
        if all(earlier.get(name) == begun[name] for name in ("command", "versions", "weights_sha256")):
            print(f"{args.out}: tau = {earlier['tau']:.4f}, of an earlier run", file=sys.stderr)
            return
    kinds, scores = score_items(args.model_path, args.data, args.items)
    tau = find_tau(scores, args.target_rho)
    rho_by_kind = {}
    for kind in sorted(set(kinds)):
        rho_by_kind[kind] = mean_rho([item for item, of in zip(scores, kinds, strict=True) if of == kind], tau)
    grid = [math.pi * step / (CURVE_POINTS + 1) for step in range(1, CURVE_POINTS + 1)]
    result = begun | {
        "n": len(scores),
        "target_rho": args.target_rho,
        "tau": tau,
        "rho": mean_rho(scores, tau),
        "rho_by_kind": rho_by_kind,
        "rho_at_default": {"tau": DEFAULT_TAU, "rho": mean_rho(scores, DEFAULT_TAU)},
        "curve": [{"tau": angle, "rho": mean_rho(scores, angle)} for angle in grid],
    }
    write_json(args.out, result)
    print(f"{args.out}: tau = {tau:.4f} has a mean rho of {result['rho']:.4f}, n = {len(scores)}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input, which is reported in one line."""
    parser = ArgumentParser(
        prog="python -m policy.training.tau", description="Find the angle of adaptive pruning for a wanted mean rho."
    )
    parser.add_argument("--model-path", required=True, help="a Qwen2.5-VL folder or hub name")
    parser.add_argument("--data", required=True, help="garden, garden:SPLIT, garden2:SPLIT, .tsv or JSONL")
    parser.add_argument("--target-rho", type=float, default=0.75, help="mean fraction pruned; default 0.75")
    parser.add_argument("--items", type=int, default=ITEMS, help=f"the first so many questions; default {ITEMS}")
    parser.add_argument("--out", type=Path, required=True, help="the report, JSON")
    return run_command(partial(fit_tau, parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
