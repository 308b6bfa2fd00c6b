"""Fitting the policy: metrics of estimated solvability, compared with counting and with scikit-learn."""

from itertools import product

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from policy.training import evaluate, metrics
from policy.training.metrics import JudgedQuestions, bootstrap_weights

pytestmark = pytest.mark.unit


def test_auc_counts_pairs():
    """Guards against: ties that count whole or not at all, within-task pairs across tasks, and weights that are not
    what repeating a question would give."""
    rng = np.random.default_rng(0)
    right, score = rng.random((30, 16)) < rng.random((30, 1)), rng.integers(0, 6, 30) / 6
    tasks, weights = rng.choice(["a", "b"], 30), rng.integers(0, 3, (4, 30)).astype(float)
    for per_rollout, within in product((False, True), repeat=2):
        found = metrics.roc_auc(score, JudgedQuestions(right, tasks, weights), per_rollout, within)
        for row, value in zip(weights, found, strict=True):
            wins = total = 0.0
            for i, j in product(range(30), repeat=2):
                if within and tasks[i] != tasks[j]:
                    continue
                label = right.mean(1) if per_rollout else (right.mean(1) >= 0.5).astype(float)
                pair = row[i] * label[i] * row[j] * (1 - label[j])
                total += pair
                wins += pair * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
            assert value == pytest.approx(wins / total)
    nobody = metrics.roc_auc(score, JudgedQuestions(np.ones((30, 16), bool), tasks, weights), False)
    assert np.isnan(nobody).all() and metrics.summarize(nobody) is None


def test_brier_and_ece_have_known_values():
    """Guards against: errors against mean rates where single rollouts are meant, and bins that cancel each other."""
    right = np.array([[True] * 4, [True, True, False, False], [False] * 4])
    judged = JudgedQuestions(right, np.array(["a"] * 3), np.ones((1, 3)))
    p = np.array([0.9, 0.5, 0.2])
    assert metrics.brier_score(p, judged)[0] == pytest.approx(np.mean((p[:, None] - right) ** 2))
    assert metrics.calibration_error(p, judged)[0] == pytest.approx((0.1 + 0.0 + 0.2) / 3)
    shown = metrics.reliability_bins(p, judged)
    assert [(one["n"], one["p"], one["right"]["value"]) for one in shown] == [(1, 0.2, 0), (1, 0.5, 0.5), (1, 0.9, 1)]


def test_metrics_agree_with_scikit_learn():
    """Guards against: metrics of our own that measure something else than those of the same name. A question stands
    there once as a positive and once as a negative, weighed by its pass rate."""
    rng = np.random.default_rng(2)
    right, p = rng.random((60, 16)) < rng.random((60, 1)), rng.integers(0, 20, 60) / 20
    weights = rng.integers(0, 3, (3, 60)).astype(float)
    judged = JudgedQuestions(right, np.full(60, "a"), weights)
    rates, labels, twice = judged.pass_rates, np.repeat([1, 0], 60), np.tile(p, 2)
    item, rollout, brier = (
        metrics.roc_auc(p, judged, per_rollout=False),
        metrics.roc_auc(p, judged, per_rollout=True),
        metrics.brier_score(p, judged),
    )
    for row, weight in enumerate(weights):
        both = np.concatenate([weight * rates, weight * (1 - rates)])
        assert item[row] == pytest.approx(roc_auc_score(rates >= 0.5, p, sample_weight=weight))
        assert rollout[row] == pytest.approx(roc_auc_score(labels, twice, sample_weight=both))
        assert brier[row] == pytest.approx(brier_score_loss(labels, twice, sample_weight=both))
    p = rng.random(60)
    shares, means = calibration_curve(right[:, 0], p, n_bins=metrics.BINS)
    single = JudgedQuestions(right[:, :1], judged.tasks, np.ones((1, 60)))
    shown = metrics.reliability_bins(p, single)
    assert [one["p"] for one in shown] == pytest.approx(means)
    assert [one["right"]["value"] for one in shown] == pytest.approx(shares)
    numbers = np.array([one["n"] for one in shown])
    assert metrics.calibration_error(p, single)[0] == pytest.approx((np.abs(shares - means) * numbers).sum() / 60)


def test_bootstrap_draws_are_those_of_committed_reports():
    """Guards against: intervals of committed reports that the code no longer gives, by another stream of draws."""
    scenes = [str(number // 2) for number in range(40)]
    names, cluster = np.unique(scenes, return_inverse=True)
    drawn = np.random.default_rng(3).multinomial(len(names), np.full(len(names), 1 / len(names)), size=1000)
    expected = np.concatenate([np.ones((1, len(cluster))), drawn[:, cluster]]).astype(float)
    found = bootstrap_weights(scenes, seed=3)
    assert found.dtype == expected.dtype and (found == expected).all()


def test_bootstrap_draws_whole_scenes():
    """Guards against: intervals that take questions about one scene for independent, and are too narrow."""
    scenes = ["a", "a", "b", "c", "c", "c"]
    weights = bootstrap_weights(scenes, seed=1)
    assert (weights[0] == 1).all()
    first = [scenes.index(scene) for scene in scenes]
    assert (weights == weights[:, first]).all() and (weights[:, [0, 2, 3]].sum(1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_the_ceiling_is_that_of_the_scene():
    """Guards against: a ceiling that judges rollouts by themselves (1.0 for noise), or that knows the question."""
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.arange(200), 2)
    noise = JudgedQuestions(rng.random((400, 16)) < 0.5, np.full(400, "a"), np.ones((1, 400)))
    assert metrics.scene_ceiling(noise, scenes, per_rollout=True)[0] == pytest.approx(0.5, abs=0.03)
    # One question of each scene is always right, the other never: nobody can tell from the scene.
    torn = JudgedQuestions(np.tile(np.arange(400) % 2 == 0, (16, 1)).T, np.full(400, "a"), np.ones((1, 400)))
    assert metrics.scene_ceiling(torn, scenes, per_rollout=True)[0] == pytest.approx(0.5, abs=0.01)
    assert metrics.scene_ceiling(torn, np.arange(400), per_rollout=True)[0] == 1.0
    reported = JudgedQuestions(np.tile(scenes % 2 == 0, (16, 1)).T, np.full(400, "a"), np.ones((1, 400)))
    assert metrics.scene_ceiling(reported, scenes, per_rollout=False)[0] == 1.0


def test_other_questions_tell_of_the_scene_alone():
    """Guards against: a question's own rollouts among its scene's others, which would tell it from them, and others
    that are weighed by their number."""
    scenes = np.repeat(np.arange(200), [2, 4] * 100)
    reported = JudgedQuestions(np.tile(scenes % 2 == 0, (16, 1)).T, np.full(600, "a"), np.ones((1, 600)))
    assert metrics.other_questions_auc(reported, scenes, per_rollout=False)[0] == 1.0
    # One question of each scene is right, the others are wrong: who looks at the others alone ranks it last.
    first = np.diff(scenes, prepend=-1) > 0
    torn = JudgedQuestions(np.tile(first, (16, 1)).T, np.full(600, "a"), np.ones((1, 600)))
    of_two = np.isin(scenes, np.arange(0, 200, 2))
    assert metrics.other_questions_auc(torn.select(of_two), scenes[of_two], per_rollout=True)[0] == 0.0
    assert metrics.other_questions_auc(torn.select(~of_two), scenes[~of_two], per_rollout=True)[0] == 0.0
    assert metrics.scene_ceiling(torn, scenes, per_rollout=True)[0] > 0.5


def test_the_report_tells_what_scenes_tell():
    """Guards against: a ceiling of one question a scene that passes for one of what the scene tells: where there
    are no other questions, there is no such report; where there are, it is on the questions that have them."""
    rng = np.random.default_rng(0)
    about = {"task": "a", "level": 1, "form": "free", "medium": "image", "answerable": True}
    scenes = [0, 1, 1, 2, 2, 2, *range(3, 40)]
    lines = [about | {"scene": str(scene), "rollouts": {"right": (rng.random(16) < 0.5).tolist()}} for scene in scenes]
    guesses = {kind: rng.random(len(lines)) for kind in ("visual", "question")}
    found = evaluate.evaluate_predictors(guesses, lines, 0)
    assert (found["pictures_with_other_questions"]["n"], found["pictures_with_other_questions"]["scenes"]) == (5, 2)
    assert found["ceiling"].keys() == found["pictures_with_other_questions"]["other_questions"].keys()
    assert "pictures_with_other_questions" not in evaluate.evaluate_predictors(
        {k: p[6:] for k, p in guesses.items()}, lines[6:], 0
    )
