"""Follow-up questions: a turn is added to a prompt that was read, with the results of reading the whole anew."""

import gc
import weakref
from dataclasses import replace

import pytest
import tiny
import torch
from clips import write_clip
from PIL import Image
from policies import write_policy
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers.models.qwen2_5_vl import flops

import demo
from avis.config import AvisConfig
from avis.loading import load_model
from avis.outputs import AvisOutput
from avis.pipeline import answer
from policy.policy_model import PolicyModel

KINDS = [kind for kind in tiny.PROMPTS if kind != "mixed_batch"]
PRUNED = {"full": {}, "zero": {"enable_kdv": True, "kdv_ratio": 0.0}, "kdv": {"enable_kdv": True, "kdv_ratio": 0.75}}
SAMPLED = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0, "seed": 3, "query_index": 5}


def with_turns(kind: str, *lengths: int) -> tuple[dict, list[torch.Tensor]]:
    """A prompt, and further turns of text tokens."""
    generator = torch.Generator().manual_seed(17)
    turns = [torch.randint(tiny.TEXT_IDS, (1, length), generator=generator) for length in lengths]
    return tiny.PROMPTS[kind](), turns


def read_at_once(inputs: dict, turns: list[torch.Tensor]) -> dict:
    ids = torch.cat([inputs["input_ids"], *turns], dim=1)
    return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def snapshot(prefill) -> list[torch.Tensor]:
    return [x.clone() for layer in prefill.cache.layers for x in (layer.keys, layer.values)]


# ------------------------------------------------------------------------------------------------------- the prefill


@pytest.mark.parametrize("kdv", PRUNED.values(), ids=PRUNED)
@pytest.mark.parametrize("kind", KINDS)
def test_extended_equals_read_at_once(tiny_model, kind, kdv):
    """Guards against: a turn at the positions of the pruned length, a mask that lets it see too little or what comes
    after, a rope delta of whatever call came last, and lengths that forget a turn."""
    inputs, turns = with_turns(kind, 7, 1, 4)
    whole = tiny_model.prefill(**read_at_once(inputs, turns), **kdv)
    longer = tiny_model.prefill(**inputs, **kdv)
    tiny_model.model.rope_deltas = torch.tensor([[-1000]])
    for turn in turns:
        longer = tiny_model.extend(longer, turn)
    assert torch.equal(longer.input_ids, whole.input_ids)
    assert (longer.prompt_length, longer.kept_length) == (whole.prompt_length, whole.kept_length)
    assert (longer.kept_length < longer.prompt_length) == (kdv.get("kdv_ratio", 0) > 0 and kind != "text")
    assert longer.rope_delta == whole.rope_delta
    assert [kept.tolist() for kept in longer.kept] == [kept.tolist() for kept in whole.kept]
    for got, want in zip(snapshot(longer), snapshot(whole), strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=0)
    torch.testing.assert_close(longer.logits, whole.logits, atol=2e-5, rtol=0)
    torch.testing.assert_close(longer.last_hidden_state, whole.last_hidden_state, atol=2e-5, rtol=0)
    for count, sampling in ((1, SAMPLED | {"temperature": 0}), (3, SAMPLED)):
        got, want = (tiny_model.rollout(prefill, count, **sampling).tokens for prefill in (longer, whole))
        assert got == want


@pytest.mark.parametrize("kdv", PRUNED.values(), ids=PRUNED)
def test_extending_leaves_the_prefill_as_it_is(tiny_model, kdv):
    """Guards against: a turn written into the cache that other turns and rollouts start from."""
    inputs, (first, other) = with_turns("video_then_image", 5, 8)
    prefill = tiny_model.prefill(**inputs, **kdv)
    before, length = snapshot(prefill), prefill.kept_length
    said = tiny_model.rollout(prefill, 3, **SAMPLED).tokens
    logits = [tiny_model.extend(prefill, turn).logits for turn in (first, other, first)]
    assert torch.equal(logits[0], logits[2]) and not torch.equal(logits[0], logits[1])
    assert prefill.kept_length == length and all(map(torch.equal, snapshot(prefill), before))
    assert tiny_model.rollout(prefill, 3, **SAMPLED).tokens == said
    longer = tiny_model.extend(prefill, first)
    before = snapshot(longer)
    tiny_model.rollout(longer, 3, **SAMPLED)
    assert all(map(torch.equal, snapshot(longer), before))


def test_only_the_turn_is_read(tiny_model):
    """Guards against: a whole prompt that is encoded or read again under the name of a continuation."""
    inputs, (turn,) = with_turns("interleaved", 6)
    prefill = tiny_model.prefill(**inputs, enable_kdv=True)
    seen = []
    hooks = [
        tiny_model.visual.register_forward_pre_hook(lambda *_: seen.append("vision encoder")),
        tiny_model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
        ),
    ]
    try:
        longer = tiny_model.extend(prefill, turn)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [(1, 6)] and longer.seconds["vision"] == 0
    assert longer.visual_items is prefill.visual_items


@pytest.mark.parametrize(
    "ids",
    [
        torch.zeros(1, 0, dtype=torch.long),
        torch.zeros(2, 3, dtype=torch.long),
        torch.zeros(3, dtype=torch.long),
        torch.tensor([[1, tiny.IMAGE, 2]]),
        torch.tensor([[tiny.VIDEO]]),
    ],
    ids=["nothing", "a batch", "one axis", "an image", "a video"],
)
def test_turns_that_cannot_be_read_are_refused(tiny_model, ids):
    """Guards against: a placeholder without an image, read as whatever its embedding is; rows that share a cache."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    with pytest.raises(ValueError) as error:
        tiny_model.extend(prefill, ids)
    assert str(error.value) and "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------- the answer

QUESTIONS = ("How many cats are there?", "And how many dogs?", "Which of them wears a hat?")


def image(width: int = 196, height: int = 140, colour=(120, 160, 90)) -> Image.Image:
    shown = Image.new("RGB", (width, height), colour)
    shown.paste((200, 60, 60), (20, 20, 80, 60))
    shown.paste((30, 60, 200), (100, 50, 150, 130))
    return shown


def chat(*media, question: str = QUESTIONS[0]) -> list[dict]:
    parts = [{"type": "image", "image": shown} for shown in media]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def and_then(messages: list[dict], reply: str, question: str) -> list[dict]:
    return [*messages, {"role": "assistant", "content": reply.strip()}, {"role": "user", "content": question}]


def assert_same(got: AvisOutput, want: AvisOutput) -> None:
    """The same record but for what a follow-up spares; log-probabilities and p up to floating point."""
    one, other = got.to_dict(), want.to_dict()
    for spared in ("seconds", "flops", "reused_tokens"):
        del one[spared], other[spared]
    assert one.pop("p") == pytest.approx(other.pop("p"), abs=1e-5)
    for mine, its in zip(one["rollouts"], other["rollouts"], strict=True):
        assert mine.pop("mean_logprob") == pytest.approx(its.pop("mean_logprob"), abs=1e-4)
    assert one == other


WAYS = {
    "greedy": {},
    "greedy, 0": {"enable_kdv": True, "kdv_ratio": 0.0},
    "greedy, 0.75": {"enable_kdv": True, "kdv_ratio": 0.75},
    "sampled": {"num_rollouts": 3, "temperature": 2.0},
    "sampled, 0.75": {"enable_kdv": True, "kdv_ratio": 0.75, "num_rollouts": 3, "temperature": 2.0},
    "random": {"enable_kdv": True, "kdv_ratio": 0.5, "pruner": "random"},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_follow_ups_equal_starting_over(bundled, way, tmp_path):
    """Guards against: a second or third turn that is another answer than the whole chat's, a cache that the first
    answer's rollouts wrote to, and items that are lost on the way."""
    write_clip(tmp_path / "video.mp4", count=8, rate=4)
    config = AvisConfig(max_new_tokens=20, num_frames=4, **way)
    messages = chat(image(), image(140, 140))
    messages[0]["content"].insert(1, {"type": "video", "video": tmp_path / "video.mp4"})
    last = answer(*bundled, messages, config, return_state=True)
    for question in QUESTIONS[1:]:
        before = last
        messages = and_then(messages, before.text, question)
        last = answer(*bundled, messages, config, previous=before, return_state=True)
        anew = answer(*bundled, messages, config)
        assert_same(last, anew)
        assert (last.reused_tokens, anew.reused_tokens) == (before.kept_tokens, 0)
        assert last.flops["vision"] == 0 < anew.flops["vision"] and last.flops["prefill"] < anew.flops["prefill"]
        assert last.flops["decode"] == anew.flops["decode"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_flops_of_a_follow_up_equal_the_counter(attention):
    """Guards against: a follow-up priced as the whole query, or without the pairs that its tokens make with those that
    were read before; and one compared with a vanilla that does not read the image."""
    if attention == "sdpa" and torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry:
        pytest.skip("this torch's counter has no formula for the SDPA kernel of the CPU")
    model, processor = load_model(demo.BUNDLED, device="cpu", attn_implementation=attention)
    config = AvisConfig(enable_kdv=True, num_rollouts=2, temperature=9.0, max_new_tokens=9, vote_stop="off")
    messages = chat(image())
    first = answer(model, processor, messages, config, return_state=True)
    messages = and_then(messages, first.text, QUESTIONS[1])
    with FlopCounterMode(display=False) as counter:
        second = answer(model, processor, messages, config, previous=first)
    spent = sum(second.flops[stage] for stage in ("vision", "prefill", "decode"))
    assert spent == pytest.approx(counter.get_total_flops(), rel=1e-3)
    lengths = [rollout.tokens for rollout in second.rollouts]
    vanilla = flops.vanilla_cost(model.config, [(1, 10, 14)], second.prompt_tokens, flops.mean_length(lengths))
    assert second.flops["relative_total"] == pytest.approx(spent / vanilla.total)
    assert second.flops["relative_llm"] == pytest.approx(spent / vanilla.llm)


def test_caches_are_kept_only_when_asked_for(bundled, monkeypatch):
    """Guards against: answers of thousands of questions that each keep a prompt's cache, in a record's copy, too."""
    model, processor = bundled
    original, made = model.prefill, []

    def watched(**inputs):
        prefill = original(**inputs)
        made.append(weakref.ref(prefill))
        return prefill

    monkeypatch.setattr(model, "prefill", watched)
    config = AvisConfig(max_new_tokens=2)
    plain = answer(model, processor, chat(image()), config)
    kept = answer(model, processor, chat(image()), config, return_state=True)
    gc.collect()
    assert [ref() is None for ref in made] == [True, False]
    assert plain == kept or replace(plain, seconds={}) == replace(kept, seconds={})
    assert "state" not in kept.to_dict() and kept.state.prefill is made[1]()
    del kept
    gc.collect()
    assert made[1]() is None


@pytest.mark.parametrize("default", ["visual", "question"])
def test_a_policy_chooses_for_a_follow_up(bundled, tmp_path, default):
    """Guards against: a follow-up that is pruned at another angle, or whose K comes of the first question's state."""
    policy = PolicyModel(write_policy(tmp_path / "p.pt", (1, 3), (0.5,), default))
    config = AvisConfig(enable_kdv=True, max_new_tokens=6)
    messages = chat(image())
    first = answer(*bundled, messages, config, policy=policy, return_state=True)
    messages = and_then(messages, first.text, QUESTIONS[1])
    second = answer(*bundled, messages, config, policy=policy, previous=first)
    anew = answer(*bundled, messages, config, policy=policy)
    assert_same(second, anew)
    assert (second.p == first.p) == (default == "visual")


def test_chats_that_do_not_continue_are_refused(bundled):
    """Guards against: a follow-up answered from another chat's cache, other images, or another pruning than it says;
    and one that starts over without a word."""
    model, processor = bundled
    config = AvisConfig(max_new_tokens=2)
    messages = chat(image())
    first = answer(model, processor, messages, config, return_state=True)
    follow = and_then(messages, "2", QUESTIONS[1])
    other = and_then(chat(image(colour=(9, 9, 9))), "2", QUESTIONS[1])
    more = [*follow[:-1], *chat(image(), question=QUESTIONS[1])]
    reworded = and_then(chat(image(), question="How many?"), "2", QUESTIONS[1])
    stateless = replace(first, state=None)
    for chat_, given, previous, word in [
        (follow, config, stateless, "return_state=True"),
        (messages, config, first, "does not begin"),
        (reworded, config, first, "does not begin"),
        (other, config, first, "images"),
        (more, config, first, "images"),
        (follow, replace(config, enable_thinking=False), first, "does not begin"),
        (follow, replace(config, enable_kdv=True), first, "pruned"),
        (follow, replace(config, max_pixels=784 * 20), first, "images"),
    ]:
        with pytest.raises(ValueError, match=word) as error:
            answer(model, processor, chat_, given, previous=previous)
        assert "\n" not in str(error.value)
    stranger = load_model(demo.BUNDLED, device="cpu")[0]
    with pytest.raises(ValueError, match="another model"):
        answer(stranger, processor, follow, config, previous=first)


def test_frames_of_another_rate_are_others(bundled):
    """Guards against: the same frames at another rate, whose positions in time are others, taken for the same video."""
    config = AvisConfig(max_new_tokens=2)

    def video_chat(fps: float) -> list[dict]:
        part = {"type": "video", "video": [image(112, 112, (n * 20, 90, 90)) for n in range(4)], "fps": fps}
        return [{"role": "user", "content": [part, {"type": "text", "text": QUESTIONS[0]}]}]

    first = answer(*bundled, video_chat(2.0), config, return_state=True)
    assert answer(*bundled, and_then(video_chat(2.0), "2", QUESTIONS[1]), config, previous=first).reused_tokens
    with pytest.raises(ValueError, match="images and videos"):
        answer(*bundled, and_then(video_chat(1.0), "2", QUESTIONS[1]), config, previous=first)
