"""Step 3 of fitting: the two predictors of solvability, measured beside simple ones and a ceiling::

    python -m policy.training.fit --collected runs/policy/fitting --dev runs/policy/dev --out runs/policy/networks.pt

Scenes are split at random into 60% that networks and baselines are fitted on, 20% that decide when to stop, and 20%
that the rule of `calibrate` is made on ("rule"). The target of a question is its pass rate, the share of its 16
rollouts that are right; the loss is binary cross-entropy. The report (`.json` beside the output) measures on the scenes
of the rule and on `--dev`. The question-aware network becomes the default when its AUC per rollout exceeds the
visual-only one's on dev (without dev: on the scenes of the rule), with the 95% interval of the difference above 0.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit, logit
from tqdm import tqdm

from avis.cli import ArgumentParser, run_command
from avis.files import write_json
from policy.binning import BinningRule
from policy.checkpoint import PolicyCheckpoint
from policy.networks import SolvabilityNetwork
from policy.training import report
from policy.training.baselines import TokenBaseline, predict_by_task
from policy.training.collected import (
    CollectedRollouts,
    Line,
    check_same_drawing,
    group_by_scene,
    mean_pass_rate,
    pass_rate,
    split_by_scene,
)
from policy.training.evaluate import evaluate_predictors

BATCH, EPOCHS, PATIENCE = 16, 60, 8  # scenes a step; epochs at most, and without a better one
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
HELD_BACK = ("garden-dev", "garden-test")  # these choose and judge


def scene_logits(
    network: SolvabilityNetwork, data: CollectedRollouts, lines: Sequence[Line], is_question: bool
) -> torch.Tensor:
    """Return the logits of questions about one scene.

    Args:
        network: to run.
        data: that the lines are of.
        lines: of one scene.
        is_question: whether the network is the question-aware one.

    Returns:
        `(questions,)`.
    """
    device = network.mean.device
    hidden = data.hidden([line["index"] for line in lines]).to(device) if is_question else None
    found = network([item.to(device) for item in data.embeds(lines[0]["scene"])], hidden)
    return found if is_question else found.expand(len(lines))


@torch.no_grad()
def predict(
    network: SolvabilityNetwork, data: CollectedRollouts, lines: Sequence[Line], is_question: bool
) -> np.ndarray:
    """Return p of every line, in their order, `(n,)`."""
    network.eval()
    found: dict[int, float] = {}
    for scene in group_by_scene(lines):
        values = scene_logits(network, data, scene, is_question).tolist()
        found |= zip((line["index"] for line in scene), values, strict=True)
    return expit([found[line["index"]] for line in lines])


def train(
    data: CollectedRollouts, parts: dict[str, list[Line]], is_question: bool, seed: int
) -> tuple[SolvabilityNetwork, dict[str, Any]]:
    """Fit one network; the epoch with the lowest loss on the part "stop" is used.

    Args:
        data: that the lines are of.
        parts: lines to fit on ("fit") and to stop by ("stop").
        is_question: whether to fit the question-aware network.
        seed: of weights and order.

    Returns:
        The network, and its number of parameters, best epoch and losses on "stop" by epoch.
    """
    torch.manual_seed(seed)
    network = _new_network(data, parts["fit"], is_question)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    scenes, rng = group_by_scene(parts["fit"]), np.random.default_rng(seed)
    wanted = torch.tensor([pass_rate(line) for line in parts["stop"]])
    history: list[float] = []
    best, best_weights = 0, copy.deepcopy(network.state_dict())
    bar = tqdm(range(EPOCHS), desc="question-aware" if is_question else "visual-only", unit="epoch", disable=None)
    for epoch in bar:
        network.train()
        order = rng.permutation(len(scenes))
        for begin in range(0, len(order), BATCH):
            chosen = [scenes[i] for i in order[begin : begin + BATCH]]
            logits = torch.cat([scene_logits(network, data, scene, is_question) for scene in chosen])
            target = torch.tensor([pass_rate(line) for scene in chosen for line in scene], device=device)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(logits, target).backward()
            optimizer.step()
        predicted = torch.from_numpy(predict(network, data, parts["stop"], is_question)).float()
        history.append(F.binary_cross_entropy(predicted, wanted).item())
        bar.set_postfix(loss=f"{history[-1]:.4f}")
        if epoch == 0 or history[-1] < history[best]:
            best, best_weights = epoch, copy.deepcopy(network.state_dict())
        elif epoch - best >= PATIENCE:
            break
    network.load_state_dict(best_weights)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return network.cpu().eval(), {"parameters": parameters, "best_epoch": best, "stop_loss": history}


def _new_network(data: CollectedRollouts, lines: Sequence[Line], is_question: bool) -> SolvabilityNetwork:
    """Return a network that standardises as these lines need it, and starts at their mean pass rate."""
    width = data.embeds(lines[0]["scene"])[0].shape[1]
    hidden_width = data.hidden([lines[0]["index"]]).shape[1] if is_question else None
    network = SolvabilityNetwork(width, hidden_width)
    _standardise(network, data, lines, is_question)
    start = np.clip(mean_pass_rate(lines), 0.01, 0.99)
    torch.nn.init.constant_(network.head[-1].bias, float(logit(start)))
    return network


def _standardise(
    network: SolvabilityNetwork, data: CollectedRollouts, lines: Sequence[Line], is_question: bool
) -> None:
    """Set means and scales by channel, of all tokens and of all hidden states."""
    count = 0
    total = squares = torch.zeros((), dtype=torch.float64)
    for scene in group_by_scene(lines):
        tokens = torch.cat(data.embeds(scene[0]["scene"])).double()
        count, total, squares = count + len(tokens), total + tokens.sum(0), squares + tokens.square().sum(0)
    mean = total / count
    spread = (squares / count - mean.square()).clamp(min=0).sqrt()
    network.mean.copy_(mean)
    network.scale.copy_(1 / spread.clamp(min=1e-3))
    if is_question:
        hidden = data.hidden([line["index"] for line in lines])
        network.hidden_mean.copy_(hidden.mean(0))
        network.hidden_scale.copy_(1 / hidden.std(0, correction=0).clamp(min=1e-3))


def fit_networks(args: argparse.Namespace) -> None:
    """Run the step.

    Raises:
        ValueError, OSError: bad input, in one line.
    """
    data = CollectedRollouts(args.collected)
    if data.config["data"] in HELD_BACK:
        raise ValueError(f"{data.config['data']} is there to choose or to judge: fit on other data")
    dev = CollectedRollouts(args.dev) if args.dev else None
    if dev:
        check_same_drawing(data, dev)
    parts = split_by_scene(data.lines, args.seed)
    networks, training = {}, {}
    for name in ("visual", "question"):
        networks[name], training[name] = train(data, parts, name == "question", args.seed)
    evaluation = {"rule": _evaluate(networks, data, parts["rule"], parts["fit"], args.seed)}
    if dev:
        evaluation["dev"] = _evaluate(networks, dev, dev.lines, parts["fit"], args.seed)
    judged = "dev" if dev else "rule"
    gain = evaluation[judged]["question_minus_visual"]["auc_rollout"]
    default = "question" if gain and gain["ci95"][0] > 0 else "visual"
    about = report("fit", args, args.seed, data.config["weights_sha256"], len(data.lines)) | {
        "data": {name: data.config[name] for name in ("data", "data_sha256", "tau", "target_rho", "seed")},
        "collected_sha256": data.sha256,
        "failed": data.failed,
        "parts": {name: _describe_part(part) for name, part in parts.items()},
    }
    chosen = {"default": default, "default_chosen_on": judged}
    measured = {"measured": {name: _short(found) for name, found in evaluation.items()}}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    _make_checkpoint(data, networks, default, about | chosen | measured).save(args.out)
    write_json(args.out.with_suffix(".json"), about | {"training": training} | chosen | {"evaluation": evaluation})
    print(f"{args.out}: the default is {default}, by {judged}", file=sys.stderr)


def _evaluate(
    networks: dict[str, SolvabilityNetwork],
    data: CollectedRollouts,
    lines: Sequence[Line],
    fitted: Sequence[Line],
    seed: int,
) -> dict[str, Any]:
    """Return the metrics of networks and baselines on lines; baselines are fitted on the lines `fitted`."""
    predictions = {name: predict(network, data, lines, name == "question") for name, network in networks.items()}
    predictions["constant"] = np.full(len(lines), mean_pass_rate(fitted))
    predictions["tokens and diversity"] = TokenBaseline(fitted).predict(lines)
    predictions["task label"] = predict_by_task(fitted, lines)
    return evaluate_predictors(predictions, lines, seed)


def _describe_part(lines: Sequence[Line]) -> dict[str, Any]:
    return {"items": len(lines), "scenes": len(group_by_scene(lines)), "mean_right": mean_pass_rate(lines)}


def _make_checkpoint(
    data: CollectedRollouts, networks: dict[str, SolvabilityNetwork], default: str, metadata: dict[str, Any]
) -> PolicyCheckpoint:
    """Return the checkpoint, with rules of K = 1 that `calibrate` replaces."""
    target = data.config["target_rho"]
    return PolicyCheckpoint(
        width=len(networks["visual"].mean),
        hidden_width=len(networks["question"].hidden_mean),
        default=default,
        tau=float(data.config["tau"]),
        rho=float(np.mean([line["rho"] for line in data.lines]) if target is None else target),
        weights_sha256=data.config["weights_sha256"],
        fingerprint=data.config["fingerprint"],
        metadata=metadata,
        networks=networks,
        rules={name: BinningRule() for name in networks},
    )


def _short(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a measurement that a checkpoint carries."""
    rows = {name: row["all"] for name, row in evaluation["predictors"].items() if name in ("visual", "question")}
    return {"n": evaluation["n"], **rows, "ceiling": evaluation["ceiling"]}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input, which is reported in one line."""
    parser = ArgumentParser(prog="python -m policy.training.fit", description="Fit the predictors and measure them.")
    parser.add_argument("--collected", type=Path, required=True, help="a folder of the step collect")
    parser.add_argument("--dev", type=Path, help="another one, to choose and measure on")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the intervals; default 0")
    parser.add_argument("--out", type=Path, required=True, help="the networks; their report is beside it, as .json")
    return run_command(partial(fit_networks, parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
