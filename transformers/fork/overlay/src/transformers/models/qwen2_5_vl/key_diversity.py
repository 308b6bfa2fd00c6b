"""Key Diversity Visual pruning (KDV): from the vision tower's keys to the visual tokens that are kept.

Pure functions on tensors; the model that calls them is in `modeling_qwen2_5_vl.py`. KDV is AVIS's (Jeddi et
al. 2026, arXiv 2606.11576) adaptation of KeyDiff (Park et al. 2025), a rule for evicting language-model keys,
to the keys of the vision tower: a token whose key points where most keys of its item point is redundant, so
it goes first.

    >>> import torch
    >>> keys = torch.randn(16, 256, 80)               # (heads, merged tokens, width) of one image
    >>> scores = key_diversity_scores(keys)           # (256,), high = diverse
    >>> keep_top(scores, rho=0.75).shape              # fixed pruning: three quarters go
    torch.Size([64])
    >>> kept = keep_diverse(scores, tau=0.785)        # adaptive pruning: as many as are redundant go

A new pre-LLM pruner is one function with the signature of `prune_kdv` and one entry in `PRUNERS`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Optional

import torch
import torch.nn.functional as F

DEFAULT_RHO = 0.75
MAX_PATCHES = 2**13  # of one call of the vision tower: enough rows to keep a device busy
Grid = tuple[int, int, int]


# ---- The formulas ------------------------------------------------------------------------------------------


def pool_keys(keys: torch.Tensor, window_index: torch.Tensor, merge_unit: int = 4) -> torch.Tensor:
    """One key per merged token, in raster order.

    The tower works in window order: its row `i` of merge groups is token `window_index[i]` of the raster.

    Args:
        keys: `(merge_unit * N, H, d)`, the patches' keys in window order, merge group by merge group.
        window_index: `(N,)`, the permutation that the tower's `get_window_index` returns.
        merge_unit: patches per merged token.

    Returns:
        `(H, N, d)` float32: the mean key of each token's patches, frame-major for videos.
    """
    merged = keys.float().unflatten(0, (-1, merge_unit)).mean(dim=1)
    return merged[torch.argsort(window_index)].transpose(0, 1)


def key_diversity_scores(keys: torch.Tensor) -> torch.Tensor:
    """The KDV score of every token of one item: minus the cosine to the mean key, averaged over heads.

    With `k` the keys normalised to length 1 and the anchor `a_h = mean_n k_hn`,
    `s_n = mean_h(-cos(k_hn, a_h))` (AVIS; KeyDiff's score with the vision tower's keys). Linear in N.

    Args:
        keys: `(H, N, d)`, the keys of one item, of any floating type.

    Returns:
        `(N,)` float32 in [-1, 1]; high = diverse = kept.
    """
    unit = F.normalize(keys.float(), dim=-1)
    anchor = F.normalize(unit.mean(dim=1, keepdim=True), dim=-1)
    return -(unit * anchor).sum(dim=-1).mean(dim=0).clamp(-1.0, 1.0)


def keep_count(n: int, rho: float) -> int:
    """How many of `n` tokens stay when the fraction `rho` is pruned: the one place where this is rounded.

    `max(1, floor((1 - rho) * n + 1e-6))`; the 1e-6 keeps 0.9 of 10 tokens from leaving 0.9999999 token.
    Raises ValueError when `n < 1` or `rho` is not in [0, 1].
    """
    if n < 1:
        raise ValueError(f"a visual item has at least one token, got n = {n}")
    _check_rho(rho)
    return max(1, math.floor((1 - rho) * n + 1e-6))


def keep_top(scores: torch.Tensor, rho: float) -> torch.Tensor:
    """Fixed pruning: the indices of the `keep_count(N, rho)` highest scores; of equal scores the first stays.

    Args:
        scores: `(N,)`.
        rho: the fraction that is *pruned*, in [0, 1].

    Returns:
        `(keep_count,)` int64, ascending, on the scores' device.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[: keep_count(len(scores), rho)].sort().values


def keep_diverse(scores: torch.Tensor, tau: float) -> torch.Tensor:
    """Adaptive pruning: the indices of the tokens at an angle of at least `tau` to the anchor, never none.

    Token n goes when `s_n < -cos(tau)` (AVIS, adaptive pruning). When all would go, the highest score stays.

    Args:
        scores: `(N,)`.
        tau: radians, in (0, pi). The larger, the more is pruned.

    Returns:
        `(kept,)` int64, ascending, on the scores' device.
    """
    _check_tau(tau)
    kept = (scores >= -math.cos(tau)).nonzero().squeeze(1)
    return kept if len(kept) else keep_top(scores, rho=1.0)


# ---- Pruners: one function each, chosen by name ------------------------------------------------------------


def prune_kdv(
    keys: torch.Tensor, embeds: torch.Tensor, grid: Grid, *, rho: Optional[float], tau: Optional[float], seed: int
) -> torch.Tensor:
    """Keep the tokens with the most diverse keys: a fraction (`rho` set) or by angle (`tau` set).

    Args, for every pruner:
        keys: `(H, N, d)` float32, last vision block, after rotary embedding, pooled, raster order.
        embeds: `(N, D)`, what the language model would be given, raster order.
        grid: (t, h, w) in merged tokens, `t * h * w = N`.
        rho, tau: exactly one is not None; see `keep_top` and `keep_diverse`.
        seed: for pruners that draw; two items of a prompt get the same one.

    Returns:
        Ascending int64 indices into the N tokens, at least one.
    """
    scores = key_diversity_scores(keys)
    return keep_top(scores, rho) if tau is None else keep_diverse(scores, tau)


def prune_random(
    keys: torch.Tensor, embeds: torch.Tensor, grid: Grid, *, rho: Optional[float], tau: Optional[float], seed: int
) -> torch.Tensor:
    """The baseline of every table: as many tokens as KDV would keep, drawn uniformly.

    Drawn on the CPU, so that the same seed keeps the same tokens on every device.
    """
    n = len(embeds)
    count = keep_count(n, rho) if tau is None else len(keep_diverse(key_diversity_scores(keys), tau))
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
    return drawn.sort().values.to(embeds.device)


PRUNERS = {"kdv": prune_kdv, "random": prune_random}


# ---- What travels through the model ------------------------------------------------------------------------


@dataclass(frozen=True)
class KdvConfig:
    """How to prune. Give `rho` (fixed) or `tau` (adaptive), not both; neither means `rho = 0.75`.

    Raises ValueError on values out of range, on both, and on an unknown pruner.
    """

    rho: Optional[float] = None
    tau: Optional[float] = None
    pruner: str = "kdv"
    seed: int = 0

    def __post_init__(self):
        if self.rho is not None and self.tau is not None:
            raise ValueError("kdv_ratio (fixed pruning) and kdv_threshold (adaptive pruning) exclude each other")
        if self.pruner not in PRUNERS:
            raise ValueError(f"unknown pruner {self.pruner!r}, known: {', '.join(sorted(PRUNERS))}")
        if self.tau is not None:
            _check_tau(self.tau)
        elif self.rho is None:
            object.__setattr__(self, "rho", DEFAULT_RHO)
        else:
            _check_rho(self.rho)


def kdv_config(
    enable_kdv: bool,
    kdv_ratio: Optional[float],
    kdv_threshold: Optional[float],
    pruner: str,
    pruner_seed: int,
) -> Optional[KdvConfig]:
    """The settings that the model's keyword arguments ask for; None when KDV is off.

    Raises ValueError as `KdvConfig` does, and when a `kdv_*` argument is given although KDV is off: such a
    call would run unpruned and look as if it had been pruned.
    """
    if enable_kdv:
        return KdvConfig(kdv_ratio, kdv_threshold, pruner, pruner_seed)
    if (kdv_ratio, kdv_threshold, pruner, pruner_seed) != (None, None, "kdv", 0):
        raise ValueError("kdv_ratio, kdv_threshold, pruner and pruner_seed need enable_kdv=True")
    return None


@dataclass(frozen=True, eq=False)
class VisualItem:
    """One encoded image or video: everything a pruner may look at.

    kind: "image" or "video". grid: (t, h, w) in merged tokens. embeds: `(N, D)`. keys: `(H, N, d)` float32, or None
    when it was encoded without them.
    """

    kind: Literal["image", "video"]
    grid: Grid
    embeds: torch.Tensor
    keys: Optional[torch.Tensor]


def prune_item(item: VisualItem, settings: KdvConfig) -> torch.Tensor:
    """The kept tokens of one item: ascending int64 indices into its N tokens. Raises ValueError without keys."""
    if item.keys is None:
        raise ValueError("this visual item was encoded without keys and cannot be pruned: encode it with return_keys")
    prune = PRUNERS[settings.pruner]
    return prune(item.keys, item.embeds, item.grid, rho=settings.rho, tau=settings.tau, seed=settings.seed)


# ---- Where items stand in a batch, and what is left of it --------------------------------------------------


def patch_grids(items: Sequence[VisualItem], kind: str, merge_size: int) -> Optional[torch.Tensor]:
    """The `image_grid_thw` or `video_grid_thw` of a processor for these items: `(items, 3)`, None for none."""
    grids = [item.grid for item in items if item.kind == kind]
    return torch.tensor([(t, h * merge_size, w * merge_size) for t, h, w in grids]) if grids else None


def chunk_vision_batches(grids: Sequence[Sequence[int]], max_patches: int) -> list[list[list[int]]]:
    """Which whole frames share a call of the vision tower: up to `max_patches` patches, at least one frame.

    Frames do not see each other in the tower, so a long video can go through in pieces, and takes the memory of one.

    Args:
        grids: (t, h, w) in patches, of the items of one kind.

    Returns:
        For each call its grids, in the same order: of items, or of some frames of one.
    """
    calls: list[list[list[int]]] = []
    room = 0
    for t, h, w in grids:
        while t:
            if room < h * w:
                calls.append([])
                room = max(max_patches, h * w)
            frames = min(t, room // (h * w))
            calls[-1].append([frames, h, w])
            room -= frames * h * w
            t -= frames
    return calls


def placeholder_spans(
    input_ids: torch.Tensor, items: Sequence[VisualItem], token_ids: dict[str, int]
) -> list[torch.Tensor]:
    """The places that each item's tokens take in a batch of prompts.

    Args:
        input_ids: `(B, L)`.
        items: of all rows; within a kind in reading order. Kinds may be mixed in any way.
        token_ids: placeholder id by kind.

    Returns:
        Per item `(N,)` int64 indices into the flattened `(B * L,)` batch, ascending.

    Raises ValueError when a kind has more or fewer placeholders than tokens.
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
    """The items of a batch whose rows are each repeated `times` times in place, as `generate` does for beams.

    Args:
        items: of all rows; within a kind in reading order.
        items_per_row: by kind, how many items each row has.

    Returns:
        Images, then videos; a row's items of a kind occur `times` times in a row. References, not copies.
    """
    repeated = []
    for kind, counts in items_per_row.items():
        of_kind = iter([item for item in items if item.kind == kind])
        for count in counts:
            repeated += list(islice(of_kind, count)) * times
    return tuple(repeated)


def left_pad_indices(keep_mask: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which columns of a pruned batch come from where, left-padded to the longest row that is left.

    Args:
        keep_mask: `(B, L)` bool, False at pruned tokens.
        attention_mask: `(B, L)`, 0 at padding.

    Returns:
        index: `(B, Lk)` int64 into the L columns, in their order; at the padding it points to dropped ones.
        pruned mask: `(B, Lk)` of the attention mask's type, 0 at the padding. `Lk` is what the longest row has.
    """
    real = keep_mask & (attention_mask != 0)
    # A stable sort of dropped before kept is left padding: both keep their order, and the right end stays.
    order = torch.argsort(real.int(), dim=1, stable=True)
    index = order[:, order.shape[1] - int(real.sum(dim=1).max()) :]
    return index, real.gather(1, index).to(attention_mask.dtype)


def _check_rho(rho: float) -> None:
    if not 0 <= rho <= 1:  # also refuses NaN
        raise ValueError(f"kdv_ratio is the fraction of visual tokens pruned, in [0, 1], got {rho}")


def _check_tau(tau: float) -> None:
    if not 0 < tau < math.pi:
        raise ValueError(f"kdv_threshold is an angle in radians between 0 and pi, got {tau}")
