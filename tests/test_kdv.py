"""KDV in the model: keys, selection, gather, and generation from the pruned cache, against `reference.py`."""

import contextlib

import pytest
import reference
import tiny
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from invariants import assert_cache_length, assert_kept_indices, assert_left_padded, assert_same_logits
from transformers import DynamicCache, StaticCache, StoppingCriteria, StoppingCriteriaList
from transformers.models.qwen2_5_vl import key_diversity as kd

STEPS = 6
VISUAL_PROMPTS = ["image", "video", "two_images", "video_then_image", "interleaved"]
PIXEL_ARGUMENTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


def generate(model, inputs, **kwargs):
    """Greedy unless told otherwise; always `STEPS` new tokens, with the raw logits of each step."""
    kwargs = {"max_new_tokens": STEPS, "do_sample": False} | kwargs
    return model.generate(**inputs, **kwargs, return_dict_in_generate=True, output_logits=True)


def new_tokens(inputs, output):
    return output.sequences[:, inputs["input_ids"].shape[1] :]


def pruned_length(row, kept):
    return len(reference.kept_columns(row, kept))


def separate(model, inputs):
    """The inputs with pixels and grids replaced by encoded items."""
    items = model.model.encode_visual(**{k: v for k, v in inputs.items() if k in PIXEL_ARGUMENTS})
    return {k: v for k, v in inputs.items() if k not in PIXEL_ARGUMENTS} | {"visual_items": items}


@contextlib.contextmanager
def calls_of(module):
    """The keyword arguments of every call of a module, in order."""
    calls = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


# ---- Keys and items ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VISUAL_PROMPTS)
def test_captured_keys_are_the_last_blocks_after_rotary(tiny_model, name):
    """Guards against keys of another block, from before rotary embedding, of the queries, in window order."""
    row = tiny.PROMPTS[name]()
    pixel_inputs = {k: v for k, v in row.items() if k in PIXEL_ARGUMENTS}
    items = tiny_model.model.encode_visual(**pixel_inputs)
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
    items = tiny_model.model.encode_visual(**{k: v for k, v in row.items() if k in PIXEL_ARGUMENTS})
    for item, (_, grid, pixels) in zip(items, reference.items(row)):
        want = reference.scores(reference.item_keys(tiny_model, pixels, grid))
        torch.testing.assert_close(kd.key_diversity_scores(item.keys).double(), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind, grid", [("image", tiny.IMAGE_GRID), ("video", tiny.VIDEO_GRID)])
def test_marker_token_comes_back_in_its_own_place(tiny_model, kind, grid):
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
    row = {k: v for k, v in tiny.two_images_prompt().items() if k in PIXEL_ARGUMENTS}
    for a, b in zip(tiny_model.model.encode_visual(**row), eager.model.encode_visual(**row)):
        torch.testing.assert_close(a.keys, b.keys, atol=1e-5, rtol=0)


def test_encode_visual_returns_upstreams_embeddings(tiny_model):
    """Guards against capture that changes what it watches, and against items cut at the wrong places."""
    row = tiny.two_images_prompt()
    items = tiny_model.model.encode_visual(row["pixel_values"], row["image_grid_thw"])
    upstream = tiny_model.get_image_features(row["pixel_values"], row["image_grid_thw"])
    assert [torch.equal(item.embeds, want) for item, want in zip(items, upstream, strict=True)] == [
        True,
        True,
    ]


def test_capture_survives_device_hooks(tiny_model):
    """Guards against a list as sink: accelerate's hooks (device_map="auto") give modules copies of lists they
    are passed, and the keys would be appended to a copy."""
    row = {k: v for k, v in tiny.image_prompt().items() if k in PIXEL_ARGUMENTS}
    want = tiny_model.model.encode_visual(**row)[0].keys
    block = tiny_model.visual.blocks[-1]
    add_hook_to_module(block, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    try:
        assert torch.equal(tiny_model.model.encode_visual(**row)[0].keys, want)
    finally:
        remove_hook_from_module(block)


def test_vision_tower_runs_once_per_kind(tiny_model):
    """Guards against one call per image, and against a second pass for the keys or in decoding steps."""
    with calls_of(tiny_model.visual) as calls:
        generate(tiny_model, tiny.mixed_batch(), enable_kdv=True)
    assert len(calls) == 2, f"{len(calls)} calls of the vision tower, want one for images and one for videos"


# ---- What the language model gets --------------------------------------------------------------------------


@pytest.mark.parametrize("name", VISUAL_PROMPTS)
def test_language_model_gets_kept_tokens_at_their_unpruned_positions(tiny_model, name):
    """Guards against the classic bug of pruning: positions renumbered after selection."""
    row = tiny.PROMPTS[name]()
    kept = reference.kept(tiny_model, row, rho=0.6)
    with calls_of(tiny_model.model.language_model) as calls:
        output = tiny_model.model(**row, enable_kdv=True, kdv_ratio=0.6)
    for got, want, item in zip(output.kdv_kept, kept, output.visual_items, strict=True):
        n = len(item.embeds)
        assert assert_kept_indices(got, n, kd.keep_count(n, 0.6)) == want, "selected by something else than the score"
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
    """Guards against generated tokens, of some row, that follow the pruned length in their positions."""
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


# ---- Generation --------------------------------------------------------------------------------------------


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

    The reference's probabilities and the same torch seed must give the very same draws, three rows at a time.
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
    """Guards against rope deltas on the model object: whoever came last would move everybody's positions."""
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
    """Guards against dtypes that do not meet (float32 keys, bfloat16 embeddings) and against wrong positions,
    whose effect on these logits is of order 1, far above bfloat16's rounding."""
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
    items = model.model.encode_visual(**{k: v for k, v in row.items() if k in PIXEL_ARGUMENTS})
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


def test_text_alone_is_left_alone(tiny_model):
    """Guards against failing on, or pruning, a prompt without visual items."""
    for text in (tiny.text_prompt(), tiny.left_pad([tiny.text_prompt(), tiny.prompt(4), tiny.prompt(7)])):
        off, on = generate(tiny_model, text), generate(tiny_model, text, enable_kdv=True, kdv_ratio=1.0)
        assert_same_logits(torch.stack(on.logits), torch.stack(off.logits), "text tokens were pruned", atol=0)
        assert tiny_model(**text, enable_kdv=True).kdv_kept == ()


def test_everything_pruned_keeps_one_token_of_each_item(tiny_model):
    """Guards against an item without tokens: vision start and end with nothing between."""
    row = tiny.two_images_prompt()
    output = tiny_model(**row, enable_kdv=True, kdv_ratio=1.0)
    assert [len(kept) for kept in output.kdv_kept] == [1, 1]


# ---- Items encoded before ----------------------------------------------------------------------------------


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
    encoded = separate(tiny_model, inputs)
    want = generate(tiny_model, inputs, **pruning)
    with calls_of(tiny_model.visual) as calls:
        got = generate(tiny_model, encoded, **pruning)
    assert calls == []
    assert_same_logits(torch.stack(got.logits), torch.stack(want.logits), "placement of items", atol=0)
    output = tiny_model(**encoded, **pruning)
    assert output.visual_items == encoded["visual_items"]
    assert (output.kdv_kept is None) == (output.kdv_attention_mask is None) == ("enable_kdv" not in pruning)


def test_visual_items_are_repeated_for_beams(tiny_model):
    """Guards against items that stay with the first rows while `generate` repeats the prompts."""
    inputs = tiny.left_pad([tiny.two_images_prompt(), tiny.text_prompt(), tiny.video_then_image_prompt()])
    encoded = separate(tiny_model, inputs)
    want = generate(tiny_model, inputs, enable_kdv=True, num_beams=3, num_return_sequences=2)
    got = generate(tiny_model, encoded, enable_kdv=True, num_beams=3, num_return_sequences=2)
    assert torch.equal(got.sequences, want.sequences)


# ---- Pruners -----------------------------------------------------------------------------------------------


def test_pruner_is_chosen_by_name(tiny_model, monkeypatch):
    """Guards against a name that is accepted and ignored: this pruner gets the items and is obeyed."""
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


# ---- Refusals ----------------------------------------------------------------------------------------------

REFUSED_SETTINGS = {
    "ratio_above_1": ({"enable_kdv": True, "kdv_ratio": 75}, r"kdv_ratio .* in \[0, 1\], got 75"),
    "ratio_below_0": ({"enable_kdv": True, "kdv_ratio": -0.1}, "kdv_ratio"),
    "ratio_nan": ({"enable_kdv": True, "kdv_ratio": float("nan")}, "kdv_ratio"),
    "threshold_in_degrees": ({"enable_kdv": True, "kdv_threshold": 45.0}, "kdv_threshold .* radians"),
    "both": ({"enable_kdv": True, "kdv_ratio": 0.5, "kdv_threshold": 0.5}, "exclude each other"),
    "unknown_pruner": ({"enable_kdv": True, "pruner": "fastv"}, "'fastv', known: kdv, random"),
    "ratio_while_off": ({"kdv_ratio": 0.5}, "need enable_kdv=True"),
    "ratio_0_while_off": ({"kdv_ratio": 0.0}, "need enable_kdv=True"),
    "threshold_while_off": ({"kdv_threshold": 0.5}, "need enable_kdv=True"),
    "pruner_while_off": ({"pruner": "random"}, "need enable_kdv=True"),
    "seed_while_off": ({"pruner_seed": 1}, "need enable_kdv=True"),
}


def assert_one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 120, "an error is one line a person can read"


@pytest.mark.parametrize("case", REFUSED_SETTINGS)
def test_settings_that_contradict_are_refused(tiny_model, case):
    """Guards against a call that quietly ran unpruned, or pruned otherwise than it was asked to."""
    settings, message = REFUSED_SETTINGS[case]
    for call in (tiny_model, tiny_model.generate):
        with pytest.raises(ValueError, match=message) as error:
            call(**tiny.image_prompt(), **settings)
        assert_one_line(error)


def filled_cache(model):
    return model(**tiny.text_prompt(), use_cache=True).past_key_values


def text_config(model):
    return model.config.get_text_config(decoder=True)


REFUSED_GENERATION = {
    "assisted": (lambda m: {"assistant_model": m}, "assisted and prompt-lookup"),
    "prompt_lookup": (lambda m: {"prompt_lookup_num_tokens": 2}, "assisted and prompt-lookup"),
    "chunked_prefill": (lambda m: {"prefill_chunk_size": 8}, "prefill_chunk_size"),
    "static_cache": (
        lambda m: {"cache_implementation": "static"},
        "dynamic cache, not cache_implementation='static'",
    ),
    "offloaded_static": (lambda m: {"cache_implementation": "offloaded_static"}, "'offloaded_static'"),
    "offloaded": (lambda m: {"cache_implementation": "offloaded"}, "'offloaded'"),
    "quantised": (lambda m: {"cache_implementation": "quantized"}, "'quantized'"),
    "callers_static": (
        lambda m: {"past_key_values": StaticCache(config=text_config(m), max_cache_len=99)},
        "plain DynamicCache",
    ),
    "inputs_embeds": (lambda m: {"inputs_embeds": torch.zeros(1, 47, 64)}, "need input_ids"),
    "callers_filled": (lambda m: {"past_key_values": filled_cache(m)}, "the cache passed is not empty"),
}


@pytest.mark.parametrize("with_items", [False, True], ids=["kdv", "visual_items"])
@pytest.mark.parametrize("case", REFUSED_GENERATION)
def test_generate_refuses_what_would_go_wrong_quietly(tiny_model, case, with_items):
    """Guards against tokens from a cache whose columns are not where the mask says."""
    arguments, message = REFUSED_GENERATION[case]
    inputs = separate(tiny_model, tiny.image_prompt()) if with_items else tiny.image_prompt() | {"enable_kdv": True}
    with pytest.raises(ValueError, match=message) as error:
        generate(tiny_model, inputs, **arguments(tiny_model))
    assert_one_line(error)


def test_generate_refuses_right_padding(tiny_model):
    """Guards against tokens that follow padding: re-padding on the left would hide the mistake."""
    batch = tiny.left_pad([tiny.image_prompt(), tiny.text_prompt()])
    batch["input_ids"][1], batch["attention_mask"][1] = (
        batch["input_ids"][1].flip(0),
        batch["attention_mask"][1].flip(0),
    )
    with pytest.raises(ValueError, match="left-padded") as error:
        generate(tiny_model, batch, enable_kdv=True)
    assert_one_line(error)


REFUSED_CALLS = {
    "labels": (lambda m, row: row | {"labels": row["input_ids"]}, "labels"),
    "embeds_only": (
        lambda m, row: row | {"inputs_embeds": m.get_input_embeddings()(row["input_ids"]), "input_ids": None},
        "need input_ids",
    ),
    "position_ids": (
        lambda m, row: row | {"position_ids": torch.zeros(3, *row["input_ids"].shape).long()},
        "position_ids",
    ),
    "filled_cache": (lambda m, row: row | {"past_key_values": filled_cache(m)}, "not empty"),
    "static_cache": (
        lambda m, row: row | {"past_key_values": StaticCache(config=text_config(m), max_cache_len=99)},
        "plain DynamicCache",
    ),
    "pixels_and_items": (lambda m, row: row | {"visual_items": separate(m, row)["visual_items"]}, "not both"),
    "no_pixels": (
        lambda m, row: {k: v for k, v in row.items() if k not in PIXEL_ARGUMENTS},
        "35 image placeholders for 0 image tokens",
    ),
}


@pytest.mark.parametrize("case", REFUSED_CALLS)
def test_forward_refuses_what_it_cannot_honour(tiny_model, case):
    """Guards against arguments that are dropped without a word."""
    change, message = REFUSED_CALLS[case]
    with pytest.raises(ValueError, match=message) as error:
        tiny_model(**change(tiny_model, tiny.image_prompt()), enable_kdv=True)
    assert_one_line(error)


def test_callers_empty_dynamic_cache_is_welcome(tiny_model):
    """Guards against refusing more than what breaks: generate itself makes such a cache."""
    row = tiny.image_prompt()
    cache = DynamicCache(config=text_config(tiny_model))
    got = generate(tiny_model, row, enable_kdv=True, past_key_values=cache)
    assert_same_logits(
        torch.stack(got.logits), torch.stack(generate(tiny_model, row, enable_kdv=True).logits), "cache", 0
    )
    assert got.past_key_values is cache
