"""`generate` from a pruned cache, with pixels or encoded items, with any pruner, against `reference.py`."""

import pytest
import reference
import tiny
import torch
from invariants import assert_cache_length, assert_same_logits
from kdv_calls import (
    STEPS,
    VISUAL_PROMPTS,
    calls_of,
    generate,
    new_tokens,
    pixel_inputs,
    pruned_length,
    replace_pixels_by_items,
)
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.models.qwen2_5_vl import key_diversity as kd


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pruning", [{"kdv_ratio": 0.75}, {"kdv_threshold": 1.52}], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("name", VISUAL_PROMPTS)
def test_cached_generation_equals_full_recomputation(tiny_model, name, pruning, attention):
    """Guards against masks, cache positions or rotary positions of the unpruned length in decoding."""
    model = tiny_model if attention == "sdpa" else tiny.build_model(attn_implementation="eager")
    row = tiny.PROMPTS[name]()
    output = generate(model, row, enable_kdv=True, **pruning)
    tokens = new_tokens(row, output)[0]
    kept = reference.kept(tiny_model, row, rho=pruning.get("kdv_ratio"), tau=pruning.get("kdv_threshold"))
    counts = [(len(k), t * h * w) for k, (_, (t, h, w), _) in zip(kept, reference.items(row))]
    assert all(0 < k < n for k, n in counts), f"nothing to see: kept {counts}"
    want = reference.logits(tiny_model, row, kept, tokens)
    assert_same_logits(torch.cat(output.logits), want, "unpruned lengths or positions in decoding steps")
    assert_cache_length(output.past_key_values, pruned_length(row, kept) + STEPS - 1)


@pytest.mark.parametrize("pruning", [{"kdv_ratio": 0.75}, {"kdv_threshold": 1.52}], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_of_a_batch_equal_their_own_runs(attention, pruning):
    """Guards against row 0's items, kept counts, positions or padding being used for all rows."""
    model = tiny.build_model(attn_implementation=attention)
    rows = tiny.mixed_rows()
    batch = tiny.left_pad(rows)
    together = generate(model, batch, enable_kdv=True, **pruning)
    alone = [generate(model, row, enable_kdv=True, **pruning) for row in rows]
    for r, (row, single) in enumerate(zip(rows, alone)):
        assert torch.equal(new_tokens(batch, together)[r], new_tokens(row, single)[0])
        got = torch.stack([step[r] for step in together.logits])
        assert_same_logits(got, torch.cat(single.logits), f"row {r} sees padding or another row's items")
    longest = max(single.past_key_values.get_seq_length() for single in alone)
    assert_cache_length(together.past_key_values, longest)


@pytest.mark.parametrize("name", ["video_then_image", "mixed_batch"])
def test_cache_changes_nothing(tiny_model, name):
    """Guards against state of cached decoding in steps without a cache, which prune anew each time."""
    inputs = tiny.PROMPTS[name]()
    cached = generate(tiny_model, inputs, enable_kdv=True)
    uncached = generate(tiny_model, inputs, enable_kdv=True, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    assert_same_logits(torch.stack(cached.logits), torch.stack(uncached.logits), "decoding steps with a cache")


@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_scores_equal_full_recomputation(tiny_model, use_cache):
    """Guards against masks or rope deltas that do not follow the beams: each returned sequence's score is
    summed up again by the reference."""
    rows = [tiny.image_prompt(), tiny.two_images_prompt()]
    batch = tiny.left_pad(rows)
    output = generate(
        tiny_model, batch, enable_kdv=True, num_beams=3, num_return_sequences=2, output_scores=True,
        use_cache=use_cache,
    )  # fmt: skip
    tokens = new_tokens(batch, output).unflatten(0, (2, 2))
    scores = output.sequences_scores.unflatten(0, (2, 2))
    for r, row in enumerate(rows):
        kept = reference.kept(tiny_model, row, rho=0.75)
        assert not torch.equal(tokens[r, 0], tokens[r, 1]), "two beams returned the same sequence"
        for sequence, score in zip(tokens[r], scores[r]):
            log_probs = reference.logits(tiny_model, row, kept, sequence).log_softmax(dim=-1)
            want = log_probs[range(STEPS), sequence].sum() / STEPS
            torch.testing.assert_close(score, want, atol=1e-4, rtol=0)


def test_sampling_equals_sampling_from_full_recomputation(tiny_model):
    """Guards against distributions that differ from the reference, and against rows that share one sample.

    The reference's probabilities and the same torch seed must give the same draws, three rows at a time.
    """
    row = tiny.video_prompt()
    torch.manual_seed(5)
    output = generate(tiny_model, row, enable_kdv=True, do_sample=True, top_k=0, num_return_sequences=3)
    tokens = new_tokens(row, output)
    kept = reference.kept(tiny_model, row, rho=0.75)
    logits = torch.stack([reference.logits(tiny_model, row, kept, sequence) for sequence in tokens])
    logits[..., tiny.SPECIAL] = -torch.inf
    torch.manual_seed(5)
    for step in range(STEPS):
        draws = torch.multinomial(logits[:, step].softmax(dim=-1), num_samples=1)[:, 0]
        assert draws.tolist() == tokens[:, step].tolist()
    assert len({tuple(t) for t in tokens.tolist()}) == 3, "three rows drew the same (odds below 1 in 1e6)"


def test_interleaved_generations_do_not_disturb_each_other(tiny_model):
    """Guards against rope deltas on the model object: the latest generation would move the positions of all others."""
    row, other = tiny.image_prompt(), tiny.video_then_image_prompt()

    class RunAnother(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            generate(tiny_model, other, **self.settings)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    for mine, others in (
        ({"enable_kdv": True}, {}),
        ({"enable_kdv": True}, {"enable_kdv": True}),
        ({}, {"enable_kdv": True}),
    ):
        alone = generate(tiny_model, row, **mine)
        another = RunAnother()
        another.settings = others
        disturbed = generate(tiny_model, row, **mine, stopping_criteria=StoppingCriteriaList([another]))
        assert_same_logits(torch.cat(disturbed.logits), torch.cat(alone.logits), f"{others} moved {mine}", atol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16(attention):
    """Guards against mixed dtypes (float32 keys, bfloat16 embeddings) and against wrong positions, whose effect on
    these logits is of order 1, far above the rounding of bfloat16."""
    model = tiny.build_model(attn_implementation=attention).to(torch.bfloat16)
    row = tiny.video_then_image_prompt()
    cached = generate(model, row, enable_kdv=True)
    uncached = generate(model, row, enable_kdv=True, use_cache=False)
    assert cached.logits[0].isfinite().all()
    same = int((cached.sequences == uncached.sequences).long().cumprod(dim=1).sum()) - row["input_ids"].shape[1]
    assert same >= 1, "not even the first token is the same"
    steps = min(same + 1, STEPS)  # after a flipped near-tie the two runs rightly differ
    got, want = (torch.cat(o.logits[:steps]) for o in (cached, uncached))
    assert_same_logits(got, want, "unpruned lengths or positions in decoding steps", atol=0.2)
    items = model.model.encode_visual(**pixel_inputs(row))
    assert {item.keys.dtype for item in items} == {torch.float32}
    assert {item.embeds.dtype for item in items} == {torch.bfloat16}


@pytest.mark.parametrize("name", tiny.PROMPTS)
def test_nothing_pruned_is_nothing_changed(tiny_model, name):
    """Guards against a KDV path that computes something else than upstream: rho = 0 is bit-identical."""
    inputs = tiny.PROMPTS[name]()
    off, on = tiny_model(**inputs), tiny_model(**inputs, enable_kdv=True, kdv_ratio=0.0)
    real = inputs["attention_mask"].bool()
    assert torch.equal(off.logits[real], on.logits[real])
    assert torch.equal(off.rope_deltas, on.rope_deltas)
    off, on = generate(tiny_model, inputs), generate(tiny_model, inputs, enable_kdv=True, kdv_ratio=0.0)
    assert_same_logits(torch.stack(on.logits), torch.stack(off.logits), "the path itself, not pruning", atol=0)


def test_text_is_never_pruned(tiny_model):
    """Guards against an error on a prompt without visual items, and against pruning it."""
    for text in (tiny.text_prompt(), tiny.left_pad([tiny.text_prompt(), tiny.prompt(4), tiny.prompt(7)])):
        off, on = generate(tiny_model, text), generate(tiny_model, text, enable_kdv=True, kdv_ratio=1.0)
        assert_same_logits(torch.stack(on.logits), torch.stack(off.logits), "text tokens were pruned", atol=0)
        assert tiny_model(**text, enable_kdv=True).kdv_kept == ()


def test_everything_pruned_keeps_one_token_of_each_item(tiny_model):
    """Guards against an item without tokens: vision start and end with nothing between them."""
    row = tiny.two_images_prompt()
    output = tiny_model(**row, enable_kdv=True, kdv_ratio=1.0)
    assert [len(kept) for kept in output.kdv_kept] == [1, 1]


# ---- Encoded items -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pruning",
    [
        {},
        {"enable_kdv": True},
        {"enable_kdv": True, "kdv_threshold": 1.52},
        {"enable_kdv": True, "use_cache": False},
    ],
)
@pytest.mark.parametrize("name", ["text", "video_then_image", "mixed_batch"])
def test_visual_items_replace_pixels(tiny_model, name, pruning):
    """Guards against a second vision pass, and against items placed or positioned differently from pixels."""
    inputs = tiny.PROMPTS[name]()
    encoded = replace_pixels_by_items(tiny_model, inputs)
    want = generate(tiny_model, inputs, **pruning)
    with calls_of(tiny_model.visual) as calls:
        got = generate(tiny_model, encoded, **pruning)
    assert calls == []
    assert_same_logits(torch.stack(got.logits), torch.stack(want.logits), "placement of items", atol=0)
    output = tiny_model(**encoded, **pruning)
    assert output.visual_items == encoded["visual_items"]
    assert (output.kdv_kept is None) == (output.kdv_attention_mask is None) == ("enable_kdv" not in pruning)


def test_visual_items_are_repeated_for_beams(tiny_model):
    """Guards against items that belong to the first rows alone while `generate` repeats the prompts."""
    inputs = tiny.left_pad([tiny.two_images_prompt(), tiny.text_prompt(), tiny.video_then_image_prompt()])
    encoded = replace_pixels_by_items(tiny_model, inputs)
    want = generate(tiny_model, inputs, enable_kdv=True, num_beams=3, num_return_sequences=2)
    got = generate(tiny_model, encoded, enable_kdv=True, num_beams=3, num_return_sequences=2)
    assert torch.equal(got.sequences, want.sequences)


# ---- Pruners -----------------------------------------------------------------------------------------------


def test_pruner_is_chosen_by_name(tiny_model, monkeypatch):
    """Guards against a name that is accepted and ignored: this pruner receives the items, and its choice is kept."""
    seen = []

    def every_other(keys, embeds, grid, *, rho, tau, seed):
        seen.append((tuple(keys.shape), tuple(embeds.shape), grid, rho, tau, seed))
        return torch.arange(0, len(embeds), 2)

    monkeypatch.setitem(kd.PRUNERS, "every_other", every_other)
    row = tiny.video_then_image_prompt()
    output = tiny_model(**row, enable_kdv=True, pruner="every_other", kdv_ratio=0.5, pruner_seed=7)
    assert seen == [
        ((4, 35, 16), (35, 64), tiny.IMAGE_GRID, 0.5, None, 7),
        ((4, 45, 16), (45, 64), tiny.VIDEO_GRID, 0.5, None, 7),
    ]
    assert [kept.tolist() for kept in output.kdv_kept] == [list(range(0, 35, 2)), list(range(0, 45, 2))]


def test_random_pruner_generates(tiny_model):
    """Guards against a baseline that differs from KDV in more than which tokens it keeps."""
    row = tiny.image_prompt()
    kept = tiny_model(**row, enable_kdv=True, pruner="random", pruner_seed=1).kdv_kept[0].tolist()
    assert len(kept) == kd.keep_count(35, 0.75)
    output = generate(tiny_model, row, enable_kdv=True, pruner="random", pruner_seed=1)
    want = reference.logits(tiny_model, row, [kept], new_tokens(row, output)[0])
    assert_same_logits(torch.cat(output.logits), want, "the seed changes between prompt and steps")
