"""Measures the bundled model on held-out garden scenes: accuracy with intervals, by setting and number of animals.

    python -m garden.accuracy --bed counting --split test --items 500 --out evaluation/results/counting.jsonl

Every answer is one line of the output, written and synced before the next one starts; run again, it goes on where it
was. The summary (the output's name with `.summary.json`, and on stdout) is made from those lines alone.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from scipy.stats import binomtest
from tqdm import tqdm

from garden.example import example_scene, like_example
from garden.questions import MAX_COUNT, Item, count_trace, count_wordings, item_for
from garden.render import render
from policy.answer import AvisSettings, answer, load, versions, weights_sha256
from policy.vote import answers_match

SETTINGS = {
    "vanilla": {},
    "K=5": {"num_rollouts": 5},
    "KDV rho=0.5": {"enable_kdv": True, "kdv_ratio": 0.5},
    "KDV rho=0.75": {"enable_kdv": True, "kdv_ratio": 0.75},
    "random rho=0.5": {"enable_kdv": True, "kdv_ratio": 0.5, "kdv_pruner": "random"},
    "random rho=0.75": {"enable_kdv": True, "kdv_ratio": 0.75, "kdv_pruner": "random"},
    "KDV rho=0.75, K=5": {"enable_kdv": True, "kdv_ratio": 0.75, "num_rollouts": 5},
    "adaptive tau=pi/4": {"enable_kdv": True, "kdv_threshold": math.pi / 4},
    "adaptive tau=1": {"enable_kdv": True, "kdv_threshold": 1.0},
}
SIZES = ((168, 168), (196, 140), (224, 168), (168, 224), (196, 196), (224, 224))


def counting(split: str, index: int) -> Item:
    """Counting with one to four animals on small pictures of several shapes; answers even over 0 to 4."""
    width, height = SIZES[index % len(SIZES)]
    return item_for(split, index, "count", width, height, MAX_COUNT)


def example(split: str, index: int) -> Item:
    """The bundled example itself, whatever the index (it is the sampling seed that changes)."""
    scene = example_scene()
    question = count_wordings("rabbit", "glasses")[0]
    trace = count_trace(scene.animals, "rabbit", "glasses")
    return Item(scene, "count", question, trace[-1], trace)


BEDS: dict[str, Callable[[str, int], Item]] = {"counting": counting, "like-example": like_example, "example": example}


def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion."""
    found = binomtest(right, total).proportion_ci(confidence_level=0.95, method="wilson")
    return round(float(found.low), 4), round(float(found.high), 4)


def measure(args: argparse.Namespace, config: dict) -> list[dict]:
    """Answer every item under every setting, except what the output holds already; returns all its lines."""
    model, processor = load(args.model_path, "cpu")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else [config]
    if lines[0] != config:
        raise ValueError(f"{args.out} was measured with another model, version or set of items: move it away")
    done = {(line["setting"], line["index"]) for line in lines[1:]}
    with args.out.open("a") as file:
        if not done and file.tell() == 0:
            file.write(json.dumps(config) + "\n")
        for index in tqdm(range(args.items), desc=args.bed):
            item = BEDS[args.bed](args.split, index)
            content = [{"type": "image", "image": render(item.scene)}, {"type": "text", "text": item.question}]
            for name, chosen in SETTINGS.items():
                if (name, index) in done:
                    continue
                seed = index if args.bed == "example" else args.seed
                settings = AvisSettings(**chosen, seed=seed, max_new_tokens=128)
                result = answer(model, processor, [{"role": "user", "content": content}], settings, index)
                line = {
                    "setting": name,
                    "index": index,
                    "animals": len(item.scene.animals),
                    "truth": item.answer,
                    "answer": result.answer,
                    "right": answers_match(result.answer, item.answer),
                    "rho": round(result.items[0].rho, 4),
                    "relative_llm": round(result.flops["relative_llm"], 4),
                    "relative_total": round(result.flops["relative_total"], 4),
                    "rollouts": [rollout.answer for rollout in result.rollouts],
                    "tokens": [rollout.tokens for rollout in result.rollouts],
                }
                lines.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
    return lines


def summarise(lines: list[dict]) -> dict:
    """Accuracy by setting, over all items and by number of animals, with mean rho and mean relative FLOPs."""
    rows = {}
    for name in SETTINGS:
        mine = [line for line in lines[1:] if line["setting"] == name]
        if not mine:
            continue
        row = {"items": len(mine)} | _share(mine)
        for key in ("rho", "relative_llm", "relative_total"):
            row[key] = round(sum(line[key] for line in mine) / len(mine), 4)
        groups = sorted({line["animals"] for line in mine})
        row["by_animals"] = {n: _share([line for line in mine if line["animals"] == n]) for n in groups}
        rows[name] = row
    return {"config": lines[0], "settings": rows}


def _share(lines: list[dict]) -> dict:
    right = sum(line["right"] for line in lines)
    total = len(lines)
    return {"right": right, "of": total, "accuracy": round(right / total, 4), "ci95": interval(right, total)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the bundled model on held-out garden scenes.")
    parser.add_argument("--bed", choices=sorted(BEDS), default="counting")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of random pruning")
    parser.add_argument("--model-path", default="models/garden-tiny")
    parser.add_argument("--out", type=Path, required=True, help="JSONL, one line an answer")
    args = parser.parse_args()
    config = {
        "bed": args.bed,
        "split": args.split,
        "seed": args.seed,
        "weights_sha256": weights_sha256(args.model_path),
        "versions": versions(),
        "command": "python -m garden.accuracy " + " ".join(sys.argv[1:]),
    }
    try:
        summary = summarise(measure(args, config))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = json.dumps(summary, indent=1)
    part = args.out.with_suffix(".part")
    part.write_text(text + "\n")
    os.replace(part, args.out.with_suffix(".summary.json"))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
