"""FLOPs of one query, from its prefill and the lengths of its rollouts; the closed forms are the fork's `flops`."""

from collections.abc import Sequence
from dataclasses import replace

from transformers.models.qwen2_5_vl import flops
from transformers.models.qwen2_5_vl.key_diversity import VisualItem
from transformers.models.qwen2_5_vl.shared_prefill import Prefill


def patch_grids(model_config, visual_items: Sequence[VisualItem]) -> list[tuple[int, int, int]]:
    """Return (t, h, w) in patches of each visual item, as the closed forms take them."""
    merge = model_config.vision_config.spatial_merge_size
    return [(t, h * merge, w * merge) for t, h, w in (item.grid for item in visual_items)]


def query_flops(
    model_config, prefill: Prefill, lengths: Sequence[int], vanilla_length: int, reused: int = 0
) -> dict[str, float]:
    """Return the FLOPs of a query by stage, and relative to vanilla (rho = 0, K = 1) in both accountings.

    Args:
        model_config: the model's.
        prefill: of the query.
        lengths: new tokens of each rollout.
        vanilla_length: new tokens of vanilla's one rollout.
        reused: tokens of the pruned prompt that earlier turns had read; the vision encoder then ran for them, not
            for this query.

    Returns:
        "vision", "prefill", "decode", "relative_llm" (the paper's #F) and "relative_total".
    """
    grids = patch_grids(model_config, prefill.visual_items)
    spent = flops.cost(model_config, grids, prefill.prompt_length, prefill.kept_length, lengths)
    if reused:
        spent = replace(spent, vision=0, prefill=_extension_flops(model_config, reused, prefill.kept_length))
    vanilla = flops.vanilla_cost(model_config, grids, prefill.prompt_length, vanilla_length)
    relative = flops.relative(spent, vanilla)
    return {
        "vision": spent.vision,
        "prefill": spent.prefill,
        "decode": spent.decode,
        "relative_llm": relative["llm"],
        "relative_total": relative["total"],
    }


def _extension_flops(model_config, reused: int, whole: int) -> int:
    """Return the language model's FLOPs over the tokens from `reused` up to `whole`, with one row of logits.

    n new tokens meet n (reused + n) pairs, which is half of (reused + n)^2 + n^2 - reused^2; the cost of tokens and
    logits is linear.
    """
    text_config = model_config.get_text_config()
    longer = flops.prefill_flops(text_config, whole) + flops.prefill_flops(text_config, whole - reused)
    return (longer - flops.prefill_flops(text_config, reused, logits=0)) // 2
