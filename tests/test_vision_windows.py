"""The vision encoder with one attention call per window length, against upstream's one call per window."""

import pytest
import tiny
import torch
from transformers.models.qwen2_5_vl import key_diversity
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

# Frames, rows and columns of patches; a window is 4 x 4 patches.
GRIDS = {
    "full_windows": [[1, 8, 12]],
    "ragged": [[1, 10, 14]],
    "several_images": [[1, 10, 14], [1, 6, 8], [1, 8, 8], [1, 10, 14], [1, 2, 2]],
    "video": [[5, 6, 10]],
    "videos": [[3, 8, 4], [2, 6, 10], [1, 8, 4]],
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny.build_model(attn_implementation=request.param)


@pytest.fixture
def calls(monkeypatch):
    """Record the query shapes `(windows, heads, length, width)` of all attention calls."""
    shapes = []

    def watch(attention):
        def watched(module, query, *args, **kwargs):
            shapes.append(tuple(query.shape))
            return attention(module, query, *args, **kwargs)

        return watched

    monkeypatch.setattr(modeling, "eager_attention_forward", watch(modeling.eager_attention_forward))
    monkeypatch.setitem(modeling.ALL_ATTENTION_FUNCTIONS, "sdpa", watch(modeling.ALL_ATTENTION_FUNCTIONS["sdpa"]))
    return shapes


def encode(model, grids, **kwargs):
    grids = torch.tensor(grids)
    pixels = torch.randn(int(grids.prod(dim=1).sum()), tiny.PATCH_VALUES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.visual(pixels, grid_thw=grids, **kwargs)


@pytest.mark.parametrize("name", GRIDS)
def test_batched_windows_equal_single_windows(model, name):
    """Bug guarded: windows of equal length that are not neighbours are returned in another order, or attend to each
    other. On the CPU the result is bit for bit the same, because it does not depend on the windows beside it."""
    embeds, keys = encode(model, GRIDS[name], return_keys=True)
    batched_embeds, batched_keys = encode(model, GRIDS[name], return_keys=True, batch_windows=True)
    assert torch.equal(batched_embeds, embeds)
    assert torch.equal(batched_keys, keys)


@pytest.mark.parametrize("name", GRIDS)
def test_windows_of_equal_length_share_a_call(model, calls, name):
    """Bug guarded: one call per window and block, during which a GPU waits for the host."""
    encode(model, GRIDS[name])
    windows, one_by_one = sorted(shape[2] for shape in calls), len(calls)
    calls.clear()
    encode(model, GRIDS[name], batch_windows=True)
    assert len(calls) < one_by_one
    assert sorted(length for count, _, length, _ in calls for _ in range(count)) == windows
    blocks = model.config.vision_config.depth
    frames = {rows * columns for _, rows, columns in GRIDS[name]}
    cut = {
        min(4, rows - top) * min(4, columns - left)
        for _, rows, columns in GRIDS[name]
        for top in range(0, rows, 4)
        for left in range(0, columns, 4)
    }
    full = len(model.config.vision_config.fullatt_block_indexes)
    assert len(calls) == full * len(frames) + (blocks - full) * len(cut)


@pytest.mark.parametrize("kdv", [False, True], ids=["full", "kdv"])
def test_prefill_batches_windows_and_plain_forward_does_not(model, calls, kdv):
    """Bug guarded: the shared prefill loops over windows, or upstream's own path no longer does. The two results are
    bit for bit the same on the CPU only."""
    inputs = tiny.two_images_prompt()
    with torch.no_grad():
        model(**inputs)
    text_layers = model.config.text_config.num_hidden_layers
    plain = calls[:-text_layers]
    assert {count for count, *_ in plain} == {1}
    calls.clear()
    model.prefill(**inputs, enable_kdv=kdv)
    batched = calls[:-text_layers]
    assert len(batched) < len(plain)
    assert sum(count for count, *_ in batched) == len(plain)


def test_calls_are_bounded():
    """Bug guarded: all frames of a long video in one eager call, whose scores do not fit into memory; or a window
    longer than the bound that is left out."""
    assert modeling._group_windows([4, 4, 2, 4, 2, 4], max_scores=2 * 4**2) == [
        (4, [0, 4]),
        (4, [10, 16]),
        (2, [8, 14]),
    ]
    assert modeling._group_windows([3, 3], max_scores=1) == [(3, [0]), (3, [3])]


def test_frames_are_divided_in_order():
    """Bug guarded: a frame that is cut, left out or encoded twice; a call beyond the bound; and a frame beyond the
    bound that is left out."""
    frames = [[5, 2, 4], [1, 2, 4], [2, 6, 10], [1, 2, 2]]
    assert key_diversity.chunk_vision_batches(frames, max_patches=24) == [
        [[3, 2, 4]],
        [[2, 2, 4], [1, 2, 4]],
        [[1, 6, 10]],
        [[1, 6, 10]],
        [[1, 2, 2]],
    ]
    assert key_diversity.chunk_vision_batches(frames, max_patches=2**13) == [frames]


@pytest.mark.parametrize("max_patches", [1, 70, 150])
@pytest.mark.parametrize("keys", [False, True], ids=["embeds", "keys"])
def test_parts_of_videos_equal_whole_videos(model, monkeypatch, max_patches, keys):
    """Bug guarded: a video encoded in parts whose patches attend to less than their own frame, parts joined in another
    order, or a part that belongs to another item."""
    grids = torch.tensor(GRIDS["videos"] + GRIDS["video"])
    pixels = torch.randn(int(grids.prod(dim=1).sum()), tiny.PATCH_VALUES, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model.model.encode_visual(None, None, pixels, grids, return_keys=keys)
        monkeypatch.setattr(modeling, "MAX_PATCHES", max_patches)
        seen = []
        hook = model.visual.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        parts = model.model.encode_visual(None, None, pixels, grids, return_keys=keys)
        hook.remove()
    assert len(seen) > 3 and sum(seen) == len(pixels)
    for part, item in zip(parts, whole, strict=True):
        assert (part.kind, part.grid) == (item.kind, item.grid)
        # The bits may differ, because the order of sums in a matrix product may depend on its number of rows.
        torch.testing.assert_close(part.embeds, item.embeds, atol=1e-5, rtol=0)
        assert (part.keys is None) == (not keys)
        if keys:
            torch.testing.assert_close(part.keys, item.keys, atol=1e-5, rtol=0)
