"""Closed-form floating-point cost of Qwen2.5-VL, from a configuration and token counts.

It gives the cost of an answer, the saving of pruned visual tokens and the cost of K rollouts without running a counter.
All numbers are plain Python integers; nothing here needs torch, weights or a device.

What is counted:

- 2 FLOPs per multiply-add, of matrix multiplications (the patch embedding's convolution is one) and of
  attention (queries times keys, weights times values). The rules are those of `torch.utils.flop_counter`, and
  the results equal its results.
- Causal attention in full: a prefill of L tokens costs L x L pairs, although half of them are masked. Torch's counter
  does the same; a kernel that skips the masked half executes less.
- Grouped key-value heads save projections and memory, not attention FLOPs: every query head meets every key.
- Not counted: norms, softmax, activations, biases, residual sums, embedding lookups, applying the rotary
  embedding (the product that makes the language model's angles is a matrix multiplication, and is counted),
  sampling, the scores that choose the kept tokens, and the policy that chooses K.

There are two accountings, always named. `llm` is the language model alone (prefill and decode), the paper's #F. `total`
adds the vision encoder, which pruning after it cannot make cheaper.

Example: an image of 52 x 38 patches (494 visual tokens) and 60 text tokens; three quarters of the visual
tokens pruned, three rollouts.

    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.flops import cost, mean_length, relative, vanilla_cost

    config = Qwen2_5_VLConfig()  # or model.config
    lengths = [180, 240, 210]
    avis = cost(config, grids=[(1, 52, 38)], prompt_length=554, kept_length=183, rollout_lengths=lengths)
    vanilla = vanilla_cost(config, [(1, 52, 38)], prompt_length=554, decode_length=mean_length(lengths))
    print(avis.llm, avis.total, relative(avis, vanilla))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only for annotations: this file must stay usable where torch is not
    from .configuration_qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig

Grid = Sequence[int]


@dataclass(frozen=True)
class Cost:
    """The FLOPs of one query, by stage.

    Attributes:
        vision: the vision encoder over every image and video of the prompt, once.
        prefill: the language model over the kept prompt, once, with the logits of its last position.
        decode: the language model over all rollouts' tokens after the first.
    """

    vision: int
    prefill: int
    decode: int

    @property
    def llm(self) -> int:
        """The FLOPs of the language model alone: the paper's #F before normalisation."""
        return self.prefill + self.decode

    @property
    def total(self) -> int:
        """The FLOPs of language model and vision encoder together."""
        return self.llm + self.vision

    def __add__(self, other: Cost) -> Cost:
        """Add two costs stage by stage."""
        return Cost(self.vision + other.vision, self.prefill + other.prefill, self.decode + other.decode)


def vision_encoder_flops(vision_config: Qwen2_5_VLVisionConfig, grids: Sequence[Grid]) -> int:
    """Return the FLOPs of the vision encoder over images and videos.

    Args:
        vision_config: `config.vision_config` of any Qwen2.5-VL.
        grids: one (t, h, w) per image or video in patches, before the 2 x 2 merge, as in `image_grid_thw`; t counts
            temporal patches of `temporal_patch_size` frames. Each side is anything that `int()` accepts.

    Returns:
        The FLOPs of patch embedding, all blocks and the merger; 0 for no grids.

    Raises:
        ValueError: a side is below 1, or h or w is not a multiple of `spatial_merge_size`.
    """
    return sum(_vision_item_flops(vision_config, *(int(side) for side in grid)) for grid in grids)


def prefill_flops(text_config: Qwen2_5_VLTextConfig, length: int, logits: int = 1) -> int:
    """Return the FLOPs of the language model over a prompt, from an empty cache.

    Args:
        text_config: `config.text_config` of any Qwen2.5-VL without sliding-window layers.
        length: tokens that the language model reads: text and *kept* visual tokens.
        logits: positions whose vocabulary logits are computed; generation needs the last one only.

    Returns:
        The FLOPs of all layers over `length` tokens, with attention over length x length pairs, and of `lm_head`.

    Raises:
        ValueError: `length` below 1, `logits` outside 0..length, or a layer with sliding-window attention.
    """
    if length < 1:
        raise ValueError(f"a prefill needs at least 1 token, got {length}")
    if not 0 <= logits <= length:
        raise ValueError(f"logits must be between 0 and the prefill's {length} tokens, got {logits}")
    return (
        length * _text_token_flops(text_config)
        + _text_attention_flops(text_config, pairs=length * length)
        + logits * _lm_head_flops(text_config)
    )


def decode_flops(text_config: Qwen2_5_VLTextConfig, prefix: int, new_tokens: int) -> int:
    """Return the FLOPs of one rollout after its prefill; K rollouts cost the sum of K calls.

    A rollout of n tokens takes n - 1 forward passes: its first token is sampled from the prefill's logits, and its last
    one is not read. Pass j (j = 1 .. n-1) reads one token, which attends to prefix + j positions (itself included) and
    needs one row of logits.

    Only the passes that a rollout needs are counted, and not those of a row that waits for a longer rollout to end.

    Args:
        text_config: `config.text_config` of any Qwen2.5-VL without sliding-window layers.
        prefix: tokens in the cache after the prefill, which is the prefill's `length`.
        new_tokens: tokens sampled, an end-of-sequence token included.

    Returns:
        The FLOPs of the rollout's forward passes; 0 for 0 or 1 new tokens.

    Raises:
        ValueError: `prefix` below 1, `new_tokens` below 0, or a layer with sliding-window attention.
    """
    if prefix < 1:
        raise ValueError(f"decoding needs a prefix of at least 1 token, got {prefix}")
    if new_tokens < 0:
        raise ValueError(f"new_tokens must be 0 or more, got {new_tokens}")
    steps = max(new_tokens - 1, 0)
    # (prefix + 1) + ... + (prefix + steps)
    pairs = steps * prefix + steps * (steps + 1) // 2
    per_pass = _text_token_flops(text_config) + _lm_head_flops(text_config)
    return steps * per_pass + _text_attention_flops(text_config, pairs)


def cost(
    config: Qwen2_5_VLConfig,
    grids: Sequence[Grid],
    prompt_length: int,
    kept_length: int,
    rollout_lengths: Sequence[int],
) -> Cost:
    """Return the cost of one query: one vision encoding, one prefill, one decode per rollout.

    Args:
        config: the model's configuration (any Qwen2.5-VL).
        grids: one (t, h, w) in patches per image or video, both kinds together; empty for a text prompt.
        prompt_length: tokens of the unpruned prompt, text and visual.
        kept_length: tokens of the prompt that the language model reads after pruning, text *and* kept visual tokens;
            equal to `prompt_length` when nothing was pruned.
        rollout_lengths: tokens sampled by each of the K rollouts.

    Returns:
        The cost by stage.

    Raises:
        ValueError: the lengths contradict each other (fewer tokens than visual tokens, more kept tokens than tokens,
            fewer kept tokens than text tokens), no rollout is given, or a stage refuses its part.
    """
    vision, text = config.vision_config, config.text_config
    visual = sum(_merged_tokens(vision, *(int(side) for side in grid)) for grid in grids)
    if prompt_length < visual:
        raise ValueError(f"a prompt of {prompt_length} tokens cannot hold the grids' {visual} visual tokens")
    if not prompt_length - visual <= kept_length <= prompt_length:
        raise ValueError(
            "kept_length counts text and kept visual tokens: "
            f"expected {prompt_length - visual} to {prompt_length}, got {kept_length}"
        )
    if not rollout_lengths:
        raise ValueError("rollout_lengths is empty: a query has at least one rollout")
    return Cost(
        vision=vision_encoder_flops(vision, grids),
        prefill=prefill_flops(text, kept_length),
        decode=sum(decode_flops(text, kept_length, tokens) for tokens in rollout_lengths),
    )


def vanilla_cost(config: Qwen2_5_VLConfig, grids: Sequence[Grid], prompt_length: int, decode_length: int) -> Cost:
    """Return the cost of the vanilla model on a query: nothing pruned (rho = 0), one rollout (K = 1).

    The length of vanilla's answer is unknown unless vanilla was run. Then pass its own length; otherwise the convention
    is `mean_length` of the rollouts that were run.

    Args:
        config: as for `cost`.
        grids: as for `cost`.
        prompt_length: as for `cost`.
        decode_length: tokens of vanilla's rollout.

    Returns:
        The cost by stage.

    Raises:
        ValueError: as from `cost`.
    """
    return cost(config, grids, prompt_length, prompt_length, [decode_length])


def mean_length(rollout_lengths: Sequence[int]) -> int:
    """Return the mean number of tokens of rollouts, rounded to the nearest integer, halves up.

    Raises:
        ValueError: no lengths.
    """
    if not rollout_lengths:
        raise ValueError("the mean length of no rollouts is undefined")
    # in integers, because round() sends halves to the even neighbour and floats lose digits
    return (2 * sum(rollout_lengths) + len(rollout_lengths)) // (2 * len(rollout_lengths))


def relative(cost: Cost, vanilla: Cost) -> dict[str, float]:
    """Return the cost relative to vanilla's in both accountings, 1.0 for vanilla itself.

    `llm` is the paper's #F. Show each number with its name: they differ much on short answers to large images.

    Args:
        cost: of a query or of several.
        vanilla: the vanilla model's, on the same queries.

    Returns:
        `{"llm": fraction, "total": fraction}`.
    """
    return {"llm": cost.llm / vanilla.llm, "total": cost.total / vanilla.total}


def _vision_item_flops(vision: Qwen2_5_VLVisionConfig, t: int, h: int, w: int) -> int:
    tokens = _merged_tokens(vision, t, h, w)
    patches = t * h * w
    hidden = vision.hidden_size
    full_blocks = sum(block in vision.fullatt_block_indexes for block in range(vision.depth))

    embed = 2 * patches * hidden * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    # qkv (3), proj (1); gate, up, down
    blocks = 2 * patches * vision.depth * (4 * hidden * hidden + 3 * hidden * vision.intermediate_size)
    # videos too: a full block attends within one temporal patch, never across
    full_pairs = full_blocks * t * (h * w) ** 2
    window_pairs = (vision.depth - full_blocks) * t * _window_pairs(vision, h) * _window_pairs(vision, w)
    # queries times keys, and weights times values
    attention = 4 * hidden * (full_pairs + window_pairs)
    merged = hidden * vision.spatial_merge_size**2
    merger = 2 * tokens * (merged * merged + merged * vision.out_hidden_size)
    return embed + blocks + attention + merger


def _window_pairs(vision: Qwen2_5_VLVisionConfig, side: int) -> int:
    """Return the sum of squared window lengths along one axis, in patches.

    A window is a rectangle. Its squared area is a product over the two axes, and so is the sum over the grid. Windows
    are cut from the top left in whole merge groups, so the last one may be smaller.
    """
    merge = vision.spatial_merge_size
    # upstream's rounding order, which matters when window_size is not a multiple of both
    window = vision.window_size // merge // vision.patch_size
    whole, rest = divmod(side // merge, window)
    return (whole * window**2 + rest**2) * merge**2


def _merged_tokens(vision: Qwen2_5_VLVisionConfig, t: int, h: int, w: int) -> int:
    merge = vision.spatial_merge_size
    if min(t, h, w) < 1 or h % merge or w % merge:
        raise ValueError(f"grid ({t}, {h}, {w}): sides must be positive, h and w multiples of {merge}")
    return t * (h // merge) * (w // merge)


def _text_token_flops(text: Qwen2_5_VLTextConfig) -> int:
    """Return the FLOPs of one token apart from attention: the layers' projections and the rotary angles."""
    hidden = text.hidden_size
    head_dim = hidden // text.num_attention_heads
    q_and_o = 2 * hidden * hidden
    k_and_v = 2 * hidden * text.num_key_value_heads * head_dim
    mlp = 3 * hidden * text.intermediate_size
    # frequencies (head_dim / 2) times positions (3 mRoPE rows), once per pass: tiny, but a matmul upstream
    rotary_angles = 3 * head_dim // 2
    return 2 * (text.num_hidden_layers * (q_and_o + k_and_v + mlp) + rotary_angles)


def _text_attention_flops(text: Qwen2_5_VLTextConfig, pairs: int) -> int:
    """Return the FLOPs of all layers' attention over `pairs` query-key pairs; heads x head_dim is the hidden size."""
    if "sliding_attention" in text.layer_types:
        raise ValueError("FLOPs of sliding-window layers are not modelled: set use_sliding_window=False")
    return 4 * text.num_hidden_layers * text.hidden_size * pairs


def _lm_head_flops(text: Qwen2_5_VLTextConfig) -> int:
    return 2 * text.hidden_size * text.vocab_size
