"""A Qwen2.5-VL small enough for unit tests, with random weights, and prompts for it made by hand.

There is no tokenizer and no processor: ids, pixels and grids come from seeded generators, so a test knows the meaning
of each token. The module does not import pytest, so that a subprocess on another source tree can build the same model.

    model = build_model()
    inputs = image_prompt()                      # a dict for model(**inputs) and model.generate(**inputs)
    batch = left_pad([image_prompt(), text_prompt()])
"""

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

VOCAB = 300
IMAGE, VIDEO, VISION_START, VISION_END, PAD = 290, 291, 292, 293, 294
SPECIAL = [IMAGE, VIDEO, VISION_START, VISION_END, PAD]
TEXT_IDS = 280  # ordinary text ids are 0 .. TEXT_IDS - 1

PATCH, TEMPORAL_PATCH, MERGE = 14, 2, 2
PATCH_VALUES = 3 * TEMPORAL_PATCH * PATCH * PATCH

# Grids are (frames, rows, columns) of *merged* tokens. A window is 2 x 2 merged tokens. Grids with odd sides have cut
# windows at their edges, so that window order and its inverse are two different permutations.
IMAGE_GRID = (1, 5, 7)
OTHER_IMAGE_GRID = (1, 3, 4)
VIDEO_GRID = (3, 3, 5)


def build_config() -> Qwen2_5_VLConfig:
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "patch_size": PATCH,
            "temporal_patch_size": TEMPORAL_PATCH,
            "spatial_merge_size": MERGE,
            "window_size": 2 * MERGE * PATCH,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": 64,
            "tokens_per_second": 2,
        },
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )
    return config


def build_model(seed: int = 0, attn_implementation: str = "sdpa") -> Qwen2_5_VLForConditionalGeneration:
    """Build a float32 model in eval mode on the CPU, with the same weights for a seed on every source tree."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration._from_config(build_config(), attn_implementation=attn_implementation)
        # With Transformers' standard deviation of 0.02, attention is so flat and logits are so close that wrong
        # positions or a wrong mask would stay within a tolerance. With these weights every token matters.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.2 / parameter[0].numel() ** 0.5)
    model.generation_config.pad_token_id = PAD
    # A random model would generate image placeholders, which a step without a cache cannot encode (nor can upstream).
    model.generation_config.suppress_tokens = SPECIAL
    return model.eval()


def prompt(*parts, seed: int = 0) -> dict[str, torch.Tensor]:
    """Build one row.

    Args:
        parts: each a number of text tokens, or ("image" | "video", (t, h, w) in merged tokens).
        seed: of ids and pixels.

    Returns:
        The keyword arguments that a processor would return: input_ids and attention_mask (1, L); for each kind that
        occurs, pixel values (patches, PATCH_VALUES) and grids (items, 3) in patches; for videos, seconds per grid step.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, pixels, grids = [], {"image": [], "video": []}, {"image": [], "video": []}
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(TEXT_IDS, (part,), generator=generator).tolist()
            continue
        kind, (t, h, w) = part
        ids += [VISION_START] + [IMAGE if kind == "image" else VIDEO] * (t * h * w) + [VISION_END]
        pixels[kind].append(torch.randn(t * h * w * MERGE**2, PATCH_VALUES, generator=generator))
        grids[kind].append([t, h * MERGE, w * MERGE])
    row = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if grids["image"]:
        row |= {"pixel_values": torch.cat(pixels["image"]), "image_grid_thw": torch.tensor(grids["image"])}
    if grids["video"]:
        row |= {
            "pixel_values_videos": torch.cat(pixels["video"]),
            "video_grid_thw": torch.tensor(grids["video"]),
        }
        row |= {"second_per_grid_ts": torch.tensor([2.0 + i for i in range(len(grids["video"]))])}
    return row


def left_pad(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Join rows of `prompt` into one left-padded batch, with pixels and grids in row order."""
    length = max(row["input_ids"].shape[1] for row in rows)
    batch = {}
    for name, fill in (("input_ids", PAD), ("attention_mask", 0)):
        padded = [torch.nn.functional.pad(r[name], (length - r[name].shape[1], 0), value=fill) for r in rows]
        batch[name] = torch.cat(padded)
    visual = ["pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts"]
    for name in visual:
        values = [row[name] for row in rows if name in row]
        if values:
            batch[name] = torch.cat(values)
    return batch


def text_prompt(seed: int = 1) -> dict[str, torch.Tensor]:
    return prompt(9, seed=seed)


def image_prompt(seed: int = 2) -> dict[str, torch.Tensor]:
    return prompt(4, ("image", IMAGE_GRID), 6, seed=seed)


def video_prompt(seed: int = 3) -> dict[str, torch.Tensor]:
    return prompt(3, ("video", VIDEO_GRID), 5, seed=seed)


def two_images_prompt(seed: int = 4) -> dict[str, torch.Tensor]:
    return prompt(2, ("image", OTHER_IMAGE_GRID), 3, ("image", IMAGE_GRID), 4, seed=seed)


def video_then_image_prompt(seed: int = 5) -> dict[str, torch.Tensor]:
    """Build a prompt with a video before an image, while encoders and processors list images first."""
    return prompt(2, ("video", VIDEO_GRID), 3, ("image", IMAGE_GRID), 4, seed=seed)


def interleaved_prompt(seed: int = 11) -> dict[str, torch.Tensor]:
    """Build a prompt with items of both kinds in turn, some without text between them."""
    parts = [
        ("image", OTHER_IMAGE_GRID),
        1,
        ("video", (2, 3, 3)),
        ("image", IMAGE_GRID),
        2,
        ("video", VIDEO_GRID),
        3,
    ]
    return prompt(*parts, seed=seed)


def mixed_rows() -> list[dict[str, torch.Tensor]]:
    """Build rows that differ in length, in kind and in number of items; one has no item."""
    return [
        two_images_prompt(seed=6),
        text_prompt(seed=7),
        image_prompt(seed=8),
        interleaved_prompt(seed=12),
        video_then_image_prompt(seed=9),
        prompt(12, ("image", OTHER_IMAGE_GRID), 1, seed=10),
    ]


def mixed_batch() -> dict[str, torch.Tensor]:
    return left_pad(mixed_rows())


PROMPTS = {
    "text": text_prompt,
    "image": image_prompt,
    "video": video_prompt,
    "two_images": two_images_prompt,
    "video_then_image": video_then_image_prompt,
    "interleaved": interleaved_prompt,
    "mixed_batch": mixed_batch,
}
