"""Assertions that hold for every pruned call.

Each message names the likely cause.

    kept = assert_kept_indices(output.kdv_kept[0], n=35, count=8)
    assert_same_logits(cached, recomputed, "positions of generated tokens")
"""

import torch


def assert_kept_indices(kept: torch.Tensor, n: int, count: int) -> list[int]:
    """Check that `count` indices are sorted, unique and in range, and return them as a list."""
    assert kept.dtype == torch.int64 and kept.ndim == 1, f"indices are {kept.dtype}, {kept.ndim}-D"
    values = kept.tolist()
    assert values == sorted(values), "kept indices are out of order: sorted by score and not by place?"
    assert len(set(values)) == len(values), "a token is kept twice: two spans or two windows overlap?"
    assert all(0 <= v < n for v in values), f"kept indices leave [0, {n}): indices into the batch instead of the item?"
    assert len(values) == count, f"kept {len(values)} of {n}, want {count}: rounding outside keep_count?"
    return values


def assert_same_logits(got: torch.Tensor, want: torch.Tensor, cause: str, atol: float = 1e-4) -> None:
    """Check for equal shapes, and equal values within `atol` (float32 logits of the tiny model are of order 1)."""
    assert got.shape == want.shape, f"logits have shape {tuple(got.shape)}, want {tuple(want.shape)}"
    worst = (got.float() - want.float()).abs().max().item()
    assert worst <= atol, f"logits differ by {worst:.2e} (allowed {atol:.0e}); likely cause: {cause}"


def assert_cache_length(cache, length: int) -> None:
    """Check that every layer of the cache has `length` tokens per row."""
    lengths = [layer.keys.shape[-2] for layer in cache.layers]
    assert lengths == [length] * len(lengths), (
        f"the cache has {lengths} tokens per layer, want {length}: pruned tokens reached the language model,"
        " or the cache was not the one that generation continued from"
    )


def assert_left_padded(mask: torch.Tensor, real: list[int]) -> None:
    """Check that row r of the mask ends in `real[r]` ones, and that the longest row has no padding."""
    for row, count in zip(mask.tolist(), real):
        assert row == [0] * (len(row) - count) + [1] * count, (
            f"mask row {row} should end in {count} ones: padded on the right, or to a length that no row has"
        )
    assert mask.shape[1] == max(real), f"{mask.shape[1]} columns for a longest row of {max(real)}: empty columns"
