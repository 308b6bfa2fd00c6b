"""Makes a new small Qwen2.5-VL with its tokenizer, chat template and processors, and saves it.

The saved folder is an ordinary `from_pretrained` folder; nothing about it is special to this project::

    processor = new_processor()
    model = new_model(processor.tokenizer, seed=0)
    save_model_folder(model, processor, Path("models/new"))
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessorFast,
    Qwen2VLVideoProcessor,
)

from avis.files import write_atomically
from avis.garden.scenes import LEVELS, SECOND, level_for, rng_for
from avis.garden.tasks import ALL_TASKS, FORMS, TASKS, make_item
from avis.prompts import with_instruction

VOCABULARY = 1024
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SYSTEM_PROMPT = "You are a helpful assistant."
# Stored in the model's config: the demo prints it beside answers about other images.
KNOWS = (
    "this small model knows one world only: drawn images and videos of wooden rabbits, bears, cats and ducks; what "
    "they wear, what they cost, where they stand and go, and what is written on signs"
)
# A digit stands alone, and so does a capital that begins no word, but either may carry the space before it, so that a
# running count and a letter of a sign cost one token.
PRE_TOKENIZER_PATTERN = (
    r" ?[A-Z](?![a-z])|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = r"""
{%- set seen = namespace(images=0, videos=0) -%}
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part -%}
{%- set seen.images = seen.images + 1 -%}
{{ 'Picture ' ~ seen.images ~ ': ' if add_vision_id else '' }}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{{ 'Video ' ~ seen.videos ~ ': ' if add_vision_id else '' }}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"""


def _corpus(is_second: bool) -> Iterator[str]:
    """Yield the text that the tokenizer is trained on: training questions in both forms, and their responses."""
    for number, task in enumerate(ALL_TASKS if is_second else TASKS):
        for index in range(400):
            rng = rng_for(f"{SECOND}train" if is_second else "train", 500, number, index)
            level = level_for(1 + index % 5, 1 + index // 5 % 5) if is_second else LEVELS[index % len(LEVELS)]
            item = make_item(rng, task, level, FORMS[index % 2])
            enable_thinking = index % 8 != 0
            yield with_instruction(item.question, enable_thinking)
            yield item.response(enable_thinking)
            yield "system\n" + SYSTEM_PROMPT
            yield "user\nassistant\n"


def new_tokenizer(is_second: bool = False) -> Qwen2TokenizerFast:
    """Return a byte-level BPE tokenizer of at most `VOCABULARY` entries: it encodes any text, the garden's briefly.

    Args:
        is_second: whether the garden is the second one.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(TAGS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(is_second), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(list(TAGS))
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_processor(is_second: bool = False) -> Qwen2_5_VLProcessor:
    """Return tokenizer, image and video processors with the chat template; pixel bounds fit the gardens' images.

    Args:
        is_second: whether the tokenizer is the second garden's.
    """
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 640 * 28 * 28}
    vision = dict(patch_size=14, temporal_patch_size=2, merge_size=2, size=size)
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorFast(**vision),
        tokenizer=new_tokenizer(is_second),
        video_processor=Qwen2VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )


def new_config(tokenizer: Qwen2TokenizerFast) -> Qwen2_5_VLConfig:
    """Return the config of about 3.5M parameters: vision 5 layers x 128, text 4 layers x 192."""
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names}
    return Qwen2_5_VLConfig(
        vision_config=dict(
            depth=5,
            hidden_size=128,
            num_heads=4,
            intermediate_size=384,
            out_hidden_size=192,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=112,
            fullatt_block_indexes=[1, 3, 4],
            tokens_per_second=2,
        ),
        text_config=dict(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            rope_theta=10000.0,
            rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]},
            use_sliding_window=False,
            bos_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        tie_word_embeddings=False,
        knows=KNOWS,
    )


def new_model(tokenizer: Qwen2TokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Return the model with fresh weights, float32."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(new_config(tokenizer))
    generation = model.generation_config
    generation.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = None
    return model


def save_model_folder(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path) -> None:
    """Write a `from_pretrained` folder that every release of Transformers loads alike.

    Two fields differ from those that Transformers 4.57 writes. The architecture stands at the top of `config.json`,
    too, where 5.x and other programs look for it: 4.57 writes and reads it in the text model's part. The tokenizer's
    class is the plain fast one: 5.x replaces the pre-tokenizer of a `Qwen2Tokenizer` by Qwen's own, which cuts digits
    from their spaces.

    Args:
        model: the model; its weights are written in shards of at most 15 MB.
        processor: its processor.
        folder: to write; files of the same names are replaced.

    Raises:
        OSError: the folder cannot be written.
    """
    model.save_pretrained(folder, max_shard_size="15MB", safe_serialization=True)
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [type(model).__name__]
    write_atomically(folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = PreTrainedTokenizerFast.__name__
    text = json.dumps(tokenizer, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(folder / "tokenizer_config.json", text.encode())
