"""The composition: from pictures, clips and a question to one record, on the bundled model.

No test here depends on how well that model answers.
"""

import base64
import copy
import hashlib
import io
import json
import os
import random
import shutil
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from PIL import Image, ImageDraw
from policies import write_policy
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import flops
from transformers.models.qwen2_5_vl.decoding import counter_uniform
from transformers.models.qwen2_5_vl.key_diversity import keep_count
from transformers.models.qwen2_5_vl.shared_prefill import Rollouts

from avis.answers import extract_answer, vote_key
from avis.config import AvisConfig
from avis.images import read_image
from avis.inputs import prepare_inputs, read_video
from avis.loading import load_model
from avis.outputs import AvisOutput
from avis.pipeline import answer
from avis.prompts import ANSWER_FORMATS, DIRECT, THINKING
from avis.voting import confidence_weight
from policy.policy_model import PolicyModel

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "models" / "garden-tiny"
PICTURE, CLIP = ROOT / "example.jpg", ROOT / "example.mp4"
QUESTION = "How many wooden rabbits are wearing glasses?"
# Near-uniform over about 400 tokens: two rollouts of 20 tokens agree by luck with odds far below 1e-9, whatever
# the weights.
WILD = {"num_rollouts": 3, "temperature": 50.0, "top_p": 1.0, "max_new_tokens": 20}


BOUNDS = (4 * 784, 640 * 784)  # the bundled processor's own
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(scope="module")
def bundled():
    """(model, processor): shared by the module, so leave them as they are."""
    return load_model(BUNDLED, device="cpu")


def image(source=PICTURE) -> dict:
    return {"type": "image", "image": source}


def video(source=CLIP) -> dict:
    return {"type": "video", "video": source}


def chat(*parts, question: str = QUESTION) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with something on it."""
    dice = random.Random(seed)
    picture = Image.new("RGB", (width, height), (120, 160, 90))
    for _ in range(12):
        x, y = dice.randrange(width), dice.randrange(height)
        ImageDraw.Draw(picture).ellipse([x, y, x + 30, y + 20], fill=tuple(dice.choices(range(256), k=3)))
    return picture


def timeless(result: AvisOutput) -> dict:
    record = result.to_dict()
    assert set(record.pop("seconds")) == {"vision", "prefill", "decode"}
    return record


def decoded(processor, messages: list[dict], settings: AvisConfig = AvisConfig()) -> str:
    return processor.tokenizer.decode(prepare_inputs(processor, messages, settings).input_ids[0])


def one_line(error) -> str:
    message = str(error.value)
    assert message and "\n" not in message, f"not one line: {message!r}"
    return message


# -------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("ratio", [None, 0.0, 0.5, 0.9, 1.0])
def test_kept_tokens_are_what_the_ratio_says(bundled, ratio):
    """Guards against: the fraction taken for the kept one; one ratio over all items together instead of each; a
    prompt length that forgets an item; a default other than 0.75."""
    settings = AvisConfig(enable_kdv=True, kdv_ratio=ratio, max_new_tokens=2)
    result = answer(*bundled, chat(image(), image(drawn(196, 140))), settings)
    rho = 0.75 if ratio is None else ratio
    assert [item.total for item in result.items] == [14 * 18, 7 * 5]
    assert [item.kept for item in result.items] == [keep_count(item.total, rho) for item in result.items]
    assert [item.rho for item in result.items] == [1 - item.kept / item.total for item in result.items]
    assert result.prompt_tokens - result.kept_tokens == sum(item.total - item.kept for item in result.items)


def test_nothing_is_pruned_unless_asked(bundled):
    """Guards against: pruning that is on by default."""
    result = answer(*bundled, chat(image()), AvisConfig(max_new_tokens=2))
    assert [(item.kept, item.rho) for item in result.items] == [(252, 0.0)]
    assert result.kept_tokens == result.prompt_tokens


def test_adaptive_pruning_grows_with_the_angle(bundled):
    """Guards against: an angle that is read in degrees, inverted, or taken for a ratio."""
    kept = []
    for tau in (0.01, 0.8, 1.4, 3.1):
        settings = AvisConfig(enable_kdv=True, kdv_threshold=tau, max_new_tokens=1)
        kept.append(answer(*bundled, chat(image()), settings).items[0].kept)
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 252 and kept[-1] == 1


def test_random_pruning_follows_seed_and_item(bundled):
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
        for pruner, seed, item in [
            *(("random", 1, 0), ("random", 1, 0), ("random", 2, 0), ("random", 1, 1)),
            *(("kdv", 1, 0), ("kdv", 2, 1)),
        ]:
            settings = AvisConfig(enable_kdv=True, kdv_ratio=0.5, pruner=pruner, seed=seed, max_new_tokens=1)
            answer(model, processor, chat(image()), settings, item)
    finally:
        del model.prefill
    first, again, other_seed, other_item, kdv, kdv_again = kept
    assert first == again  # 126 of 252 tokens: equal by luck with odds below 1e-70
    assert first != other_seed and first != other_item and other_seed != other_item
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
    parts = (image(drawn(140, 140)), image(drawn(280, 196)), video())
    totals = (25, 70, None)
    messages = chat(*(parts[i] for i in order))
    settings = AvisConfig(enable_kdv=True, kdv_ratio=0.6, num_frames=4, max_new_tokens=4)
    result = answer(*bundled, messages, settings)
    assert [item.kind for item in result.items] == ["image", "image", "video"]
    assert [item.total for item in result.items[:2]] == [totals[i] for i in order if i < 2]
    inputs = prepare_inputs(processor, messages, settings)
    assert result.items[2].total == int(inputs.video_grid_thw.prod()) // 4
    assert all(item.kept == keep_count(item.total, 0.6) for item in result.items)
    # What stands in the prompt, as runs of placeholders.
    config = bundled[0].config
    names = {config.image_token_id: "image", config.video_token_id: "video"}
    ids = inputs.input_ids[0].tolist()
    starts = [i for i, token in enumerate(ids) if token == config.vision_start_token_id]
    assert [names[ids[i + 1]] for i in starts] == [parts[i]["type"] for i in order]
    lengths = [ids.index(config.vision_end_token_id, i) - i - 1 for i in starts]
    assert lengths == [totals[i] or result.items[2].total for i in order]
    assert result.prompt_tokens == len(ids)


def test_vision_tower_runs_once_per_kind(bundled):
    """Guards against: a picture encoded anew for every rollout, or once for each item."""
    model, _ = bundled
    calls = []
    hook = model.visual.register_forward_hook(lambda *_: calls.append(1))
    try:
        settings = AvisConfig(enable_kdv=True, num_rollouts=5, max_new_tokens=3, num_frames=4)
        answer(*bundled, chat(image(), video(), image(drawn(140, 140))), settings)
    finally:
        hook.remove()
    assert len(calls) == 2


# ------------------------------------------------------------------------------------------------------- the record


def test_record_survives_json(bundled):
    """Guards against: tensors, paths or tuples in the record, which JSON refuses or gives back as something else."""
    settings = AvisConfig(enable_kdv=True, num_rollouts=3, max_new_tokens=40)
    record = answer(*bundled, chat(image()), settings, item=4).to_dict()
    assert json.loads(json.dumps(record)) == record
    expected = {"text", "answer", "votes", "rollouts", "num_rollouts", "items", "flops", "seconds", "cache_bytes"}
    expected |= {"p", "bin", "rho", "reused_tokens", "new_tokens", "stopped_rollouts", "policy_sha256"}
    assert expected | {"versions", "weights_sha256", "settings", "item"} <= set(record)
    assert record["rho"] == record["items"][0]["rho"] == 0.75 and (record["p"], record["bin"]) == (None, None)
    assert record["settings"] == {field.name: getattr(settings, field.name) for field in fields(settings)}
    assert record["item"] == 4


def test_record_names_what_was_run(bundled):
    """Guards against: a result that cannot be traced to its weights and versions."""
    result = answer(*bundled, chat(image()), AvisConfig(max_new_tokens=1))
    weights = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(BUNDLED.glob("*.safetensors"))))
    assert result.weights_sha256 == weights.hexdigest()
    assert {"torch", "transformers", "patch_set"} <= set(result.versions)
    assert result.versions["torch"] == torch.__version__
    assert result.backend == {"dtype": "float32", "device": "cpu", "attention": "sdpa"}
    assert {kind: list(bounds) for kind, bounds in result.pixel_bounds.items()} == {
        "image": [4 * 784, 640 * 784],
        "video": [4 * 784, 640 * 784],
    }
    bounded = AvisConfig(max_new_tokens=1, max_pixels=2 * 784)
    assert list(answer(*bundled, chat(image()), bounded).pixel_bounds["image"]) == [2 * 784, 2 * 784]


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
    result = answer(model, processor, chat(image()), AvisConfig(num_rollouts=5))
    assert [rollout.text for rollout in result.rollouts] == list(texts)
    assert [rollout.answer for rollout in result.rollouts] == ["2", "3", None, "three", None]
    assert [rollout.finished for rollout in result.rollouts] == [True, True, False, True, True]
    assert result.rollouts[4].tokens == len(processor.tokenizer(texts[4]).input_ids) + 1
    assert (result.votes, result.answer, result.text) == ({"2": 1, "3": 2}, "3", texts[1])
    assert (result.num_rollouts, result.cache_bytes) == (5, 1024)


def test_nobody_votes(bundled, monkeypatch):
    """Guards against: a guess, or a crash, when no rollout gives an answer."""
    model, processor = bundled
    writes(model, processor, monkeypatch, "<think>1 cat", "<think>2", cut=(0, 1))
    result = answer(model, processor, chat(image()), AvisConfig(num_rollouts=2))
    assert (result.answer, result.votes, result.text) == (None, {}, "<think>1 cat")


def test_a_thought_opened_by_the_template_counts(bundled, monkeypatch):
    """Guards against: templates of post-trained models that open the thought in the prompt: a rollout that never
    closes it would be taken for an answer."""
    model, processor = bundled
    monkeypatch.setattr(processor, "chat_template", processor.chat_template + "<think>\n")
    writes(model, processor, monkeypatch, "1 cat hat: 3", "1 cat hat: 2</think><answer>2</answer>")
    result = answer(model, processor, chat(image()), AvisConfig(num_rollouts=2))
    assert [rollout.answer for rollout in result.rollouts] == [None, "2"]
    assert result.rollouts[0].text == "1 cat hat: 3"


def test_answers_are_read_from_the_texts(bundled):
    """Guards against: answers of other rollouts than their texts, in a real run with texts of several lengths."""
    settings = AvisConfig(num_rollouts=7, temperature=1.5, top_p=1.0, max_new_tokens=30)
    result = answer(*bundled, chat(image()), settings)
    assert len(result.rollouts) == 7
    for rollout in result.rollouts:
        assert rollout.answer == extract_answer(rollout.text, finished=rollout.finished)
        assert 1 <= rollout.tokens <= 30 and (rollout.finished or rollout.stopped or rollout.tokens == 30)


@pytest.mark.parametrize("kdv", [{}, {"enable_kdv": True, "kdv_ratio": 0.75}], ids=["full", "kdv"])
def test_one_rollout_is_greedy_generate(bundled, kdv):
    """Guards against: an answer that is not the model's own: other inputs than the processor's, sampling at K = 1,
    or other end tokens than `generate` has."""
    model, processor = bundled
    settings = AvisConfig(max_new_tokens=25, temperature=3.0, seed=5, **kdv)
    result = answer(model, processor, chat(image(drawn(280, 280))), settings)
    inputs = prepare_inputs(processor, chat(image(drawn(280, 280))), settings)
    tokens = model.generate(**inputs, **kdv, max_new_tokens=25, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert result.text == processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert result.rollouts[0].tokens == len(tokens)


def test_same_seed_same_record(bundled):
    """Guards against: sampling that depends on the process's own generators or on what ran before."""
    settings = AvisConfig(enable_kdv=True, seed=3, **WILD)
    first = timeless(answer(*bundled, chat(image()), settings, item=2))
    torch.manual_seed(99)
    assert timeless(answer(*bundled, chat(image()), settings, item=2)) == first


def test_seed_and_item_matter(bundled):
    """Guards against: every question of a set sampled with the same random numbers."""
    texts = set()
    for seed, item in ((0, 0), (1, 0), (0, 1)):
        result = answer(*bundled, chat(image()), AvisConfig(seed=seed, **WILD), item=item)
        texts.add(tuple(rollout.text for rollout in result.rollouts))
        assert len(set(rollout.text for rollout in result.rollouts)) == 3
    assert len(texts) == 3


def test_temperature_and_top_p_reach_the_sampling(bundled):
    """Guards against: sampling settings that are parsed and then forgotten."""

    def texts(**settings) -> set[str]:
        result = answer(*bundled, chat(image()), AvisConfig(num_rollouts=4, max_new_tokens=15, **settings))
        return {rollout.text for rollout in result.rollouts}

    greedy = answer(*bundled, chat(image()), AvisConfig(max_new_tokens=15)).text
    assert texts(temperature=100.0, top_p=1e-6) == {greedy}
    assert len(texts(temperature=100.0, top_p=1.0)) == 4
    assert texts(temperature=0.01, top_p=1.0) != texts(temperature=100.0, top_p=1.0)


def test_queries_leave_no_trace(bundled):
    """Guards against: state that one query leaves to the next, in the environment or on the model (a rope delta of
    another prompt, say)."""
    model, processor = bundled
    settings = AvisConfig(enable_kdv=True, num_frames=4, seed=1, **WILD)
    before, names = dict(os.environ), set(vars(model)) | set(vars(model.model))
    weights = [parameter.clone() for parameter in model.parameters()]
    generation = model.generation_config.to_dict()
    first = timeless(answer(model, processor, chat(image()), settings))
    answer(model, processor, chat(video(), image(drawn(140, 140))), replace(settings, kdv_ratio=0.2))
    answer(model, processor, chat(question="How many cats are there?"), AvisConfig(max_new_tokens=3))
    model.model.rope_deltas = torch.tensor([[-1000]])
    assert timeless(answer(model, processor, chat(image()), settings)) == first
    assert dict(os.environ) == before and model.generation_config.to_dict() == generation
    assert set(vars(model)) | set(vars(model.model)) == names
    assert all(map(torch.equal, weights, model.parameters()))
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------ votes and stops


def test_votes_by_confidence_weigh(bundled, monkeypatch):
    """Guards against: a vote by confidence that counts heads, weighs by another rollout's tokens, or is reported as
    heads; and a stop that thinks of heads. Weights here: 1, exp(-1), exp(-2)."""
    model, processor = bundled
    writes(model, processor, monkeypatch, "<answer>2</answer>", "<answer>3</answer>", "<answer>3</answer>")
    assert answer(model, processor, chat(image()), AvisConfig(num_rollouts=3)).answer == "3"
    result = answer(model, processor, chat(image()), AvisConfig(num_rollouts=3, vote="confidence"))
    assert result.answer == "2"
    assert result.votes == pytest.approx({"2": 1.0, "3": np.exp(-1) + np.exp(-2)})
    assert [rollout.mean_logprob for rollout in result.rollouts] == [0.0, -1.0, -2.0]


@pytest.mark.parametrize("vote", ["majority", "confidence"])
def test_stops_and_waves_keep_the_winner(bundled, monkeypatch, vote):
    """Guards against: a stop that changes an answer, counts half-written rollouts, reads another rollout's tokens, or
    never comes; and a record in which stopped rollouts vote or their tokens are not counted. Answers here are a
    function of a rollout's length, so that what the model knows does not matter."""
    monkeypatch.setattr(bundled[0].generation_config, "eos_token_id", list(range(0, 1024, 8)))
    read = lambda text, finished: "34"[len(text) % 4 == 0] if finished else None  # noqa: E731
    monkeypatch.setattr(sys.modules["policy.answer"], "extract_answer", read)
    stopped = 0
    settings = AvisConfig(num_rollouts=7, vote=vote, max_new_tokens=20, vote_stop="off")
    whole = answer(*bundled, chat(image()), settings)
    assert len({rollout.tokens for rollout in whole.rollouts}) > 1, "want rollouts of several lengths"
    assert whole.stopped_rollouts == 0 and whole.new_tokens == sum(rollout.tokens for rollout in whole.rollouts)
    for rollout_batch_size in (None, 1, 3):
        some = answer(
            *bundled, chat(image()), replace(settings, vote_stop="decided", rollout_batch_size=rollout_batch_size)
        )
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


# ------------------------------------------------------------------------------------------------------- the policy


def embeddings(bundled, messages, settings=AvisConfig(), **kdv):
    """What a policy is shown: the items' embeddings, and the last hidden state."""
    prefill = bundled[0].prefill(**prepare_inputs(bundled[1], messages, settings), **kdv)
    return [visual.embeds for visual in prefill.visual_items], prefill.last_hidden_state


@pytest.mark.parametrize("default", ["visual", "question"])
def test_the_policy_chooses_k_and_the_angle(bundled, tmp_path, default):
    """Guards against: pruned embeddings or another prompt's hidden state shown to the policy, one image of several left
    out, K of the settings, and another angle than the one that it was fitted under."""
    policy = PolicyModel(write_policy(tmp_path / "p.pt", (3, 5), (1e-9,), default))
    messages = chat(image(drawn(280, 196)), image())
    settings = AvisConfig(enable_kdv=True, num_rollouts=2, max_new_tokens=4)
    result = answer(*bundled, messages, settings, policy=policy)
    expected = policy.predict(*embeddings(bundled, messages, enable_kdv=True, kdv_threshold=policy.tau))
    assert (result.p, result.bin, result.num_rollouts) == (expected.p, 1, 5) and len(result.rollouts) == 5
    assert result.policy_sha256 == hashlib.sha256((tmp_path / "p.pt").read_bytes()).hexdigest()
    threshold = replace(settings, kdv_threshold=policy.tau)
    assert result.items == answer(*bundled, messages, threshold).items
    assert result.items != answer(*bundled, messages, settings).items  # not the ratio of 0.75
    assert set(result.seconds) == {"vision", "prefill", "policy", "decode"}
    assert result.settings == settings
    for fixed in ({"kdv_ratio": 0.5}, {"kdv_threshold": 0.9}):
        own = answer(*bundled, messages, replace(settings, **fixed), policy=policy)
        assert own.items == answer(*bundled, messages, replace(settings, **fixed)).items
        assert own.num_rollouts == 5
    whole = answer(*bundled, messages, AvisConfig(max_new_tokens=4), policy=policy)
    assert [item.rho for item in whole.items] == [0.0, 0.0] and whole.num_rollouts == 5


def test_one_rollout_of_the_policy_is_greedy(bundled, tmp_path):
    """Guards against: K = 1 sampled once, at whatever temperature."""
    policy = PolicyModel(write_policy(tmp_path / "p.pt", (1,)))
    wild = AvisConfig(num_rollouts=7, temperature=50.0, max_new_tokens=10)
    greedy = answer(*bundled, chat(image()), AvisConfig(max_new_tokens=10))
    assert answer(*bundled, chat(image()), wild, policy=policy).text == greedy.text


def test_policies_of_other_backbones(bundled, tmp_path):
    """Guards against: a policy of another width that fails deep inside, one of other weights taken in silence, and a
    warning where it fits."""
    wide = PolicyModel(write_policy(tmp_path / "wide.pt", width=10))
    with pytest.raises(ValueError, match="width 10"):
        answer(*bundled, chat(image()), AvisConfig(max_new_tokens=1), policy=wide)
    other = PolicyModel(write_policy(tmp_path / "other.pt", fingerprint="a" * 64))
    with pytest.warns(UserWarning, match="other weights"):
        answer(*bundled, chat(image()), AvisConfig(max_new_tokens=1), policy=other)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        own = PolicyModel(write_policy(tmp_path / "own.pt"))
        answer(*bundled, chat(image()), AvisConfig(max_new_tokens=1), policy=own)
    with pytest.raises(ValueError, match="there are none") as error:
        answer(*bundled, [{"role": "user", "content": QUESTION}], AvisConfig(max_new_tokens=1), policy=own)
    one_line(error)


# ------------------------------------------------------------------------------------------------------------ FLOPs


@pytest.mark.parametrize("early", [{}, {"early_stop": True, "rollout_batch_size": 3}], ids=["all", "stopped"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_flops_equal_the_counter(attention, early, monkeypatch):
    """Guards against: a record that prices other grids, lengths or rollouts than those that ran. All that torch
    counts between question and record, rollouts of several lengths and three items included; stopped rollouts as far
    as they ran."""
    if attention == "sdpa" and torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry:
        pytest.skip("this torch's counter has no formula for the SDPA kernel of the CPU")
    model, processor = load_model(BUNDLED, device="cpu", attn_implementation=attention)
    ends = model.generation_config.eos_token_id
    # With many tokens that end a rollout, wild rollouts end at different lengths.
    model.generation_config.eos_token_id = [*ends, *range(0, 400, 8)]
    messages = chat(video(), image(), image(drawn(196, 140)))
    settings = AvisConfig(
        enable_kdv=True, kdv_ratio=0.6, num_frames=4, **WILD | {"num_rollouts": 5, "early_stop": False} | early
    )
    monkeypatch.setattr(sys.modules["policy.answer"], "is_decided", lambda forms, *_: len(forms) >= 2)
    with FlopCounterMode(display=False) as counter:
        result = answer(model, processor, messages, settings)
    assert len({rollout.tokens for rollout in result.rollouts}) > 1, "want rollouts of several lengths"
    assert bool(early) == any(rollout.stopped for rollout in result.rollouts)
    spent = sum(result.flops[stage] for stage in ("vision", "prefill", "decode"))
    assert spent == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_flops_relative_to_vanilla(bundled):
    """Guards against: vanilla itself not at 1, or the two accountings swapped: the tower is not pruned, so the total
    falls less than the language model's share."""
    vanilla = answer(*bundled, chat(image()), AvisConfig(max_new_tokens=8)).flops
    assert vanilla["relative_llm"] == vanilla["relative_total"] == 1.0
    pruned = answer(*bundled, chat(image()), AvisConfig(enable_kdv=True, max_new_tokens=8)).flops
    assert pruned["vision"] == vanilla["vision"] and pruned["prefill"] < vanilla["prefill"]
    assert pruned["relative_llm"] < pruned["relative_total"] < 1


def test_vanilla_is_as_long_as_rollouts_that_were_not_stopped(bundled, monkeypatch):
    """Guards against: vanilla priced with the lengths of rollouts that were broken off, or never begun."""
    model, processor = bundled
    monkeypatch.setattr(sys.modules["policy.answer"], "is_decided", lambda *_: True)
    settings = AvisConfig(num_rollouts=3, rollout_batch_size=1, max_new_tokens=7, temperature=9.0)
    result = answer(model, processor, chat(image(drawn(140, 140))), settings)
    assert [(rollout.tokens, rollout.stopped) for rollout in result.rollouts] == [(7, False), (0, True), (0, True)]
    alone = flops.cost(model.config, [(1, 10, 10)], result.prompt_tokens, result.prompt_tokens, [7])
    assert result.flops["decode"] == alone.decode > 0
    assert result.flops["relative_llm"] == result.flops["relative_total"] == 1.0


def test_cache_bytes_of_one_rollout(bundled):
    """Guards against: the unpruned prompt's size, the prefill's own cache counted in, or values without keys."""
    model, _ = bundled
    text = model.config.text_config
    result = answer(*bundled, chat(image()), AvisConfig(enable_kdv=True, max_new_tokens=6))
    held = result.kept_tokens + result.rollouts[0].tokens - 1
    width = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    assert result.cache_bytes == 2 * text.num_hidden_layers * width * held * 4


# ------------------------------------------------------------------------------------------------------- the prompt


def test_prompt_forms(bundled):
    """Guards against: the instruction missing, given twice, or before the question; a question that is answered under
    other words than it stands under in a follow-up's chat; a system prompt beside the default one; string content that
    loses its pictures' place."""
    _, processor = bundled
    see = "<|vision_start|>" + "<|image_pad|>" * 25 + "<|vision_end|>"
    head, tail = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    usual = head.format("You are a helpful assistant.")
    parts = [image(drawn(140, 140))]
    assert decoded(processor, chat(*parts)) == f"{usual}{see}{QUESTION}\n{THINKING}{tail}"
    direct = AvisConfig(enable_thinking=False)
    assert decoded(processor, chat(*parts), direct) == f"{usual}{see}{QUESTION}\n{DIRECT}{tail}"
    system = [{"role": "system", "content": "Be brief."}]
    assert decoded(processor, system + chat(*parts)) == f"{head.format('Be brief.')}{see}{QUESTION}\n{THINKING}{tail}"
    plain = [{"role": "user", "content": "How many?"}]
    assert decoded(processor, plain) == f"{usual}How many?\n{THINKING}{tail}"
    turns = [*chat(*parts), {"role": "assistant", "content": "2"}, {"role": "user", "content": "And cats?"}]
    expected = f"{usual}{see}{QUESTION}\n{THINKING}<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    assert decoded(processor, turns) == f"{expected}<|im_start|>user\nAnd cats?\n{THINKING}{tail}"
    assert decoded(processor, chat({"type": "text", "text": "First."}, *parts)).count(THINKING) == 1


def test_answers_are_asked_for_in_the_models_own_form(bundled, monkeypatch):
    """Guards against: a post-trained model that is asked for another form of answer than it was trained to give, a name
    that does not win over the model's, and a system prompt put before the user's own."""
    _, processor = bundled
    question = [{"role": "user", "content": "How many?"}]
    known = {profile.name: profile for profile in ANSWER_FORMATS}
    boxed, own = known["vl-rethinker"], known["openvlthinker"]
    assert f"How many?\n{boxed.thinking}<" in decoded(processor, question, AvisConfig(answer_format="vl-rethinker"))
    direct = AvisConfig(answer_format="vl-rethinker", enable_thinking=False)
    assert f"How many?\n{boxed.direct}<" in decoded(processor, question, direct)
    said = decoded(processor, question, AvisConfig(answer_format="openvlthinker"))
    assert said.startswith(f"<|im_start|>system\n{own.system}<") and said.count("system\n") == 1
    system = [{"role": "system", "content": "Be brief."}]
    assert own.system not in decoded(processor, system + question, AvisConfig(answer_format="openvlthinker"))
    monkeypatch.setattr(processor.tokenizer, "name_or_path", "TIGER-Lab/VL-Rethinker-7B")
    assert boxed.thinking in decoded(processor, question)
    assert THINKING in decoded(processor, question, AvisConfig(answer_format="avis"))


def test_text_alone_is_answered(bundled):
    """Guards against: a query without pictures that fails, or reports items it has not."""
    result = answer(*bundled, [{"role": "user", "content": QUESTION}], AvisConfig(enable_kdv=True, max_new_tokens=4))
    assert result.items == () and result.flops["vision"] == 0 and result.kept_tokens == result.prompt_tokens


def test_messages_are_left_alone(bundled):
    """Guards against: the instruction written into the caller's own messages, so that asking twice adds it twice."""
    _, processor = bundled
    picture = drawn(140, 140)
    messages = [{"role": "system", "content": "Be brief."}, *chat(image(picture), image(), video())]
    before, pixels = copy.deepcopy(messages[1]["content"][1:]), picture.tobytes()
    prepare_inputs(processor, messages, AvisConfig(num_frames=2))
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert messages[1]["content"][1:] == before
    assert messages[1]["content"][0]["image"] is picture and picture.tobytes() == pixels


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "system", "content": "Be brief."}],
        [{"role": "user", "content": [{"type": "image", "image": PICTURE}]}],
    ],
    ids=["nothing", "no question", "no text"],
)
def test_chats_without_a_question_are_refused(bundled, messages):
    """Guards against: an IndexError from deep inside for a chat in which nothing is asked."""
    with pytest.raises(ValueError) as error:
        answer(*bundled, messages, AvisConfig(max_new_tokens=1))
    one_line(error)


@pytest.mark.parametrize("word", ["<|image_pad|>", "<|video_pad|>", "<|placeholder|>"])
@pytest.mark.parametrize("parts", [(), (image(),), (video(),)], ids=["text", "image", "video"])
def test_placeholders_in_a_question_are_refused(bundled, word, parts):
    """Guards against: a question that names a placeholder token and takes an item's place: the picture's tokens
    would land in the sentence, or the processor runs out of items."""
    with pytest.raises(ValueError) as error:
        answer(*bundled, chat(*parts, question=f"What is {word}?"), AvisConfig(max_new_tokens=1, num_frames=2))
    one_line(error)


# ---------------------------------------------------------------------------------------------- pictures and clips


def test_pixel_bounds_change_the_tokens(bundled):
    """Guards against: bounds that are parsed and not applied, or one bound that contradicts the processor's other."""
    _, processor = bundled

    def total(picture=None, **bounds) -> int:
        inputs = prepare_inputs(processor, chat(image(picture or PICTURE)), AvisConfig(**bounds))
        return int(inputs.image_grid_thw.prod()) // 4

    assert total() == 252
    assert total(max_pixels=100 * 784) <= 100
    assert total(min_pixels=400 * 784) >= 400
    assert total(min_pixels=900 * 784) >= 900  # above the processor's own upper bound
    assert total(max_pixels=784) == 1  # below its lower one
    assert 90 <= total(min_pixels=90 * 784, max_pixels=110 * 784) <= 110
    assert total(drawn(2000, 1500)) <= 640  # the processor's own bounds
    assert total(drawn(3, 2)) >= 4


def test_clips_are_sampled_as_asked(bundled):
    """Guards against: `fps` and `num_frames` that change nothing, and seconds per step that do not follow the frames
    taken (time positions would then be another clip's)."""
    _, processor = bundled  # the clip: 7 seconds, 12 frames each

    def sampled(**settings) -> tuple[int, float]:
        inputs = prepare_inputs(processor, chat(video()), AvisConfig(**settings))
        (grid,), (seconds,) = inputs.video_grid_thw.tolist(), inputs.second_per_grid_ts
        return grid[0], float(seconds)

    assert sampled() == (7, 1.0)  # Qwen's own: 2 frames a second
    assert sampled(fps=1.0) == (3, pytest.approx(7 / 3))  # of seven frames, an even number
    assert sampled(fps=6.0) == (21, pytest.approx(1 / 3))
    assert sampled(num_frames=4) == (2, 3.5)
    assert sampled(num_frames=12) == (6, pytest.approx(7 / 6))


def test_frames_keep_to_the_pixel_bounds(bundled):
    """Guards against: one bound alone refused because it contradicts a default of the video reader, and frames within
    the processor's own bounds (as `AvisConfig` says they count when none is given) resized all the same."""
    _, processor = bundled  # the clip's frames: 9 x 8 tokens

    def frame_tokens(**bounds) -> int:
        inputs = prepare_inputs(processor, chat(video()), AvisConfig(num_frames=2, **bounds))
        return int(inputs.video_grid_thw[0, 1:].prod()) // 4

    assert frame_tokens(min_pixels=60 * 784, max_pixels=100 * 784) == 72
    assert frame_tokens(min_pixels=300 * 784) >= 300
    assert frame_tokens(min_pixels=700 * 784) >= 700  # above the processor's own upper bound
    assert frame_tokens(max_pixels=50 * 784) <= 50
    assert frame_tokens() == 72


def test_two_clips_keep_their_own_rates(bundled, tmp_path):
    """Guards against: one clip's rate used for all."""
    _, processor = bundled
    write_clip(tmp_path / "short.mp4", count=8, rate=8)
    messages = chat(video(), video(tmp_path / "short.mp4"))
    inputs = prepare_inputs(processor, messages, AvisConfig(num_frames=4))
    assert inputs.video_grid_thw[:, 0].tolist() == [2, 2]
    assert [float(seconds) for seconds in inputs.second_per_grid_ts] == [3.5, 0.5]


def saved(tmp_path: Path, picture: Image.Image, name: str, **options) -> Path:
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def test_exif_orientation_is_followed(tmp_path):
    """Guards against: telephone pictures seen lying on their side."""
    picture = Image.new("RGB", (64, 32), (0, 0, 200))
    picture.paste((220, 0, 0), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = read_image(saved(tmp_path, picture, "turned.jpg", exif=exif, quality=95))
    assert turned.size == (32, 64)
    top, bottom = turned.getpixel((16, 8)), turned.getpixel((16, 56))
    assert top[0] > 180 and bottom[2] > 160, (top, bottom)


def test_other_colour_modes_are_read(tmp_path):
    """Guards against: palette indices or inks taken for colours, and greys that come out inverted."""
    colour = (200, 120, 40)
    solid = Image.new("RGB", (32, 32), colour)
    files = {"c.tiff": solid.convert("CMYK"), "y.tiff": solid.convert("YCbCr"), "p.png": solid.quantize()}
    files["r.bmp"] = solid
    assert {picture.mode for picture in files.values()} == {"CMYK", "YCbCr", "P", "RGB"}
    for name, picture in files.items():
        got = read_image(saved(tmp_path, picture, name))
        assert got.mode == "RGB"
        assert np.abs(np.array(got.getpixel((5, 5))) - colour).max() <= 4, name
    assert read_image(saved(tmp_path, Image.new("L", (8, 8), 77), "l.png")).getpixel((0, 0)) == (77, 77, 77)
    assert read_image(saved(tmp_path, Image.new("1", (8, 8), 1), "1.png")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff"])
def test_sixteen_bit_greys_are_scaled(tmp_path, name):
    """Guards against: sixteen-bit pictures (scans, depth maps) clipped to white above 1/256 of their range."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = saved(tmp_path, Image.fromarray(ramp), name)
    got = np.asarray(read_image(path)).astype(int)
    assert (got[..., 0] == got[..., 1]).all() and (got[..., 0] == got[..., 2]).all()
    assert np.abs(got[..., 0] - ramp.astype(int) / 257).max() <= 1.5


def test_transparency_is_laid_on_white(tmp_path):
    """Guards against: the hidden colours under transparent pixels, or black where a page would be white."""
    glass = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    glass.paste((0, 0, 255, 255), (0, 0, 8, 16))
    glass.putpixel((15, 15), (0, 0, 0, 128))
    got = read_image(saved(tmp_path, glass, "glass.png"))
    assert (got.getpixel((2, 2)), got.getpixel((12, 2))) == ((0, 0, 255), (255, 255, 255))
    assert all(abs(value - 127) <= 1 for value in got.getpixel((15, 15)))
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(1, (0, 0, 8, 16))
    got = read_image(saved(tmp_path, palette, "palette.png", transparency=0))
    assert (got.getpixel((2, 2)), got.getpixel((12, 2))) == ((0, 255, 0), (255, 255, 255))
    assert read_image(Image.new("LA", (4, 4), (9, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_pictures_in_memory_are_read(bundled):
    """Guards against: a picture in memory treated otherwise than its file, opened lazily or not."""
    _, processor = bundled
    pictures = (PICTURE, str(PICTURE), Image.open(PICTURE), read_image(PICTURE))
    inputs = [prepare_inputs(processor, chat(image(picture)), AvisConfig()) for picture in pictures]
    assert all(torch.equal(other.pixel_values, inputs[0].pixel_values) for other in inputs[1:])


def data_uri(picture: Image.Image, kind: str = "png") -> str:
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def test_arrays_and_data_uris_are_pictures():
    """Guards against: channels or axes swapped, floats that are cut to 0 and 1, alpha taken for a colour, and a data
    URI that is read otherwise than its file."""
    picture = drawn(30, 20)
    array = np.asarray(picture)
    for source in (array, array / 255, (array / 255).astype(np.float32), data_uri(picture)):
        got = read_image(source)
        assert (got.mode, got.size, got.tobytes()) == ("RGB", (30, 20), picture.tobytes())
    assert read_image(array[::-1]).tobytes() == picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes()
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert [read_image(grey).getpixel((x, 2)) for x in range(4)] == [(8 + x,) * 3 for x in range(4)]
    glass = np.zeros((2, 2, 4), np.uint8)
    glass[0] = (9, 99, 199, 255)
    assert [read_image(glass).getpixel((0, y)) for y in (0, 1)] == [(9, 99, 199), (255, 255, 255)]
    assert read_image(data_uri(picture, "gif")).size == (30, 20)


WRONG_PICTURES = {
    "one axis": np.zeros(9, np.uint8),
    "two channels": np.zeros((4, 4, 2), np.uint8),
    "channels first": np.zeros((3, 8, 8), np.uint8),
    "a batch": np.zeros((1, 8, 8, 3), np.uint8),
    "no pixels": np.zeros((0, 4, 3), np.uint8),
    "whole numbers": np.zeros((4, 4, 3), np.int64),
    "truth values": np.zeros((4, 4), bool),
    "floats to 255": np.full((4, 4, 3), 255.0),
    "negative floats": np.full((4, 4, 3), -0.1),
    "not a number": np.full((4, 4), np.nan),
    "a number": 3,
    "nothing": None,
    "text as data": "data:text/plain;base64,QUJD",
    "not base64": "data:image/png;base64,@@@@",
    "not ASCII": "data:image/png;base64,\u00e4\u00e4",
    "no picture": "data:image/png;base64,QUJD",
    "SVG": "data:image/svg+xml;base64,PHN2Zy8+",
    "no data": "data:image/png;base64,",
    "a path of data": Path(data_uri(Image.new("RGB", (2, 2)))),
}


@pytest.mark.parametrize("name", WRONG_PICTURES)
def test_wrong_pictures_in_memory_are_refused(name):
    """Guards against: a traceback, a picture of noise, or the whole data URI on the screen."""
    with pytest.raises(ValueError) as error:
        read_image(WRONG_PICTURES[name])
    assert len(one_line(error)) < 400


def test_lists_of_frames_are_videos(bundled, tmp_path):
    """Guards against: frames in another order or at another rate than given, one lost where their number is odd, and
    settings for files that do not hold for lists."""
    _, processor = bundled
    pictures = [drawn(140, 140, seed) for seed in range(5)]
    pictures[1].save(tmp_path / "1.png")
    mixed = [pictures[0], tmp_path / "1.png", np.asarray(pictures[2]), data_uri(pictures[3]), pictures[4]]
    shown, rate = read_video(mixed, BOUNDS)
    assert rate == 2.0 and shown.shape == (6, 3, 140, 140)
    for frame, picture in zip(shown, [*pictures, pictures[4]], strict=True):
        assert np.array_equal(frame.permute(1, 2, 0), np.asarray(picture))
    assert read_video(pictures[:1], BOUNDS)[0].shape[0] == 2
    assert read_video(pictures * 20, BOUNDS, num_frames=4, rate=25)[1] == 1.0
    few, rate = read_video(pictures * 20, BOUNDS, rate=25)  # four seconds
    assert (len(few), rate) == (8, 2.0) and np.array_equal(few[0].permute(1, 2, 0), np.asarray(pictures[0]))
    part = {"type": "video", "video": pictures * 20, "fps": 25}
    inputs = prepare_inputs(processor, chat(part), AvisConfig())
    assert (inputs.video_grid_thw[0, 0], float(inputs.second_per_grid_ts[0])) == (4, 1.0)
    result = answer(*bundled, chat({"type": "video", "video": pictures}), AvisConfig(max_new_tokens=1))
    assert [(item.kind, item.total) for item in result.items] == [("video", 3 * 25)]


@pytest.mark.parametrize(
    ("source", "rate"),
    [
        ([], None),
        ([Image.new("RGB", (30, 20)), Image.new("RGB", (20, 30))], None),
        ([Image.new("RGB", (30, 20)), 3], None),
        *(([Image.new("RGB", (30, 20))] * 2, rate) for rate in (0, -1.0, NAN, INFINITY, "2", True)),
        (CLIP, 2.0),
        (3, None),
        (np.zeros((4, 8, 8, 3), np.uint8), None),
        ([CLIP], None),
        (["http://localhost/a.png"], None),
    ],
    ids=str,
)
def test_wrong_lists_of_frames_are_refused(source, rate):
    """Guards against: a traceback for frames of several sizes or none, and a rate that is ignored."""
    with pytest.raises(ValueError) as error:
        read_video(source, BOUNDS, rate=rate)
    one_line(error)


@pytest.fixture
def unreadable(tmp_path) -> dict[str, Path]:
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.jpg").write_bytes(PICTURE.read_bytes()[:20_000])
    (tmp_path / "cut.mp4").write_bytes(CLIP.read_bytes()[:20_000])
    (tmp_path / "text.mp4").write_text("not a video")
    named = {name: tmp_path / name for name in ("text.jpg", "empty.jpg", "cut.jpg", "cut.mp4", "text.mp4", "none.png")}
    return named | {"folder": tmp_path}


@pytest.mark.parametrize("name", ["text.jpg", "empty.jpg", "cut.jpg", "none.png", "folder"])
def test_unreadable_pictures_are_named(unreadable, name):
    """Guards against: tracebacks, half a picture read as a whole one, and messages that do not say which file."""
    with pytest.raises(ValueError) as error:
        read_image(unreadable[name])
    assert str(unreadable[name]) in one_line(error)


@pytest.mark.parametrize("name", ["text.mp4", "cut.mp4", "text.jpg", "none.png", "folder"])
def test_unreadable_videos_are_named(unreadable, name):
    """Guards against: as above; and the error of a fall-back reader that is not even installed in place of the
    error of the one that read."""
    with pytest.raises(ValueError) as error:
        read_video(unreadable[name], BOUNDS)
    message = one_line(error)
    assert str(unreadable[name]) in message and "no attribute" not in message


def test_more_frames_than_there_are_is_told(bundled):
    """Guards against: the reason (the clip has 84 frames) hidden behind a fall-back reader's own error."""
    with pytest.raises(ValueError, match="84"):
        read_video(CLIP, BOUNDS, num_frames=1000)


@pytest.mark.parametrize("url", ["http://localhost/a.jpg", "https://localhost/a.mp4", "file:///a.jpg", "s3://a/b.jpg"])
def test_urls_are_refused(url):
    """Guards against: a prompt that makes this machine fetch something."""
    for read in (read_image, lambda source: read_video(source, BOUNDS)):
        with pytest.raises(ValueError, match="URL"):
            read(url)


def test_slim_pictures_are_answered(bundled):
    """Guards against: a traceback or a refusal for a picture that is slimmer than the processor takes."""
    result = answer(*bundled, chat(image(Image.new("RGB", (2000, 2)))), AvisConfig(max_new_tokens=1))
    assert result.items[0].total >= 4


# --------------------------------------------------------------------------------------------------------- settings

WRONG = [
    {"early_stop": 1},
    {"vote": "plurality"},
    {"vote": None},
    {"profile": "r1"},
    {"profile": 1},
    *[{"rollout_batch_size": value} for value in (0, -1, 2.0, 10**9)],
    {"kdv_ratio": 0.5},
    {"kdv_threshold": 0.5},
    {"pruner": "random"},
    {"enable_kdv": True, "kdv_ratio": 0.5, "kdv_threshold": 0.5},
    {"enable_kdv": True, "pruner": "nothing"},
    {"num_rollouts": 2.5},
    {"num_rollouts": True},
    {"seed": "1"},
    {"temperature": None},
    {"enable_kdv": 1},
    *[{"enable_kdv": True, "kdv_ratio": value} for value in (-0.01, 1.01, NAN, INFINITY)],
    *[{"enable_kdv": True, "kdv_threshold": value} for value in (0.0, -1.0, 3.2, NAN)],
    *[{"num_rollouts": value} for value in (0, -1)],
    *[{"max_new_tokens": value} for value in (0, -1)],
    *[{"temperature": value} for value in (0.0, 1e-9, -1.0, 1e9, NAN, INFINITY)],
    *[{"top_p": value} for value in (0.0, -0.1, 1.1, NAN)],
    *[{"seed": value} for value in (-1, 2**64)],
    *[{name: value} for name in ("min_pixels", "max_pixels") for value in (783, 0, -1)],
    {"min_pixels": 2000, "max_pixels": 1000},
    {"fps": 1.0, "num_frames": 4},
    *[{"fps": value} for value in (0.0, -1.0, NAN, INFINITY)],
    *[{"num_frames": value} for value in (1, 0, -2)],
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_settings_out_of_range_are_refused(wrong):
    """Guards against: an impossible setting that fails deep inside after a model was loaded, or quietly does
    something else."""
    with pytest.raises(ValueError) as error:
        AvisConfig(**wrong)
    one_line(error)


def test_settings_at_their_limits_are_taken(bundled):
    """Guards against: bounds that exclude what they name."""
    for fine in (
        {"enable_kdv": True, "kdv_ratio": 1.0, "num_rollouts": 2, "top_p": 1.0, "seed": 2**64 - 1},
        {"enable_kdv": True, "kdv_ratio": 0.0, "pruner": "random", "seed": 2**63 - 1},
        {"min_pixels": 784, "max_pixels": 784},
    ):
        result = answer(*bundled, chat(image()), AvisConfig(max_new_tokens=1, **fine))
        assert len(result.rollouts) == fine.get("num_rollouts", 1)


def test_large_seeds_are_seeds_of_their_own():
    """Guards against: seeds that pass through a float on their way to the generator, where 2**63 and 2**63 + 1 are
    one, and 2**64 - 1 is 0."""
    seeds = [0, 2**53, 2**53 + 1, 2**63, 2**63 + 1, 2**64 - 1]
    assert len({counter_uniform(AvisConfig(seed=seed).seed, 0, 0, 0) for seed in seeds}) == len(seeds)


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_load_gives_a_model_ready_to_answer(attention):
    """Guards against: dropout left on, half precision on the CPU, or an attention other than the one asked for."""
    model, _ = load_model(BUNDLED, device="cpu", attn_implementation=attention)
    assert not model.training and model.dtype == torch.float32
    assert model.config._attn_implementation == {"auto": "sdpa"}.get(attention, attention)
    assert load_model(str(BUNDLED), device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("fits", [True, False])
def test_auto_spreads_a_model_over_all_gpus(monkeypatch, fits):
    """Guards against: a model larger than one GPU that is put on the first, or one larger than all of them that is
    quietly run from the disk. There is no GPU here: where the layers would go is made up."""
    assert load_model(BUNDLED, device="auto")[0].device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    original, asked = Qwen2_5_VLForConditionalGeneration.from_pretrained, []

    def from_pretrained(path, device_map=None, **kwargs):
        asked.append(device_map)
        model, loading = original(path, **kwargs)
        model.hf_device_map = {"model.visual": 0, "model.language_model": 1, "lm_head": 1 if fits else "disk"}
        return model, loading

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "from_pretrained", from_pretrained)
    if fits:
        load_model(BUNDLED, device="auto")
    else:
        with pytest.raises(MemoryError, match="smaller model"):
            load_model(BUNDLED, device="auto")
    assert asked == ["auto"]


@pytest.fixture
def copied(tmp_path) -> Path:
    """A copy of the bundled folder that a test may spoil."""
    return Path(shutil.copytree(BUNDLED, tmp_path / "model"))


def test_incomplete_checkpoints_are_refused(copied):
    """Guards against: weights that are missing and drawn at random instead, with nothing but a warning."""
    path = copied / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, path, {"format": "pt"})
    with pytest.raises(ValueError) as error:
        load_model(copied, device="cpu")
    assert "lm_head" in one_line(error)


def test_damaged_checkpoints_are_refused(copied):
    """Guards against: the weight library's own kind of error, which no caller expects, for a file cut short."""
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises((ValueError, OSError)) as error:
        load_model(copied, device="cpu")
    one_line(error)


def test_other_models_are_refused(copied):
    """Guards against: another architecture's weights forced into this one."""
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_vl"}))
    with pytest.raises(ValueError) as error:
        load_model(copied, device="cpu")
    assert "qwen2_vl" in one_line(error)


@pytest.mark.parametrize("wrong", [{"device": "nowhere"}, {"device": "cpu", "attn_implementation": "nothing"}], ids=str)
def test_what_is_not_there_is_told(wrong):
    """Guards against: a library's many lines about a device or a kernel that is not there."""
    with pytest.raises(ValueError) as error:
        load_model(BUNDLED, **wrong)
    one_line(error)
