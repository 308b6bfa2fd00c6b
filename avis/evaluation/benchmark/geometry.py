"""Qwen2.5-VL in four sizes with random weights, and hand-made prompts for it: all that speed depends on::

    model = build_model("mid", "cpu")
    inputs = build_prompt(model.config, visual_tokens=1024, device="cpu")  # for model.prefill and model.generate
    video = build_prompt(model.config, visual_tokens=1024, device="cpu", frames=4)

The configurations of `3b` and `7b` are those published with Qwen2.5-VL-3B-Instruct and Qwen2.5-VL-7B-Instruct. `mid` is
the 7B with every depth, width and number of heads divided by 4, heads of the same width, and a vocabulary of 32,768:
174 million parameters, for CPUs. `tiny` is for tests.
"""

import math

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.key_diversity import keep_count

GEOMETRIES = ("tiny", "mid", "3b", "7b")
TEXT_TOKENS = 64  # of a prompt: a short question with its instruction

# hidden, intermediate, layers, heads, key heads, vocabulary, tied
_TEXT = {
    "tiny": (64, 176, 3, 4, 2, 512, False),
    "mid": (896, 4736, 7, 7, 1, 32768, False),
    "3b": (2048, 11008, 36, 16, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
}
# hidden, intermediate, depth, heads, blocks with full attention
_VISION = {
    "tiny": (64, 96, 4, 4, [1, 3]),
    "mid": (320, 855, 8, 4, [7]),
    "3b": (1280, 3420, 32, 16, [7, 15, 23, 31]),
    "7b": (1280, 3420, 32, 16, [7, 15, 23, 31]),
}


def build_config(geometry: str) -> Qwen2_5_VLConfig:
    """Return the configuration of a geometry.

    Args:
        geometry: one of `GEOMETRIES`. Where special tokens are not published, they are the last five of the vocabulary.
    """
    hidden, intermediate, layers, heads, key_heads, vocabulary, tied = _TEXT[geometry]
    width, vision_intermediate, depth, vision_heads, full = _VISION[geometry]
    pairs = hidden // heads // 2  # of a head's width, in the published shares 16 : 24 : 24 of time, height and width
    special = 151652 if vocabulary > 151652 else vocabulary - 5
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "vocab_size": vocabulary,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [pairs // 4, 3 * pairs // 8, 3 * pairs // 8]},
            "use_sliding_window": False,
            "tie_word_embeddings": tied,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": vision_intermediate,
            "depth": depth,
            "num_heads": vision_heads,
            "fullatt_block_indexes": full,
            "out_hidden_size": hidden,
            "window_size": 112,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "tokens_per_second": 2,
        },
        vision_start_token_id=special,
        vision_end_token_id=special + 1,
        image_token_id=special + 3,
        video_token_id=special + 4,
        tie_word_embeddings=tied,
    )


def build_model(geometry: str, device: str, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Return a model with random weights, which never ends a rollout by itself.

    Args:
        geometry: one of `GEOMETRIES`.
        device: where its weights are made; float32 on the CPU, bfloat16 elsewhere.
        seed: of the weights.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    config = build_config(geometry)
    torch.manual_seed(seed)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def token_grid(visual_tokens: int) -> tuple[int, int]:
    """Return rows and columns of merged tokens of the image nearest to a square, at most twice as wide as high.

    Raises:
        ValueError: there is no such image, as for prime numbers.
    """
    for rows in range(math.isqrt(max(visual_tokens, 0)), 0, -1):
        if visual_tokens % rows == 0 and visual_tokens <= 2 * rows**2:
            return rows, visual_tokens // rows
    raise ValueError(f"no image of {visual_tokens} visual tokens has sides of at most 2 : 1: use another number")


def patch_grid(vision_config, visual_tokens: int) -> tuple[int, int, int]:
    """Return (t, h, w) in patches of the image of `token_grid`."""
    rows, columns = token_grid(visual_tokens)
    return 1, rows * vision_config.spatial_merge_size, columns * vision_config.spatial_merge_size


def kept_length(visual_tokens: int, rho: float) -> int:
    """Return how many tokens of a `build_prompt` the language model reads: text, two marks, and the kept visual tokens.

    Args:
        visual_tokens: of the image before pruning.
        rho: fraction pruned.
    """
    return TEXT_TOKENS + 2 + keep_count(visual_tokens, rho)


def build_prompt(
    config: Qwen2_5_VLConfig, visual_tokens: int, device: str, seed: int = 0, frames: int | None = None
) -> dict[str, torch.Tensor]:
    """Return inputs as a processor makes them: an image or video, and a question of `TEXT_TOKENS` tokens.

    Args:
        config: of the model.
        visual_tokens: merged tokens of the image, or of all of the video's frames.
        device: of the inputs.
        seed: of pixels and text.
        frames: None: an image. Otherwise a video of so many steps in time, which share the tokens evenly.

    Raises:
        ValueError: the tokens cannot be shared evenly, or as `token_grid`.
    """
    if visual_tokens % (frames or 1):
        raise ValueError(f"{visual_tokens} visual tokens are not {frames} equal frames")
    vision = config.vision_config
    _, height, width = patch_grid(vision, visual_tokens // (frames or 1))
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(config.vision_start_token_id, (TEXT_TOKENS,), generator=generator).tolist()
    placeholder = config.image_token_id if frames is None else config.video_token_id
    visual = [config.vision_start_token_id, *[placeholder] * visual_tokens, config.vision_end_token_id]
    ids = torch.tensor([[*text[: TEXT_TOKENS // 4], *visual, *text[TEXT_TOKENS // 4 :]]])
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(visual_tokens * vision.spatial_merge_size**2, values, generator=generator).to(device)
    grids = torch.tensor([[frames or 1, height, width]])
    inputs = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    if frames is None:
        return inputs | {"pixel_values": pixels, "image_grid_thw": grids}
    return inputs | {"pixel_values_videos": pixels, "video_grid_thw": grids, "second_per_grid_ts": torch.ones(1)}
