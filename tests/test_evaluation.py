"""The evaluation: numbers from recorded rollouts, runs that survive a kill, tables that cannot drift, figures.

Numbers are compared with brute force on records made up here; runs are of the bundled model, on few items and tokens.
"""

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from avis.evaluation.tasks import load_source
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl import flops

from avis.config import AvisConfig
from avis.evaluation import figures, run, tables
from avis.evaluation.score import (
    Results,
    Row,
    difference,
    holm,
    paired_difference,
    ratio_interval,
    read,
    row_of,
    stopping_length,
    wilson,
)
from avis.garden.make import make
from avis.pipeline import answer
from avis.provenance import weights_sha256
from avis.voting import confidence_weight, majority_vote
from policy.policy_model import CHOICES, Checkpoint, Network, Rule

ROOT = Path(__file__).resolve().parents[1]
# Those with `data` are of VLMEvalKit's sets, for its launcher.
RECIPES = [path for path in sorted((ROOT / "evaluation/recipes").glob("*.yaml")) if "\ndata:" not in path.read_text()]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """Runs change settings of torch for their own process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
    torch.set_flush_denormal(False)


# ------------------------------------------------------------------------------------------------- records made up here

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
    """Results with random rollouts, of two tasks, two levels, pictures and clips; two items share a scene."""
    rng = random.Random(seed)
    runs = {row_of(row).run: row_of(row) for row in rows}
    items = []
    for index in range(count):
        item = {"source": "garden-test", "item": index, "task": "ab"[index % 2], "level": 1 + index // 2 % 2}
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
            votes = item["runs"][runs_name(rows, "AVIS")][0]["answers"]
            index_of_winner = majority_vote(votes[:1] if drawn == 1 else votes[1 : drawn + 1]).answer
            item["policy"]["right"] = int(index_of_winner in ("3", "three"))
        items.append(item)
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
    return Results(base | config, {"command": "python -m avis.evaluation.run .."}, items)


def runs_name(rows: list[dict], name: str) -> str:
    return next(row_of(row).run for row in rows if row["name"] == name)


def save(results: Results, path: Path) -> None:
    head = {"config": results.config, "environment": results.environment}
    lines = "".join(json.dumps(line) + "\n" for line in [head, *results.items])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


VANILLA = {"name": "vanilla"}
AVIS = {"name": "AVIS", "tau": "policy", "rollouts": "policy"}

# -------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize(("right", "total"), [(0, 7), (7, 7), (3, 10), (250, 1000)])
def test_wilson_is_scipys(right, total):
    """Guards against: a slip in the interval of every cell."""
    expected = binomtest(right, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(right, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_holm_by_its_definition():
    """Guards against: p-values that are adjusted by a wrong count, or not made monotone, or put back out of order."""
    p_values = [0.04, 0.01, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_differences_are_clustered_by_scene():
    """Guards against: an interval that takes ten questions about one picture for ten pictures."""
    rng = np.random.default_rng(1)
    values, scenes = rng.integers(-1, 2, 60).astype(float), np.arange(60)
    found = paired_difference(values, scenes)
    drawn = [np.mean([values[scene] for scene in rng.integers(0, 60, 60)]) for _ in range(4000)]
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert found.value == values.mean()
    repeated = paired_difference(np.repeat(values, 10), np.repeat(scenes, 10))
    assert (repeated.low, repeated.high) == pytest.approx((found.low, found.high), abs=1e-6)


def test_no_difference_is_no_finding_and_a_large_one_is():
    """Guards against: p-values that say the same whatever is compared."""
    scenes = np.arange(50)
    assert paired_difference(np.zeros(50), scenes).p == 1.0
    assert paired_difference(np.ones(50), scenes).p < 0.001
    assert paired_difference(np.tile([1.0, -1.0], 25), scenes).p > 0.5


def test_votes_and_costs_by_brute_force():
    """Guards against: a vote over the wrong rollouts, seeds mixed up, or FLOPs that leave a stage out."""
    row = {"name": "row", "rho": 0.75, "rollouts": 5}
    results = made_up([VANILLA, row], count=12, seeds=2)
    found, vanilla = results.outcome("row"), results.outcome("vanilla")
    config, llm, base = Qwen2_5_VLTextConfig(**SHAPE), 0, 0
    for seed, (number, item) in product(range(2), enumerate(results.items)):
        one, plain = item["runs"]["rho=0.75"][seed], item["runs"]["rho=0"][seed]
        index = majority_vote(one["answers"][1:6]).index
        assert found.right[seed, number] == (0 if index is None else one["right"][1:6][index])
        assert vanilla.right[seed, number] == plain["right"][0]
        decode = sum(flops.decode_flops(config, 45, tokens) for tokens in one["tokens"][1:6])
        llm += flops.prefill_flops(config, 45) + decode
        base += flops.prefill_flops(config, 120) + flops.decode_flops(config, 120, plain["tokens"][0])
    relative = found.relative(vanilla)
    assert relative["llm"].value == pytest.approx(llm / base)
    assert relative["total"].value == pytest.approx((llm + 24 * 5000) / (base + 24 * 5000))
    assert np.allclose(found.rho, 0.75) and (found.rollouts == 5).all()


def test_flops_have_intervals_by_scene():
    """Guards against: an interval of a mean of ratios, or of items that are drawn without their scene."""
    rng = np.random.default_rng(2)
    a, b = rng.uniform(1, 2, 40), rng.uniform(2, 4, 40)
    found = ratio_interval(a, b, np.arange(40))
    drawn = [rng.integers(0, 40, 40) for _ in range(4000)]
    assert found == pytest.approx(np.quantile([a[d].sum() / b[d].sum() for d in drawn], [0.025, 0.975]), abs=0.01)
    assert ratio_interval(np.repeat(a, 3), np.repeat(b, 3), np.repeat(np.arange(40), 3)) == pytest.approx(found)
    results = made_up([VANILLA, {"name": "row", "rho": 0.75, "rollouts": 5}])
    vanilla, row = (results.outcome(name).relative(results.outcome("vanilla"))["llm"] for name in ("vanilla", "row"))
    assert tables.fraction(vanilla) == "1.00" and row.low < row.value < row.high
    assert tables.fraction(row) == f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})"


def test_votes_by_confidence_by_brute_force():
    """Guards against: weights of other rollouts, or a table of votes that compares something else."""
    results = made_up([VANILLA, {"name": "VRS K=5", "rollouts": 5}])
    one = Row("k", rollouts=5)
    plain, weighted = results.outcome_of(one), results.outcome_of(one, weighted=True)
    for number, item in enumerate(results.items):
        record = item["runs"]["rho=0"][0]
        index = majority_vote(record["answers"][1:6], weights=record["confidence"][1:6]).index
        assert weighted.right[0, number] == (0 if index is None else record["right"][1:6][index])
    assert (plain.right != weighted.right).any()
    head, *lines = tables.votes(results)
    assert [line[:2] for line in lines] == [["rho=0", "3"], ["rho=0", "5"]]  # 7 were not sampled
    line = dict(zip(head, lines[1], strict=False))
    assert line["majority"] == tables.percent(plain.accuracy())
    free = [part.where(lambda item: item["form"] == "free") for part in (weighted, plain)]
    gain = difference(*free)
    told = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    assert line["by confidence minus majority, free, points"] == told


def test_forms_of_answers_apart():
    """Guards against: a gain on multiple choice that is told as one on free answers, or tokens saved that were not."""
    results = made_up([*DEV_ROWS, AVIS])
    head, *lines = tables.forms(results)
    told = {(line[0], line[1]): dict(zip(head, line, strict=True)) for line in lines}
    assert {form for form, _ in told} == {"all", "multiple choice", "free"}
    for form, keep in (("free", "free"), ("multiple choice", "choice")):
        mine = [item for item in results.items if item["form"] == keep]
        records = [item["runs"]["rho=0"][0] for item in mine]
        votes = [majority_vote(record["answers"][1:4]).index for record in records]
        right = [0 if i is None else record["right"][1:4][i] for i, record in zip(votes, records, strict=True)]
        line = told[form, "VRS K=3"]
        assert line["accuracy"].startswith(f"{100 * np.mean(right):.1f} (")
        gain = np.mean(right) - np.mean([record["right"][0] for record in records])
        assert line["minus vanilla, points"].startswith(f"{100 * gain:+.1f} (")
        drawn = [(record["answers"][1:4], record["tokens"][1:4]) for record in records]
        stopped = sum(min(n, stopping_length(*one)) for one in drawn for n in one[1])
        saved = 100 * (1 - stopped / sum(sum(tokens) for _, tokens in drawn))
        assert line["tokens saved by early stop, %"] == f"{saved:.1f}"
        assert told[form, "vanilla"]["minus vanilla, points"] == ""


def test_permuted_k_is_the_mean_over_all_permutations():
    """Guards against: a control that is one lucky draw, or leaves an item its own K more often than chance does."""
    rows = [VANILLA, AVIS, {"name": "dealt", "tau": "policy", "rollouts": "permuted"}]
    results = made_up(rows, count=5)
    right = {k: results.outcome_of(Row("k", tau="policy", rollouts=k)).right[0] for k in CHOICES}
    chosen = [item["policy"]["rollouts"] for item in results.items]
    assert len(set(chosen)) > 1
    means = [np.mean([right[k][i] for i, k in enumerate(order)]) for order in permutations(chosen)]
    assert results.outcome("dealt").right.mean() == pytest.approx(np.mean(means))
    avis = results.outcome("AVIS")
    assert avis.right[0].tolist() == [right[k][i] for i, k in enumerate(chosen)]
    assert avis.rollouts[0].tolist() == chosen


def test_oracle_and_best_by_task():
    """Guards against: an oracle that misses a K that is right, and a K by task that is not the best there."""
    rows = [VANILLA, {"name": "oracle", "rollouts": "oracle"}, {"name": "by task", "rollouts": "by_task"}]
    results = made_up(rows)
    right = {k: results.outcome_of(Row("k", rollouts=k)).right[0] for k in CHOICES}
    oracle = results.outcome("oracle")
    for i in range(len(results.items)):
        smallest = next((k for k in CHOICES if right[k][i]), 1)
        assert oracle.rollouts[0, i] == smallest and oracle.right[0, i] == right[smallest][i]
    assert results.outcome("by task") is None  # nothing was chosen yet
    results.by_task = results.best_by_task()
    for task in "ab":
        mine = [i for i, item in enumerate(results.items) if item["task"] == task]
        means = {k: right[k][mine].mean() for k in CHOICES}
        assert means[results.by_task[task]] == max(means.values())
        assert results.outcome("by task").rollouts[0, mine].tolist() == [results.by_task[task]] * len(mine)


def test_early_stop_by_brute_force():
    """Guards against: a saving that could have changed an answer, or that comes later than it could."""
    rng = random.Random(0)
    for _ in range(60):
        answers = [rng.choice(["a", "b", None]) for _ in range(3)]
        tokens = [rng.randint(1, 6) for _ in answers]
        confidences = [round(rng.random(), 4) for _ in answers]

        def winners(length: int, weights: list[float]) -> set:
            """Of the votes that are possible when the rollouts up to a length are known; `new` is another answer."""
            known = [n <= length for n in tokens]
            choices = [
                [a] if known_one else ["a", "b", "new", None] for a, known_one in zip(answers, known, strict=True)
            ]
            heaviest = [weight if known_one else 1.0 for weight, known_one in zip(weights, known, strict=True)]
            return {majority_vote(vote, weights=heaviest).winner for vote in product(*choices)}

        for weights in (None, confidences):
            plain = weights or [1.0] * 3
            expected = next(length for length in sorted(set(tokens)) if len(winners(length, plain)) == 1)
            assert stopping_length(answers, tokens, weights) == expected


def test_rows_that_make_no_sense_are_refused():
    """Guards against: a slip in a recipe that runs something else for hours."""
    wrong = [
        {"rho": 0.75},
        {"name": "a", "rho": 1.5},
        {"name": "a", "rho": "mean"},
        {"name": "a", "rho": 0.5, "tau": 1.0},
        {"name": "a", "pruner": "random"},
        {"name": "a", "rho": 0.5, "pruner": "other"},
        {"name": "a", "rollouts": 0},
        {"name": "a", "rollouts": True},
        {"name": "a", "rollouts": "many"},
        {"name": "a", "rolouts": 5},
    ]
    for row in wrong:
        with pytest.raises(ValueError):
            row_of(row)


# ------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_known_settings(path):
    """Guards against: a shipped recipe that fails after it has loaded a model, or whose rows the tables do not know."""
    recipe = run.read_recipe(path)
    policy = type("Policy", (), {"rho": 0.5, "tau": 0.8})()
    for one in run.runs_of(recipe.rows):
        if one.row.pruner != "downsample":
            one.settings(AvisConfig(**recipe.settings), policy)
    asked = "vanilla|VRS K=3|VRS K=5|VRS K=7|KDV rho=0.75|KDV rho=0.75, K=5|AVIS|AVIS, K permuted"
    shown = {"dev": set(asked.split("|")), "garden": {"AVIS", "VRS K=5", "KDV rho=0.75", "AVIS, K permuted"}}
    assert shown.get(recipe.name, set()) <= {row.name for row in recipe.rows}


def test_recipes_are_there():
    """Guards against: recipes that move, and a test above that passes on nothing."""
    assert {path.stem for path in RECIPES} >= {"dev", "garden", "grid", "backbones", "quick"}


def test_every_kdv_row_has_its_baselines():
    """Guards against: a row that prunes without random pruning and smaller pictures beside it."""
    rows = run.read_recipe(ROOT / "evaluation" / "recipes" / "garden.yaml").rows
    told = {(row.rho, row.tau, row.rollouts, row.pruner) for row in rows}
    for row in rows:
        is_control = row.rollouts in ("permuted", "by_task", "oracle") or row.rho == "policy"
        if row.pruner == "kdv" and (row.rho or row.tau) and not is_control:
            for pruner in ("random", "downsample"):
                assert (row.rho, row.tau, row.rollouts, pruner) in told, row.name


def test_smaller_pictures_come_closest_to_the_number_of_tokens():
    """Guards against: a baseline that is given more tokens than it needs be, or fewer."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for grids, wanted in (([(1, 18, 14)], 63), ([(1, 16, 16)], 64), ([(6, 8, 9)], 108), ([(1, 12, 12)] * 2, 70)):

        def tokens(pixels: int) -> int:
            sides = [smart_resize(28 * h, 28 * w, 28, 784, pixels) for _, h, w in grids]
            return sum(t * h * w // 784 for (t, _, _), (h, w) in zip(grids, sides, strict=True))

        found = tokens(run.downsampled_pixels(grids, wanted))
        assert abs(found - wanted) == min(abs(tokens(784 * area) - wanted) for area in range(1, 600))
        assert abs(found - wanted) <= 0.15 * wanted


# --------------------------------------------------------------------------------------------------------------- tasks


def test_a_table_of_the_garden_asks_what_the_split_asks(tmp_path):
    """Guards against: options, pictures or answers that are lost between a table of VLMEvalKit and the model."""
    make("dev", tmp_path / "dev", limit=8, processes=1)
    garden, seen = load_source("garden", "dev"), 0
    for name in ("mcq", "vqa"):
        path = tmp_path / "dev" / f"garden_dev_{name}.tsv"
        table, rows = load_source(str(path), "dev"), path.read_text().splitlines()[1:]
        for place, row in enumerate(rows):
            found, wanted = table.ask(place, tmp_path), garden.ask(int(row.split("\t")[0]), tmp_path)
            (picture, text), (other, question) = found.messages[0]["content"], wanted.messages[0]["content"]
            assert text == question and found.options == wanted.options
            assert np.array_equal(np.asarray(picture["image"]), np.asarray(other["image"].convert("RGB")))
            for fact in ("task", "form", "truth", "medium"):
                assert found.facts[fact] == wanted.facts[fact]
            seen += 1
    assert seen >= 5


def test_lines_of_questions_with_answers(tmp_path):
    """Guards against: paths that start from the wrong folder, and a line without an answer that counts as wrong."""
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    path = tmp_path / "mine.jsonl"
    lines = [
        {"image": "a.png", "prompt": "How many?", "answer": "3", "task": "count"},
        {"image": "a.png", "prompt": "?"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = load_source(str(path), "dev")
    asked = source.ask(0, tmp_path)
    assert asked.messages[-1]["content"][0] == {"type": "image", "image": str(tmp_path / "a.png")}
    assert asked.facts["truth"] == "3" and asked.facts["task"] == "count" and len(source) == 2
    with pytest.raises(ValueError, match="line 2"):
        source.ask(1, tmp_path)


# ---------------------------------------------------------------------------------------------------------------- runs

RECIPE = """
settings: {max_new_tokens: 10}
rows:
  - {name: vanilla}
  - {name: VRS K=3, rollouts: 3}
  - {name: KDV rho=0.75, rho: 0.75}
  - {name: random rho=0.75, rho: 0.75, pruner: random}
  - {name: smaller rho=0.75, rho: 0.75, pruner: downsample}
  - {name: AVIS, tau: policy, rollouts: policy}
  - {name: AVIS smaller, tau: policy, rollouts: policy, pruner: downsample}
"""
ITEMS = 5  # the fifth is a clip


@pytest.fixture(scope="module")
def bench(tmp_path_factory, bundled) -> Path:
    """A folder with a recipe and a policy with random weights."""
    folder, (model, _) = tmp_path_factory.mktemp("bench"), bundled
    (folder / "small.yaml").write_text(RECIPE)
    widths = model.config.vision_config.out_hidden_size, model.config.get_text_config().hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {"visual": Network(widths[0]).eval(), "question": Network(*widths).eval()}
    rules, weights = dict.fromkeys(networks, Rule((0.5,), (3, 5))), weights_sha256(model.name_or_path)
    Checkpoint(*widths, "visual", 0.8, 0.6, weights, {}, networks, rules).save(folder / "policy.pt")
    return folder


def arguments(bench: Path, out: Path, *more: str) -> list[str]:
    told = ["--recipe", bench / "small.yaml", "--policy-path", bench / "policy.pt", "--limit", ITEMS, "--out", out]
    return [*map(str, told), "--model-path", str(ROOT / "models" / "garden-tiny"), *more]


def records(path: Path) -> list[dict]:
    """The items, without what is never the same twice."""
    items = list(read(path).items)
    for item in items:
        for name in item["runs"]:
            for record in item["runs"][name]:
                del record["seconds"]
    return items


@pytest.fixture(scope="module")
def whole(bench) -> Path:
    """A run in one go, in this process."""
    out = bench / "whole.jsonl.gz"
    assert run.main(arguments(bench, out)) == 0
    return out


def test_records_are_what_answer_says(whole, bundled, tmp_path):
    """Guards against: rollouts, tokens or costs that differ from those of `answer()` with the same settings."""
    results, settings = read(whole), AvisConfig(max_new_tokens=10, vote_stop="off")
    model, processor = bundled
    pruned = AvisConfig(max_new_tokens=10, vote_stop="off", enable_kdv=True, kdv_ratio=0.75)
    sampled = AvisConfig(max_new_tokens=10, vote_stop="off", num_rollouts=3)
    for name, one in (("vanilla", settings), ("KDV rho=0.75", pruned), ("VRS K=3", sampled)):
        outcome, vanilla = results.outcome(name), results.outcome("vanilla")
        for index in (0, ITEMS - 1):
            asked = load_source("garden", "dev").ask(index, tmp_path)
            said = answer(model, processor, asked.messages, one, index)
            record = results.items[index]["runs"][outcome.row.run][0]
            drawn = slice(0, 1) if one.num_rollouts == 1 else slice(1, 4)
            assert record["answers"][drawn] == [rollout.answer for rollout in said.rollouts]
            assert record["tokens"][drawn] == [rollout.tokens for rollout in said.rollouts]
            assert record["kept"] == [part.kept for part in said.items]
            weights = [round(confidence_weight(rollout.mean_logprob), 4) for rollout in said.rollouts]
            assert record["confidence"][drawn] == weights and 0 < min(weights) <= max(weights) < 1
            assert (
                outcome.decode[0, index] == said.flops["decode"] and outcome.prefill[0, index] == said.flops["prefill"]
            )
            if name == "vanilla":
                assert vanilla.vision[0, index] == said.flops["vision"]
    assert results.config["weights_sha256"] == said.weights_sha256 and results.config["versions"] == said.versions


def test_live_avis_agrees_with_its_offline_vote(whole):
    """Guards against: a policy row that no user would get, since it is put together from other rollouts."""
    results = read(whole)
    assert tables.disagreements(results) == []
    for item in results.items:
        assert item["policy"]["rollouts"] in (3, 5)
        run_of, k = item["runs"]["tau=policy"][0], item["policy"]["rollouts"]
        stop = stopping_length(run_of["answers"][1 : k + 1], run_of["tokens"][1 : k + 1])
        assert item["policy"]["tokens"] == [min(n, stop) for n in run_of["tokens"][1 : k + 1]]
    for item in results.items:
        item["policy"]["right"] = 1 - item["policy"]["right"]
    assert len(tables.disagreements(results)) == 1


def test_smaller_pictures_are_recorded_with_what_they_leave_out(whole):
    """Guards against: a baseline that is said to prune nothing, or is run on the full picture."""
    for item in read(whole).items:
        for name in ("rho=0.75", "tau=policy"):
            small, kdv = item["runs"][f"{name} downsample"][0], item["runs"][name][0]
            assert small["visual"] == kdv["visual"]
            assert sum(small["kept"]) == pytest.approx(sum(kdv["kept"]), rel=0.15) and small["vision"] < kdv["vision"]


def test_a_killed_run_goes_on(bench, whole):
    """Guards against: items that are lost, doubled or torn when a run is killed, and workers that outlive it."""
    out = bench / "killed.jsonl.gz"
    journal = out.with_suffix("")
    command = [sys.executable, "-m", "evaluation.run", *arguments(bench, out, "--processes", "2")]
    with (bench / "stderr").open("wb") as told:
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=told, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, (bench / "stderr").read_text()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # the program alone: its workers have to notice
    process.wait()
    while _group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    held = journal.read_bytes()
    assert not out.exists() and 1 <= held.count(b"\n") - 1 < ITEMS
    journal.write_bytes(held + b'{"source":"garden-dev","item":4,"ta')  # the power went in the middle of a line
    assert run.main(arguments(bench, out)) == 0
    assert not journal.exists()
    assert records(out) == records(whole)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_shards_give_the_same_records(bench, whole):
    """Guards against: processes of `accelerate launch` that all do the same items, or leave some out."""
    out = bench / "shards.jsonl.gz"
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, "-m", "evaluation.run", *arguments(bench, out)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert records(out) == records(whole)


def test_packing_gives_the_same_bytes_and_a_larger_limit_adds(bench, whole, tmp_path, monkeypatch):
    """Guards against: results that change in the repository although nothing was measured, or are measured again."""
    out = tmp_path / "again.jsonl.gz"
    out.write_bytes(whole.read_bytes())
    monkeypatch.setattr(run.Bench, "measure", lambda self, *_: pytest.fail("measured again"))
    assert run.main(arguments(bench, out)) == 0
    assert out.read_bytes() == whole.read_bytes() and not out.with_suffix("").exists()
    asked = []

    def measure(self, source: int, index: int) -> dict:
        asked.append(index)
        return {"source": "garden-dev", "item": index}

    monkeypatch.setattr(run.Bench, "measure", measure)
    assert run.main([*arguments(bench, out), "--limit", str(ITEMS + 2)]) == 0
    assert asked == [ITEMS, ITEMS + 1]
    assert [item["item"] for item in read(out).items] == list(range(ITEMS + 2))
    assert f"--limit {ITEMS + 2}" in read(out).environment["command"]


def test_what_fails_is_told_and_tried_again(bench, tmp_path, monkeypatch, capsys):
    """Guards against: a picture that cannot be read and ends the run, or counts as a wrong answer."""
    out, fails = tmp_path / "some.jsonl.gz", [True]

    def measure(self, source: int, index: int) -> dict:
        if fails and index == 1:
            raise ValueError("cannot read it\nand more")
        return {"source": "garden-dev", "item": index}

    monkeypatch.setattr(run.Bench, "measure", measure)
    assert run.main(arguments(bench, out)) == 1
    assert not out.exists() and "garden-dev 1: cannot read it" in capsys.readouterr().err
    fails.clear()
    assert run.main(arguments(bench, out)) == 0
    assert [item["item"] for item in read(out).items] == list(range(ITEMS))


def test_two_writers_leave_one_line_an_item(tmp_path):
    """Guards against: the same command started twice by mistake, which would count items twice."""
    path, config = tmp_path / "a.jsonl.gz", {"seeds": [0]}
    one, other = run.Journal(path, config, {}), run.Journal(path, config, {})
    one.append({"source": "s", "item": 0})
    other.append({"source": "s", "item": 0})
    other.append({"source": "s", "item": 1})
    assert not one.pack({("s", 0), ("s", 1), ("s", 2)})
    one.append({"source": "s", "item": 2})
    assert other.pack({("s", 0), ("s", 1), ("s", 2)}) and one.pack({("s", 0), ("s", 1), ("s", 2)})
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert [json.loads(line).get("item") for line in lines] == [None, 0, 1, 2]
    with pytest.raises(OSError, match="packed"):
        one.append({"source": "s", "item": 3})  # it would be lost


def test_bad_input_is_one_line(bench, whole, tmp_path, capsys):
    """Guards against: a traceback, or hours under another model's or recipe's name."""
    other = tmp_path / "small.yaml"
    other.write_text(RECIPE.replace("rollouts: 3", "rollouts: 5"))
    nameless = tmp_path / "nameless.yaml"
    nameless.write_text("rows: [{name: vanilla}, {rho: 0.5}]")
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("rows: [{name: vanilla}]\nsettings: {beams: 3}")
    junk = tmp_path / "junk.jsonl.gz"
    junk.write_bytes(gzip.compress(b"[1]\n"))
    wrong = {
        "another rows": [*arguments(bench, whole), "--recipe", str(other)],
        "a row has a name": ["--recipe", str(nameless)],
        "beams": ["--recipe", str(unknown)],
        "No such file": ["--recipe", str(tmp_path / "none.yaml")],
        "--limit must be": [*arguments(bench, whole), "--limit", "0"],
        "tasks are garden": [*arguments(bench, whole), "--tasks", "mmmu"],
        "split must be": [*arguments(bench, whole), "--split", "best"],
        "ends with .jsonl.gz": [*arguments(bench, tmp_path / "a.json")],
        "damaged": [*arguments(bench, junk)],
        "one process": [*arguments(bench, tmp_path / "c.jsonl.gz", "--processes", "2"), "--device", "auto"],
        "no CUDA": [*arguments(bench, tmp_path / "d.jsonl.gz"), "--device", "cuda"],
        "not a policy": [*arguments(bench, tmp_path / "b.jsonl.gz"), "--policy-path", str(other)],
    }
    for words, argv in wrong.items():
        assert run.main(argv) == 2, words
        told = capsys.readouterr().err
        assert words in told and told.startswith("error: ") and told.count("\n") == 1, told
    assert not whole.with_suffix("").exists()  # a refused run leaves nothing behind


def test_another_backbone_in_another_form(bench, tmp_path, monkeypatch, capsys):
    """Guards against: a second model that is asked in the first one's form, whose answers are not read, whose policy is
    the first one's without a word, or whose table looks like the first one's."""
    folder, recipe, out = tmp_path / "second", tmp_path / "backbones.yaml", tmp_path / "backbone-second.jsonl.gz"
    shutil.copytree(ROOT / "models" / "garden-tiny", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.001
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    recipe.write_text(
        "split: test\nsettings: {max_new_tokens: 160}\nrows: [{name: vanilla}, {name: VRS K=5, rollouts: 5}, "
        "{name: AVIS, tau: policy, rollouts: policy}]"
    )
    truth = load_source("garden", "test").ask(0, tmp_path).facts["truth"]
    real, prompts = run.load, []

    def boxed(*arguments):
        """The model, as if it had learnt to answer so."""
        model, processor = real(*arguments)
        told = rf"<think>it is {truth}</think> \boxed{{{truth}}}"
        monkeypatch.setattr(processor.tokenizer, "batch_decode", lambda rows, **_: [told] * len(rows))
        template = processor.apply_chat_template
        note = lambda chat, **flags: prompts.append(template(chat, **flags)) or prompts[-1]  # noqa: E731
        monkeypatch.setattr(processor, "apply_chat_template", note)
        return model, processor

    monkeypatch.setattr(run, "load", boxed)
    flags = [
        "--recipe",
        recipe,
        "--model-path",
        folder,
        "--policy-path",
        bench / "policy.pt",
        "--limit",
        1,
        "--out",
        out,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.main([*map(str, flags), "--profile", "vl-rethinker"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(told) == 1 and "fitted on other weights" in told[0]
    assert prompts and all(r"\boxed{}" in prompt for prompt in prompts)
    (item,) = read(out).items
    for (record,) in item["runs"].values():
        assert record["right"] == record["finished"] and 1 in record["right"]
    shown = tables.block("backbones", "backbone-second", tables.Store(tmp_path))
    assert [line.split(" | ")[0] for line in shown.splitlines()[2:5]] == ["| vanilla", "| VRS K=5", "| AVIS"]
    assert "model second (" in shown and "asked as vl-rethinker, policy fitted on other weights" in shown
    assert run.main([*map(str, flags), "--profile", "nobody's"]) == 2
    assert "profile must be one of" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- tables

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
    return {"value": value, "ci95": [value - 0.05, value + 0.05]}


def repository(root: Path) -> Path:
    """A folder with weights, a policy, results, and documents that show tables."""
    (root / "models" / "garden-tiny").mkdir(parents=True)
    (root / "models" / "garden-tiny" / "model.safetensors").write_bytes(b"weights")
    (root / "policy_checkpoint.pt").write_bytes(b"policy")
    results = root / "evaluation" / "results"
    policy = {"sha256": hashlib.sha256(b"policy").hexdigest(), "tau": 0.8, "rho": 0.6}
    save(made_up(DEV_ROWS, recipe="dev", seed=1), results / "dev.jsonl.gz")
    save(made_up(TEST_ROWS, seeds=2, policy=policy), results / "test.jsonl.gz")
    save(made_up(GRID_ROWS, recipe="grid"), results / "grid.jsonl.gz")
    save(made_up(DEV_ROWS, recipe="backbones", model="second"), results / "backbone-second.jsonl.gz")
    about = {"n": 9, "weights_sha256": hashlib.sha256(b"weights").hexdigest(), "command": "python -m policy.training"}
    bins = [{"from": x, "to": x + 0.2, "n": 5, "p": x + 0.1, "right": measure(x + 0.15)} for x in (0.2, 0.4, 0.6)]
    judged = {"all": {name: measure(0.6) for name in ("auc_item", "auc_rollout", "brier", "ece")}, "reliability": bins}
    judged = {"n": 9, "predictors": {"visual": judged, "question": judged}, "ceiling": {"auc_item": measure(0.7)}}
    fit = about | {"default": "visual", "default_chosen_on": "dev", "evaluation": {"dev": judged}}
    (results / "policy-fit.json").write_text(json.dumps(fit))
    point = {name: measure(0.4) for name in ("accuracy", "relative_llm", "mean_k", "minus_k_permuted")}
    shapes = {
        shape: {"edges": [0.4, 0.6], "num_rollouts": [1, 5, 1], "dev": point}
        for shape in ("inverted U", "unconstrained", "constant")
    }
    speed = {name: {"setting": name, "seconds": 9.0, "paper": 1.0} for name in ("(0, 1)", "(0.75, 5)")}
    rows = [one | {"faster_than_vanilla": 1.25, "ci95": [1.1, 1.4]} for one in speed.values()]
    config = {"geometry": "mid", "parameters": 2e8, "hardware": "a CPU", "threads": 2, "device": "cpu", "seed": 0}
    config |= {"dtype": "float32", "attention": "sdpa", "visual_tokens": [256], "new_tokens": 64}
    document = {"command": "python -m avis.evaluation.speed", "config": config | {"versions": {"torch": "2.15"}}}
    pairs = {"latency": {"pairs": 100, "k_mix": {"1": 0.5, "7": 0.5}, "rows": rows}}
    (results / "speed").mkdir()
    (results / "speed" / "pairs.json").write_text(json.dumps(document | {"points": []} | pairs))
    spread = {"median": 2.0, "least": 1.5, "most": 2.25, "n": 3}
    at = {"visual_tokens": 1024, "rho": 0.75}
    point = at | {
        "k": 5,
        "whole": spread,
        "faster_than_upstream": spread | {"median": 3.5},
        "faster_than_vanilla": spread,
    }
    point |= {stage: spread for stage in ("vision", "prefill")} | {"upstream": spread | {"median": 7.0}}
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
    shown = {"points": [point | {"upstream": None, "faster_than_upstream": None}, point], "stages": [stage]}
    document |= shown | {"goals": [goal], "internet_scale": paper}
    (results / "speed" / "mid.json").write_text(json.dumps(document))
    gains = [
        {"p": p, "from": p - 0.1, "to": p + 0.1, "n": 3, "gain": {str(k): measure(0.01 * k) for k in CHOICES[1:]}}
        for p in (0.3, 0.5, 0.7)
    ]
    network = {"solutions": shapes, "gains": {"dev": gains}}
    calibrate = about | {
        "chosen_on": "dev",
        "default": "visual",
        "networks": {"visual": network},
        "questions": {"dev": 9},
    }
    (results / "policy-calibrate.json").write_text(json.dumps(calibrate))
    readme = "\n\n".join(f"<!-- table: {mark} -->\n<!-- end -->" for mark in MARKS)
    (root / "README.md").write_text(f"# A title\n\n{readme}\n\nthe end\n")
    marks = ["tasks dev", "goals dev", "predictors policy-fit", "rules policy-calibrate"]
    card = "\n".join(f"<!-- table: {mark} -->\nold\n<!-- end -->" for mark in marks)
    (root / "models" / "garden-tiny" / "MODEL_CARD.md").write_text(card)
    return root


def tables_main(root: Path, *flags: str) -> int:
    return tables.main([*flags, "--root", str(root)])


def test_tables_are_written_and_then_pass(tmp_path, capsys):
    """Guards against: a check that never passes, or text around a table that is lost."""
    root = repository(tmp_path)
    assert tables_main(root, "--check") == 1
    assert tables_main(root, "--write") == 0
    capsys.readouterr()
    assert tables_main(root, "--check") == 0 and capsys.readouterr().err == ""
    text = (root / "README.md").read_text()
    assert text.startswith("# A title\n") and text.endswith("\nthe end\n")
    share = read(root / "evaluation/results/test.jsonl.gz").outcome("VRS K=5").accuracy()
    assert f"| VRS K=5 | {tables.percent(share)} |" in text
    assert "| best K by task (dev) |" in text  # chosen on the result dev
    assert "| (0, 1) | 9.0 | 1.25 | 1.00 |" in text and "| (0.75, 5) | 9.0 | 1.25 (1.10 to 1.40) | 1.00 |" in text
    assert "Geometry mid (0.2B random weights); a CPU, 2 threads" in text and "of 3 rounds; torch 2.15" in text
    whole = "2.00 (1.50 to 2.25)"
    point, step = f"| 1024 | 0.75 | 5 | {whole} | 1.75 | 0.50", "20.00 (15.00 to 25.00) | 16.00 | 8.00 | 1.90"
    assert f"{point} | 7.00 (1.50 to 2.25) | 3.50 (1.50 to 2.25) | {whole} | {step} |" in text
    assert f"{point} |  |  | {whole} | {step} |" in text  # upstream was left out
    stage = f"| 300 | {whole} | 1.75 | 0.25 | {whole} | 2.0000 (1.5000 to 2.2500) | 0.52% |"
    assert f"{stage} {whole} | 1.75 | 0.12 | {whole} |" in text
    assert "| K = 5 | at least 3.5 | 3.46 | no |" in text and "| vanilla | 1.00 | 9 | 30.00 | 8.3 |" in text
    assert tables_main(root) == 0
    printed = capsys.readouterr().out
    for mark in (*MARKS, "tasks dev", "goals dev", "predictors policy-fit", "rules policy-calibrate"):
        assert f"## {mark}\n" in printed
    assert "## latency speed/mid" not in printed and "## speed speed/pairs" not in printed and "None" not in printed
    assert (root / tables.ALL).read_text() == printed
    mine = tmp_path / "mine"
    mine.mkdir()
    (root / "evaluation" / "results" / "test.jsonl.gz").rename(mine / "quick.jsonl.gz")
    assert tables_main(root, "--of", str(mine)) == 0
    assert "## settings quick\n" in capsys.readouterr().out
    assert tables_main(root, "--of", str(tmp_path / "none")) == 2
    assert capsys.readouterr().err == f"error: no such folder: {tmp_path / 'none'}\n"


def test_check_catches_a_changed_digit(tmp_path, capsys):
    """Guards against: a number in the README that nobody measured."""
    root = repository(tmp_path)
    tables_main(root, "--write")
    for path in (root / "README.md", root / "models" / "garden-tiny" / "MODEL_CARD.md", root / tables.ALL):
        told = path.read_text()
        place = told.index(" (", told.index("| a |" if path.name == "MODEL_CARD.md" else "| vanilla |")) - 1
        path.write_text(told[:place] + str((int(told[place]) + 1) % 10) + told[place + 1 :])
        assert tables_main(root, "--check") == 1
        words = "is not what the results say" if path.name == "TABLES.md" else "shows other numbers"
        assert f"{path.relative_to(root)} {words}" in capsys.readouterr().err
        path.write_text(told)
    assert tables_main(root, "--check") == 0


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("models/garden-tiny/model.safetensors", "other weights"),
        ("models/second/model.safetensors", "backbone-second was measured with other weights"),
        ("policy_checkpoint.pt", "another policy"),
        ("evaluation/results/policy-fit.json", "other weights"),
    ],
)
def test_check_catches_what_is_not_shipped(tmp_path, capsys, file, words):
    """Guards against: a retrained model or policy, with the old one's numbers."""
    root = repository(tmp_path)
    tables_main(root, "--write")
    path = root / file
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "0" * 64}))
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"new")
    capsys.readouterr()
    assert tables_main(root, "--check") == 1
    assert words in capsys.readouterr().err


def test_check_needs_something_to_check(tmp_path, capsys):
    """Guards against: marks or results that go away, and a check that passes on nothing."""
    root = repository(tmp_path)
    for path in (root / "README.md", root / "models" / "garden-tiny" / "MODEL_CARD.md"):
        path.write_text("no marks")
    assert tables_main(root, "--check") == 1 and "no document shows a table" in capsys.readouterr().err
    (root / "README.md").write_text("<!-- table: settings test -->\n")
    assert tables_main(root, "--check") == 1 and "no end" in capsys.readouterr().err
    (root / "README.md").write_text("<!-- table: settings nothing -->\n<!-- end -->")
    assert tables_main(root, "--check") == 1 and "nothing" in capsys.readouterr().err
    (root / "README.md").write_text("<!-- table: nonsense test -->\n<!-- end -->")
    assert tables_main(root, "--write") == 2 and capsys.readouterr().err.count("\n") == 1


def test_differences_of_a_family_are_corrected_together():
    """Guards against: a table of comparisons whose p-values are those of one comparison each."""
    results = made_up([VANILLA, AVIS, {"name": "KDV rho=0.75", "rho": 0.75}, {"name": "KDV rho=0.6", "rho": 0.6}])
    avis = results.outcome("AVIS")
    others = ["vanilla", "KDV rho=0.6", "KDV rho=0.75"]
    p_values = holm([difference(avis, results.outcome(name)).p for name in others])
    lines = tables.paper2(results)[2:]
    assert [line[0] for line in lines] == others
    assert [line[-1] for line in lines] == [f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in p_values]


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_are_drawn_from_results(tmp_path, bench, monkeypatch, capsys):
    """Guards against: a figure that fails on committed results, or comes out empty."""
    root = repository(tmp_path)
    monkeypatch.setattr(figures, "POLICY", bench / "policy.pt")
    told = ["--results", str(root / "evaluation" / "results"), "--out", str(tmp_path / "assets")]
    assert figures.main(told) == 0 and capsys.readouterr().err == ""
    for name in figures.FIGURES:
        pixels = np.asarray(Image.open(tmp_path / "assets" / f"{name}.png").convert("L"))
        assert min(pixels.shape) > 300 and 0.005 < (pixels < 200).mean() < 0.95, name
    assert sorted(path.stem for path in (tmp_path / "assets").iterdir()) == sorted(figures.FIGURES)
    first = (tmp_path / "assets" / "teaser.png").read_bytes()
    assert figures.main(["teaser", *told]) == 0
    assert (tmp_path / "assets" / "teaser.png").read_bytes() == first


def test_figures_without_data_are_left_out(tmp_path, monkeypatch, capsys):
    """Guards against: an old picture that is drawn from nothing, or one missing result that stops all figures."""
    monkeypatch.setattr(figures, "POLICY", tmp_path / "none.pt")
    (tmp_path / "results").mkdir()
    assert figures.main(["--results", str(tmp_path / "results"), "--out", str(tmp_path / "assets")]) == 0
    assert [path.name for path in (tmp_path / "assets").iterdir()] == ["architecture.png"]
    assert capsys.readouterr().err.count(": left out, ") == len(figures.FIGURES) - 1
    assert figures.main(["nonsense"]) == 2
