"""The shared prefill against `forward` and `generate`: one encoding and one reading, whatever K is."""

import copy

import accelerate
import pytest
import tiny
import torch
from rollout_calls import SAMPLED
from transformers import DynamicCache
from transformers.models.qwen2_5_vl.shared_prefill import Prefill

KINDS = [kind for kind in tiny.PROMPTS if kind != "mixed_batch"]


@pytest.fixture
def calls(tiny_model):
    """Count the calls of the vision encoder, and record rows and columns of those of the language model."""
    seen = {"vision": 0, "language": []}

    def vision(*_):
        seen["vision"] += 1

    def language(module, args, kwargs):
        seen["language"].append(tuple(kwargs["inputs_embeds"].shape[:2]))

    hooks = [
        tiny_model.visual.register_forward_pre_hook(vision),
        tiny_model.language_model.register_forward_pre_hook(language, with_kwargs=True),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kdv", [{}, {"enable_kdv": True, "kdv_ratio": 0.6}], ids=["full", "kdv"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_rollouts_equal_generate(tiny_model, kind, kdv):
    """Bug guarded: positions, mask or cache length of the shared prefill differ from those of `generate`."""
    inputs = tiny.PROMPTS[kind]()
    expected = tiny_model.generate(**inputs, **kdv, max_new_tokens=12, do_sample=False)
    prefill = tiny_model.prefill(**inputs, **kdv)
    rollouts = tiny_model.rollout(prefill, 3, max_new_tokens=12, temperature=0)
    for tokens in rollouts.tokens:
        assert list(tokens) == expected[0, inputs["input_ids"].shape[1] :].tolist()


def test_prefill_logits_equal_forward(tiny_model):
    """Bug guarded: the prefill's logits are another token's than the prompt's last, or another sequence's."""
    inputs = tiny.video_then_image_prompt()
    full = tiny_model(**inputs, enable_kdv=True, kdv_ratio=0.5)
    prefill = tiny_model.prefill(**inputs, enable_kdv=True, kdv_ratio=0.5)
    torch.testing.assert_close(prefill.logits, full.logits[:, -1].float(), atol=1e-5, rtol=0)
    assert prefill.kept_length == full.kdv_attention_mask.shape[1] < prefill.prompt_length
    assert [kept.tolist() for kept in prefill.kept] == [kept.tolist() for kept in full.kdv_kept]


def test_encoder_and_prefill_run_once_for_seven_rollouts(tiny_model, calls):
    """Bug guarded: `num_return_sequences` encodes the image K times (the published code's K-fold cost)."""
    inputs = tiny.image_prompt()
    prefill = tiny_model.prefill(**inputs, enable_kdv=True, kdv_ratio=0.75)
    tiny_model.rollout(prefill, 7, max_new_tokens=4, temperature=0.7)
    assert calls["vision"] == 1
    assert [shape for shape in calls["language"] if shape[1] > 1] == [(1, prefill.kept_length)]


def test_layers_may_be_loaded_from_another_device(tiny_model):
    """Bug guarded: weights, a mask or an index expected on one device, for models that accelerate distributes over
    several. Here its hooks load the weights of a layer to the CPU for each call and remove them afterwards."""
    spread = accelerate.cpu_offload(tiny.build_model(), execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in spread.parameters()} == {"meta"}
    inputs, found = tiny.video_then_image_prompt(), []
    for model in (tiny_model, spread):
        prefill = model.prefill(**inputs, enable_kdv=True, kdv_ratio=0.5)
        longer = model.extend(prefill, torch.tensor([[3, 4, 5]]))
        found.append((prefill.logits, longer.logits, model.rollout(prefill, 3, seed=2, **SAMPLED).tokens))
    (logits, later, tokens), (spread_logits, spread_later, spread_tokens) = found
    torch.testing.assert_close(spread_logits, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(spread_later, later, atol=1e-5, rtol=0)
    assert spread_tokens == tokens


def test_sliding_windows_are_refused(tiny_model):
    """Bug guarded: rows that attend to more of the prompt than the layers of their model may."""
    prefill = tiny_model.prefill(**tiny.text_prompt())
    text = copy.deepcopy(tiny_model.config.text_config)
    text.sliding_window, text.layer_types = 8, ["full_attention", "sliding_attention", "full_attention"]
    cache = DynamicCache(config=text)
    for number, layer in enumerate(prefill.cache.layers):
        cache.update(layer.keys, layer.values, number)
    with pytest.raises(ValueError, match="sliding"):
        tiny_model.rollout(Prefill(**{**vars(prefill), "cache": cache}), 2)


@pytest.mark.parametrize("kdv", [{}, {"enable_kdv": True, "kdv_ratio": 0.5}], ids=["full", "kdv"])
def test_extended_prefill_equals_one_prefill(tiny_model, calls, kdv):
    """Bug guarded: new tokens at renumbered positions, a cache that the earlier prefill shares, a prompt read twice."""
    inputs = tiny.image_prompt()
    turn = torch.tensor([[3, 4, 5, 6]])
    prefill = tiny_model.prefill(**inputs, **kdv)
    kept_length = prefill.kept_length
    extended = tiny_model.extend(prefill, turn)
    whole_ids = torch.cat([inputs["input_ids"], turn], dim=1)
    pixels = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    whole = tiny_model.prefill(whole_ids, **pixels, **kdv)
    torch.testing.assert_close(extended.logits, whole.logits, atol=1e-5, rtol=0)
    assert torch.equal(extended.input_ids, whole_ids) and extended.kept_length == whole.kept_length
    assert prefill.kept_length == kept_length
    assert calls["language"] == [(1, kept_length), (1, 4), (1, whole.kept_length)]


def test_encoded_items_can_be_reused(tiny_model, calls):
    """Bug guarded: a second question about one image runs the vision encoder again, or reads other tokens."""
    inputs = tiny.image_prompt()
    first = tiny_model.prefill(**inputs)
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    again = tiny_model.prefill(**ids, visual_items=first.visual_items)
    assert calls["vision"] == 1
    torch.testing.assert_close(again.logits, first.logits, atol=0, rtol=0)


def test_misspelt_settings_are_refused(tiny_model):
    """Bug guarded: `kdv_rato=0.5` is ignored, and the prompt is pruned at the default."""
    with pytest.raises(TypeError, match="kdv_rato"):
        tiny_model.prefill(**tiny.image_prompt(), enable_kdv=True, kdv_rato=0.5)


def test_keys_are_computed_only_when_they_are_needed(tiny_model):
    """Bug guarded: with KDV off the keys of every image are pooled and stored, a hidden cost; or an item without keys
    is pruned by something else than its keys."""
    inputs = tiny.image_prompt()
    plain = tiny_model.prefill(**inputs)
    assert plain.visual_items[0].keys is None
    assert tiny_model.prefill(**inputs, enable_kdv=True).visual_items[0].keys is not None
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="without keys"):
        tiny_model.prefill(**ids, visual_items=plain.visual_items, enable_kdv=True)


@pytest.mark.parametrize(
    "wrong",
    [{"num_rollouts": 0}, {"max_new_tokens": 0}, {"rollout_batch_size": 0}, {"temperature": -1.0}]
    + [{"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"seed": -1}, {"query_index": 2**64}],
    ids=str,
)
def test_settings_out_of_range_are_refused(tiny_model, wrong):
    """Bug guarded: an impossible setting that fails deep inside, or silently does something else."""
    prefill = tiny_model.prefill(**tiny.text_prompt())
    with pytest.raises(ValueError) as error:
        tiny_model.rollout(prefill, **wrong)
    assert "\n" not in str(error.value)


def test_prefill_refuses_batches_and_padding(tiny_model):
    """Bug guarded: a batch of which only the first row is read, or padding that is read as text."""
    with pytest.raises(ValueError, match="one prompt at a time"):
        tiny_model.prefill(**tiny.mixed_batch())
    inputs = tiny.text_prompt()
    inputs["attention_mask"][0, 0] = 0
    with pytest.raises(ValueError, match="padding"):
        tiny_model.prefill(**inputs)
