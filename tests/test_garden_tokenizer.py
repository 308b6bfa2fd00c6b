"""The tokenizer, chat template and pixel bounds of the garden's models."""

import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from garden_training import digest, garden_processor, text, user
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLProcessor
from transformers.models.qwen2_5_vl.flops import decode_flops, prefill_flops

from avis.garden.labels import LABEL_NAMES, dense_labels
from avis.garden.model import SPECIAL, TAGS, VOCABULARY, new_config, new_processor
from avis.garden.scenes import SPLITS, TOKEN
from avis.garden.tasks import SPLIT_SIZES, item_for
from avis.prompts import with_instruction

# Python and the tokenizer may know different versions of Unicode: only code points that both know.
known = st.characters(exclude_categories=("Cs", "Cn"))
pieces = st.text(known, max_size=20) | st.sampled_from(
    [*SPECIAL, *TAGS, " ", "\n\n", "\t", "12 345", "e\u0301", "\u212b", "\U0001f407", "\0", "don't", "<|", "|>", "A7 K"]
)


@pytest.fixture(scope="module")
def processor():
    """The processor made anew (seconds); the shipped one is compared with it."""
    return garden_processor()


def vocabulary_of(processor: Qwen2_5_VLProcessor) -> str:
    return digest(processor.tokenizer.backend_tokenizer.to_str().encode())


def test_another_process_makes_the_same_tokenizer(processor):
    """Guards against: `hash()` of a string or the order of a set in the words that the vocabulary is trained on, by
    which a model would be read with another vocabulary than it was trained with."""
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    run = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == vocabulary_of(processor)


@settings(max_examples=200, deadline=None)
@given(text=st.lists(pieces, max_size=6).map("".join))
def test_any_text_survives_the_tokenizer(processor, text):
    """Guards against: an unknown token or a lost byte, and spaces that decoding adds, drops or "cleans up". The
    tokenizer normalises to NFC, as Qwen's does."""
    ids = processor.tokenizer(text).input_ids
    assert processor.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_special_tokens(processor):
    """Guards against: a special token cut into pieces; think and answer tags that decoding drops with the special
    tokens, so that no vote could ever read an answer; more tokens than the model has embeddings for."""
    tokenizer = processor.tokenizer
    for token in (*SPECIAL, *TAGS):
        assert tokenizer.decode(tokenizer(token).input_ids) == token and len(tokenizer(token).input_ids) == 1
    assert tokenizer.decode(tokenizer("".join(SPECIAL) + "a").input_ids, skip_special_tokens=True) == "a"
    kept = "<think>left: 1 cat hat 0; 0</think><answer>0</answer>"
    assert tokenizer.decode(tokenizer(kept + "<|im_end|>").input_ids, skip_special_tokens=True) == kept
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert (processor.image_token, processor.video_token) == ("<|image_pad|>", "<|video_pad|>")
    assert len(tokenizer) <= VOCABULARY


def test_signs_and_numbers_are_cut_into_single_letters(processor):
    """Guards against: letters of signs and digits of numbers merged into tokens of two or three, which cannot be
    spelt out, or standing apart from their space, which doubles the length of every trace."""
    cut = processor.tokenizer.tokenize
    for sign in ("A7KX", "HELP", "TRUNK", "23467"):
        assert len(cut(sign)) == len(sign)
    for words, tokens in ((" 3 rabbit glasses 2,", 5), (" N H L 4 Y", 5), (" 12", 2), ("left: 1", 3)):
        assert len(cut(words)) == tokens, cut(words)


IMAGE, VIDEO = {"type": "image", "image": "a.png"}, {"type": "video", "video": "a.mp4"}
SEE_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SEE_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
HELPFUL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.mark.parametrize(
    ("messages", "options", "expected"),
    [
        ([user("Hi")], {}, HELPFUL + "<|im_start|>user\nHi<|im_end|>\n"),
        (
            [user("Hi")],
            {"add_generation_prompt": True},
            HELPFUL + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            [{"role": "system", "content": "Be brief."}, user("Hi")],
            {},
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
        ),
        (
            [{"role": "system", "content": [text("Be brief.")]}, user(IMAGE, text("Hi"))],
            {},
            f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{SEE_IMAGE}Hi<|im_end|>\n",
        ),
        (
            [user(IMAGE, text("and"), IMAGE, text("?"))],
            {},
            HELPFUL + f"<|im_start|>user\n{SEE_IMAGE}and{SEE_IMAGE}?<|im_end|>\n",
        ),
        (
            [user(VIDEO, IMAGE, text("?"))],
            {},
            HELPFUL + f"<|im_start|>user\n{SEE_VIDEO}{SEE_IMAGE}?<|im_end|>\n",
        ),
        (
            [user(IMAGE, VIDEO, IMAGE, text("?"))],
            {"add_vision_id": True},
            HELPFUL
            + f"<|im_start|>user\nPicture 1: {SEE_IMAGE}Video 1: {SEE_VIDEO}Picture 2: {SEE_IMAGE}?<|im_end|>\n",
        ),
        (
            [user(IMAGE, text("?")), {"role": "assistant", "content": "2"}, user(IMAGE, text("And here?"))],
            {"add_vision_id": True, "add_generation_prompt": True},
            HELPFUL
            + f"<|im_start|>user\nPicture 1: {SEE_IMAGE}?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
            + f"<|im_start|>user\nPicture 2: {SEE_IMAGE}And here?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            [user("  two \n\n lines\n")],
            {},
            HELPFUL + "<|im_start|>user\n  two \n\n lines\n<|im_end|>\n",
        ),
        ([user("{{ 7 * 6 }} {% raw %}")], {}, HELPFUL + "<|im_start|>user\n{{ 7 * 6 }} {% raw %}<|im_end|>\n"),
    ],
)
def test_chat_template(processor, messages, options, expected):
    """Guards against: a template that differs from Qwen2.5-VL's: default system turn, whitespace eaten around parts,
    items out of order or numbered anew in every turn. The expected texts follow Qwen's published template."""
    assert processor.apply_chat_template(messages, **options) == expected


def test_images_of_splits_reach_the_model_unresized(processor):
    """Guards against: pixel bounds that shrink or enlarge the splits' own images, whose tokens then lie elsewhere
    than training's labels."""
    bounds = processor.image_processor.size
    for split in SPLITS[1:]:
        for index in range(100):
            for scene in item_for(split, index).scenes:
                assert scene.width % TOKEN == scene.height % TOKEN == 0
                assert bounds["shortest_edge"] <= scene.width * scene.height <= bounds["longest_edge"]


def test_compute_is_split_as_in_the_paper(processor):
    """Guards against: images so small, or traces so long, that pruning cannot show what it saves. The paper's tables
    split LLM FLOPs into .83 visual prefill, .06 text and .11 one trace; the test mix stays within .10 of each, and
    its traces within 0.15 of the visual tokens."""
    tokenizer, config = processor.tokenizer, new_config(processor.tokenizer).text_config
    spent, traces, seen = np.zeros(3), 0, 0
    for index in range(0, SPLIT_SIZES["test"], 7):
        item = item_for("test", index)
        visual = sum(labels.size // len(LABEL_NAMES) for labels in map(dense_labels, item.scenes))
        kind = "video" if item.medium == "video" else "image"
        content = [*({"type": kind} for _ in item.scenes), {"type": "text", "text": with_instruction(item.question)}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        text = len(tokenizer(prompt).input_ids) - len(item.scenes)
        trace = len(tokenizer(item.response()).input_ids) + 1
        prefill = prefill_flops(config, visual + text)
        shares = (visual / (visual + text), text / (visual + text))
        spent += [prefill * shares[0], prefill * shares[1], decode_flops(config, visual + text, trace)]
        traces, seen = traces + trace, seen + visual
    assert np.abs(spent / spent.sum() - (0.83, 0.06, 0.11)).max() < 0.10, spent / spent.sum()
    assert traces <= 0.15 * seen


if __name__ == "__main__":
    print(vocabulary_of(new_processor()))
