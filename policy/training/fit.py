"""Step 3 of fitting: the two predictors of solvability, beside what simpler ones and a perfect one would do.

    python -m policy.training.fit --collected runs/policy/fitting --dev runs/policy/dev --out runs/policy/networks.pt

Scenes are split at random into 60% that networks and baselines are fitted on, 20% that say when to stop, and 20% that
the rule of `calibrate` is made on ("rule"). The target of a question is the share of its 16 rollouts that are right,
the loss binary cross-entropy. The report (`.json` beside the output) judges on the scenes of the rule and on `--dev`.
The question-aware network becomes the default when its AUC per rollout exceeds the visual-only one's on dev (without
dev: on the scenes of the rule), with the 95% interval of the difference above 0.
"""

import argparse
import copy
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.special import expit, logit
from tqdm import tqdm

from policy.policy_model import Checkpoint, Network, Rule
from policy.training import command_line, report, write_json
from policy.training.collect import Collected
from policy.training.metrics import Sample, auc, ceiling, cluster_weights, measures, others, reliability, summary

PARTS = {"fit": 0.6, "stop": 0.2, "rule": 0.2}
BATCH, EPOCHS, PATIENCE = 16, 60, 8  # scenes a step; epochs at most, and without a better one
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
HELD_BACK = ("garden:dev", "garden:test")  # these choose and judge


def split(lines: Sequence[dict], seed: int) -> dict[str, list[dict]]:
    """The lines of each part; a scene's are all in one. Raises ValueError for too few scenes."""
    scenes = sorted({line["scene"] for line in lines})
    if len(scenes) < 5:
        raise ValueError(f"fitting needs questions about at least 5 different pictures, got {len(scenes)}")
    ends = np.cumsum([round(share * len(scenes)) for share in list(PARTS.values())[:-1]])
    drawn = np.split(np.random.default_rng(seed).permutation(scenes), ends)
    part_of = {str(scene): name for name, part in zip(PARTS, drawn, strict=True) for scene in part}
    return {name: [line for line in lines if part_of[line["scene"]] == name] for name in PARTS}


def rate(line: dict) -> float:
    """The share of a question's sampled rollouts that are right."""
    return float(np.mean(line["rollouts"]["right"]))


def by_scene(lines: Sequence[dict]) -> list[list[dict]]:
    """The lines of each scene, in the order of the scenes' first lines."""
    found: dict[str, list[dict]] = {}
    for line in lines:
        found.setdefault(line["scene"], []).append(line)
    return list(found.values())


def logits(network: Network, data: Collected, lines: list[dict], is_question: bool) -> torch.Tensor:
    """Of the questions about one scene, `(questions,)`."""
    device = network.mean.device
    hidden = data.hidden([line["index"] for line in lines]).to(device) if is_question else None
    found = network([item.to(device) for item in data.embeds(lines[0]["scene"])], hidden)
    return found if is_question else found.expand(len(lines))


@torch.no_grad()
def predict(network: Network, data: Collected, lines: Sequence[dict], is_question: bool) -> np.ndarray:
    """p of every line, in their order."""
    network.eval()
    found = {}
    for scene in by_scene(lines):
        found |= zip((line["index"] for line in scene), logits(network, data, scene, is_question).tolist(), strict=True)
    return expit([found[line["index"]] for line in lines])


def _standardise(network: Network, data: Collected, lines: Sequence[dict], is_question: bool) -> None:
    """Means and scales by channel, of all tokens and of all hidden states."""
    count, total, squares = 0, 0.0, 0.0
    for scene in by_scene(lines):
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


def train(data: Collected, parts: dict[str, list[dict]], is_question: bool, seed: int) -> tuple[Network, dict]:
    """Fit one network; the epoch with the lowest loss on the part "stop" is kept. Returns it, and how it went."""
    torch.manual_seed(seed)
    first = parts["fit"][0]
    network = Network(
        data.embeds(first["scene"])[0].shape[1], data.hidden([first["index"]]).shape[1] if is_question else None
    )
    _standardise(network, data, parts["fit"], is_question)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    start = np.clip(np.mean([rate(line) for line in parts["fit"]]), 0.01, 0.99)
    torch.nn.init.constant_(network.head[-1].bias, float(logit(start)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    scenes, rng, history, best = by_scene(parts["fit"]), np.random.default_rng(seed), [], None
    wanted = torch.tensor([rate(line) for line in parts["stop"]])
    bar = tqdm(range(EPOCHS), desc="question-aware" if is_question else "visual-only", unit="epoch", disable=None)
    for epoch in bar:
        network.train()
        order = rng.permutation(len(scenes))
        for begin in range(0, len(order), BATCH):
            chosen = [scenes[i] for i in order[begin : begin + BATCH]]
            found = torch.cat([logits(network, data, scene, is_question) for scene in chosen])
            target = torch.tensor([rate(line) for scene in chosen for line in scene], device=device)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(found, target).backward()
            optimizer.step()
        guessed = torch.from_numpy(predict(network, data, parts["stop"], is_question)).float()
        history.append(F.binary_cross_entropy(guessed, wanted).item())
        bar.set_postfix(loss=f"{history[-1]:.4f}")
        if best is None or history[-1] < history[best]:
            best, kept = epoch, copy.deepcopy(network.state_dict())
        elif epoch - best >= PATIENCE:
            break
    network.load_state_dict(kept)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return network.cpu().eval(), {"parameters": parameters, "best_epoch": best, "stop_loss": history}


class Cheap:
    """Logistic regression on the number of visual tokens (its logarithm) and their mean key diversity."""

    def __init__(self, lines: Sequence[dict]):
        seen = self._features(lines)
        self.mean, self.scale = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-6)
        inputs, target = self._inputs(lines), np.array([rate(line) for line in lines])

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            scores = inputs @ weights
            gradient = inputs.T @ (expit(scores) - target) / len(target) + 1e-4 * weights
            return np.mean(np.logaddexp(0, scores) - target * scores) + 5e-5 * weights @ weights, gradient

        self.weights = minimize(loss, np.zeros(3), jac=True, method="L-BFGS-B").x

    @staticmethod
    def _features(lines: Sequence[dict]) -> np.ndarray:
        return np.array([[np.log(line["visual"]), line["diversity"]] for line in lines])

    def _inputs(self, lines: Sequence[dict]) -> np.ndarray:
        standard = (self._features(lines) - self.mean) / self.scale
        return np.concatenate([standard, np.ones((len(lines), 1))], axis=1)

    def predict(self, lines: Sequence[dict]) -> np.ndarray:
        """p of every line."""
        return expit(self._inputs(lines) @ self.weights)


def by_task(fitted: Sequence[dict], lines: Sequence[dict]) -> np.ndarray:
    """p of every line from its task's label alone: the mean over the fitted lines of the task, or of all if unseen."""
    overall = np.mean([rate(line) for line in fitted])
    means = {
        task: np.mean([rate(line) for line in fitted if line["task"] == task]) for task in {x["task"] for x in fitted}
    }
    return np.array([means.get(line["task"], overall) for line in lines])


def _each(measure: Callable[[bool, bool], np.ndarray]) -> dict[str, Any]:
    """An AUC, or what is made of AUCs, per item and per rollout, over all and within task."""
    found = {}
    for per_rollout, within in product((False, True), repeat=2):
        with np.errstate(invalid="ignore", divide="ignore"):
            value = summary(measure(per_rollout, within))
        found[f"auc_{'rollout' if per_rollout else 'item'}{'_within_task' * within}"] = value
    return found


def judge(guesses: dict[str, np.ndarray], lines: Sequence[dict], seed: int) -> dict[str, Any]:
    """Every predictor's measures on these lines, over all and by group; differences; the ceiling.

    Of pictures with several questions among the lines, the ceiling stands beside what their other questions tell.
    """
    scenes = [line["scene"] for line in lines]
    right = np.array([line["rollouts"]["right"] for line in lines])
    sample = Sample(right, np.array([line["task"] for line in lines]), cluster_weights(scenes, seed))
    found: dict[str, Any] = {
        "n": len(lines),
        "scenes": len(set(scenes)),
        "mean_right": float(sample.rate.mean()),
        "predictors": {},
    }
    for name, p in guesses.items():
        row = {"all": measures(p, sample), "reliability": reliability(p, sample)}
        for group in ("task", "level", "form", "medium", "answerable"):
            labels = np.array([str(line[group]) for line in lines])
            row[group] = {str(x): measures(p[labels == x], sample.part(labels == x)) for x in np.unique(labels)}
        found["predictors"][name] = row
    found["ceiling"] = _each(lambda *how: ceiling(sample, scenes, *how))
    found["share_of_ceiling"] = _each(
        lambda *how: (auc(guesses["visual"], sample, *how) - 0.5) / (ceiling(sample, scenes, *how) - 0.5)
    )
    found["question_minus_visual"] = _each(
        lambda *how: auc(guesses["question"], sample, *how) - auc(guesses["visual"], sample, *how)
    )
    counts = Counter(scenes)
    shared = np.array([counts[scene] > 1 for scene in scenes])
    if shared.any():
        part, of = sample.part(shared), [scene for scene in scenes if counts[scene] > 1]
        found["pictures_with_other_questions"] = {
            "n": len(of),
            "scenes": len(set(of)),
            "visual": _each(lambda *how: auc(guesses["visual"][shared], part, *how)),
            "ceiling": _each(lambda *how: ceiling(part, of, *how)),
            "other_questions": _each(lambda *how: others(part, of, *how)),
        }
    return found


def fit(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError, with one line, for bad input."""
    data = Collected(args.collected)
    if data.config["data"] in HELD_BACK:
        raise ValueError(f"{data.config['data']} is there to choose or to judge: fit on other data")
    dev = Collected(args.dev) if args.dev else None
    if dev:
        check_same(data, dev)
    parts = split(data.lines, args.seed)
    networks, training = {}, {}
    for name in ("visual", "question"):
        networks[name], training[name] = train(data, parts, name == "question", args.seed)
    cheap, evaluation = Cheap(parts["fit"]), {}
    for name, collected, lines in [("rule", data, parts["rule"]), *([("dev", dev, dev.lines)] if dev else [])]:
        guesses = {kind: predict(network, collected, lines, kind == "question") for kind, network in networks.items()}
        guesses |= {
            "constant": np.full(len(lines), np.mean([rate(line) for line in parts["fit"]])),
            "tokens and diversity": cheap.predict(lines),
            "task label": by_task(parts["fit"], lines),
        }
        evaluation[name] = judge(guesses, lines, args.seed)
    judged = "dev" if dev else "rule"
    gain = evaluation[judged]["question_minus_visual"]["auc_rollout"]
    default = "question" if gain and gain["ci95"][0] > 0 else "visual"
    fingerprint, target = data.config["weights_sha256"], data.config["target_rho"]
    result = report("fit", args, args.seed, fingerprint, len(data.lines)) | {
        "data": {name: data.config[name] for name in ("data", "data_sha256", "tau", "target_rho", "seed")},
        "collected_sha256": data.sha256,
        "failed": data.failed,
        "parts": {
            name: {
                "items": len(part),
                "scenes": len(by_scene(part)),
                "mean_right": float(np.mean([*map(rate, part)])),
            }
            for name, part in parts.items()
        },
        "training": training,
        "default": default,
        "default_chosen_on": judged,
        "evaluation": evaluation,
    }
    checkpoint = Checkpoint(
        width=len(networks["visual"].mean),
        hidden_width=len(networks["question"].hidden_mean),
        default=default,
        tau=float(data.config["tau"]),
        rho=float(np.mean([line["rho"] for line in data.lines]) if target is None else target),
        fingerprint=fingerprint,
        metadata={name: value for name, value in result.items() if name not in ("training", "evaluation")}
        | {"measured": {name: _short(found) for name, found in evaluation.items()}},
        networks=networks,
        rules={name: Rule() for name in networks},  # `calibrate` puts in theirs
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(args.out)
    write_json(args.out.with_suffix(".json"), result)
    print(f"{args.out}: the default is {default}, by {judged}", file=sys.stderr)


def check_same(data: Collected, dev: Collected) -> None:
    """Raises ValueError when the two were not drawn in the same way, or share data."""
    for name in ("weights_sha256", "tau", "max_new_tokens"):
        if data.config[name] != dev.config[name]:
            raise ValueError(f"--dev was collected with another {name}: {dev.config[name]}, not {data.config[name]}")
    if data.config["data_sha256"] == dev.config["data_sha256"]:
        raise ValueError("--dev is the data that is fitted on")


def _short(evaluation: dict) -> dict:
    """What a checkpoint says of itself."""
    rows = {name: row["all"] for name, row in evaluation["predictors"].items() if name in ("visual", "question")}
    return {"n": evaluation["n"], **rows, "ceiling": evaluation["ceiling"]}


def main(argv: list[str] | None = None) -> int:
    """The command line; bad input is told in one line, and gives 2."""
    parser = argparse.ArgumentParser(
        prog="python -m policy.training.fit", description="Fit the predictors and measure them."
    )
    parser.add_argument("--collected", type=Path, required=True, help="a folder of the step collect")
    parser.add_argument("--dev", type=Path, help="another one, to choose and measure on")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the intervals")
    parser.add_argument("--out", type=Path, required=True, help="the networks; their report is beside it, as .json")
    return command_line(parser, fit, argv)


if __name__ == "__main__":
    sys.exit(main())
