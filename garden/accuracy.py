"""Measures a model on garden items: accuracy with intervals by task and level, votes, and how certain its rollouts are.

    python -m garden.accuracy --split dev --items 1000 --settings greedy K=7 --out runs/dev.jsonl

Every answer is one line of the output, written and synced before the next one is asked for; run again, it goes on where
it was. The summary (the output's name with `.summary.json`, and on stdout) is made from those lines alone. Clips go
through files, as a user's would.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from scipy.stats import binomtest
from tqdm import tqdm

from garden.make import write_clip
from garden.render import render
from garden.tasks import SPLIT_SIZES, TASKS, Item, item_for
from policy.answer import AvisSettings, answer, load, versions, weights_sha256
from policy.vote import answers_match, majority_vote

SETTINGS = {
    "greedy": {},
    "K=7": {"num_rollouts": 7},
    "KDV rho=0.5": {"enable_kdv": True, "kdv_ratio": 0.5},
    "KDV rho=0.75": {"enable_kdv": True, "kdv_ratio": 0.75},
    "KDV rho=0.75, K=7": {"enable_kdv": True, "kdv_ratio": 0.75, "num_rollouts": 7},
    "random rho=0.5": {"enable_kdv": True, "kdv_ratio": 0.5, "kdv_pruner": "random"},
    "random rho=0.75": {"enable_kdv": True, "kdv_ratio": 0.75, "kdv_pruner": "random"},
}
MAX_NEW_TOKENS = 160
_loaded: list = []  # a worker's model and processor


def messages_of(item: Item, folder: str | Path) -> list[dict]:
    """The item as chat messages; a clip is written into `folder` first."""
    content = []
    for number, scene in enumerate(item.scenes):
        if scene.seconds:
            path = Path(folder) / f"{os.getpid()}-{number}.mp4"
            write_clip(scene, path)
            content.append({"type": "video", "video": str(path)})
        else:
            content.append({"type": "image", "image": render(scene)})
    return [{"role": "user", "content": [*content, {"type": "text", "text": item.question}]}]


def _start(model_path: str) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    _loaded[:] = load(model_path, "cpu")


def _measure(split: str, index: int, names: list[str], seed: int) -> list[dict]:
    """One line for each setting."""
    item = item_for(split, index)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        messages = messages_of(item, folder)
        for name in names:
            settings = AvisSettings(**SETTINGS[name], seed=seed, max_new_tokens=MAX_NEW_TOKENS)
            result = answer(*_loaded, messages, settings, index)
            lines.append(
                {
                    "setting": name,
                    "index": index,
                    "task": item.task,
                    "medium": item.medium,
                    "level": item.level,
                    "form": item.form,
                    "answerable": item.answerable,
                    "truth": item.answer,
                    "answer": result.answer,
                    "right": answers_match(result.answer, item.answer, item.options or None),
                    "rollouts": [rollout.answer for rollout in result.rollouts],
                    "rollouts_right": [
                        answers_match(rollout.answer, item.answer, item.options or None) for rollout in result.rollouts
                    ],
                    "tokens": [rollout.tokens for rollout in result.rollouts],
                    "visual": sum(part.total for part in result.items),
                    "rho": round(1 - sum(p.kept for p in result.items) / sum(p.total for p in result.items), 4),
                    "relative_llm": round(result.flops["relative_llm"], 4),
                    "relative_total": round(result.flops["relative_total"], 4),
                }
            )
    return lines


def measure(args: argparse.Namespace, config: dict) -> list[dict]:
    """Answer every item under every setting, except what the output holds already; returns all its lines."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    held = args.out.read_bytes() if args.out.exists() else b""
    if not held.endswith(b"\n"):
        held = held[: held.rfind(b"\n") + 1]  # a line that was cut off is asked for again
        args.out.write_bytes(held)
    lines = [json.loads(line) for line in held.splitlines()]
    if lines and lines[0] != config:
        raise ValueError(f"{args.out} was measured with another model, version or split: move it away")
    done = {(line["setting"], line["index"]) for line in lines[1:]}
    pool = ProcessPoolExecutor(args.processes, initializer=_start, initargs=(args.model_path,))
    with args.out.open("a") as file, pool:
        if not lines:
            file.write(json.dumps(config) + "\n")
            lines = [config]
        jobs = []
        for index in range(args.items):
            names = [name for name in args.settings if (name, index) not in done]
            if names:
                jobs.append(pool.submit(_measure, args.split, index, names, args.seed))
        for job in tqdm(as_completed(jobs), total=len(jobs), desc=args.split):
            for line in job.result():
                lines.append(line)
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return lines


def interval(right: int, total: int) -> list[float]:
    """Wilson's 95% interval of a proportion."""
    found = binomtest(right, total).proportion_ci(confidence_level=0.95, method="wilson")
    return [round(float(found.low), 4), round(float(found.high), 4)]


def _share(lines: list[dict]) -> dict:
    right, total = sum(line["right"] for line in lines), len(lines)
    return {"right": right, "of": total, "accuracy": round(right / total, 4), "ci95": interval(right, total)}


def _voted(line: dict, first: int) -> dict:
    """The line as if only its first rollouts had been drawn."""
    index = majority_vote(line["rollouts"][:first]).index
    return {**line, "right": index is not None and line["rollouts_right"][index]}


def _groups(lines: list[dict]) -> dict:
    """Accuracy over all, and by medium, task, level, task and level, and form."""
    found = {"all": _share(lines)}
    keys = {
        "medium": lambda line: "video" if line["medium"] == "video" else "image",
        "easy": lambda line: ("video" if line["medium"] == "video" else "image") if line["level"] <= 3 else None,
        "task": lambda line: line["task"],
        "level": lambda line: str(line["level"]),
        "task_level": lambda line: f"{line['task']} {line['level']}",
        "form": lambda line: line["form"],
        "answerable": lambda line: str(line["answerable"]).lower(),
    }
    for name, key in keys.items():
        values = sorted({key(line) for line in lines} - {None})
        found[name] = {value: _share([line for line in lines if key(line) == value]) for value in values}
    return found


def constant_guess(split: str, items: int) -> dict[str, float]:
    """For each task, the share of its items that the best constant answers get, one for each form."""
    seen: dict[tuple[str, str], Counter] = {}
    for index in range(items):
        item = item_for(split, index)
        seen.setdefault((item.task, item.form), Counter())[item.answer] += 1
    found = {}
    for task in TASKS:
        counts = [counter for (name, _), counter in seen.items() if name == task]
        if counts:
            best = sum(counter.most_common(1)[0][1] for counter in counts)
            found[task] = round(best / sum(sum(counter.values()) for counter in counts), 4)
    return found


def summarise(lines: list[dict]) -> dict:
    """Accuracy by setting and group, votes of the first 3 and 5 of 7 rollouts, and the share of uncertain items."""
    rows, lines_of = {}, {}
    for line in sorted(lines[1:], key=lambda line: line["index"]):
        lines_of.setdefault(line["setting"], []).append(line)
    for name, mine in sorted(lines_of.items(), key=lambda pair: list(SETTINGS).index(pair[0])):
        for first in (3, 5) if name.endswith("K=7") else ():
            rows[name.replace("K=7", f"K={first}")] = _groups([_voted(line, first) for line in mine])
        row = _groups(mine)
        for key in ("rho", "relative_llm", "relative_total", "visual"):
            row[key] = round(sum(line[key] for line in mine) / len(mine), 4)
        row["tokens"] = round(sum(sum(line["tokens"]) / len(line["tokens"]) for line in mine) / len(mine), 2)
        if name.endswith("K=7"):
            rates = [sum(line["rollouts_right"]) / len(line["rollouts_right"]) for line in mine]
            unsure = sum(0.2 <= rate <= 0.8 for rate in rates)
            row["uncertain"] = {"share": round(unsure / len(rates), 4), "ci95": interval(unsure, len(rates))}
            row["per_rollout"] = round(sum(rates) / len(rates), 4)
            row["unanimous"] = round(sum(len(set(line["rollouts"])) == 1 for line in mine) / len(mine), 4)
        rows[name] = row
    items = 1 + max(line["index"] for line in lines[1:])
    return {"config": lines[0], "constant_guess": constant_guess(lines[0]["split"], items), "settings": rows}


def _cell(share: dict | None) -> str:
    """Percent right with its interval, as tables have it."""
    if not share:
        return ""
    low, high = share["ci95"]
    return f"{100 * share['accuracy']:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def settings_table(summary: dict) -> str:
    """Markdown: one line a setting, with accuracy over all, by medium and by level, and what it cost."""
    levels = sorted(next(iter(summary["settings"].values()))["level"])
    head = ["setting", "all", "pictures", "clips", *(f"level {level}" for level in levels)]
    head += ["mean rho", "#F LLM-only", "#F total"]
    lines = [head, ["---"] * len(head)]
    for name, row in summary["settings"].items():
        cells = [name, _cell(row["all"]), _cell(row["medium"].get("image")), _cell(row["medium"].get("video"))]
        cells += [f"{100 * row['level'][level]['accuracy']:.0f}" for level in levels]
        cost = [row.get(key) for key in ("rho", "relative_llm", "relative_total")]
        lines.append(cells + ["" if number is None else f"{number:.2f}" for number in cost])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tasks_table(summary: dict) -> str:
    """Markdown: one line a task: greedy accuracy over all and by level, votes, and the best constant guess."""
    rows = summary["settings"]
    levels = sorted(rows["greedy"]["level"])
    votes = [name for name in rows if name.startswith("K=")]
    head = ["task", "greedy", *(f"level {level}" for level in levels), *votes, "constant guess"]
    lines = [head, ["---"] * len(head)]
    for task in (task for task in TASKS if task in rows["greedy"]["task"]):
        cells = [task, _cell(rows["greedy"]["task"][task])]
        cells += [f"{100 * rows['greedy']['task_level'][f'{task} {level}']['accuracy']:.0f}" for level in levels]
        cells += [f"{100 * rows[name]['task'][task]['accuracy']:.1f}" for name in votes]
        lines.append([*cells, f"{100 * summary['constant_guess'][task]:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure a model on garden items.")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--items", type=int, default=1000, help="the split's first so many")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of random pruning")
    parser.add_argument("--model-path", default="models/garden-tiny")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, required=True, help="JSONL, one line an answer")
    args = parser.parse_args()
    try:
        if not 1 <= args.items <= SPLIT_SIZES[args.split]:
            raise ValueError(f"--items must be 1 to {SPLIT_SIZES[args.split]}, got {args.items}")
        config = {
            "split": args.split,
            "seed": args.seed,
            "max_new_tokens": MAX_NEW_TOKENS,
            "weights_sha256": weights_sha256(args.model_path),
            "versions": versions(),
        }
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
