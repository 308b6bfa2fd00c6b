"""The published sizes of Qwen2.5-VL, as `config.json` of the models on the hub has them::

config = published_config("7b")                     # Qwen/Qwen2.5-VL-7B-Instruct
small = published_config("3b", layers=2, blocks=2)  # true widths, fewer layers
"""

from transformers import Qwen2_5_VLConfig

SHAPES = ("3b", "7b")
_TEXT = {
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def published_config(shape: str, layers: int | None = None, blocks: int | None = None) -> Qwen2_5_VLConfig:
    """Return the configuration of a published model, or of one as wide with fewer layers.

    Args:
        shape: one of `SHAPES`.
        layers: of the language model; None: as published.
        blocks: of the vision encoder, the last with full attention; None: as published.

    Raises:
        ValueError: no such shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r:.100}")
    text = _TEXT[shape] | {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    vision = _VISION | {"out_hidden_size": text["hidden_size"]}
    if layers is not None:
        text["num_hidden_layers"] = layers
    if blocks is not None:
        vision |= {"depth": blocks, "fullatt_block_indexes": [blocks - 1]}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=text["tie_word_embeddings"])
