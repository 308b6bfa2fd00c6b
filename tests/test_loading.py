"""Loading a model: ready to answer, and what is wrong with a folder, a device or a configuration told in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from chats import BUNDLED, one_line
from odd_files import model_folder
from refusals import assert_refused
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from avis.loading import load_model


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_load_gives_a_model_ready_to_answer(attention):
    """Guards against: dropout left on, half precision on the CPU, or an attention other than the one asked for."""
    model, _ = load_model(BUNDLED, device="cpu", attn_implementation=attention)
    assert not model.training and model.dtype == torch.float32
    assert model.config._attn_implementation == {"auto": "sdpa"}.get(attention, attention)
    assert load_model(str(BUNDLED), device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("fits", [True, False])
def test_auto_spreads_a_model_over_all_gpus(monkeypatch, fits):
    """Guards against: a model larger than one GPU that is put on the first, or one larger than all of them that is
    quietly run from the disk. There is no GPU here: where the layers would go is made up."""
    assert load_model(BUNDLED, device="auto")[0].device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    original, asked = Qwen2_5_VLForConditionalGeneration.from_pretrained, []

    def from_pretrained(path, device_map=None, **kwargs):
        asked.append(device_map)
        model, loading = original(path, **kwargs)
        model.hf_device_map = {"model.visual": 0, "model.language_model": 1, "lm_head": 1 if fits else "disk"}
        return model, loading

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "from_pretrained", from_pretrained)
    if fits:
        load_model(BUNDLED, device="auto")
    else:
        with pytest.raises(MemoryError, match="smaller model"):
            load_model(BUNDLED, device="auto")
    assert asked == ["auto"]


@pytest.fixture
def copied(tmp_path) -> Path:
    """A copy of the bundled folder that a test may spoil."""
    return Path(shutil.copytree(BUNDLED, tmp_path / "model"))


def test_incomplete_checkpoints_are_refused(copied):
    """Guards against: weights that are missing and drawn at random instead, with nothing but a warning."""
    path = copied / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, path, {"format": "pt"})
    with pytest.raises(ValueError) as error:
        load_model(copied, device="cpu")
    assert "lm_head" in one_line(error)


def test_damaged_checkpoints_are_refused(copied):
    """Guards against: the weight library's own kind of error, which no caller expects, for a file cut short."""
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises((ValueError, OSError)) as error:
        load_model(copied, device="cpu")
    one_line(error)


def test_other_models_are_refused(copied):
    """Guards against: another architecture's weights forced into this one."""
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_vl"}))
    with pytest.raises(ValueError) as error:
        load_model(copied, device="cpu")
    assert "qwen2_vl" in one_line(error)


@pytest.mark.parametrize("wrong", [{"device": "nowhere"}, {"device": "cpu", "attn_implementation": "nothing"}], ids=str)
def test_what_is_not_there_is_reported(wrong):
    """Guards against: a library's many lines about a device or a kernel that is not there."""
    with pytest.raises(ValueError) as error:
        load_model(BUNDLED, **wrong)
    one_line(error)


# ----------------------------------------------------------------------------------------------------- through the demo


def test_remote_code_is_not_run(tmp_path, run):
    """Guards against: a model folder that brings its own code, which is run on loading or asks for it."""
    code = {"AutoConfig": "code.Config", "AutoProcessor": "code.Processor", "AutoModel": "code.Model"}
    folder = model_folder(tmp_path / "m", auto_map=code)
    shutil.copy(BUNDLED / "model.safetensors", folder)
    for name in ("tokenizer_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        values = json.loads((folder / name).read_text()) | {"auto_map": code | {"AutoTokenizer": ["code.T", "code.T"]}}
        (folder / name).write_text(json.dumps(values))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    status, out, err = run("--model-path", folder, "--max-new-tokens", 1, "--device", "cpu")
    assert (status, (tmp_path / "mark").exists()) == (0, False), err


# By name: values of config.json with which loading fails in one way or another.
@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": "wide"},
        {"vision_config": None, "text_config": 3},
        {"num_hidden_layers": -1},
        {"rope_scaling": {"type": "no such"}},
        {"dtype": "float7", "torch_dtype": "float7"},
    ],
    ids=str,
)
def test_hostile_configs_are_reported(run, tmp_path, config):
    """Guards against: a traceback of any kind out of the loading library for a config with impossible values."""
    folder = model_folder(tmp_path / "m", **config)
    shutil.copy(BUNDLED / "model.safetensors", folder)
    status, out, err = run("--model-path", folder, "--max-new-tokens", 1, "--device", "cpu")
    assert "Traceback" not in err and status in (0, 2)
    assert status == 0 or err.count("\n") == 1 and err.startswith("error: "), err


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "chat_template.jinja"])
def test_damaged_processors_are_reported(run, tmp_path, name):
    """Guards against: a traceback, or a wait for the weights, when a small file of the model folder is damaged."""
    folder = model_folder(tmp_path / "m")
    shutil.copy(BUNDLED / "model.safetensors", folder)
    (folder / name).write_text("{% damaged {")
    for other in ("vocab.json", "merges.txt"):
        (folder / other).unlink()
    assert_refused(run("--model-path", folder, "--device", "cpu"))
