"""Key Diversity Visual pruning (KDV): from the vision encoder's keys to the kept visual tokens.

Pure functions on tensors; `modeling_qwen2_5_vl.py` calls them. KDV (AVIS, Jeddi et al. 2026, arXiv 2606.11576) adapts
KeyDiff (Park et al. 2025), a rule that evicts keys of a language model, to the keys of the vision encoder. A token is
redundant when its key points where most keys of its image or video point. Redundant tokens are pruned first.

    >>> import torch
    >>> keys = torch.randn(16, 256, 80)               # (heads, merged tokens, width) of one image
    >>> scores = key_diversity_scores(keys)           # (256,), high = diverse
    >>> keep_top(scores, rho=0.75).shape              # fixed pruning: three quarters are pruned
    torch.Size([64])
    >>> kept = keep_diverse(scores, tau=0.785)        # adaptive pruning: all redundant tokens are pruned

A new pruner is one function with the signature of `prune_kdv` and one entry in `PRUNERS`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from typing import Any, Literal, Optional

import torch
import torch.nn.functional as F

DEFAULT_RHO = 0.75
MAX_PATCHES = 2**13  # of one call of the vision encoder: enough rows to keep a device busy
Grid = tuple[int, int, int]


# ---- The formulas ------------------------------------------------------------------------------------------


def pool_keys(keys: torch.Tensor, window_index: torch.Tensor, merge_unit: int = 4) -> torch.Tensor:
    """Average the keys of each merged token's patches, and put them into raster order.

    The vision encoder works in window order: its merge group `i` is token `window_index[i]` of the raster.

    Args:
        keys: `(merge_unit * N, H, d)`, the patches' keys in window order, merge group by merge group.
        window_index: `(N,)`, the permutation that the encoder's `get_window_index` returns.
        merge_unit: patches per merged token.

    Returns:
        `(H, N, d)` float32: one key per token and head, frame-major for videos.
    """
    merged = keys.float().unflatten(0, (-1, merge_unit)).mean(dim=1)
    return merged[torch.argsort(window_index)].transpose(0, 1)


def key_diversity_scores(keys: torch.Tensor) -> torch.Tensor:
    """Return the KDV score of every token of one item: minus the cosine to the mean key, averaged over heads.

    With the keys `k` normalised to length 1 and the anchor `a_h = mean_n k_hn`, the score is
    `s_n = mean_h(-cos(k_hn, a_h))` (AVIS; KeyDiff's score with the vision encoder's keys). The cost is linear in N.

    Args:
        keys: `(H, N, d)`, the keys of one item, of any floating type.

    Returns:
        `(N,)` float32 in [-1, 1]; tokens with high scores are diverse and are kept.
    """
    unit = F.normalize(keys.float(), dim=-1)
    anchor = F.normalize(unit.mean(dim=1, keepdim=True), dim=-1)
    return -(unit * anchor).sum(dim=-1).mean(dim=0).clamp(-1.0, 1.0)


def keep_count(n: int, rho: float) -> int:
    """Return how many of `n` tokens are kept when the fraction `rho` is pruned.

    This is the only place where the number is rounded: `max(1, floor((1 - rho) * n + 1e-6))`. Without the 1e-6, pruning
    0.9 of 10 tokens would leave 0.9999999 token, so none.

    Args:
        n: tokens of the item, at least 1.
        rho: the fraction that is *pruned*, in [0, 1].

    Returns:
        The number of kept tokens, at least 1.

    Raises:
        ValueError: `n` or `rho` is out of range.
    """
    if n < 1:
        raise ValueError(f"a visual item has at least one token, got n = {n}")
    _check_rho(rho)
    return max(1, math.floor((1 - rho) * n + 1e-6))


def keep_top(scores: torch.Tensor, rho: float) -> torch.Tensor:
    """Select the `keep_count(N, rho)` tokens with the highest scores (fixed pruning).

    Of equal scores, the one with the lower index is kept.

    Args:
        scores: `(N,)`.
        rho: the fraction that is *pruned*, in [0, 1].

    Returns:
        `(keep_count,)` int64, ascending indices on the scores' device.

    Raises:
        ValueError: no scores, or `rho` is out of range.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[: keep_count(len(scores), rho)].sort().values


def keep_diverse(scores: torch.Tensor, tau: float) -> torch.Tensor:
    """Select the tokens at an angle of at least `tau` to the anchor (adaptive pruning).

    Token n is pruned when `s_n < -cos(tau)` (AVIS, adaptive pruning). When that prunes all tokens, the one with the
    highest score is kept.

    Args:
        scores: `(N,)`.
        tau: radians, in (0, pi). A larger angle prunes more tokens.

    Returns:
        `(kept,)` int64, ascending indices on the scores' device, at least one.

    Raises:
        ValueError: `tau` is out of range.
    """
    _check_tau(tau)
    kept = (scores >= -math.cos(tau)).nonzero().squeeze(1)
    return kept if len(kept) else keep_top(scores, rho=1.0)


# ---- Pruners: one function each, chosen by name ------------------------------------------------------------


def prune_kdv(
    keys: torch.Tensor, embeds: torch.Tensor, grid: Grid, *, rho: Optional[float], tau: Optional[float], seed: int
) -> torch.Tensor:
    """Keep the tokens with the most diverse keys: a fraction of them, or all beyond an angle.

    Every pruner has these arguments. Exactly one of `rho` and `tau` is not None.

    Args:
        keys: `(H, N, d)` float32, of the last vision block after rotary embedding, pooled, in raster order.
        embeds: `(N, D)`, the embeddings for the language model, in raster order.
        grid: (t, h, w) in merged tokens, with `t * h * w = N`.
        rho: the fraction to prune; see `keep_top`.
        tau: the angle below which a token is pruned; see `keep_diverse`.
        seed: for pruners that draw random numbers; all items of a prompt get the same seed.

    Returns:
        Ascending int64 indices of the kept tokens, at least one.
    """
    scores = key_diversity_scores(keys)
    return keep_top(scores, rho) if tau is None else keep_diverse(scores, tau)


def prune_random(
    keys: torch.Tensor, embeds: torch.Tensor, grid: Grid, *, rho: Optional[float], tau: Optional[float], seed: int
) -> torch.Tensor:
    """Keep as many tokens as KDV would keep, drawn uniformly: the baseline of every table.

    The draw is made on the CPU, so that one seed keeps the same tokens on every device. Arguments and result are those
    of `prune_kdv`.
    """
    n = len(embeds)
    count = keep_count(n, rho) if tau is None else len(keep_diverse(key_diversity_scores(keys), tau))
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
    return drawn.sort().values.to(embeds.device)


PRUNERS = {"kdv": prune_kdv, "random": prune_random}


# ---- Configuration and encoded items -----------------------------------------------------------------------


def check_number(name: str, value: Any, is_whole: bool = False) -> None:
    """Raise ValueError for a value that is no number, or no whole one; a bool and a text are none."""
    if not isinstance(value, Integral if is_whole else Real) or isinstance(value, bool):
        kind = "whole number" if is_whole else "number"
        raise ValueError(f"{name} must be a {kind}, got {' '.join(repr(value).split())[:60]}")


@dataclass(frozen=True)
class KdvConfig:
    """How to prune: a fixed fraction (`rho`) or an angle (`tau`). Without either, `rho` is 0.75.

    Attributes:
        rho: the fraction of tokens that is pruned, in [0, 1].
        tau: the angle in radians below which a token is pruned, in (0, pi).
        pruner: a name in `PRUNERS`.
        seed: for pruners that draw random numbers.

    Raises:
        ValueError: a value of a wrong type or out of range, both `rho` and `tau`, or an unknown pruner.
    """

    rho: Optional[float] = None
    tau: Optional[float] = None
    pruner: str = "kdv"
    seed: int = 0

    def __post_init__(self):
        if self.rho is not None and self.tau is not None:
            raise ValueError("kdv_ratio (fixed pruning) and kdv_threshold (adaptive pruning) exclude each other")
        for name, value in (("kdv_ratio", self.rho), ("kdv_threshold", self.tau)):
            if value is not None:
                check_number(name, value)
        check_number("pruner_seed", self.seed, is_whole=True)
        if not isinstance(self.pruner, str) or self.pruner not in PRUNERS:
            raise ValueError(f"unknown pruner {self.pruner!r}, known: {', '.join(sorted(PRUNERS))}")
        if self.tau is not None:
            _check_tau(self.tau)
        elif self.rho is None:
            object.__setattr__(self, "rho", DEFAULT_RHO)
        else:
            _check_rho(self.rho)


def make_kdv_config(
    enable_kdv: bool,
    kdv_ratio: Optional[float],
    kdv_threshold: Optional[float],
    pruner: str,
    pruner_seed: int,
) -> Optional[KdvConfig]:
    """Return the `KdvConfig` of the model's keyword arguments, or None when KDV is off.

    Raises:
        ValueError: a reason of `KdvConfig`'s, or an argument of pruning although KDV is off. Such a call would run
            unpruned and look as if it were pruned.
    """
    if not isinstance(enable_kdv, bool):
        raise ValueError(f"enable_kdv must be True or False, got {' '.join(repr(enable_kdv).split())[:60]}")
    if enable_kdv:
        return KdvConfig(kdv_ratio, kdv_threshold, pruner, pruner_seed)
    if (kdv_ratio, kdv_threshold, pruner, pruner_seed) != (None, None, "kdv", 0):
        raise ValueError("kdv_ratio, kdv_threshold, pruner and pruner_seed need enable_kdv=True")
    return None


@dataclass(frozen=True, eq=False)
class VisualItem:
    """One encoded image or video: everything that a pruner may read.

    Attributes:
        kind: "image" or "video".
        grid: (t, h, w) in merged tokens, with `t * h * w = N`.
        embeds: `(N, D)`, the embeddings for the language model.
        keys: `(H, N, d)` float32, or None when the item was encoded without them.
    """

    kind: Literal["image", "video"]
    grid: Grid
    embeds: torch.Tensor
    keys: Optional[torch.Tensor]


def prune_item(item: VisualItem, config: KdvConfig) -> torch.Tensor:
    """Select the kept tokens of one item.

    Args:
        item: an item that was encoded with keys.
        config: how to prune.

    Returns:
        Ascending int64 indices of the kept tokens, at least one.

    Raises:
        ValueError: the item has no keys.
    """
    if item.keys is None:
        raise ValueError("this visual item was encoded without keys and cannot be pruned: encode it with return_keys")
    prune = PRUNERS[config.pruner]
    return prune(item.keys, item.embeds, item.grid, rho=config.rho, tau=config.tau, seed=config.seed)


# ---- Items and batches -------------------------------------------------------------------------------------


def patch_grids(items: Sequence[VisualItem], kind: str, merge_size: int) -> Optional[torch.Tensor]:
    """Return the `image_grid_thw` or `video_grid_thw` that a processor would return for these items.

    Args:
        items: encoded items of any kind.
        kind: "image" or "video"; items of the other kind are left out.
        merge_size: patches along one side of a merged token.

    Returns:
        `(items, 3)` int64, in patches, or None when there is no item of this kind.
    """
    grids = [item.grid for item in items if item.kind == kind]
    return torch.tensor([(t, h * merge_size, w * merge_size) for t, h, w in grids]) if grids else None


def chunk_vision_batches(grids: Sequence[Sequence[int]], max_patches: int) -> list[list[list[int]]]:
    """Divide items into calls of the vision encoder of up to `max_patches` patches, and at least one frame, each.

    Frames do not attend to each other in the encoder. A long video can therefore be encoded in parts, which takes the
    memory of one part.

    Args:
        grids: (t, h, w) in patches, of the items of one kind.
        max_patches: patches of one call.

    Returns:
        For each call its grids in the given order: whole items, or some frames of one.
    """
    batches: list[list[list[int]]] = []
    free_patches = 0
    for t, h, w in grids:
        while t:
            if free_patches < h * w:
                batches.append([])
                free_patches = max(max_patches, h * w)
            frames = min(t, free_patches // (h * w))
            batches[-1].append([frames, h, w])
            free_patches -= frames * h * w
            t -= frames
    return batches


def placeholder_spans(
    input_ids: torch.Tensor, items: Sequence[VisualItem], token_ids: dict[str, int]
) -> list[torch.Tensor]:
    """Find the places of each item's tokens in a batch of prompts.

    Args:
        input_ids: `(B, L)`.
        items: of all rows; within a kind in reading order. The two kinds may be mixed in any way.
        token_ids: the placeholder's token id by kind.

    Returns:
        Per item `(N,)` int64, ascending indices into the flattened `(B * L,)` batch.

    Raises:
        ValueError: a kind has more or fewer placeholders than tokens.
    """
    spans = {}
    for kind, token_id in token_ids.items():
        places = (input_ids == token_id).flatten().nonzero().squeeze(1)
        sizes = [len(item.embeds) for item in items if item.kind == kind]
        if sum(sizes) != len(places):
            raise ValueError(f"the prompt has {len(places)} {kind} placeholders for {sum(sizes)} {kind} tokens")
        spans[kind] = iter(places.split(sizes))
    return [next(spans[item.kind]) for item in items]


def repeat_row_items(
    items: Sequence[VisualItem], items_per_row: dict[str, list[int]], times: int
) -> tuple[VisualItem, ...]:
    """Repeat the items of each row of a batch, as `generate` repeats the rows for beams.

    Args:
        items: of all rows; within a kind in reading order.
        items_per_row: by kind the number of items of each row.
        times: how often each row is repeated, in place.

    Returns:
        Images, then videos; the items of one row and kind occur `times` times in succession. They are references, not
        copies.
    """
    repeated = []
    for kind, counts in items_per_row.items():
        of_kind = iter([item for item in items if item.kind == kind])
        for count in counts:
            repeated += list(islice(of_kind, count)) * times
    return tuple(repeated)


def left_pad_indices(keep_mask: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the columns of a pruned batch that is left-padded to its longest row.

    Args:
        keep_mask: `(B, L)` bool, False at pruned tokens.
        attention_mask: `(B, L)`, 0 at padding.

    Returns:
        Two tensors `(B, P)`, where P is the number of kept tokens of the longest row. First int64 indices into the L
        columns, in their order, which point to dropped columns at the padding. Then the attention mask of the pruned
        batch, in the type of the one given.
    """
    real = keep_mask & (attention_mask != 0)
    # A stable sort of dropped before kept columns is left padding: both keep their order, and the right end remains.
    order = torch.argsort(real.int(), dim=1, stable=True)
    index = order[:, order.shape[1] - int(real.sum(dim=1).max()) :]
    return index, real.gather(1, index).to(attention_mask.dtype)


def _check_rho(rho: float) -> None:
    if not 0 <= rho <= 1:  # also refuses NaN
        raise ValueError(f"kdv_ratio is the fraction of visual tokens pruned, in [0, 1], got {rho}")


def _check_tau(tau: float) -> None:
    if not 0 < tau < math.pi:
        raise ValueError(f"kdv_threshold is an angle in radians between 0 and pi, got {tau}")
