"""Settings and calls that KDV refuses, each with one line."""

import numpy as np
import pytest
import tiny
import torch
from invariants import assert_same_logits
from kdv_calls import generate, pixel_inputs, replace_pixels_by_items
from transformers import DynamicCache, StaticCache

REFUSED_SETTINGS = {
    "ratio_above_1": ({"enable_kdv": True, "kdv_ratio": 75}, r"kdv_ratio .* in \[0, 1\], got 75"),
    "ratio_below_0": ({"enable_kdv": True, "kdv_ratio": -0.1}, "kdv_ratio"),
    "ratio_nan": ({"enable_kdv": True, "kdv_ratio": float("nan")}, "kdv_ratio"),
    "threshold_in_degrees": ({"enable_kdv": True, "kdv_threshold": 45.0}, "kdv_threshold .* radians"),
    "both": ({"enable_kdv": True, "kdv_ratio": 0.5, "kdv_threshold": 0.5}, "exclude each other"),
    "unknown_pruner": ({"enable_kdv": True, "pruner": "fastv"}, "'fastv', known: kdv, random"),
    "ratio_while_off": ({"kdv_ratio": 0.5}, "need enable_kdv=True"),
    "ratio_0_while_off": ({"kdv_ratio": 0.0}, "need enable_kdv=True"),
    "threshold_while_off": ({"kdv_threshold": 0.5}, "need enable_kdv=True"),
    "pruner_while_off": ({"pruner": "random"}, "need enable_kdv=True"),
    "seed_while_off": ({"pruner_seed": 1}, "need enable_kdv=True"),
}


def assert_one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 120, "an error is one short line"


@pytest.mark.parametrize("case", REFUSED_SETTINGS)
def test_settings_that_contradict_are_refused(tiny_model, case):
    """Guards against a call that silently runs unpruned, or prunes with other settings than those given."""
    settings, message = REFUSED_SETTINGS[case]
    for call in (tiny_model, tiny_model.generate):
        with pytest.raises(ValueError, match=message) as error:
            call(**tiny.image_prompt(), **settings)
        assert_one_line(error)


def filled_cache(model):
    return model(**tiny.text_prompt(), use_cache=True).past_key_values


def text_config(model):
    return model.config.get_text_config(decoder=True)


REFUSED_GENERATION = {
    "assisted": (lambda m: {"assistant_model": m}, "assisted and prompt-lookup"),
    "prompt_lookup": (lambda m: {"prompt_lookup_num_tokens": 2}, "assisted and prompt-lookup"),
    "chunked_prefill": (lambda m: {"prefill_chunk_size": 8}, "prefill_chunk_size"),
    "static_cache": (
        lambda m: {"cache_implementation": "static"},
        "dynamic cache, not cache_implementation='static'",
    ),
    "offloaded_static": (lambda m: {"cache_implementation": "offloaded_static"}, "'offloaded_static'"),
    "offloaded": (lambda m: {"cache_implementation": "offloaded"}, "'offloaded'"),
    "quantized": (lambda m: {"cache_implementation": "quantized"}, "'quantized'"),
    "callers_static": (
        lambda m: {"past_key_values": StaticCache(config=text_config(m), max_cache_len=99)},
        "plain DynamicCache",
    ),
    "inputs_embeds": (lambda m: {"inputs_embeds": torch.zeros(1, 47, 64)}, "need input_ids"),
    "callers_filled": (lambda m: {"past_key_values": filled_cache(m)}, "the cache passed is not empty"),
}


@pytest.mark.parametrize("with_items", [False, True], ids=["kdv", "visual_items"])
@pytest.mark.parametrize("case", REFUSED_GENERATION)
def test_generate_refuses_unsupported_settings(tiny_model, case, with_items):
    """Guards against tokens from a cache whose columns are not where the mask says."""
    arguments, message = REFUSED_GENERATION[case]
    inputs = (
        replace_pixels_by_items(tiny_model, tiny.image_prompt())
        if with_items
        else tiny.image_prompt() | {"enable_kdv": True}
    )
    with pytest.raises(ValueError, match=message) as error:
        generate(tiny_model, inputs, **arguments(tiny_model))
    assert_one_line(error)


def test_generate_refuses_right_padding(tiny_model):
    """Guards against tokens after padding: re-padding on the left would hide the mistake."""
    batch = tiny.left_pad([tiny.image_prompt(), tiny.text_prompt()])
    batch["input_ids"][1], batch["attention_mask"][1] = (
        batch["input_ids"][1].flip(0),
        batch["attention_mask"][1].flip(0),
    )
    with pytest.raises(ValueError, match="left-padded") as error:
        generate(tiny_model, batch, enable_kdv=True)
    assert_one_line(error)


REFUSED_CALLS = {
    "labels": (lambda m, row: row | {"labels": row["input_ids"]}, "labels"),
    "embeds_only": (
        lambda m, row: row | {"inputs_embeds": m.get_input_embeddings()(row["input_ids"]), "input_ids": None},
        "need input_ids",
    ),
    "position_ids": (
        lambda m, row: row | {"position_ids": torch.zeros(3, *row["input_ids"].shape).long()},
        "position_ids",
    ),
    "filled_cache": (lambda m, row: row | {"past_key_values": filled_cache(m)}, "not empty"),
    "static_cache": (
        lambda m, row: row | {"past_key_values": StaticCache(config=text_config(m), max_cache_len=99)},
        "plain DynamicCache",
    ),
    "pixels_and_items": (
        lambda m, row: row | {"visual_items": replace_pixels_by_items(m, row)["visual_items"]},
        "not both",
    ),
    "no_pixels": (
        lambda m, row: {k: v for k, v in row.items() if k not in pixel_inputs(row)},
        "35 image placeholders for 0 image tokens",
    ),
}


@pytest.mark.parametrize("case", REFUSED_CALLS)
def test_forward_refuses_arguments_that_exclude_kdv(tiny_model, case):
    """Guards against arguments that are ignored without an error."""
    change, message = REFUSED_CALLS[case]
    with pytest.raises(ValueError, match=message) as error:
        tiny_model(**change(tiny_model, tiny.image_prompt()), enable_kdv=True)
    assert_one_line(error)


def test_callers_empty_dynamic_cache_is_accepted(tiny_model):
    """Guards against refusing too much: `generate` itself makes such a cache."""
    row = tiny.image_prompt()
    cache = DynamicCache(config=text_config(tiny_model))
    got = generate(tiny_model, row, enable_kdv=True, past_key_values=cache)
    assert_same_logits(
        torch.stack(got.logits), torch.stack(generate(tiny_model, row, enable_kdv=True).logits), "cache", 0
    )
    assert got.past_key_values is cache


WRONG_TYPES = {
    "enable_kdv": ["false", "true", 1, None],
    "kdv_ratio": ["0.5", True, [0.5], torch.full((2, 2), 0.5)],
    "kdv_threshold": ["0.5", True, {}],
    "pruner": [1, ["kdv"], None],
    "pruner_seed": ["1", 1.0, True, None],
}


@pytest.mark.parametrize("name, value", [(name, value) for name in WRONG_TYPES for value in WRONG_TYPES[name]], ids=str)
def test_settings_of_a_wrong_type_are_refused(tiny_model, name, value):
    """Guards against a TypeError from a comparison, and against "false", which is true."""
    settings = {"enable_kdv": True, name: value}
    for call in (tiny_model, tiny_model.generate, tiny_model.prefill):
        with pytest.raises(ValueError, match=name if name != "pruner" else "unknown pruner") as error:
            call(**tiny.image_prompt(), **settings)
        assert_one_line(error)


ROLLOUT_ARGUMENTS = ("num_rollouts", "max_new_tokens", "rollout_batch_size", "seed", "query_index")


@pytest.mark.parametrize(
    "name, value",
    [(name, value) for name in ROLLOUT_ARGUMENTS for value in ("2", 2.0, True)]
    + [(name, value) for name in ("temperature", "top_p") for value in ("0.5", True, None)],
)
def test_rollout_arguments_of_a_wrong_type_are_refused(tiny_model, name, value):
    prefill = tiny_model.prefill(**tiny.text_prompt())
    with pytest.raises(ValueError, match=f"{name} must be a") as error:
        tiny_model.rollout(prefill, **{"num_rollouts": 2, "max_new_tokens": 2} | {name: value})
    assert_one_line(error)


def test_numbers_of_numpy_are_numbers(tiny_model):
    """Guards against refusing too much."""
    prefill = tiny_model.prefill(**tiny.image_prompt(), enable_kdv=True, kdv_ratio=np.float32(0.5))
    whole = {name: np.int64(2) for name in ROLLOUT_ARGUMENTS}
    got = tiny_model.rollout(prefill, **whole, temperature=np.float64(0.7), top_p=np.float32(0.5))
    assert got.tokens == tiny_model.rollout(prefill, **{k: 2 for k in whole}, temperature=0.7, top_p=0.5).tokens
