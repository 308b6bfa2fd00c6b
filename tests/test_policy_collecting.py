"""Fitting the policy, steps 1 and 2: the angle, the questions, and rollouts that are collected and resumed."""

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from policies import one_line
from safetensors.torch import load_file
from transformers.models.qwen2_5_vl.key_diversity import key_diversity_scores

import demo
from avis.config import AvisConfig
from avis.garden.source import open_source
from avis.pipeline import answer
from avis.questions import QuestionFile
from policy.training import collect, tau
from policy.training.collected import CollectedRollouts

MODEL = str(demo.BUNDLED)

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
    """Guards against: pi in silence, for images so small that the tokens that have to stay are too many."""
    with pytest.raises(ValueError, match="0.5000 is the most"):
        tau.find_tau([torch.tensor([-0.9, 0.1])], 0.75)
    arguments = ["--model-path", MODEL, "--data", "garden", "--out", tmp_path / "tau.json"]
    assert "--target-rho" in one_line(capsys, tau.main, *arguments, "--target-rho", "75")


# --------------------------------------------------------------------------------------------------------- collecting


def noise_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (84, 56, 3), dtype=np.uint8))


def encoded(seed: int) -> str:
    file = io.BytesIO()
    noise_image(seed).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def questions(tmp_path) -> Path:
    """Six questions about three images, one after the other and not, one of them about a file that is none."""
    for number in range(3):
        noise_image(number).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_text("no image")
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
    shard, an image that is stored once for each question, and a broken file that ends it all."""
    drawn, real = [], collect.draw_rollouts
    monkeypatch.setattr(collect, "draw_rollouts", lambda *args: drawn.append(args[2].index) or real(*args))
    out = tmp_path / "out"
    assert collected(questions, out) == 0
    (shard,) = out.glob("*.jsonl")
    written, tensors = shard.read_bytes(), tensors_of(out)
    lines = lines_of(out)
    assert drawn == [0, 3, 1, 5, 4], "questions about one image are not together"
    assert sorted(line["index"] for line in lines) == list(range(6))
    assert [line["index"] for line in lines if "error" in line] == [2] and "bad.png" in lines[4]["error"]
    assert all(len(line["rollouts"]["right"]) == 16 for line in lines if "error" not in line)
    scenes = {line["scene"] for line in lines if "error" not in line}
    shown = {f"embeds/{scene}/0" for scene in scenes} | {f"embeds/{lines[-1]['scene']}/1"}
    assert set(tensors) == shown | {f"hidden/{index}" for index in (0, 1, 3, 4, 5)} and len(scenes) == 3
    assert all(value.dtype == torch.float16 for value in tensors.values())

    third = written.splitlines(keepends=True)[2]
    shard.with_suffix(".safetensors").unlink()
    shard.write_bytes(written[: written.index(third) + 100])  # killed within the third line
    drawn.clear()
    assert collected(questions, out) == 0
    assert drawn == [1, 5, 4]
    again, kept = tensors_of(out), lines_of(out)
    assert [line["index"] for line in kept] == [line["index"] for line in lines]
    assert kept[:2] == lines[:2] and again.keys() == tensors.keys()
    assert all(torch.allclose(again[name].float(), tensors[name].float(), atol=1e-2) for name in again)

    drawn.clear()
    assert collected(questions, out) == 0 and drawn == []
    found = CollectedRollouts(out)
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
                CollectedRollouts(tmp_path / "out")
    assert names == [{"shard-00001.safetensors"}, {"shard-00000.safetensors", "shard-00001.safetensors"}]
    # 4 items are asked for; an image's questions are not torn apart.
    assert sorted(line["index"] for line in lines_of(tmp_path / "out")) == [0, 1, 3, 5]
    other = ["--model-path", MODEL, "--data", questions, "--out", tmp_path / "out", "--max-new-tokens", "7"]
    assert "items, shards, max_new_tokens" in one_line(capsys, collect.main, *other)


def test_what_is_collected_is_what_an_answer_draws(bundled, questions, tmp_path):
    """Guards against: a predictor fitted on rollouts under other pruning, prompts, seeds or judging than are used."""
    assert collected(questions, tmp_path / "out", "--items", "1") == 0
    lines = {line["index"]: line for line in lines_of(tmp_path / "out")}
    content = [{"type": "image", "image": noise_image(0)}, {"type": "text", "text": "How many, 3?\nA. one B. two"}]
    for count in (1, 3):
        config = AvisConfig(
            enable_kdv=True, kdv_threshold=math.pi / 4, num_rollouts=count, max_new_tokens=6, vote_stop="off"
        )
        result = answer(*bundled, [{"role": "user", "content": content}], config, query_index=3)
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
    """Guards against: an image that another row has taken for a new one, several images in a cell, options and hint
    that do not reach the prompt, and a cell longer than the reader's limit."""
    rows = [
        ["7", encoded(0), "", "Which?", "one", "two", "B", "cats"],
        ["8", "7", "Look left.", "How many?", "", "", "3", "dogs"],
        ["9", str([encoded(1), encoded(0)]), "", "Same?" + " " * 200_000, "yes", "no", "A", "cats"],
    ]
    head = ["index", "image", "hint", "question", "A", "B", "answer", "category"]
    path = tmp_path / "set.tsv"
    path.write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n")
    data = open_source(str(path))
    assert list(data.groups()) == [[0, 1], [2]]
    questions = [data.question(index) for index in range(3)]
    first, second, third = (question.label for question in questions)
    assert questions[0].text == "Which?\nA. one B. two"
    assert (first.options, first.truth, first.form) == ({"A": "one", "B": "two"}, "B", "choice")
    assert questions[1].text == "Look left.\nHow many?"
    assert (second.options, second.task, second.form) == (None, "dogs", "free")
    assert second.scene == first.scene != third.scene
    shown = [part["image"] for part in data.media(2)]
    assert [np.asarray(image).tolist() for image in shown] == [np.asarray(noise_image(n)).tolist() for n in (1, 0)]


def test_fitting_and_measuring_read_the_same_files(tmp_path):
    """Guards against: prompts, letters or images that differ between the question and its messages, a letter that is
    left out and moves those after it, an image that only a later row has, and a broken image that ends in a
    traceback. Fitting and the evaluation have one reader, `open_source`."""
    head = ["index", "image", "question", "A", "B", "C", "answer"]
    rows = [
        ["1", "2", "Which?", "one", "", "three", "C"],
        ["2", encoded(0), "Which?", "one", "two", "", "B"],
        ["3", str([encoded(0), encoded(1)]), "How many?", "", "", "", "3"],
        ["4", "no image", "What?", "", "", "", "3"],
    ]
    path = tmp_path / "set.tsv"
    path.write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n")
    fitted, measured = open_source(str(path)), open_source(str(path), "dev")
    assert list(fitted.groups()) == [[0, 1], [2], [3]]
    images = [noise_image(0), noise_image(1)]
    for index, (medium, shows) in enumerate([("image", images[:1]), ("image", images[:1]), ("images", images)]):
        question, asked = fitted.question(index), measured.question(index)
        *shown, text = asked.messages(measured.media(index, tmp_path))[0]["content"]
        assert text["text"] == question.text and asked.label == question.label
        assert [np.asarray(one["image"]).tolist() for one in shown] == [np.asarray(one).tolist() for one in shows]
        assert (question.label.medium, question.label.task) == (medium, "set")
    first = fitted.question(0)
    assert first.label.options == {"A": "one", "C": "three"} and first.text == "Which?\nA. one C. three"
    for source in (fitted, measured):
        with pytest.raises(ValueError, match="row 4: its image cannot be read"):
            source.media(3)


def test_lines_say_what_they_share_and_their_options(tmp_path, monkeypatch):
    """Guards against: a scene that depends on how the file's path is written, or that a line names in vain; and options
    that are numbers, too many for letters, or no list at all."""
    line = {"image": "a.png", "question": "How many?", "options": [1, 2], "answer": "A"}
    many = [str(number) for number in range(27)]
    rows = [line, line | {"scene": 7}, line | {"options": many}, line | {"options": "ab"}, line | {"image": "b.png"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    near, far = QuestionFile(Path("q.jsonl")), QuestionFile(tmp_path / "q.jsonl")
    assert near.question(0).label.options == {"A": "1", "B": "2"}
    assert near.question(0).label.scene == far.question(0).label.scene != far.question(4).label.scene
    assert near.question(1).label.scene == "7"
    for index, said in ((2, "27 options"), (3, "a list or an object")):
        with pytest.raises(ValueError, match=f"line {index + 1}: .*{said}"):
            near.question(index)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"image": "a.png", "question": "What?"}\n', 'line 1: "answer" is missing'),
        ("a.jsonl", '{"question": "What?", "answer": "3"}\n', "line 1: nothing to see"),
        ("a.jsonl", "[1]\n", "line 1: a question is"),
        ("a.jsonl", "{\n", "line 1"),
        ("a.tsv", "index\tquestion\tanswer\n1\tWhat?\tA\n", "it has no column image"),
        ("a.tsv", "index\timage\tquestion\tanswer\n", "no questions"),
        ("garden:holiday", None, "split must be one of"),
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


def test_shards_of_the_garden_hold_whole_scenes():
    """Guards against: a scene in two shards, by which it would be encoded and stored twice."""
    data = open_source("garden")
    shards = collect.plan_shards(data, 61)
    assert [index for shard in shards for index in shard] == list(range(64))
    scenes = [{data.question(index).label.scene for index in shard} for shard in shards]
    assert sum(map(len, scenes)) == len(set.union(*scenes)) and min(map(len, shards)) >= 1
