"""Results made up at random, and a small repository of them, for tests of scores, tables and figures."""

import gzip
import hashlib
import json
import random
from pathlib import Path

from avis.evaluation.recipe import parse_row
from avis.evaluation.score import Results
from avis.voting import majority_vote
from policy.policy_model import CHOICES

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "layer_types": ["full_attention", "full_attention"],
}


def made_up(rows: list[dict], count: int = 40, seeds: int = 1, seed: int = 0, **config) -> Results:
    """Return results with random rollouts, of two tasks, two levels, images and videos; two examples share a scene."""
    rng = random.Random(seed)
    runs = {parse_row(row).run: parse_row(row) for row in rows}
    records = []
    for index in range(count):
        item = {"source": "garden-test", "item": index, "task": "ab"[index % 2], "level": 1 + index // 2 % 2}
        item |= {"see": 1 + index % 3, "think": 1 + index // 3 % 2}
        item |= {
            "medium": "video" if index % 4 == 3 else "image",
            "form": "choice" if index % 5 else "free",
            "scene": index // 2,
            "truth": "3",
        }
        item |= {"policy": {"rollouts": rng.choice(CHOICES), "p": 0.5, "bin": 0}, "runs": {}}
        for name, row in runs.items():
            item["runs"][name] = []
            for _ in range(seeds):
                answers = [rng.choice(["3", "three", "4", "5", None]) for _ in range(10)]
                kept = 25 if row.rho or row.tau else 100
                item["runs"][name].append(
                    {
                        "visual": [60, 40],
                        "kept": [kept - 10, 10],
                        "read": 20 + kept,
                        "vision": 5000,
                        "answers": answers,
                        "right": [int(one in ("3", "three")) for one in answers],
                        "confidence": [round(rng.random(), 4) for _ in answers],
                        "tokens": [rng.randint(5, 30) for _ in answers],
                        "finished": [1] * 10,
                        "seconds": [0.1, 0.2],
                    }
                )
        if "policy" in config:
            drawn = item["policy"]["rollouts"]
            votes = item["runs"][run_name(rows, "AVIS")][0]["answers"]
            winner = majority_vote(votes[:1] if drawn == 1 else votes[1 : drawn + 1]).answer
            item["policy"]["right"] = int(winner in ("3", "three"))
        records.append(item)
    base = {
        "recipe": "garden",
        "rows": rows,
        "seeds": list(range(seeds)),
        "settings": {},
        "sources": {"garden-test": None},
        "model": "garden-tiny",
        "weights_sha256": hashlib.sha256(b"weights").hexdigest(),
        "policy": None,
        "backend": {"device": "cpu", "dtype": "float32", "attention": "sdpa", "threads": 1},
        "text_config": SHAPE,
    }
    return Results(base | config, {"command": "python -m avis.evaluation.run .."}, records)


def run_name(rows: list[dict], name: str) -> str:
    """Return the name of a row's way of pruning."""
    return next(parse_row(row).run for row in rows if row["name"] == name)


def save(results: Results, path: Path) -> None:
    """Write results as a packed file of them."""
    head = {"config": results.config, "environment": results.environment}
    lines = "".join(json.dumps(line) + "\n" for line in [head, *results.records])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


VANILLA = {"name": "vanilla"}
AVIS = {"name": "AVIS", "tau": "policy", "rollouts": "policy"}


DEV_ROWS = [VANILLA, *({"name": f"VRS K={k}", "rollouts": k} for k in (3, 5, 7))]
TEST_ROWS = [
    *DEV_ROWS,
    {"name": "KDV rho=0.75", "rho": 0.75},
    {"name": "random rho=0.75", "rho": 0.75, "pruner": "random"},
    {"name": "smaller rho=0.75", "rho": 0.75, "pruner": "downsample"},
    AVIS,
    {"name": "AVIS, K permuted", "tau": "policy", "rollouts": "permuted"},
    {"name": "best K by task (dev)", "tau": "policy", "rollouts": "by_task"},
]
GRID_ROWS = [VANILLA, {"name": "rho=0", "rollouts": 9}, {"name": "rho=0.5", "rho": 0.5, "rollouts": 9}]
MARKS = [
    "settings test",
    "forms test",
    "votes test",
    "axes test",
    "speed speed/mid",
    "stages speed/mid",
    "targets speed/mid",
    "scale speed/mid",
    "latency speed/pairs",
    "paper1 test",
    "paper2 test",
    "controls test",
    "pruners test",
    "grid grid",
]


def measure(value: float) -> dict:
    """Return a measure as reports have it."""
    return {"value": value, "ci95": [value - 0.05, value + 0.05]}


def repository(root: Path) -> Path:
    """Make a folder with weights, a policy, results, and documents that show tables."""
    (root / "models" / "garden-tiny").mkdir(parents=True)
    (root / "models" / "garden-tiny" / "model.safetensors").write_bytes(b"weights")
    (root / "policy_checkpoint.pt").write_bytes(b"policy")
    results = root / "avis" / "evaluation" / "results"
    policy = {"sha256": hashlib.sha256(b"policy").hexdigest(), "tau": 0.8, "rho": 0.6}
    save(made_up(DEV_ROWS, recipe="dev", seed=1), results / "dev.jsonl.gz")
    save(made_up(TEST_ROWS, seeds=2, policy=policy), results / "test.jsonl.gz")
    save(made_up(GRID_ROWS, recipe="grid"), results / "grid.jsonl.gz")
    save(made_up(DEV_ROWS, recipe="backbones", model="second"), results / "backbone-second.jsonl.gz")
    save_policy_reports(results)
    save_speed_reports(results / "speed")
    readme = "\n\n".join(f"<!-- table: {mark} -->\n<!-- end -->" for mark in ["headline test", *MARKS])
    (root / "README.md").write_text(f"# A title\n\n{readme}\n\nthe end\n")
    marks = ["tasks dev", "goals dev", "predictors policy-fit", "rules policy-calibrate"]
    card = "\n".join(f"<!-- table: {mark} -->\nold\n<!-- end -->" for mark in marks)
    (root / "models" / "garden-tiny" / "MODEL_CARD.md").write_text(card)
    (root / "docs").mkdir()
    (root / "docs" / "results.md").write_text("# Results\n\n<!-- table: all -->\n<!-- end -->\n")
    return root


def save_policy_reports(folder: Path) -> None:
    """Write the reports of the policy's fitting."""
    about = {"n": 9, "weights_sha256": hashlib.sha256(b"weights").hexdigest(), "command": "python -m policy.training"}
    bins = [{"from": x, "to": x + 0.2, "n": 5, "p": x + 0.1, "right": measure(x + 0.15)} for x in (0.2, 0.4, 0.6)]
    measures = {name: measure(0.6) for name in ("auc_item", "auc_rollout", "brier", "ece")}
    predictor = {"all": measures, "reliability": bins}
    judged = {"n": 9, "predictors": {"visual": predictor, "question": predictor}, "ceiling": {"auc_item": measure(0.7)}}
    fit = about | {"default": "visual", "default_chosen_on": "dev", "evaluation": {"dev": judged}}
    (folder / "policy-fit.json").write_text(json.dumps(fit))
    point = {name: measure(0.4) for name in ("accuracy", "relative_llm", "mean_k", "minus_k_permuted")}
    solution = {"edges": [0.4, 0.6], "num_rollouts": [1, 5, 1], "dev": point}
    solutions = dict.fromkeys(("inverted U", "unconstrained", "constant"), solution)
    gains = [
        {"p": p, "from": p - 0.1, "to": p + 0.1, "n": 3, "gain": {str(k): measure(0.01 * k) for k in CHOICES[1:]}}
        for p in (0.3, 0.5, 0.7)
    ]
    networks = {"visual": {"solutions": solutions, "gains": {"dev": gains}}}
    calibrate = about | {"chosen_on": "dev", "default": "visual", "networks": networks, "questions": {"dev": 9}}
    (folder / "policy-calibrate.json").write_text(json.dumps(calibrate))


def save_speed_reports(folder: Path) -> None:
    """Write a report of a sweep, and one of the table of latency."""
    folder.mkdir()
    config = {"geometry": "mid", "parameters": 2e8, "hardware": "a CPU", "threads": 2, "device": "cpu", "seed": 0}
    config |= {"dtype": "float32", "attention": "sdpa", "visual_tokens": [256], "new_tokens": 64}
    document = {"command": "python -m evaluation.speed", "config": config | {"versions": {"torch": "2.15"}}}
    common = {"seconds": 9.0, "paper": 1.0, "faster_than_vanilla": 1.25, "ci95": [1.1, 1.4]}
    rows = [{"setting": name} | common for name in ("(0, 1)", "(0.75, 5)")]
    pairs = {"latency": {"pairs": 100, "k_mix": {"1": 0.5, "7": 0.5}, "rows": rows}}
    (folder / "pairs.json").write_text(json.dumps(document | {"points": []} | pairs))
    spread = {"median": 2.0, "least": 1.5, "most": 2.25, "n": 3}
    at = {"visual_tokens": 1024, "rho": 0.75}
    point = at | {"k": 5, "whole": spread, "vision": spread, "prefill": spread, "faster_than_vanilla": spread}
    point |= {"upstream": spread | {"median": 7.0}, "faster_than_upstream": spread | {"median": 3.5}}
    point["decode_step"] = {"median": 0.02, "least": 0.015, "most": 0.025, "n": 3}
    point["predicted"] = {name: {"total": 1.75} for name in ("whole", "vision", "prefill")}
    point["predicted"]["decode_step"] = {"total": 0.016}
    point["floor"] = {"whole": 0.5, "vision": 0.25, "prefill": 0.125, "decode_step": 0.008}
    point["peak_bytes"] = {"decode": 1_900_000_000}
    stage = at | {"kept": 300, "vision": spread, "scoring": spread, "scoring_share_of_tower": {"median": 0.0052}}
    stage |= {"prefill": spread, "prefill_over_its_flops": spread, "windows_batched_gain": spread}
    goal = {"goal": "K = 5", "wanted": 3.5, "at_least": True, "measured": 3.456, "reached": False}
    row = {"setting": "vanilla", "mean_k": 1.0, "batch": 9, "seconds": {"prefill": 0.01, "decode": 0.02}, "gpus": 8.3}
    paper = {"geometry": "7b", "assumptions": ["one", "two"], "rows": [row]}
    points = [point | {"upstream": None, "faster_than_upstream": None}, point]
    document |= {"points": points, "stages": [stage], "goals": [goal], "internet_scale": paper}
    (folder / "mid.json").write_text(json.dumps(document))
