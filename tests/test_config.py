"""`AvisConfig`: what is refused, what is taken, and that any value is one of the two."""

import json
from dataclasses import fields

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
