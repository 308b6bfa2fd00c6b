"""`AvisConfig`: what is refused, what is taken, and that any value is one of the two."""

import json
from dataclasses import asdict, fields
from typing import get_args

import numpy as np
import pytest
from chats import one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.decoding import counter_uniform

from avis.config import AvisConfig

pytestmark = pytest.mark.unit
NAN, INFINITY = float("nan"), float("inf")


WRONG = [
    {"vote_stop": 1},
    {"vote_stop": "never"},
    {"vote": "plurality"},
    {"vote": None},
    {"answer_format": "r1"},
    {"answer_format": 1},
    *[{"rollout_batch_size": value} for value in (0, -1, 2.0, 10**9)],
    {"kdv_ratio": 0.5},
    {"kdv_threshold": 0.5},
    {"pruner": "random"},
    {"enable_kdv": True, "kdv_ratio": 0.5, "kdv_threshold": 0.5},
    {"enable_kdv": True, "pruner": "nothing"},
    {"num_rollouts": 2.5},
    {"num_rollouts": True},
    {"seed": "1"},
    {"temperature": None},
    {"enable_kdv": 1},
    *[{"enable_kdv": True, "kdv_ratio": value} for value in (-0.01, 1.01, NAN, INFINITY)],
    *[{"enable_kdv": True, "kdv_threshold": value} for value in (0.0, -1.0, 3.2, NAN)],
    *[{"num_rollouts": value} for value in (0, -1)],
    *[{"max_new_tokens": value} for value in (0, -1)],
    *[{"temperature": value} for value in (0.0, 1e-9, -1.0, 1e9, NAN, INFINITY)],
    *[{"top_p": value} for value in (0.0, -0.1, 1.1, NAN)],
    *[{"seed": value} for value in (-1, 2**64)],
    *[{name: value} for name in ("min_pixels", "max_pixels") for value in (783, 0, -1)],
    {"min_pixels": 2000, "max_pixels": 1000},
    {"fps": 1.0, "num_frames": 4},
    *[{"fps": value} for value in (0.0, -1.0, NAN, INFINITY)],
    *[{"num_frames": value} for value in (1, 0, -2)],
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_configs_out_of_range_are_refused(wrong):
    """Guards against: an impossible setting that fails deep inside after a model was loaded, or quietly does
    something else."""
    with pytest.raises(ValueError) as error:
        AvisConfig(**wrong)
    one_line(error)


KINDS = {
    int: (1.0, "1", True),
    float: ("0.5", True, [0.5], np.ones((2, 2))),
    bool: (1, "true", None),
    str: (1, None, ["kdv"]),
}
WRONG_TYPES = [
    (field.name, value)
    for field in fields(AvisConfig)
    for value in KINDS[next(kind for kind in get_args(field.type) or (field.type,) if kind is not type(None))]
    if value is not None or type(None) not in get_args(field.type)
]


@pytest.mark.parametrize("name, value", WRONG_TYPES, ids=str)
def test_fields_of_a_wrong_type_are_refused(name, value):
    """Guards against: "0.5" compared with a number, "false" that is true, and an array written in several lines."""
    needs = {"enable_kdv": True} if name.startswith(("kdv_", "pruner")) else {}
    with pytest.raises(ValueError, match=name) as error:
        AvisConfig(**needs | {name: value})
    assert len(one_line(error)) < 200


def test_numbers_of_numpy_are_pythons():
    """Guards against: refusing numbers that come out of an array, and a record of them that is no JSON."""
    given_ = {"num_rollouts": np.int64(3), "seed": np.uint64(2**64 - 1), "top_p": np.float32(0.5), "fps": np.int8(2)}
    config = AvisConfig(enable_kdv=True, kdv_ratio=np.float64(0.25), **given_)
    assert json.loads(json.dumps(asdict(config)))["seed"] == 2**64 - 1
    assert config == AvisConfig(enable_kdv=True, kdv_ratio=0.25, num_rollouts=3, seed=2**64 - 1, top_p=0.5, fps=2.0)


@pytest.mark.parametrize("name", ["fps", "temperature", "top_p"])
def test_whole_numbers_beyond_all_floats_are_refused(name):
    """Guards against: an OverflowError with the model loaded."""
    with pytest.raises(ValueError, match=name) as error:
        AvisConfig(**{name: 10**400})
    one_line(error)


def test_large_seeds_are_seeds_of_their_own():
    """Guards against: seeds that pass through a float on their way to the generator, where 2**63 and 2**63 + 1 are
    one, and 2**64 - 1 is 0."""
    seeds = [0, 2**53, 2**53 + 1, 2**63, 2**63 + 1, 2**64 - 1]
    assert len({counter_uniform(AvisConfig(seed=seed).seed, 0, 0, 0) for seed in seeds}) == len(seeds)


NUMBERS = st.floats() | st.integers() | st.sampled_from([0, 1, 0.5, 784, -1])


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([field.name for field in fields(AvisConfig) if field.name != "pruner"]),
        NUMBERS | st.booleans() | st.none() | st.text(max_size=3) | st.lists(st.integers(), max_size=1),
        max_size=4,
    )
)
def test_fuzzed_configs_are_taken_or_refused(values):
    """Guards against: a TypeError from a comparison, and values that are taken and cannot be written as JSON."""
    try:
        taken = AvisConfig(**values)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return
    record = {field.name: getattr(taken, field.name) for field in fields(taken)}
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert AvisConfig(**record) == taken
