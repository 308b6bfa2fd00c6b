"""Step 1 of fitting: the angle at which adaptive pruning takes a wanted share of the visual tokens, on average.

    python -m policy.training.tau --model-path M --data garden --target-rho 0.75 --out runs/policy/tau.json

Needs the vision tower only. Keys lie differently in every model, so that an angle that prunes three quarters in one
prunes a tenth in another. The report has the curve of mean rho against tau.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers.models.qwen2_5_vl.key_diversity import keep_diverse, key_diversity_scores

from avis.config import AvisConfig
from avis.inputs import PIXEL_INPUTS, prepare_inputs
from avis.loading import load_model
from avis.provenance import weights_sha256
from policy.training import command_line, read_json, report, write_json
from policy.training.collect import DEFAULT_TAU, data_of

ITEMS = 500
CURVE = 63  # points between 0 and pi


def mean_rho(scores: Sequence[torch.Tensor], tau: float) -> float:
    """The mean over visual items of the fraction that adaptive pruning takes. scores: per item, `(N_i,)`."""
    return float(np.mean([1 - len(keep_diverse(item, tau)) / len(item) for item in scores]))


def find_tau(scores: Sequence[torch.Tensor], target_rho: float) -> float:
    """The smallest angle at which the mean rho is at least the target, exactly: no tokens' angle lies nearer.

    Mean rho is a step function of tau that rises where tau passes a token's angle to its anchor, by 1 in N of its item.
    The most diverse token of an item never goes. The angle that is returned lies half-way to the next step.

    Args:
        scores: KDV scores of every visual item, `(N_i,)`.
        target_rho: in (0, 1).

    Raises:
        ValueError: a target out of range, or one that cannot be met because every item keeps a token.
    """
    if not 0 < target_rho < 1:
        raise ValueError(f"--target-rho is the mean fraction pruned, between 0 and 1, got {target_rho}")
    angles, steps = [], []
    for item in scores:
        values = np.sort(item.double().cpu().numpy())[:-1]  # without the one that stays
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


def scores_of(model_path: str, data_name: str, items: int) -> tuple[list[str], list[torch.Tensor]]:
    """Kinds and KDV scores of every picture and clip of the first `items` questions, each shown once."""
    data, (model, processor) = data_of(data_name), load_model(model_path)
    first = []
    for group in data.groups():
        if items <= 0:
            break
        items -= len(group)
        first.append(group[0])
    kinds, scores = [], []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for index in tqdm(first, desc="tau", unit="picture", disable=None):
            messages = [{"role": "user", "content": [*data.media(index, folder), {"type": "text", "text": "?"}]}]
            inputs = prepare_inputs(processor, messages, AvisConfig()).to(model.device)
            visual = model.model.encode_visual(**{name: inputs[name] for name in PIXEL_INPUTS if name in inputs})
            for item in visual:
                kinds.append(item.kind)
                scores.append(key_diversity_scores(item.keys).cpu())
    return kinds, scores


def tau(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError, with one line, for bad input."""
    if args.items < 1:
        raise ValueError(f"--items must be at least 1, got {args.items}")
    if not 0 < args.target_rho < 1:
        raise ValueError(f"--target-rho is the mean fraction pruned, between 0 and 1, got {args.target_rho}")
    begun = report("tau", args, 0, weights_sha256(args.model_path), 0)
    if args.out.exists():  # the last digits are not the same in every run, and what was collected hangs on them
        held = read_json(args.out, "remove it")
        if all(held.get(name) == begun[name] for name in ("command", "versions", "weights_sha256")):
            print(f"{args.out}: tau = {held['tau']:.4f}, of an earlier run", file=sys.stderr)
            return
    kinds, scores = scores_of(args.model_path, args.data, args.items)
    found = find_tau(scores, args.target_rho)
    rho = {
        kind: mean_rho([item for item, of in zip(scores, kinds, strict=True) if of == kind], found)
        for kind in sorted(set(kinds))
    }
    grid = [math.pi * step / (CURVE + 1) for step in range(1, CURVE + 1)]
    result = begun | {
        "n": len(scores),
        "target_rho": args.target_rho,
        "tau": found,
        "rho": mean_rho(scores, found),
        "rho_by_kind": rho,
        "rho_at_default": {"tau": DEFAULT_TAU, "rho": mean_rho(scores, DEFAULT_TAU)},
        "curve": [{"tau": angle, "rho": mean_rho(scores, angle)} for angle in grid],
    }
    write_json(args.out, result)
    print(f"{args.out}: tau = {found:.4f} has a mean rho of {result['rho']:.4f}, n = {len(scores)}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """The command line; bad input is told in one line, and gives 2."""
    parser = argparse.ArgumentParser(
        prog="python -m policy.training.tau", description="Find the angle of adaptive pruning for a wanted mean rho."
    )
    parser.add_argument("--model-path", required=True, help="a Qwen2.5-VL folder or hub name")
    parser.add_argument("--data", required=True, help="garden, garden:SPLIT, a VLMEvalKit .tsv, or JSONL")
    parser.add_argument("--target-rho", type=float, default=0.75, help="mean fraction pruned")
    parser.add_argument("--items", type=int, default=ITEMS, help="the pictures of the first so many questions")
    parser.add_argument("--out", type=Path, required=True, help="the report, JSON")
    return command_line(parser, tau, argv)


if __name__ == "__main__":
    sys.exit(main())
