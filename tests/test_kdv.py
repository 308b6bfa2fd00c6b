"""KDV in the model: keys, selection, and what the language model reads, against `reference.py`."""

import pytest
import reference
import tiny
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from invariants import assert_kept_indices, assert_left_padded
from kdv_calls import PIXEL_ARGUMENTS, STEPS, VISUAL_PROMPTS, calls_of, generate, pixel_inputs, pruned_length
from transformers.models.qwen2_5_vl import key_diversity as kd

# ---- Keys and items ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VISUAL_PROMPTS)
def test_captured_keys_are_the_last_blocks_after_rotary(tiny_model, name):
    """Guards against keys of another block, keys before rotary embedding, queries, and keys in window order."""
    row = tiny.PROMPTS[name]()
    items = tiny_model.model.encode_visual(**pixel_inputs(row))
    assert [(item.kind, item.grid) for item in items] == [(k, g) for k, g, _ in reference.items(row)]
    for item, (_, grid, pixels) in zip(items, reference.items(row)):
        want = reference.item_keys(tiny_model, pixels, grid)
        assert item.keys.dtype == torch.float32
        torch.testing.assert_close(item.keys.double(), want, atol=1e-4, rtol=0)
        # The other suspects must be far away, or this test could not tell them apart.
        assert (item.keys - item.keys.roll(1, dims=1)).abs().mean() > 0.1


@pytest.mark.parametrize("name", VISUAL_PROMPTS)
def test_scores_of_the_models_own_keys(tiny_model, name):
    """Guards against one anchor for all items of a prompt, and against a score that only fits random keys."""
    row = tiny.PROMPTS[name]()
    items = tiny_model.model.encode_visual(**pixel_inputs(row))
    for item, (_, grid, pixels) in zip(items, reference.items(row)):
        want = reference.scores(reference.item_keys(tiny_model, pixels, grid))
        torch.testing.assert_close(kd.key_diversity_scores(item.keys).double(), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind, grid", [("image", tiny.IMAGE_GRID), ("video", tiny.VIDEO_GRID)])
def test_marked_token_changes_its_own_key(tiny_model, kind, grid):
    """Guards against keys left in window order: the changed token is the one whose key changes most.

    Every token of the grid is marked once, so a permutation that fixes some tokens cannot pass.
    """
    t, h, w = grid
    names = PIXEL_ARGUMENTS[:2] if kind == "image" else PIXEL_ARGUMENTS[2:]
    thw = torch.tensor([[t, h * tiny.MERGE, w * tiny.MERGE]])
    pixels = torch.randn(t * h * w * 4, tiny.PATCH_VALUES, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def encode(pixels):
        return tiny_model.model.encode_visual(**dict(zip(names, (pixels, thw))))[0]

    plain = encode(pixels)
    for marked in range(t * h * w):
        changed = pixels.clone()
        changed[4 * marked : 4 * marked + 4] *= -1
        change = (encode(changed).keys - plain.keys).norm(dim=-1).sum(dim=0)
        assert change.argmax() == marked, "keys are not in raster order"


def test_keys_do_not_depend_on_the_attention_backend(tiny_model):
    """Guards against keys taken where only one backend has them, such as from eager attention's weights."""
    eager = tiny.build_model(attn_implementation="eager")
    row = pixel_inputs(tiny.two_images_prompt())
    for a, b in zip(tiny_model.model.encode_visual(**row), eager.model.encode_visual(**row)):
        torch.testing.assert_close(a.keys, b.keys, atol=1e-5, rtol=0)


def test_encode_visual_returns_upstreams_embeddings(tiny_model):
    """Guards against capture that changes what it watches, and against items cut at the wrong places."""
    row = tiny.two_images_prompt()
    items = tiny_model.model.encode_visual(row["pixel_values"], row["image_grid_thw"])
    upstream = tiny_model.get_image_features(row["pixel_values"], row["image_grid_thw"])
    assert len(items) == 2
    assert all(torch.equal(item.embeds, want) for item, want in zip(items, upstream, strict=True))


def test_capture_survives_device_hooks(tiny_model):
    """Guards against a list as sink: accelerate's hooks (device_map="auto") pass copies of lists to modules, and the
    keys would be appended to a copy."""
    row = pixel_inputs(tiny.image_prompt())
    want = tiny_model.model.encode_visual(**row)[0].keys
    block = tiny_model.visual.blocks[-1]
    add_hook_to_module(block, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    try:
        assert torch.equal(tiny_model.model.encode_visual(**row)[0].keys, want)
    finally:
        remove_hook_from_module(block)


def test_vision_encoder_runs_once_per_kind(tiny_model):
    """Guards against one call per image, and against a second pass for the keys or in decoding steps."""
    with calls_of(tiny_model.visual) as calls:
        generate(tiny_model, tiny.mixed_batch(), enable_kdv=True)
    assert len(calls) == 2, f"{len(calls)} calls of the vision encoder, want one for images and one for videos"


# ---- What the language model reads -------------------------------------------------------------------------


@pytest.mark.parametrize("name", VISUAL_PROMPTS)
def test_language_model_gets_kept_tokens_at_their_unpruned_positions(tiny_model, name):
    """Guards against the classic bug of pruning: positions renumbered after selection."""
    row = tiny.PROMPTS[name]()
    kept = reference.kept(tiny_model, row, rho=0.6)
    with calls_of(tiny_model.model.language_model) as calls:
        output = tiny_model.model(**row, enable_kdv=True, kdv_ratio=0.6)
    for got, want, item in zip(output.kdv_kept, kept, output.visual_items, strict=True):
        n = len(item.embeds)
        assert assert_kept_indices(got, n, kd.keep_count(n, 0.6)) == want, "something else than the score selects"
    columns = reference.kept_columns(row, kept)
    (call,) = calls
    assert call["position_ids"].shape[0] == 3, "a text-position row with gaps looks like packed sequences"
    want = reference.positions(tiny_model, row)
    assert call["position_ids"][:, 0].tolist() == want[:, columns].tolist(), (
        "positions are not those of the unpruned prompt"
    )
    assert call["cache_position"].tolist() == list(range(len(columns))), "cache positions must be the pruned ones"
    assert_left_padded(call["attention_mask"], [len(columns)])
    assert output.last_hidden_state.shape[1] == len(columns)
    assert torch.equal(output.kdv_attention_mask, call["attention_mask"])
    assert output.rope_deltas.tolist() == [[int(want.max()) + 1 - row["input_ids"].shape[1]]]


def test_decoding_steps_continue_at_unpruned_positions(tiny_model):
    """Guards against generated tokens of some row whose positions follow the pruned length."""
    rows = tiny.mixed_rows()
    batch = tiny.left_pad(rows)
    with calls_of(tiny_model.model.language_model) as calls:
        generate(tiny_model, batch, enable_kdv=True)
    real = [pruned_length(row, reference.kept(tiny_model, row, rho=0.75)) for row in rows]
    want = torch.stack([reference.positions(tiny_model, row, STEPS)[:, -STEPS:] for row in rows], dim=1)
    for step, call in enumerate(calls[1:]):
        assert call["position_ids"][:, :, 0].tolist() == want[:, :, step].tolist()
        assert call["cache_position"].tolist() == [max(real) + step]
        assert_left_padded(call["attention_mask"], [count + step + 1 for count in real])


def test_causal_model_passes_pruning_on(tiny_model):
    """Guards against arguments or results that stop at the outer class."""
    row = tiny.image_prompt()
    inner = tiny_model.model(**row, enable_kdv=True, kdv_threshold=1.5, pruner="random", pruner_seed=3)
    output = tiny_model(**row, enable_kdv=True, kdv_threshold=1.5, pruner="random", pruner_seed=3)
    assert output.kdv_kept[0].tolist() == inner.kdv_kept[0].tolist()
    assert torch.equal(output.kdv_attention_mask, inner.kdv_attention_mask)
    assert torch.equal(output.logits, tiny_model.lm_head(inner.last_hidden_state))
    assert torch.equal(output.visual_items[0].keys, inner.visual_items[0].keys)
    as_tuple = tiny_model(**row, enable_kdv=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[-1], tiny_model(**row, enable_kdv=True)[-1])


def test_pruning_leaves_no_trace_on_the_model(tiny_model):
    """Guards against state on the shared model object, which another generation would then use."""
    before = object()
    tiny_model.model.rope_deltas, kept_for_later = before, tiny_model.model.rope_deltas
    try:
        generate(tiny_model, tiny.image_prompt(), enable_kdv=True)
        assert tiny_model.model.rope_deltas is before
    finally:
        tiny_model.model.rope_deltas = kept_for_later


def test_prompt_without_attention_mask(tiny_model):
    """Guards against packed-sequence detection, which looks at text positions when there is no mask."""
    row = tiny.image_prompt()
    with_mask = tiny_model(**row, enable_kdv=True)
    row.pop("attention_mask")
    assert torch.equal(tiny_model(**row, enable_kdv=True, use_cache=False).logits, with_mask.logits)
