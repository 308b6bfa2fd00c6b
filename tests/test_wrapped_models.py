"""Models that PEFT has wrapped and models with quantised weights, as `answer` gets them: stand-ins for both libraries.

Neither library is needed here. The stand-ins do what `answer` meets: PEFT's model passes attributes on to the model
inside, whose linear layers it has replaced; quantised layers are `nn.Linear` with weights that are not float.
"""

import copy
import json
import shutil
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import demo
from avis.config import AvisConfig
from avis.loading import load_model
from avis.pipeline import answer
from avis.provenance import quick_fingerprint, weights_path

QUESTION = "How many wooden rabbits are wearing glasses?"
CONFIG = AvisConfig(enable_kdv=True, num_rollouts=3, max_new_tokens=12, vote_stop="off")


def ask(model, processor):
    content = [{"type": "image", "image": str(demo.ROOT / "example.jpg")}, {"type": "text", "text": QUESTION}]
    return answer(model, processor, [{"role": "user", "content": content}], CONFIG)


def texts(output) -> list[str]:
    return [rollout.text for rollout in output.rollouts]


def replace_linears(model: nn.Module, names: tuple[str, ...], make) -> int:
    """Replace the linear layers of these names by `make(layer)`; return how many."""
    found = [(parent, name) for parent in model.modules() for name, _ in parent.named_children() if name in names]
    for parent, name in found:
        setattr(parent, name, make(getattr(parent, name)))
    return len(found)


class LoraLinear(nn.Module):
    """A linear layer with a low-rank addition, and the layer inside, as PEFT has it."""

    def __init__(self, base_layer: nn.Linear, generator: torch.Generator):
        super().__init__()
        self.base_layer = base_layer
        self.a = nn.Parameter(torch.randn(4, base_layer.in_features, generator=generator) * 0.2)
        self.b = nn.Parameter(torch.randn(base_layer.out_features, 4, generator=generator) * 0.2)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.base_layer(states) + states @ self.a.T @ self.b.T

    def merged(self) -> nn.Linear:
        layer = copy.deepcopy(self.base_layer)
        layer.weight.data += (self.b @ self.a).detach()
        return layer


class Passing(nn.Module):
    """A module that passes on attributes that it lacks, as PEFT's tuner and model do."""

    def __init__(self, name: str, inside: nn.Module):
        super().__init__()
        self.name = name
        self.add_module(name, inside)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(self.__dict__["name"]), name)


class Int8Linear(nn.Linear):
    """A linear layer with weights of 8 bits, scaled by row when they are used; a subclass, as bitsandbytes has it."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        scale = layer.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((layer.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("row_scale", scale)

    def dequantised(self) -> nn.Linear:
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight.data, layer.bias = self.weight.float() * self.row_scale, self.bias
        return layer

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(states, self.weight.float() * self.row_scale, self.bias)


@pytest.fixture
def own_model(bundled):
    """A copy of the bundled model that a test may change, and its processor."""
    return copy.deepcopy(bundled[0]), bundled[1]


def test_a_model_wrapped_by_peft_answers_as_with_merged_weights(bundled, own_model):
    """Guards against: a path that reads the weights below an adapter, or needs the model's own class. The adapters
    lie in the vision encoder and the language model, and change what is written."""
    model, processor = own_model
    generator = torch.Generator().manual_seed(0)
    names = ("q_proj", "v_proj", "down_proj", "qkv")
    assert replace_linears(model, names, lambda layer: LoraLinear(layer, generator)) > 10
    wrapped = Passing("base_model", Passing("model", model)).eval()
    assert wrapped.model is model, "PEFT's `.model` is the whole model"
    found = ask(wrapped, processor)
    merged = copy.deepcopy(model)
    replace_linears(merged, names, LoraLinear.merged)
    expected = ask(merged, processor)
    assert texts(found) == texts(expected) != texts(ask(*bundled))
    assert [item.kept for item in found.items] == [item.kept for item in expected.items]


def test_a_quantised_model_answers_as_with_its_dequantised_weights(own_model):
    """Guards against: a path that multiplies by quantised weights as if they were float."""
    model, processor = own_model
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv", "proj")
    assert replace_linears(model, names, lambda layer: Int8Linear(layer) if type(layer) is nn.Linear else layer) > 20
    found = ask(model, processor)
    replace_linears(model, names, lambda layer: layer.dequantised() if type(layer) is Int8Linear else layer)
    assert texts(found) == texts(ask(model, processor))


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_quantised_folder_without_its_library_is_refused(tmp_path):
    """Guards against: a traceback of many lines, or float weights in place of quantised ones."""
    folder = tmp_path / "model"
    shutil.copytree(demo.BUNDLED, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot load") as error:
        load_model(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_a_folder_of_adapters_is_refused(tmp_path):
    """Guards against: a traceback for the folder that PEFT writes, which has no model in it."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    shutil.copy(demo.BUNDLED / "model.safetensors", tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="config.json is missing") as error:
        load_model(tmp_path, device="cpu")
    assert "\n" not in str(error.value)


def test_changed_weights_are_not_recorded_as_the_folders(bundled, monkeypatch):
    """Guards against: a record, and a policy without its warning, that take a model with adapters for its base."""
    model, _ = bundled
    base = weights_path(model)
    assert base and quick_fingerprint(base)
    for name, value in (
        ("peft_config", {"default": object()}),
        ("_hf_peft_config_loaded", True),
        ("hf_quantizer", SimpleNamespace(pre_quantized=False)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(model, name, value, raising=False)
            assert weights_path(model) == "" and quick_fingerprint("") is None
    monkeypatch.setattr(model, "hf_quantizer", SimpleNamespace(pre_quantized=True), raising=False)
    assert weights_path(model) == base
