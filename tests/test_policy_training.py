"""Fitting the policy: the angle, collecting and going on after a kill, measures, the networks, the rule, all of it."""

import base64
import io
import json
import math
from argparse import Namespace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from avis.evaluation.tasks import load_source
from PIL import Image
from safetensors.torch import load_file
from transformers.models.qwen2_5_vl.key_diversity import key_diversity_scores

import demo
from avis.config import AvisConfig
from avis.pipeline import answer
from avis.questions import QuestionFile
from avis.voting import majority_vote
from policy.policy_model import CHOICES, PolicyModel, Rule
from policy.training import __main__ as whole
from policy.training import calibrate, collect, fit, metrics, tau
from policy.training.calibrate import SHAPES, best_rule, candidate_edges, vote_accuracy
from policy.training.metrics import Sample, cluster_weights

MODEL = str(demo.BUNDLED)


def one_line(capsys, main, *arguments) -> str:
    """Runs a command line that has to refuse; what it says."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    assert status == 2 and told.out == "" and told.err.count("\n") == 1 and told.err.startswith("error: "), told
    return told.err


# ---------------------------------------------------------------------------------------------------------- the angle


def keys(n: int, seed: int) -> torch.Tensor:
    """Keys of `n` tokens in 3 heads that lean to one side, so that angles to their mean differ."""
    drawn = torch.randn(3, n, 8, generator=torch.Generator().manual_seed(seed))
    return drawn + 1.5 * torch.ones(8)


@pytest.mark.parametrize("target", [0.03, 0.25, 0.5, 0.75, 0.9])
def test_tau_is_the_smallest_angle_that_meets_the_target(target):
    """Guards against: tokens averaged where items are, the token that always stays counted as pruned, and an angle that
    is off by a step. Every step of mean rho is tried."""
    scores = [key_diversity_scores(keys(n, n)) for n in (40, 7, 90, 23)]
    found = tau.find_tau(scores, target)
    assert tau.mean_rho(scores, found) >= target
    angles = torch.cat(scores).double().neg().arccos().sort().values
    between = (angles[1:] + angles[:-1]) / 2
    met = [angle for angle in between.tolist() if tau.mean_rho(scores, angle) >= target]
    assert found == pytest.approx(min(met), abs=1e-6)


def test_tau_with_equal_angles():
    """Guards against: an angle between tokens whose scores are equal, of which some would go and some stay."""
    scores = [torch.tensor([-0.9, -0.9, -0.9, -0.1]), torch.tensor([-0.5])]
    found = tau.find_tau(scores, 0.2)
    assert tau.mean_rho(scores, found) == pytest.approx(0.375)
    assert found > math.acos(0.9)


def test_a_target_that_cannot_be_met(capsys, tmp_path):
    """Guards against: pi in silence, for pictures so small that the tokens that have to stay are too many."""
    with pytest.raises(ValueError, match="0.5000 is the most"):
        tau.find_tau([torch.tensor([-0.9, 0.1])], 0.75)
    arguments = ["--model-path", MODEL, "--data", "garden", "--out", tmp_path / "tau.json"]
    assert "--target-rho" in one_line(capsys, tau.main, *arguments, "--target-rho", "75")


# --------------------------------------------------------------------------------------------------------- collecting


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (84, 56, 3), dtype=np.uint8))


def encoded(seed: int) -> str:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def questions(tmp_path) -> Path:
    """Six questions about three pictures, one after the other and not, one of them about a file that is none."""
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_text("no picture")
    asked = [
        ("0.png", "A"),
        ("1.png", "B"),
        ("bad.png", "A"),
        ("0.png", "B"),
        (["2.png", "1.png"], "A"),
        ("1.png", "A"),
    ]
    lines = [
        {"image": image, "question": f"How many, {n}?", "options": ["one", "two"], "answer": truth, "task": f"t{n % 2}"}
        for n, (image, truth) in enumerate(asked)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def collected(questions: Path, out: Path, *more) -> int:
    arguments = ["--model-path", MODEL, "--data", questions, "--out", out, "--max-new-tokens", "6", "--processes", "1"]
    return collect.main([str(argument) for argument in [*arguments, *more]])


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def test_collecting_goes_on_after_a_kill(questions, tmp_path, monkeypatch):
    """Guards against: rollouts that are lost or drawn twice, a half-written line, hidden states that were lost with the
    shard, a picture that is stored once for each question, and a broken file that ends it all."""
    drawn, real = [], collect.draw
    monkeypatch.setattr(collect, "draw", lambda *args: drawn.append(args[2].index) or real(*args))
    out = tmp_path / "out"
    assert collected(questions, out) == 0
    (shard,) = out.glob("*.jsonl")
    held, tensors = shard.read_bytes(), tensors_of(out)
    lines = lines_of(out)
    assert drawn == [0, 3, 1, 5, 4], "questions about one picture are not together"
    assert sorted(line["index"] for line in lines) == list(range(6))
    assert [line["index"] for line in lines if "error" in line] == [2] and "bad.png" in lines[4]["error"]
    assert all(len(line["rollouts"]["right"]) == 16 for line in lines if "error" not in line)
    scenes = {line["scene"] for line in lines if "error" not in line}
    shown = {f"embeds/{scene}/0" for scene in scenes} | {f"embeds/{lines[-1]['scene']}/1"}
    assert set(tensors) == shown | {f"hidden/{index}" for index in (0, 1, 3, 4, 5)} and len(scenes) == 3
    assert all(value.dtype == torch.float16 for value in tensors.values())

    third = held.splitlines(keepends=True)[2]
    shard.with_suffix(".safetensors").unlink()
    shard.write_bytes(held[: held.index(third) + 100])  # killed within the third line
    drawn.clear()
    assert collected(questions, out) == 0
    assert drawn == [1, 5, 4]
    again, kept = tensors_of(out), lines_of(out)
    assert [line["index"] for line in kept] == [line["index"] for line in lines]
    assert kept[:2] == lines[:2] and again.keys() == tensors.keys()
    assert all(torch.allclose(again[name].float(), tensors[name].float(), atol=1e-2) for name in again)

    drawn.clear()
    assert collected(questions, out) == 0 and drawn == []
    found = collect.Collected(out)
    assert (len(found.lines), found.failed) == (5, 1)
    assert [len(item) for item in found.embeds(lines[-1]["scene"])] == [6, 6]
    assert found.hidden([4, 0]).shape == (2, 192)


def test_collecting_is_shared_out_over_launched_processes(questions, tmp_path, monkeypatch, capsys):
    """Guards against: ranks that draw the same shards, or that leave some to nobody; another command in the folder."""
    monkeypatch.setattr(collect, "SHARD", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    names = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert collected(questions, tmp_path / "out", "--items", "4") == 0
        names.append({path.name for path in (tmp_path / "out").glob("*.safetensors")})
        if rank == "1":
            with pytest.raises(ValueError, match="lacks 1 of 2 shards"):
                collect.Collected(tmp_path / "out")
    assert names == [{"shard-00001.safetensors"}, {"shard-00000.safetensors", "shard-00001.safetensors"}]
    # 4 items are asked for; a picture's questions are not torn apart.
    assert sorted(line["index"] for line in lines_of(tmp_path / "out")) == [0, 1, 3, 5]
    other = ["--model-path", MODEL, "--data", questions, "--out", tmp_path / "out", "--max-new-tokens", "7"]
    assert "items, shards, max_new_tokens" in one_line(capsys, collect.main, *other)


def test_what_is_collected_is_what_an_answer_draws(bundled, questions, tmp_path):
    """Guards against: a predictor fitted on rollouts under other pruning, prompts, seeds or judging than are used."""
    assert collected(questions, tmp_path / "out", "--items", "1") == 0
    lines = {line["index"]: line for line in lines_of(tmp_path / "out")}
    content = [{"type": "image", "image": picture(0)}, {"type": "text", "text": "How many, 3?\nA. one B. two"}]
    for count in (1, 3):
        settings = AvisConfig(
            enable_kdv=True, kdv_threshold=math.pi / 4, num_rollouts=count, max_new_tokens=6, vote_stop="off"
        )
        result = answer(*bundled, [{"role": "user", "content": content}], settings, item=3)
        line, answers = lines[3], [rollout.answer for rollout in result.rollouts]
        lengths = [rollout.tokens for rollout in result.rollouts]
        cost = line["flops"]
        if count == 1:
            assert (answers, lengths) == ([line["greedy"]["answer"]], [line["greedy"]["tokens"]])
            assert result.flops["relative_llm"] == (cost["prefill"] + cost["greedy"]) / cost["vanilla_llm"]
        else:
            assert (answers, lengths) == tuple(line["rollouts"][name][:3] for name in ("answers", "tokens"))
            assert result.flops["decode"] == sum(cost["rollouts"][:3])
        assert (result.items[0].kept, result.items[0].total) == (line["kept"], line["visual"])
        assert result.prompt_tokens == line["prompt_tokens"] and result.kept_tokens == line["kept_tokens"]


def test_a_table_of_vlmevalkit(tmp_path):
    """Guards against: a picture that another row has taken for a new one, several pictures in a cell, options and hint
    that do not reach the prompt, and a cell longer than the reader's limit."""
    rows = [
        ["7", encoded(0), "", "Which?", "one", "two", "B", "cats"],
        ["8", "7", "Look left.", "How many?", "", "", "3", "dogs"],
        ["9", str([encoded(1), encoded(0)]), "", "Same?" + " " * 200_000, "yes", "no", "A", "cats"],
    ]
    head = ["index", "image", "hint", "question", "A", "B", "answer", "category"]
    path = tmp_path / "set.tsv"
    path.write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n")
    data = collect.data_of(str(path))
    assert list(data.groups()) == [[0, 1], [2]]
    first, second, third = (data.question(index) for index in range(3))
    assert (first.text, first.options, first.truth, first.form) == (
        "Which?\nA. one B. two",
        {"A": "one", "B": "two"},
        "B",
        "choice",
    )
    assert (second.text, second.options, second.task, second.form) == ("Look left.\nHow many?", None, "dogs", "free")
    assert second.scene == first.scene != third.scene
    shown = [part["image"] for part in data.media(2, "")]
    assert [np.asarray(image).tolist() for image in shown] == [np.asarray(picture(n)).tolist() for n in (1, 0)]


def test_fitting_and_measuring_read_the_same_files(tmp_path):
    """Guards against: two readers that disagree on prompts, letters or what is shown, a letter that is left out and
    moves those after it, a picture that only a later row has, and a broken picture that ends in a traceback."""
    head = ["index", "image", "question", "A", "B", "C", "answer"]
    rows = [
        ["1", "2", "Which?", "one", "", "three", "C"],
        ["2", encoded(0), "Which?", "one", "two", "", "B"],
        ["3", str([encoded(0), encoded(1)]), "How many?", "", "", "", "3"],
        ["4", "no picture", "What?", "", "", "", "3"],
    ]
    path = tmp_path / "set.tsv"
    path.write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n")
    fitted, measured = collect.data_of(str(path)), load_source(str(path), "dev")
    assert list(fitted.groups()) == [[0, 1], [2], [3]]
    for index, medium in enumerate(("image", "image", "images")):
        question, asked = fitted.question(index), measured.ask(index, tmp_path)
        *shown, text = asked.messages[0]["content"]
        assert text["text"] == question.text and asked.options == question.options
        assert [np.asarray(one["image"]).tolist() for one in shown] == [
            np.asarray(one["image"]).tolist() for one in fitted.media(index, "")
        ]
        assert asked.facts["medium"] == question.medium == medium and asked.facts["truth"] == question.truth
        assert asked.facts["task"] == question.task == "set" and asked.facts["scene"] == question.scene
    first = fitted.question(0)
    assert first.options == {"A": "one", "C": "three"} and first.text == "Which?\nA. one C. three"
    for read in (lambda: fitted.media(3, ""), lambda: measured.ask(3, tmp_path)):
        with pytest.raises(ValueError, match="row 4: its picture cannot be read"):
            read()


def test_lines_say_what_they_share_and_their_options(tmp_path, monkeypatch):
    """Guards against: a scene that hangs on how the file's path is written, or that a line names in vain; and options
    that are numbers, too many for letters, or no list at all."""
    line = {"image": "a.png", "question": "How many?", "options": [1, 2], "answer": "A"}
    many = [str(number) for number in range(27)]
    rows = [line, line | {"scene": 7}, line | {"options": many}, line | {"options": "ab"}, line | {"image": "b.png"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    near, far = QuestionFile(Path("q.jsonl")), QuestionFile(tmp_path / "q.jsonl")
    assert near.question(0).options == {"A": "1", "B": "2"}
    assert near.question(0).scene == far.question(0).scene != far.question(4).scene
    assert near.question(1).scene == "7"
    for index, said in ((2, "27 options"), (3, "a list or an object")):
        with pytest.raises(ValueError, match=f"line {index + 1}: .*{said}"):
            near.question(index)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"image": "a.png", "question": "What?"}\n', "line 1: 'answer' is missing"),
        ("a.jsonl", '{"question": "What?", "answer": "3"}\n', "line 1: it needs"),
        ("a.jsonl", "[1]\n", "line 1: a question is"),
        ("a.jsonl", "{\n", "line 1"),
        ("a.tsv", "index\tquestion\tanswer\n1\tWhat?\tA\n", "it has no column image"),
        ("a.tsv", "index\timage\tquestion\tanswer\n", "no questions"),
        ("garden:holiday", None, "splits"),
        ("missing.jsonl", None, "no such file"),
    ],
)
def test_data_that_cannot_be_read(tmp_path, capsys, name, text, said):
    """Guards against: a traceback, or hours of work on half a file."""
    if text is not None:
        (tmp_path / name).write_text(text)
    data = name if name.startswith("garden") else tmp_path / name
    arguments = ["--model-path", MODEL, "--data", data, "--out", tmp_path / "out"]
    assert said in one_line(capsys, collect.main, *arguments)


def test_shards_of_the_garden_hold_whole_pictures():
    """Guards against: a picture in two shards, by which it would be encoded and stored twice."""
    data = collect.data_of("garden")
    shards = collect.shards_of(data, 61)
    assert [index for shard in shards for index in shard] == list(range(64))
    scenes = [{data.question(index).scene for index in shard} for shard in shards]
    assert sum(map(len, scenes)) == len(set.union(*scenes)) and min(map(len, shards)) >= 1


# ----------------------------------------------------------------------------------------------------------- measures


def test_auc_counts_pairs():
    """Guards against: ties that count whole or not at all, within-task pairs across tasks, and weights that are not
    what repeating a question would give."""
    rng = np.random.default_rng(0)
    right, score = rng.random((30, 16)) < rng.random((30, 1)), rng.integers(0, 6, 30) / 6
    tasks, weights = rng.choice(["a", "b"], 30), rng.integers(0, 3, (4, 30)).astype(float)
    for per_rollout, within in product((False, True), repeat=2):
        found = metrics.auc(score, Sample(right, tasks, weights), per_rollout, within)
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
    nobody = metrics.auc(score, Sample(np.ones((30, 16), bool), tasks, weights), False)
    assert np.isnan(nobody).all() and metrics.summary(nobody) is None


def test_brier_and_ece_have_known_values():
    """Guards against: errors against mean rates where single rollouts are meant, and bins that cancel each other."""
    right = np.array([[True] * 4, [True, True, False, False], [False] * 4])
    sample = Sample(right, np.array(["a"] * 3), np.ones((1, 3)))
    p = np.array([0.9, 0.5, 0.2])
    assert metrics.brier(p, sample)[0] == pytest.approx(np.mean((p[:, None] - right) ** 2))
    assert metrics.ece(p, sample)[0] == pytest.approx((0.1 + 0.0 + 0.2) / 3)
    shown = metrics.reliability(p, sample)
    assert [(one["n"], one["p"], one["right"]["value"]) for one in shown] == [(1, 0.2, 0), (1, 0.5, 0.5), (1, 0.9, 1)]


def test_bootstrap_draws_whole_scenes():
    """Guards against: intervals that take questions about one picture for independent, and are too narrow."""
    scenes = ["a", "a", "b", "c", "c", "c"]
    weights = cluster_weights(scenes, seed=1)
    assert (weights[0] == 1).all()
    first = [scenes.index(scene) for scene in scenes]
    assert (weights == weights[:, first]).all() and (weights[:, [0, 2, 3]].sum(1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_the_ceiling_is_that_of_the_picture():
    """Guards against: a ceiling that judges rollouts by themselves (1.0 for noise), or that knows the question."""
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.arange(200), 2)
    noise = Sample(rng.random((400, 16)) < 0.5, np.full(400, "a"), np.ones((1, 400)))
    assert metrics.ceiling(noise, scenes, per_rollout=True)[0] == pytest.approx(0.5, abs=0.03)
    # One question of each picture is always right, the other never: nobody can tell from the picture.
    torn = Sample(np.tile(np.arange(400) % 2 == 0, (16, 1)).T, np.full(400, "a"), np.ones((1, 400)))
    assert metrics.ceiling(torn, scenes, per_rollout=True)[0] == pytest.approx(0.5, abs=0.01)
    assert metrics.ceiling(torn, np.arange(400), per_rollout=True)[0] == 1.0
    told = Sample(np.tile(scenes % 2 == 0, (16, 1)).T, np.full(400, "a"), np.ones((1, 400)))
    assert metrics.ceiling(told, scenes, per_rollout=False)[0] == 1.0


def test_other_questions_tell_of_the_picture_alone():
    """Guards against: a question's own rollouts among its picture's others, which would tell it from them, and others
    that are weighed by their number."""
    scenes = np.repeat(np.arange(200), [2, 4] * 100)
    told = Sample(np.tile(scenes % 2 == 0, (16, 1)).T, np.full(600, "a"), np.ones((1, 600)))
    assert metrics.others(told, scenes, per_rollout=False)[0] == 1.0
    # One question of each picture is right, the others are wrong: who looks at the others alone ranks it last.
    first = np.diff(scenes, prepend=-1) > 0
    torn = Sample(np.tile(first, (16, 1)).T, np.full(600, "a"), np.ones((1, 600)))
    of_two = np.isin(scenes, np.arange(0, 200, 2))
    assert metrics.others(torn.part(of_two), scenes[of_two], per_rollout=True)[0] == 0.0
    assert metrics.others(torn.part(~of_two), scenes[~of_two], per_rollout=True)[0] == 0.0
    assert metrics.ceiling(torn, scenes, per_rollout=True)[0] > 0.5


def test_the_report_tells_what_pictures_tell():
    """Guards against: a ceiling of one question a picture that passes for one of what the picture tells: where there
    are no other questions, there is no such report; where there are, it is on the questions that have them."""
    rng = np.random.default_rng(0)
    about = {"task": "a", "level": 1, "form": "free", "medium": "image", "answerable": True}
    scenes = [0, 1, 1, 2, 2, 2, *range(3, 40)]
    lines = [about | {"scene": str(scene), "rollouts": {"right": (rng.random(16) < 0.5).tolist()}} for scene in scenes]
    guesses = {kind: rng.random(len(lines)) for kind in ("visual", "question")}
    found = fit.judge(guesses, lines, 0)
    assert (found["pictures_with_other_questions"]["n"], found["pictures_with_other_questions"]["scenes"]) == (5, 2)
    assert found["ceiling"].keys() == found["pictures_with_other_questions"]["other_questions"].keys()
    assert "pictures_with_other_questions" not in fit.judge({k: p[6:] for k, p in guesses.items()}, lines[6:], 0)


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
    """Guards against: a picture whose one question is fitted on and whose other one judges; a split that moves."""
    lines = [{"scene": str(n // 3), "index": n} for n in range(300)]
    parts = fit.split(lines, seed=3)
    scenes = {name: {line["scene"] for line in part} for name, part in parts.items()}
    assert {name: len(part) for name, part in scenes.items()} == {"fit": 60, "stop": 20, "rule": 20}
    assert len(set.union(*scenes.values())) == 100 and sum(map(len, parts.values())) == 300
    backwards = fit.split(lines[::-1], seed=3)
    assert all(part[::-1] == backwards[name] for name, part in parts.items())
    assert fit.split(lines, seed=4)["rule"] != parts["rule"]
    with pytest.raises(ValueError, match="at least 5"):
        fit.split(lines[:12], seed=0)


@pytest.mark.parametrize(
    "signal, visual_sees, question_sees", [("visual", True, None), ("question", False, True), ("none", False, False)]
)
def test_a_signal_is_learnt_and_noise_is_not(signal, visual_sees, question_sees, monkeypatch):
    """Guards against: a predictor that cannot learn, one that judges by what it was fitted on, a hidden state that is
    not read, or that tells the visual-only network something."""
    monkeypatch.setattr(fit, "EPOCHS", 12)
    data = Stand(signal)
    parts = fit.split(data.lines, seed=0)
    sample = Sample(
        np.array([line["rollouts"]["right"] for line in parts["rule"]]),
        np.array([line["task"] for line in parts["rule"]]),
        np.ones((1, len(parts["rule"]))),
    )
    for name, sees in (("visual", visual_sees), ("question", question_sees)):
        if sees is None:
            continue
        network, told = fit.train(data, parts, name == "question", seed=0)
        p = fit.predict(network, data, parts["rule"], name == "question")
        found = metrics.auc(p, sample, per_rollout=False)[0]
        assert found > 0.8 if sees else 0.25 < found < 0.75, (name, found)
        assert told["stop_loss"][told["best_epoch"]] == min(told["stop_loss"])


def test_baselines_know_what_they_may():
    """Guards against: baselines that are too weak to be worth beating: they have to find what lies in their inputs."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(400):
        visual, diversity, task = int(rng.integers(50, 800)), float(rng.normal(-0.6, 0.1)), str(rng.choice(["a", "b"]))
        p = 1 / (1 + np.exp(-(3 * (np.log(visual) - 6) + 20 * (diversity + 0.6))))
        right = (rng.random(16) < p).tolist()
        lines.append({"visual": visual, "diversity": diversity, "task": task, "rollouts": {"right": right}, "p": p})
    found = fit.Cheap(lines[:200]).predict(lines[200:])
    assert np.abs(found - [line["p"] for line in lines[200:]]).max() < 0.1
    rates = {task: np.mean([fit.rate(line) for line in lines if line["task"] == task]) for task in "ab"}
    assert fit.by_task(lines, [{"task": "b"}, {"task": "a"}]).tolist() == [rates["b"], rates["a"]]
    assert fit.by_task(lines, [{"task": "new"}])[0] == pytest.approx(np.mean([fit.rate(line) for line in lines]))


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
    monkeypatch.setattr(calibrate, "CELLS", 5)
    monkeypatch.setattr(calibrate, "MAX_BINS", 3)
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
    points = calibrate.Points(p, lines, seed=0)
    assert points.decode[0].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7]) and points.prefill[0] == 0.3
    middle = [line for line in lines if line["index"] == 150][0]
    assert points.accuracy[150].tolist() == [
        float(middle["greedy"]["right"]),
        *(vote_accuracy(middle["rollouts"]["answers"], middle["rollouts"]["right"], k) for k in (3, 5, 7)),
    ]
    rule = points.rule("inverted U", 0.1)
    assert rule.num_rollouts[0] == rule.num_rollouts[-1] == 1 and max(rule.num_rollouts) > 1
    cell = 1 / calibrate.CELLS
    assert rule.edges[0] == pytest.approx(0.3, abs=cell) and rule.edges[-1] == pytest.approx(0.8, abs=cell)
    assert points.rule("constant", 100.0) == Rule() == points.rule("unconstrained", 100.0)
    # The cost of the greedy answer is 0.4, so that little more than that leaves little to spend.
    costs = [
        points.flops(points.rule("inverted U", calibrate.choose(points, points, budget))) for budget in (0.45, 0.7)
    ]
    assert costs[0] <= 0.45 < costs[1] <= 0.7
    with pytest.raises(ValueError, match="0.400"):
        calibrate.choose(points, points, 0.39)


def test_the_report_compares_the_shapes_and_permuted_k():
    """Guards against: intervals that do not hold their value, a gain that is no difference of accuracies, and K
    permuted across questions that is as good as K where it belongs."""
    p, lines = synthetic_lines()
    found = calibrate.solutions({"rule": calibrate.Points(p, lines, seed=0)}, 0.1)
    for shape in SHAPES:
        judged = found[shape]["rule"]
        for name in ("accuracy", "relative_llm", "mean_k"):
            low, high = judged[name]["ci95"]
            assert low - 1e-9 <= judged[name]["value"] <= high + 1e-9
        assert sum(judged["k_shares"].values()) == pytest.approx(1)
        assert len(found[shape]["edges"]) == len(found[shape]["num_rollouts"]) - 1
    assert found["inverted U"]["rule"]["minus_k_permuted"]["ci95"][0] > 0
    assert found["constant"]["rule"]["minus_k_permuted"]["value"] == pytest.approx(0)
    for one in calibrate.Points(p, lines, seed=0).gains():
        assert one["gain"]["7"]["value"] == pytest.approx(one["accuracy"]["7"]["value"] - one["accuracy"]["1"]["value"])


# ------------------------------------------------------------------------------------------------------------ all of it


def test_fitting_from_end_to_end(bundled, tmp_path, capsys, monkeypatch):
    """Guards against: steps that do not fit together, a checkpoint that its reader refuses, reports that lack what says
    how they were made, and a second run that begins anew. Two processes draw."""
    monkeypatch.setattr(fit, "EPOCHS", 3)
    monkeypatch.setattr(collect, "SHARD", 4)
    out = tmp_path / "policy.pt"
    flags = ["--model-path", MODEL, "--data", "garden", "--items", "12", "--max-new-tokens", "8", "--processes", "2"]
    flags += ["--folder", str(tmp_path / "folder"), "--lambda", "0.05", "--out", str(out)]
    assert whole.main(flags) == 0
    policy = PolicyModel(out)
    model = bundled[0]
    angle, fitted, report = (
        json.loads(path.read_text())
        for path in (tmp_path / "folder" / "tau.json", tmp_path / "folder" / "networks.json", out.with_suffix(".json"))
    )
    assert policy.check(model.config.vision_config.out_hidden_size, angle["weights_sha256"]) is None
    assert policy.tau == angle["tau"] and policy.rho == angle["target_rho"] == 0.75
    assert angle["rho"] == pytest.approx(0.75, abs=0.01)
    assert angle["curve"][0]["rho"] <= angle["rho"] <= angle["curve"][-1]["rho"]
    for told in (angle, fitted, report):
        assert {"command", "seed", "versions", "weights_sha256", "n"} <= told.keys()
    assert set(fitted["evaluation"]["rule"]["predictors"]) == {
        *("visual", "question", "constant", "tokens and diversity", "task label")
    }
    rule = report["networks"][policy.metadata["default"]]["solutions"]["inverted U"]
    collected = collect.Collected(tmp_path / "folder" / "fitting")
    assert [line["index"] for line in collected.lines] == list(range(14))  # 12, and the rest of the last picture's
    items = collected.embeds(collected.lines[0]["scene"])
    assert policy.predict(items, collected.hidden([0])).num_rollouts in rule["num_rollouts"]
    assert policy(items[0][None]) in CHOICES

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "folder" / "fitting").iterdir()}
    assert whole.main(flags) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "folder" / "fitting").iterdir()}
    assert PolicyModel(out).predict(items, collected.hidden([0])) == policy.predict(items, collected.hidden([0]))

    steps = ["--networks", tmp_path / "folder" / "networks.pt", "--out", tmp_path / "other.pt"]
    steps += ["--collected", tmp_path / "folder" / "fitting"]
    assert "--budget" in one_line(capsys, calibrate.main, *steps, "--budget", "0.0001")
    assert "that is fitted on" in one_line(capsys, calibrate.main, *steps, "--dev", steps[-1])
    shard = next((tmp_path / "folder" / "fitting").glob("*.jsonl"))
    shard.write_bytes(shard.read_bytes().replace(b'"free"', b'"choice"').replace(b'"level": "1"', b'"level": "2"'))
    assert "was not fitted on" in one_line(capsys, calibrate.main, *steps)


def test_what_judges_is_not_fitted_on(tmp_path, capsys):
    """Guards against: a policy that is fitted on dev or test and then measured there; a folder that is none."""
    folder = tmp_path / "dev"
    folder.mkdir()
    line = {"index": 0, "scene": "0"}
    (folder / "shard-00000.jsonl").write_text(json.dumps(line) + "\n")
    collect.save_file({"hidden/0": torch.zeros(2)}, folder / "shard-00000.safetensors")
    (folder / "collect.json").write_text(json.dumps({"config": {"shards": 1, "data": "garden:dev"}}))
    assert "to choose or to judge" in one_line(capsys, fit.main, "--collected", folder, "--out", tmp_path / "n.pt")
    assert "run python -m policy.training.collect" in one_line(
        capsys, fit.main, "--collected", tmp_path, "--out", tmp_path / "n.pt"
    )


@pytest.mark.parametrize("step", [whole, tau, collect, fit, calibrate])
def test_every_step_explains_itself(step, capsys):
    """Guards against: a flag without a word, and a percent sign that breaks the help."""
    with pytest.raises(SystemExit) as end:
        step.main(["--help"])
    assert end.value.code == 0 and "--out" in capsys.readouterr().out


def test_only_collecting_is_launched_on_several(monkeypatch, capsys):
    """Guards against: as many processes that fit and write the same checkpoint."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = ["--model-path", MODEL, "--data", "garden", "--out", "policy.pt"]
    assert "collect" in one_line(capsys, whole.main, *flags)


def test_a_report_repeats_its_command():
    """Guards against: a command in a report that cannot be run again."""
    from policy.training import report

    args = Namespace(model_path="m", target_rho=0.5, items=None, out=Path("o.json"))
    told = report("tau", args, 0, "w", 3)["command"]
    assert told == "python -m policy.training.tau --model-path m --target-rho 0.5 --out o.json"
