"""`answer()`: pruning, rollouts, the vote and the record of a query, on the bundled model.

No test here depends on how well that model answers.
"""

import hashlib
import json
import os
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from chats import BUNDLED, QUESTION, WILD, chat, draw_image, image_part, video_part
from PIL import Image
from transformers.models.qwen2_5_vl.key_diversity import keep_count
from transformers.models.qwen2_5_vl.shared_prefill import Rollouts

from avis import steps
from avis.answers import extract_answer, vote_key
from avis.config import AvisConfig
from avis.inputs import prepare_inputs
from avis.outputs import AvisOutput
from avis.pipeline import answer
from avis.voting import confidence_weight, majority_vote


def timeless(result: AvisOutput) -> dict:
    record = result.to_dict()
    assert set(record.pop("seconds")) == {"vision", "prefill", "decode"}
    return record


# -------------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("ratio", [None, 0.0, 0.5, 0.9, 1.0])
def test_kept_tokens_are_what_the_ratio_says(bundled, ratio):
    """Guards against: the fraction taken for the kept one; one ratio over all items together instead of each; a
    prompt length that forgets an item; a default other than 0.75."""
    config = AvisConfig(enable_kdv=True, kdv_ratio=ratio, max_new_tokens=2)
    result = answer(*bundled, chat(image_part(), image_part(draw_image(196, 140))), config)
    rho = 0.75 if ratio is None else ratio
    assert [item.total for item in result.items] == [14 * 18, 7 * 5]
    assert [item.kept for item in result.items] == [keep_count(item.total, rho) for item in result.items]
    assert [item.rho for item in result.items] == [1 - item.kept / item.total for item in result.items]
    assert result.prompt_tokens - result.kept_tokens == sum(item.total - item.kept for item in result.items)


def test_nothing_is_pruned_unless_asked(bundled):
    """Guards against: pruning that is on by default."""
    result = answer(*bundled, chat(image_part()), AvisConfig(max_new_tokens=2))
    assert [(item.kept, item.rho) for item in result.items] == [(252, 0.0)]
    assert result.kept_tokens == result.prompt_tokens


def test_adaptive_pruning_grows_with_the_angle(bundled):
    """Guards against: an angle that is read in degrees, inverted, or taken for a ratio."""
    kept = []
    for tau in (0.01, 0.8, 1.4, 3.1):
        config = AvisConfig(enable_kdv=True, kdv_threshold=tau, max_new_tokens=1)
        kept.append(answer(*bundled, chat(image_part()), config).items[0].kept)
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 252 and kept[-1] == 1


def test_random_pruning_follows_seed_and_query(bundled):
    """Guards against: a baseline that ignores the seed, keeps another number of tokens than KDV, or keeps the same
    places for every question, by which a whole table would measure one draw."""
    model, processor = bundled
    kept = []
    original = model.prefill

    def watched(**kwargs):
        prefill = original(**kwargs)
        kept.append([indices.tolist() for indices in prefill.kept])
        return prefill

    model.prefill = watched
    try:
        for pruner, seed, query_index in [
            ("random", 1, 0),
            ("random", 1, 0),
            ("random", 2, 0),
            ("random", 1, 1),
            ("kdv", 1, 0),
            ("kdv", 2, 1),
        ]:
            config = AvisConfig(enable_kdv=True, kdv_ratio=0.5, pruner=pruner, seed=seed, max_new_tokens=1)
            answer(model, processor, chat(image_part()), config, query_index)
    finally:
        del model.prefill
    first, again, other_seed, other_query, kdv, kdv_again = kept
    assert first == again  # 126 of 252 tokens: equal by luck with odds below 1e-70
    assert first != other_seed and first != other_query and other_seed != other_query
    assert kdv == kdv_again != first
    assert {len(of_item[0]) for of_item in kept} == {126}


ORDERS = {
    "images, video": (0, 1, 2),
    "video, images": (2, 0, 1),
    "image, video, image": (0, 2, 1),
    "images the other way": (1, 0, 2),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_two_images_and_a_video_in_any_order(bundled, order):
    """Guards against: items reported or pruned as one another's when a video stands between images, and the order
    of the prompt lost on the way to the model."""
    _, processor = bundled
    parts = (image_part(draw_image(140, 140)), image_part(draw_image(280, 196)), video_part())
    totals = (25, 70, None)
    messages = chat(*(parts[i] for i in order))
    config = AvisConfig(enable_kdv=True, kdv_ratio=0.6, num_frames=4, max_new_tokens=4)
    result = answer(*bundled, messages, config)
    assert [item.kind for item in result.items] == ["image", "image", "video"]
    assert [item.total for item in result.items[:2]] == [totals[i] for i in order if i < 2]
    inputs = prepare_inputs(processor, messages, config)
    assert result.items[2].total == int(inputs.video_grid_thw.prod()) // 4
    assert all(item.kept == keep_count(item.total, 0.6) for item in result.items)
    # What stands in the prompt, as runs of placeholders.
    tokens = bundled[0].config
    names = {tokens.image_token_id: "image", tokens.video_token_id: "video"}
    ids = inputs.input_ids[0].tolist()
    starts = [i for i, token in enumerate(ids) if token == tokens.vision_start_token_id]
    assert [names[ids[i + 1]] for i in starts] == [parts[i]["type"] for i in order]
    lengths = [ids.index(tokens.vision_end_token_id, i) - i - 1 for i in starts]
    assert lengths == [totals[i] or result.items[2].total for i in order]
    assert result.prompt_tokens == len(ids)


def test_vision_encoder_runs_once_per_kind(bundled):
    """Guards against: an image encoded anew for every rollout, or once for each item."""
    model, _ = bundled
    calls = []
    hook = model.visual.register_forward_hook(lambda *_: calls.append(1))
    try:
        config = AvisConfig(enable_kdv=True, num_rollouts=5, max_new_tokens=3, num_frames=4)
        answer(*bundled, chat(image_part(), video_part(), image_part(draw_image(140, 140))), config)
    finally:
        hook.remove()
    assert len(calls) == 2


def test_text_alone_is_answered(bundled):
    """Guards against: a query without images that fails, or reports items it has not."""
    result = answer(*bundled, [{"role": "user", "content": QUESTION}], AvisConfig(enable_kdv=True, max_new_tokens=4))
    assert result.items == () and result.flops["vision"] == 0 and result.kept_tokens == result.prompt_tokens


def test_slim_images_are_answered(bundled):
    """Guards against: a traceback or a refusal for an image that is slimmer than the processor takes."""
    result = answer(*bundled, chat(image_part(Image.new("RGB", (2000, 2)))), AvisConfig(max_new_tokens=1))
    assert result.items[0].total >= 4


# ----------------------------------------------------------------------------------------------------------- the record


def test_record_survives_json(bundled):
    """Guards against: tensors, paths or tuples in the record, which JSON refuses or gives back as something else."""
    config = AvisConfig(enable_kdv=True, num_rollouts=3, max_new_tokens=40)
    record = answer(*bundled, chat(image_part()), config, query_index=4).to_dict()
    assert json.loads(json.dumps(record)) == record
    expected = {"text", "answer", "votes", "rollouts", "num_rollouts", "items", "flops", "seconds", "cache_bytes"}
    expected |= {"p", "bin", "rho", "reused_tokens", "new_tokens", "stopped_rollouts", "policy_sha256"}
    assert expected | {"versions", "weights_sha256", "config", "query_index", "model_path"} <= set(record)
    assert record["rho"] == record["items"][0]["rho"] == 0.75 and (record["p"], record["bin"]) == (None, None)
    assert record["config"] == {field.name: getattr(config, field.name) for field in fields(config)}
    assert record["query_index"] == 4 and "state" not in record


def test_record_names_what_was_run(bundled):
    """Guards against: a result that cannot be traced to its weights and versions."""
    result = answer(*bundled, chat(image_part()), AvisConfig(max_new_tokens=1))
    weights = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(BUNDLED.glob("*.safetensors"))))
    assert result.weights_sha256 == weights.hexdigest()
    versions = result.to_dict()["versions"]
    assert {"torch", "transformers", "av", "pillow", "patch_set"} == set(versions)
    assert versions["torch"] == torch.__version__
    assert result.backend == {"dtype": "float32", "device": "cpu", "attention": "sdpa"}
    assert {kind: list(bounds) for kind, bounds in result.pixel_bounds.items()} == {
        "image": [4 * 784, 640 * 784],
        "video": [4 * 784, 640 * 784],
    }
    bounded = AvisConfig(max_new_tokens=1, max_pixels=2 * 784)
    assert list(answer(*bundled, chat(image_part()), bounded).pixel_bounds["image"]) == [2 * 784, 2 * 784]


def writes(model, processor, monkeypatch, *texts: str, cut: tuple[int, ...] = ()):
    """Makes the model's rollouts write these texts; those in `cut` do not end."""
    end = processor.tokenizer.eos_token_id
    rows = [processor.tokenizer(text).input_ids for text in texts]
    tokens = tuple(tuple(ids + ([] if i in cut else [end])) for i, ids in enumerate(rows))
    finished = tuple(i not in cut for i in range(len(texts)))
    means = tuple(-float(i) for i in range(len(texts)))
    rollouts = Rollouts(tokens, finished, (False,) * len(texts), means, 1024, 0.5)
    monkeypatch.setattr(model, "rollout", lambda *args, **kwargs: rollouts)


def test_votes_are_counted_over_what_was_written(bundled, monkeypatch):
    """Guards against: an answer beside a text of another rollout; a cut-off rollout that votes; special tokens in
    the texts; lengths that are counted in letters."""
    model, processor = bundled
    texts = (
        "<think>1 cat hat: 2</think><answer>2</answer>",
        "<think>a</think><answer>3</answer>",
        "<answer>2</answer><answer>4</answer>",
        "<think>a</think><answer> three </answer>",
        "<think>1 cat",
    )
    writes(model, processor, monkeypatch, *texts, cut=(2,))
    result = answer(model, processor, chat(image_part()), AvisConfig(num_rollouts=5))
    assert [rollout.text for rollout in result.rollouts] == list(texts)
    assert [rollout.answer for rollout in result.rollouts] == ["2", "3", None, "three", None]
    assert [rollout.finished for rollout in result.rollouts] == [True, True, False, True, True]
    assert result.rollouts[4].tokens == len(processor.tokenizer(texts[4]).input_ids) + 1
    assert (result.votes, result.answer, result.text) == ({"2": 1, "3": 2}, "3", texts[1])
    assert (result.num_rollouts, result.cache_bytes) == (5, 1024)


def test_options_in_the_question_are_found(bundled, monkeypatch):
    """Guards against: votes that are split over an option's letter and its text, because the options stand in the
    question alone; and records that cannot be counted again without it."""
    model, processor = bundled
    texts = (
        "<answer>dog</answer>",
        "The answer is B. dog",
        "<answer>(B)</answer>",
        "<answer>cat</answer>",
        "It is a cow.",
    )
    writes(model, processor, monkeypatch, *texts)
    messages = chat(image_part(), question="What is it?\nA. cat\nB. dog")
    result = answer(model, processor, messages, AvisConfig(num_rollouts=5))
    assert (result.votes, result.answer) == ({"B": 3, "A": 1, "it is a cow": 1}, "dog")
    assert [rollout.vote for rollout in result.rollouts] == ["B", "B", "B", "A", "it is a cow"]
    assert majority_vote([rollout.vote for rollout in result.rollouts]).index == 0


def test_nobody_votes(bundled, monkeypatch):
    """Guards against: a guess, or a crash, when no rollout gives an answer."""
    model, processor = bundled
    writes(model, processor, monkeypatch, "<think>1 cat", "<think>2", cut=(0, 1))
    result = answer(model, processor, chat(image_part()), AvisConfig(num_rollouts=2))
    assert (result.answer, result.votes, result.text) == (None, {}, "<think>1 cat")


def test_a_thought_opened_by_the_template_counts(bundled, monkeypatch):
    """Guards against: templates of post-trained models that open the thought in the prompt: a rollout that never
    closes it would be taken for an answer."""
    model, processor = bundled
    monkeypatch.setattr(processor, "chat_template", processor.chat_template + "<think>\n")
    writes(model, processor, monkeypatch, "1 cat hat: 3", "1 cat hat: 2</think><answer>2</answer>")
    result = answer(model, processor, chat(image_part()), AvisConfig(num_rollouts=2))
    assert [rollout.answer for rollout in result.rollouts] == [None, "2"]
    assert result.rollouts[0].text == "1 cat hat: 3"


def test_answers_are_read_from_the_texts(bundled):
    """Guards against: answers of other rollouts than their texts, in a real run with texts of several lengths."""
    config = AvisConfig(num_rollouts=7, temperature=1.5, top_p=1.0, max_new_tokens=30)
    result = answer(*bundled, chat(image_part()), config)
    assert len(result.rollouts) == 7
    for rollout in result.rollouts:
        assert rollout.answer == extract_answer(rollout.text, finished=rollout.finished)
        assert 1 <= rollout.tokens <= 30 and (rollout.finished or rollout.stopped or rollout.tokens == 30)


@pytest.mark.parametrize("kdv", [{}, {"enable_kdv": True, "kdv_ratio": 0.75}], ids=["full", "kdv"])
def test_one_rollout_is_greedy_generate(bundled, kdv):
    """Guards against: an answer that is not the model's own: other inputs than the processor's, sampling at K = 1,
    or other end tokens than `generate` has."""
    model, processor = bundled
    config = AvisConfig(max_new_tokens=25, temperature=3.0, seed=5, **kdv)
    result = answer(model, processor, chat(image_part(draw_image(280, 280))), config)
    inputs = prepare_inputs(processor, chat(image_part(draw_image(280, 280))), config)
    tokens = model.generate(**inputs, **kdv, max_new_tokens=25, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert result.text == processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert result.rollouts[0].tokens == len(tokens)


def test_same_seed_same_record(bundled):
    """Guards against: sampling that depends on the process's own generators or on what ran before."""
    config = AvisConfig(enable_kdv=True, seed=3, **WILD)
    first = timeless(answer(*bundled, chat(image_part()), config, query_index=2))
    torch.manual_seed(99)
    assert timeless(answer(*bundled, chat(image_part()), config, query_index=2)) == first


def test_seed_and_query_index_matter(bundled):
    """Guards against: every question of a set sampled with the same random numbers."""
    texts = set()
    for seed, query_index in ((0, 0), (1, 0), (0, 1)):
        result = answer(*bundled, chat(image_part()), AvisConfig(seed=seed, **WILD), query_index=query_index)
        texts.add(tuple(rollout.text for rollout in result.rollouts))
        assert len(set(rollout.text for rollout in result.rollouts)) == 3
    assert len(texts) == 3


def test_temperature_and_top_p_reach_the_sampling(bundled):
    """Guards against: sampling options that are parsed and then forgotten."""

    def texts(**config) -> set[str]:
        result = answer(*bundled, chat(image_part()), AvisConfig(num_rollouts=4, max_new_tokens=15, **config))
        return {rollout.text for rollout in result.rollouts}

    greedy = answer(*bundled, chat(image_part()), AvisConfig(max_new_tokens=15)).text
    assert texts(temperature=100.0, top_p=1e-6) == {greedy}
    assert len(texts(temperature=100.0, top_p=1.0)) == 4
    assert texts(temperature=0.01, top_p=1.0) != texts(temperature=100.0, top_p=1.0)


def test_queries_leave_no_trace(bundled):
    """Guards against: state that one query leaves to the next, in the environment or on the model (a rope delta of
    another prompt, say)."""
    model, processor = bundled
    config = AvisConfig(enable_kdv=True, num_frames=4, seed=1, **WILD)
    before, names = dict(os.environ), set(vars(model)) | set(vars(model.model))
    weights = [parameter.clone() for parameter in model.parameters()]
    generation = model.generation_config.to_dict()
    first = timeless(answer(model, processor, chat(image_part()), config))
    answer(model, processor, chat(video_part(), image_part(draw_image(140, 140))), replace(config, kdv_ratio=0.2))
    answer(model, processor, chat(question="How many cats are there?"), AvisConfig(max_new_tokens=3))
    model.model.rope_deltas = torch.tensor([[-1000]])
    assert timeless(answer(model, processor, chat(image_part()), config)) == first
    assert dict(os.environ) == before and model.generation_config.to_dict() == generation
    assert set(vars(model)) | set(vars(model.model)) == names
    assert all(map(torch.equal, weights, model.parameters()))
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------ votes and stops


def test_votes_by_confidence_weigh(bundled, monkeypatch):
    """Guards against: a vote by confidence that counts heads, weighs by another rollout's tokens, or is reported as
    heads; and a stop that thinks of heads. Weights here: 1, exp(-1), exp(-2)."""
    model, processor = bundled
    writes(model, processor, monkeypatch, "<answer>2</answer>", "<answer>3</answer>", "<answer>3</answer>")
    assert answer(model, processor, chat(image_part()), AvisConfig(num_rollouts=3)).answer == "3"
    result = answer(model, processor, chat(image_part()), AvisConfig(num_rollouts=3, vote="confidence"))
    assert result.answer == "2"
    assert result.votes == pytest.approx({"2": 1.0, "3": np.exp(-1) + np.exp(-2)})
    assert [rollout.mean_logprob for rollout in result.rollouts] == [0.0, -1.0, -2.0]


@pytest.mark.parametrize("vote", ["majority", "confidence"])
def test_stops_and_batches_keep_the_winner(bundled, monkeypatch, vote):
    """Guards against: a stop that changes an answer, counts half-written rollouts, reads another rollout's tokens, or
    never comes; and a record in which stopped rollouts vote or their tokens are not counted. Answers here are a
    function of a rollout's length, so that what the model knows does not matter."""
    monkeypatch.setattr(bundled[0].generation_config, "eos_token_id", list(range(0, 1024, 8)))

    def read(text: str, finished: bool, question: str) -> str | None:
        return "34"[len(text) % 4 == 0] if finished else None

    monkeypatch.setattr(steps, "extract_answer", read)
    stopped = 0
    config = AvisConfig(num_rollouts=7, vote=vote, max_new_tokens=20, vote_stop="off")
    whole = answer(*bundled, chat(image_part()), config)
    assert len({rollout.tokens for rollout in whole.rollouts}) > 1, "want rollouts of several lengths"
    assert whole.stopped_rollouts == 0 and whole.new_tokens == sum(rollout.tokens for rollout in whole.rollouts)
    for size in (None, 1, 3):
        stopping = replace(config, vote_stop="decided", rollout_batch_size=size)
        some = answer(*bundled, chat(image_part()), stopping)
        assert vote_key(some.answer) == vote_key(whole.answer)
        assert some.new_tokens == sum(rollout.tokens for rollout in some.rollouts) <= whole.new_tokens
        assert some.stopped_rollouts == sum(rollout.stopped for rollout in some.rollouts)
        assert some.num_rollouts == len(some.rollouts) == 7
        votes = {vote_key(rollout.answer): 0.0 for rollout in some.rollouts if rollout.answer}
        for got, full in zip(some.rollouts, whole.rollouts, strict=True):
            if got.stopped:
                assert (got.answer, got.finished) == (None, False)
                assert full.text.startswith(got.text) and got.tokens <= full.tokens
                continue
            assert (got.text, got.answer, got.tokens) == (full.text, full.answer, full.tokens)
            if got.answer:
                votes[vote_key(got.answer)] += confidence_weight(got.mean_logprob) if vote == "confidence" else 1
        assert some.votes == pytest.approx(votes)
        stopped += some.stopped_rollouts
    assert stopped > 0


def test_configs_at_their_limits_are_taken(bundled):
    """Guards against: bounds that exclude what they name."""
    for fine in (
        {"enable_kdv": True, "kdv_ratio": 1.0, "num_rollouts": 2, "top_p": 1.0, "seed": 2**64 - 1},
        {"enable_kdv": True, "kdv_ratio": 0.0, "pruner": "random", "seed": 2**63 - 1},
        {"min_pixels": 784, "max_pixels": 784},
    ):
        result = answer(*bundled, chat(image_part()), AvisConfig(max_new_tokens=1, **fine))
        assert len(result.rollouts) == fine.get("num_rollouts", 1)
