"""The formulas of key_diversity.py on plain tensors: scores, counts, selection, order, gather."""

import math
from fractions import Fraction

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import assert_kept_indices, assert_left_padded
from transformers.models.qwen2_5_vl import key_diversity as kd

pytestmark = pytest.mark.unit


def random_keys(heads: int, n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(heads, n, width, generator=torch.Generator().manual_seed(seed)) + 0.3


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 7, 2), (4, 35, 16), (16, 120, 80)])
def test_scores_equal_float64_evaluation(shape):
    """Guards against an anchor of unnormalised keys, one anchor for all heads, and a flipped sign."""
    keys = random_keys(*shape) * torch.arange(1, shape[1] + 1).view(1, -1, 1)  # lengths differ between tokens
    got = kd.key_diversity_scores(keys)
    assert got.dtype == torch.float32 and got.shape == (shape[1],)
    torch.testing.assert_close(got.double(), reference.scores(keys), atol=2e-6, rtol=0)


def test_scores_of_half_precision_keys_are_computed_in_float32():
    """Guards against an anchor and cosines that are rounded to bfloat16, which ties most scores."""
    keys = random_keys(2, 3000, 16).bfloat16()
    wide = kd.key_diversity_scores(keys.float())
    torch.testing.assert_close(kd.key_diversity_scores(keys), wide, atol=1e-6, rtol=0)


def test_key_opposite_to_all_others_scores_highest():
    """Guards against keeping the redundant tokens and pruning the diverse one."""
    keys = torch.ones(2, 9, 4)
    keys[:, 5] = -1
    scores = kd.key_diversity_scores(keys)
    assert kd.keep_top(scores, rho=0.9).tolist() == [5]
    assert kd.keep_diverse(scores, tau=math.pi / 4).tolist() == [5]


def test_scores_stay_in_range_and_finite_for_degenerate_keys():
    """Guards against NaN scores from keys that are zero or cancel, and against -1.0000001 for equal keys."""
    equal = kd.key_diversity_scores(torch.full((3, 50, 7), 0.1))
    assert equal.min() >= -1 and torch.allclose(equal, torch.tensor(-1.0))
    cancelling = kd.key_diversity_scores(torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]]))
    assert cancelling.isfinite().all()


@settings(max_examples=300, deadline=None)
@given(n=st.integers(1, 100_000), percent=st.integers(0, 1000))
def test_keep_count_is_exact(n, percent):
    """Guards against floating-point rounding: (1 - 0.9) * 10 is 0.9999999999999998, which floors to 0."""
    exact = max(1, math.floor((1 - Fraction(percent, 1000)) * n))
    assert kd.keep_count(n, percent / 1000) == exact


@settings(max_examples=100, deadline=None)
@given(levels=st.lists(st.integers(0, 3), min_size=1, max_size=40), percent=st.integers(0, 100))
def test_keep_top_breaks_ties_by_index(levels, percent):
    """Guards against an unstable sort, which keeps different tokens on different devices."""
    rho = percent / 100
    count = kd.keep_count(len(levels), rho)
    kept = assert_kept_indices(kd.keep_top(torch.tensor(levels).float(), rho), len(levels), count)
    assert kept == sorted(sorted(range(len(levels)), key=lambda i: (-levels[i], i))[:count])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.floats(0.05, 3.1))
def test_keep_diverse_prunes_below_the_angle_only(seed, tau):
    """Guards against degrees, against cos for -cos, and against an item that vanishes."""
    scores = torch.rand(30, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    expected = [n for n, s in enumerate(scores.tolist()) if s >= -math.cos(tau)] or [int(scores.argmax())]
    assert_kept_indices(kept := kd.keep_diverse(scores, tau), 30, len(expected))
    assert kept.tolist() == expected


def test_keep_diverse_keeps_one_of_equal_tokens():
    """Guards against an empty item: a blank image has only redundant tokens."""
    scores = kd.key_diversity_scores(torch.ones(2, 6, 4))
    assert kd.keep_diverse(scores, tau=math.pi / 4).tolist() == [0]


def test_adaptive_keeps_less_of_the_more_redundant_item():
    """Guards against a threshold that acts like a fixed fraction: one tau must give an item-dependent rho."""
    redundant = random_keys(4, 64, 16) + 3
    kept = [len(kd.keep_diverse(kd.key_diversity_scores(k), math.pi / 4)) for k in (redundant, random_keys(4, 64, 16))]
    assert kept[0] < kept[1]


@pytest.mark.parametrize("grid", [(1, 5, 7), (1, 4, 4), (3, 3, 5), (2, 1, 1)])
def test_pool_keys_undoes_the_window_order(tiny_model, grid):
    """Guards against the permutation in place of its inverse: the same on 4 x 4 grids, not on 5 x 7."""
    t, h, w = grid
    n = t * h * w
    window_index, _ = tiny_model.visual.get_window_index(torch.tensor([[t, h * 2, w * 2]]))
    assert window_index.tolist() == reference.window_order(grid)
    raster = torch.arange(4 * n).float().view(n, 4, 1, 1)  # patch p of token n carries 4 n + p
    in_window_order = raster[reference.window_order(grid)].flatten(0, 1)
    pooled = kd.pool_keys(in_window_order, window_index)
    assert pooled.shape == (1, n, 1) and pooled.dtype == torch.float32
    assert pooled.flatten().tolist() == [4 * token + 1.5 for token in range(n)]


def test_random_pruner_is_a_seeded_baseline_of_the_same_size():
    """Guards against a baseline that keeps another number of tokens, or draws from the global random state."""
    keys, embeds, grid = random_keys(4, 60, 16), torch.zeros(60, 8), (1, 6, 10)

    def draw(seed, rho=0.75, tau=None):
        return kd.PRUNERS["random"](keys, embeds, grid, rho=rho, tau=tau, seed=seed)

    assert_kept_indices(draw(0), 60, 15)
    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    assert torch.equal(first, draw(0)), "the draw depends on the global random state"
    assert not torch.equal(first, draw(1)), "the seed is ignored (odds of equal draws: 1 in 5e13)"
    adaptive = kd.PRUNERS["kdv"](keys, embeds, grid, rho=None, tau=1.2, seed=0)
    assert 1 < len(adaptive) < 60
    assert_kept_indices(draw(0, rho=None, tau=1.2), 60, len(adaptive))


def test_random_pruner_is_uniform():
    """Guards against a biased draw, such as always keeping the first tokens of the item.

    Each of 400 draws keeps 8 of 32 tokens: a token is kept 100 times on average, with a standard deviation of 8.7. The
    range from 56 to 144 is five standard deviations on each side.
    """
    keys, embeds, grid = torch.ones(1, 32, 2), torch.zeros(32, 4), (1, 4, 8)
    counts = torch.zeros(32)
    for seed in range(400):
        counts[kd.PRUNERS["random"](keys, embeds, grid, rho=0.75, tau=None, seed=seed)] += 1
    assert counts.min() > 56 and counts.max() < 144


@settings(max_examples=100, deadline=None)
@given(data=st.data(), rows=st.integers(1, 4), length=st.integers(1, 12))
def test_left_pad_indices_order_and_pad_the_kept_columns(data, rows, length):
    """Guards against tokens out of order, padding on the right, and columns in which every row is padding."""
    bits = st.lists(st.booleans(), min_size=length, max_size=length)
    keep = torch.tensor([data.draw(bits) for _ in range(rows)])
    keep[:, -1] = True  # a prompt ends in text
    pad = [data.draw(st.integers(0, length - 1)) for _ in range(rows)]
    mask = torch.tensor([[0] * p + [1] * (length - p) for p in pad])
    index, pruned = kd.left_pad_indices(keep, mask)
    expected = [[c for c in range(p, length) if row[c]] for row, p in zip(keep.tolist(), pad)]
    assert_left_padded(pruned, [len(e) for e in expected])
    assert pruned.dtype == mask.dtype
    assert [row[m.bool()].tolist() for row, m in zip(index, pruned)] == expected


def test_placeholder_spans_follow_each_kind_in_reading_order():
    """Guards against one contiguous visual span per row, and against items in the places of others."""
    image, video = (
        kd.VisualItem(k, (1, 1, n), torch.zeros(n, 1), torch.zeros(1, n, 1)) for k, n in (("image", 2), ("video", 3))
    )
    ids = torch.tensor([[0, 9, 9, 9, 5, 8, 8], [8, 8, 0, 0, 9, 9, 9]])
    spans = kd.placeholder_spans(ids, [image, image, video, video], {"image": 8, "video": 9})
    assert [s.tolist() for s in spans] == [[5, 6], [7, 8], [1, 2, 3], [11, 12, 13]]
    with pytest.raises(ValueError, match="2 image placeholders for 4 image tokens"):
        kd.placeholder_spans(ids[:1], [image, image, video], {"image": 8, "video": 9})


def test_repeated_rows_get_their_own_items():
    """Guards against interleaving rows: [a b][c] twice is [a b][a b][c][c], not [a b][c][a b][c]."""
    a, b, c, v = (
        kd.VisualItem(k, (1, 1, 1), torch.zeros(1, 1), torch.zeros(1, 1, 1)) for k in ("image",) * 3 + ("video",)
    )
    got = kd.repeat_row_items((a, b, c, v), {"image": [2, 1], "video": [0, 1]}, times=2)
    assert got == (a, b, a, b, c, c, v, v)


@pytest.mark.parametrize("rho", [-0.01, 1.01, math.nan, math.inf])
def test_ratio_out_of_range_is_refused(rho):
    """Guards against a percentage (75), and against NaN, which no comparison with a bound catches."""
    with pytest.raises(ValueError, match="kdv_ratio"):
        kd.keep_top(torch.zeros(4), rho)
    with pytest.raises(ValueError, match="kdv_ratio"):
        kd.KdvConfig(rho=rho)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.pi, 45.0, math.nan, math.inf])
def test_threshold_out_of_range_is_refused(tau):
    """Guards against degrees."""
    with pytest.raises(ValueError, match="kdv_threshold"):
        kd.keep_diverse(torch.zeros(4), tau)
    with pytest.raises(ValueError, match="kdv_threshold"):
        kd.KdvConfig(tau=tau)


def test_config_has_one_kind_of_pruning():
    """Guards against a ratio and a threshold of which one is silently ignored."""
    assert kd.KdvConfig() == kd.KdvConfig(rho=0.75)
    assert kd.KdvConfig(tau=0.5).rho is None
    with pytest.raises(ValueError, match="exclude each other"):
        kd.KdvConfig(rho=0.5, tau=0.5)
    with pytest.raises(ValueError, match="'fastv', known: kdv, random"):
        kd.KdvConfig(pruner="fastv")


def test_docstring_example_runs():
    """Guards against a docstring example that no longer runs."""
    import doctest

    assert doctest.testmod(kd).failed == 0 and doctest.testmod(kd).attempted > 3
