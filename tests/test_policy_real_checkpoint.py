"""The path of docs/policy.md for a real checkpoint: its commands as they stand, on random weights of true widths.

The model has the published widths, heads and vocabulary, and fewer layers. `AVIS_TEST_PROCESSOR` names a folder with
the published tokenizer and preprocessor files; without it the bundled ones are used.
"""

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

import demo
from avis.pipeline import AvisPipeline
from policy.policy_model import CHOICES, PolicyModel
from policy.training import calibrate, collect, fit, tau
from policy.training.shapes import published_config

STEPS = {module.__name__: module for module in (tau, collect, fit, calibrate)}
PAGE = demo.ROOT / "docs" / "policy.md"
PUBLISHED = "Qwen/Qwen2.5-VL-7B-Instruct"


def commands_of_page() -> list[list[str]]:
    """Return the words of the page's commands for a real checkpoint that run a step of fitting."""
    section = PAGE.read_text().partition("## A real checkpoint\n")[2]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines]
    return [words for words in commands if words[:2] == ["python", "-m"] and words[2] in STEPS]


def write_model(folder: Path, shape: str, layers: int) -> None:
    """Save a model of random weights in bfloat16, as published ones are, with its processor."""
    source = Path(os.environ.get("AVIS_TEST_PROCESSOR") or demo.BUNDLED)
    processor = AutoProcessor.from_pretrained(source)
    processor.save_pretrained(folder)
    tokenizer, config = processor.tokenizer, published_config(shape, layers=layers, blocks=2)
    for name in ("image_pad", "video_pad", "vision_start", "vision_end"):
        place = f"{name.removesuffix('_pad')}_token_id"
        setattr(config, place, tokenizer.convert_tokens_to_ids(f"<|{name}|>"))
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)


def write_questions(folder: Path, name: str, count: int, seed: int) -> None:
    """Write questions about images of noise, some of choice and some free."""
    rng, lines = np.random.default_rng(seed), []
    for number in range(count):
        image = f"{name}-{number}.png"
        size = (112, 112 + 28 * (number % 3), 3)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(folder / image)
        line = {"image": image, "question": "How many people wear a hat?", "answer": "A", "options": ["two", "three"]}
        if number % 2:
            line = {"image": image, "question": "What is lifted?", "answer": "a box", "task": "action"}
        lines.append(line)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.slow
@pytest.mark.parametrize("shape, layers", [("3b", 2), ("7b", 1)])
def test_the_path_for_a_real_checkpoint(shape, layers, tmp_path, monkeypatch):
    """Guards against: a documented path that holds at the bundled model's widths alone, or with its files alone."""
    write_model(tmp_path / "model", shape, layers)
    write_questions(tmp_path, "questions", 6, seed=0)
    write_questions(tmp_path, "questions-dev", 3, seed=1)
    monkeypatch.chdir(tmp_path)
    commands = commands_of_page()
    assert [words[2].rpartition(".")[2] for words in commands] == ["tau", "collect", "collect", "fit", "calibrate"]
    # The model is here, its rollouts are short, and its images leave little to prune.
    values = {PUBLISHED: "model", "2048": "3", "0.5": "5"}
    for words in commands:
        arguments = [values.get(word, word) for word in words[3:]]
        if words[2] == collect.__name__:
            arguments += ["--processes", "1"]
        assert STEPS[words[2]].main(arguments) == 0, words
    path = commands[-1][-1]
    policy, width = PolicyModel(path), published_config(shape).vision_config.out_hidden_size
    assert (policy.width, policy.metadata["n"]) == (width, 6)
    avis = AvisPipeline.from_pretrained("model", policy=path)
    output = avis("questions-0.png", "How many people wear a hat?", enable_kdv=True, max_new_tokens=3)
    assert output.num_rollouts in CHOICES and 0 < output.p < 1 and 0 < output.rho < 1
    assert avis.policy_warning is None


def test_the_page_has_the_path():
    """Guards against: a page whose commands the slow test no longer finds."""
    assert {words[2] for words in commands_of_page()} == set(STEPS)
