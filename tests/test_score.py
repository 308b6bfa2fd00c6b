"""Scores: numbers from recorded rollouts, compared with brute force on records made up here."""

import random
from itertools import permutations, product

import numpy as np
import pytest
from recorded import AVIS, DEV_ROWS, SHAPE, VANILLA, made_up
from scipy.stats import binomtest
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl import flops

from avis.evaluation.recipe import Row, parse_row
from avis.evaluation.score import difference, stopping_length
from avis.evaluation.tables.cells import format_fraction, format_percent
from avis.evaluation.tables.comparisons import forms, votes
from avis.statistics import holm, paired_difference, ratio_interval, wilson_interval
from avis.voting import majority_vote
from policy.policy_model import CHOICES

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("right", "total"), [(0, 7), (7, 7), (3, 10), (250, 1000)])
def test_wilson_is_scipys(right, total):
    """Guards against: a slip in the interval of every cell."""
    expected = binomtest(right, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(right, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_holm_by_its_definition():
    """Guards against: p-values that are adjusted by a wrong count, or not made monotone, or put back out of order."""
    p_values = [0.04, 0.01, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_differences_are_clustered_by_scene():
    """Guards against: an interval that takes ten questions about one image for ten images."""
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
    for seed, (number, item) in product(range(2), enumerate(results.records)):
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
    assert format_fraction(vanilla) == "1.00" and row.low < row.value < row.high
    assert format_fraction(row) == f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})"


def test_votes_by_confidence_by_brute_force():
    """Guards against: weights of other rollouts, or a table of votes that compares something else."""
    results = made_up([VANILLA, {"name": "VRS K=5", "rollouts": 5}])
    one = Row("k", rollouts=5)
    plain, weighted = results.outcome_of(one), results.outcome_of(one, weighted=True)
    for number, item in enumerate(results.records):
        record = item["runs"]["rho=0"][0]
        index = majority_vote(record["answers"][1:6], weights=record["confidence"][1:6]).index
        assert weighted.right[0, number] == (0 if index is None else record["right"][1:6][index])
    assert (plain.right != weighted.right).any()
    head, *lines = votes(results)
    assert [line[:2] for line in lines] == [["rho=0", "3"], ["rho=0", "5"]]  # 7 were not sampled
    line = dict(zip(head, lines[1], strict=False))
    assert line["majority"] == format_percent(plain.accuracy())
    free = [part.where(lambda item: item["form"] == "free") for part in (weighted, plain)]
    gain = difference(*free)
    told = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    assert line["by confidence minus majority, free, points"] == told


def test_forms_of_answers_apart():
    """Guards against: a gain on multiple choice that is shown as one on free answers, or tokens saved that were not."""
    results = made_up([*DEV_ROWS, AVIS])
    head, *lines = forms(results)
    told = {(line[0], line[1]): dict(zip(head, line, strict=True)) for line in lines}
    assert {form for form, _ in told} == {"all", "multiple choice", "free"}
    for form, keep in (("free", "free"), ("multiple choice", "choice")):
        mine = [item for item in results.records if item["form"] == keep]
        records = [item["runs"]["rho=0"][0] for item in mine]
        winners = [majority_vote(record["answers"][1:4]).index for record in records]
        right = [0 if i is None else record["right"][1:4][i] for i, record in zip(winners, records, strict=True)]
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
    chosen = [item["policy"]["rollouts"] for item in results.records]
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
    for i in range(len(results.records)):
        smallest = next((k for k in CHOICES if right[k][i]), 1)
        assert oracle.rollouts[0, i] == smallest and oracle.right[0, i] == right[smallest][i]
    assert results.outcome("by task") is None  # nothing was chosen yet
    results.by_task = results.best_by_task()
    for task in "ab":
        mine = [i for i, item in enumerate(results.records) if item["task"] == task]
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
            parse_row(row)
