"""Fitting the policy, steps 3 and 4: the networks, the baselines, and the rule."""

from itertools import permutations, product

import numpy as np
import pytest
import torch

from avis.voting import majority_vote
from policy.binning import CHOICES, BinningRule
from policy.training import baselines, calibrate, collected, fit, metrics, rule_search
from policy.training.choice_table import ChoiceTable, vote_accuracy
from policy.training.metrics import JudgedQuestions
from policy.training.rule_search import SHAPES, best_rule, candidate_edges

# -------------------------------------------------------------------------------------------------------- the networks


class Stand:
    """What `Collected` gives, made up. signal: "visual" or "question", what a scene's or a question's difficulty shows
    in; "none": in nothing."""

    def __init__(self, signal: str, scenes: int = 100, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.lines, self._embeds, self._hidden = [], {}, {}
        for scene in range(scenes):
            shared, hard = rng.random(2)
            shift = shared - 0.5 if signal == "visual" else 0.0
            tokens = rng.normal(size=(int(rng.integers(8, 20)), 6))
            tokens[: len(tokens) // 2, 0] += 4 * shift  # in some of the tokens, in one channel
            self._embeds[str(scene)] = [torch.tensor(tokens, dtype=torch.float32)]
            for question in range(2):
                own = {"visual": shared, "question": rng.random(), "none": hard}[signal]
                hidden = rng.normal(size=5)
                hidden[2] += 4 * (own - 0.5) * (signal == "question")
                index = len(self.lines)
                self._hidden[index] = torch.tensor(hidden, dtype=torch.float32)
                right = (rng.random(16) < own).tolist()
                self.lines.append(
                    {"index": index, "scene": str(scene), "task": f"t{question}", "rollouts": {"right": right}}
                )

    def embeds(self, scene):
        return self._embeds[scene]

    def hidden(self, indices):
        return torch.stack([self._hidden[index] for index in indices])


def test_scenes_are_split_not_questions():
    """Guards against: a scene whose one question is fitted on and whose other one judges; a split that moves."""
    lines = [{"scene": str(n // 3), "index": n} for n in range(300)]
    parts = collected.split_by_scene(lines, seed=3)
    scenes = {name: {line["scene"] for line in part} for name, part in parts.items()}
    assert {name: len(part) for name, part in scenes.items()} == {"fit": 60, "stop": 20, "rule": 20}
    assert len(set.union(*scenes.values())) == 100 and sum(map(len, parts.values())) == 300
    backwards = collected.split_by_scene(lines[::-1], seed=3)
    assert all(part[::-1] == backwards[name] for name, part in parts.items())
    assert collected.split_by_scene(lines, seed=4)["rule"] != parts["rule"]
    with pytest.raises(ValueError, match="at least 5"):
        collected.split_by_scene(lines[:12], seed=0)


@pytest.mark.parametrize(
    "signal, visual_sees, question_sees", [("visual", True, None), ("question", False, True), ("none", False, False)]
)
def test_a_signal_is_learnt_and_noise_is_not(signal, visual_sees, question_sees, monkeypatch):
    """Guards against: a predictor that cannot learn, one that judges by what it was fitted on, a hidden state that is
    not read, or that tells the visual-only network something."""
    monkeypatch.setattr(fit, "EPOCHS", 12)
    data = Stand(signal)
    parts = collected.split_by_scene(data.lines, seed=0)
    judged = JudgedQuestions(
        np.array([line["rollouts"]["right"] for line in parts["rule"]]),
        np.array([line["task"] for line in parts["rule"]]),
        np.ones((1, len(parts["rule"]))),
    )
    for name, sees in (("visual", visual_sees), ("question", question_sees)):
        if sees is None:
            continue
        network, reported = fit.train(data, parts, name == "question", seed=0)
        p = fit.predict(network, data, parts["rule"], name == "question")
        found = metrics.roc_auc(p, judged, per_rollout=False)[0]
        assert found > 0.8 if sees else 0.25 < found < 0.75, (name, found)
        assert reported["stop_loss"][reported["best_epoch"]] == min(reported["stop_loss"])


def test_baselines_know_what_they_may():
    """Guards against: baselines that are too weak to be worth beating: they have to find what lies in their inputs."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(400):
        visual, diversity, task = int(rng.integers(50, 800)), float(rng.normal(-0.6, 0.1)), str(rng.choice(["a", "b"]))
        p = 1 / (1 + np.exp(-(3 * (np.log(visual) - 6) + 20 * (diversity + 0.6))))
        right = (rng.random(16) < p).tolist()
        lines.append({"visual": visual, "diversity": diversity, "task": task, "rollouts": {"right": right}, "p": p})
    found = baselines.TokenBaseline(lines[:200]).predict(lines[200:])
    assert np.abs(found - [line["p"] for line in lines[200:]]).max() < 0.1
    rates = {task: np.mean([collected.pass_rate(line) for line in lines if line["task"] == task]) for task in "ab"}
    assert baselines.predict_by_task(lines, [{"task": "b"}, {"task": "a"}]).tolist() == [rates["b"], rates["a"]]
    assert baselines.predict_by_task(lines, [{"task": "new"}])[0] == pytest.approx(
        np.mean([collected.pass_rate(line) for line in lines])
    )


# ------------------------------------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize("count", [1, 3, 5])
def test_resampled_votes_equal_brute_force(count):
    """Guards against: ties that go to the right answer or are split otherwise than by who came first, abstentions that
    vote, and all of them abstaining that counts as right."""
    rng = np.random.default_rng(count)
    for _ in range(5 if count == 5 else 25):
        answers = rng.choice(np.array(["a", "A.", "b", "c", None], object), 6).tolist()
        right = [answer is not None and bool(rng.random() < 0.5) for answer in answers]
        won = []
        for drawn in permutations(range(6), count):
            index = majority_vote([answers[i] for i in drawn]).index
            won.append(index is not None and right[drawn[index]])
        assert vote_accuracy(answers, right, count) == pytest.approx(np.mean(won), abs=1e-6)


def test_votes_of_all_sizes():
    """Guards against: sizes that brute force cannot reach; the values follow from counting."""
    assert vote_accuracy(["a"] * 16, [True] * 16, 7) == 1.0
    assert vote_accuracy([None] * 16, [False] * 16, 7) == 0.0
    # 8 to 8: by symmetry even.
    assert vote_accuracy(["a", "b"] * 8, [True, False] * 8, 7) == pytest.approx(0.5)
    # One right among wrong ones that all differ: a tie of all, so the first drawn wins.
    answers = [str(number) for number in range(16)]
    assert vote_accuracy(answers, [True] + [False] * 15, 5) == pytest.approx(1 / 16)


def is_inverted_u(counts) -> bool:
    top = max(range(len(counts)), key=counts.__getitem__)
    rises = all(a <= b for a, b in zip(counts[:top], counts[1 : top + 1], strict=True))
    return rises and all(a >= b for a, b in zip(counts[top:], counts[top + 1 :], strict=False))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rule_is_the_best_of_all(shape, monkeypatch):
    """Guards against: a programme that misses the optimum, or leaves the shape. All rules are tried."""
    monkeypatch.setattr(rule_search, "CELLS", 5)
    monkeypatch.setattr(rule_search, "MAX_BINS", 3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, value = rng.random(17), rng.normal(size=(17, 4))
        rule = best_rule(p, value, shape)
        cell = np.searchsorted(candidate_edges(p), p, side="right")

        def total(path, cell=cell, value=value):
            return value[np.arange(17), np.array(path)[cell]].sum()

        allowed = {
            "constant": lambda path: len(set(path)) == 1,
            "inverted U": is_inverted_u,
            "unconstrained": lambda path: sum(a != b for a, b in zip(path, path[1:], strict=False)) < 3,
        }[shape]
        best = max(total(path) for path in product(range(4), repeat=5) if allowed(path))
        got = [CHOICES.index(rule.predict(one).num_rollouts) for one in p.tolist()]
        assert value[np.arange(17), got].sum() == pytest.approx(best)
        assert allowed([CHOICES.index(count) for count in rule.num_rollouts])


def test_edges_lie_between_questions():
    """Guards against: an edge on a question's p, or at 0 or 1 where p is the same for many."""
    edges = candidate_edges(np.array([0.2] * 10 + [0.7] * 10))
    assert edges.tolist() == pytest.approx([0.45])
    assert not len(candidate_edges(np.zeros(30))) and not len(candidate_edges(np.array([0.3])))


def synthetic_lines(n: int = 300) -> tuple[np.ndarray, list[dict]]:
    """Questions whose best K is known: votes are of no use below p = 0.3 and above 0.8, and help in between."""
    rng = np.random.default_rng(0)
    p, lines = np.linspace(0.01, 0.99, n), []
    for index, one in enumerate(p):
        if one < 0.3:
            answers, truth = ["b"] * 16, "a"
        elif one > 0.8:
            answers, truth = ["a"] * 16, "a"
        else:
            answers, truth = ["a"] * 11 + ["b", "c", "d", "e", "f"], "a"
        answers = rng.permutation(answers).tolist()
        right = [answer == truth for answer in answers]
        line = {"index": index, "scene": str(index), "rollouts": {"answers": answers, "right": right}}
        line["greedy"] = {"right": one > 0.8 or (one >= 0.3 and index % 2 == 0)}
        line["flops"] = {"prefill": 30, "greedy": 10, "rollouts": [10] * 16, "vanilla_llm": 100}
        lines.append(line)
    return p, lines


def test_calibrating_finds_a_known_optimum():
    """Guards against: FLOPs counted once for K rollouts, a vote in place of the greedy answer at K = 1, lambda with the
    wrong sign, and a budget that is not kept. The steps of a synthetic difficulty are found."""
    p, lines = synthetic_lines()
    points = ChoiceTable(p, lines, seed=0)
    assert points.decode[0].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7]) and points.prefill[0] == 0.3
    middle = [line for line in lines if line["index"] == 150][0]
    assert points.accuracy[150].tolist() == [
        float(middle["greedy"]["right"]),
        *(vote_accuracy(middle["rollouts"]["answers"], middle["rollouts"]["right"], k) for k in (3, 5, 7)),
    ]
    rule = points.best_rule("inverted U", 0.1)
    assert rule.num_rollouts[0] == rule.num_rollouts[-1] == 1 and max(rule.num_rollouts) > 1
    cell = 1 / rule_search.CELLS
    assert rule.edges[0] == pytest.approx(0.3, abs=cell) and rule.edges[-1] == pytest.approx(0.8, abs=cell)
    assert points.best_rule("constant", 100.0) == BinningRule() == points.best_rule("unconstrained", 100.0)
    # The cost of the greedy answer is 0.4, so that little more than that leaves little to spend.
    prices = [calibrate.choose_price(points, points, budget) for budget in (0.45, 0.7)]
    costs = [points.mean_flops(points.best_rule("inverted U", price)) for price in prices]
    assert costs[0] <= 0.45 < costs[1] <= 0.7
    with pytest.raises(ValueError, match="0.400"):
        calibrate.choose_price(points, points, 0.39)


def test_the_report_compares_the_shapes_and_permuted_k():
    """Guards against: intervals that do not hold their value, a gain that is no difference of accuracies, and K
    permuted across questions that is as good as K where it belongs."""
    p, lines = synthetic_lines()
    found = calibrate.solve({"rule": ChoiceTable(p, lines, seed=0)}, 0.1)
    for shape in SHAPES:
        judged = found[shape]["rule"]
        for name in ("accuracy", "relative_llm", "mean_k"):
            low, high = judged[name]["ci95"]
            assert low - 1e-9 <= judged[name]["value"] <= high + 1e-9
        assert sum(judged["k_shares"].values()) == pytest.approx(1)
        assert len(found[shape]["edges"]) == len(found[shape]["num_rollouts"]) - 1
    assert found["inverted U"]["rule"]["minus_k_permuted"]["ci95"][0] > 0
    assert found["constant"]["rule"]["minus_k_permuted"]["value"] == pytest.approx(0)
    for one in ChoiceTable(p, lines, seed=0).gain_curve():
        assert one["gain"]["7"]["value"] == pytest.approx(one["accuracy"]["7"]["value"] - one["accuracy"]["1"]["value"])
