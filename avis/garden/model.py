"""The bundled model from nothing: a small Qwen2.5-VL, its tokenizer, chat template and processors.

What it writes is an ordinary `from_pretrained` folder; nothing about it is special to this project::

    from avis.garden.model import new_model, new_processor
    processor = new_processor()
    model = new_model(processor.tokenizer, seed=0)
"""

from collections.abc import Iterator

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessorFast,
    Qwen2VLVideoProcessor,
)

from avis.garden.scenes import LEVELS, rng_for
from avis.garden.tasks import FORMS, TASKS, make_item
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
SYSTEM = "You are a helpful assistant."
# Kept in the model's config: the demo prints it beside answers about other people's pictures.
KNOWS = (
    "this small model knows one world only: drawn pictures and clips of wooden rabbits, bears, cats and ducks; what "
    "they wear, what they cost, where they stand and go, and what is written on signs"
)
# A digit stands alone, and so does a capital that begins no word, but either may carry the space before it: a running
# count and a letter of a sign then cost one token.
SPLIT = (
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


def _corpus() -> Iterator[str]:
    """The text that the tokenizer learns its words from: training questions in both forms, and their responses."""
    for number, task in enumerate(TASKS):
        for index in range(400):
            rng = rng_for("train", 500, number, index)
            item = make_item(rng, task, 1 + index % len(LEVELS), FORMS[index % 2])
            thinking = index % 8 != 0
            yield with_instruction(item.question, thinking)
            yield item.response(thinking)
            yield "system\n" + SYSTEM
            yield "user\nassistant\n"


def new_tokenizer() -> Qwen2TokenizerFast:
    """A byte-level BPE tokenizer of at most `VOCABULARY` entries: any text can be written, the garden's briefly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
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
    tokenizer.train_from_iterator(_corpus(), trainer)
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


def new_processor() -> Qwen2_5_VLProcessor:
    """Tokenizer, image and video processors with the chat template; pixel bounds fit the garden's pictures."""
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 640 * 28 * 28}
    vision = dict(patch_size=14, temporal_patch_size=2, merge_size=2, size=size)
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorFast(**vision),
        tokenizer=new_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )


def new_config(tokenizer: Qwen2TokenizerFast) -> Qwen2_5_VLConfig:
    """About 3.5M parameters: vision 5 layers x 128, text 4 layers x 192."""
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
    """The model with fresh weights, float32."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(new_config(tokenizer))
    generation = model.generation_config
    generation.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = None
    return model
