"""What was pruned is not continued as if it were whole, and nothing is pruned where no cache would be filled."""

import copy

import pytest
import tiny
import torch
from chats import one_line
from kdv_calls import generate
from transformers import DynamicCache


def answered(model, **pruning) -> tuple[dict[str, torch.Tensor], DynamicCache]:
    """Return the prompt with its answer, as the beginning of the next turn's prompt, and the cache of both."""
    row = tiny.image_prompt()
    output = generate(model, row, **pruning)
    ids = torch.cat([output.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    return row | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, output.past_key_values


CONTINUATIONS = {
    "generate": lambda model, row, cache: model.generate(**row, past_key_values=cache, max_new_tokens=2),
    "generate from a copy": lambda model, row, cache: model.generate(
        **row, past_key_values=copy.deepcopy(cache), max_new_tokens=2
    ),
    "generate without pixels": lambda model, row, cache: model.generate(
        input_ids=row["input_ids"], past_key_values=cache, max_new_tokens=2
    ),
    "prompt lookup": lambda model, row, cache: model.generate(
        **row, past_key_values=cache, max_new_tokens=2, prompt_lookup_num_tokens=2
    ),
    "forward": lambda model, row, cache: model(input_ids=row["input_ids"][:, -3:], past_key_values=cache),
    "inner forward": lambda model, row, cache: model.model(input_ids=row["input_ids"][:, -3:], past_key_values=cache),
}


@pytest.mark.parametrize("name", CONTINUATIONS)
@pytest.mark.parametrize("pruning", [{"kdv_ratio": 0.5}, {"kdv_threshold": 1.55}], ids=["ratio", "threshold"])
def test_pruned_cache_is_not_continued_with_kdv_off(tiny_model, name, pruning):
    """Guards against placeholders of the pruned prompt that are read as text, since the cache is shorter than it."""
    row, cache = answered(tiny_model, enable_kdv=True, **pruning)
    assert cache.get_seq_length() < row["input_ids"].shape[1] - 4, "the test's cache is not pruned"
    with pytest.raises(ValueError, match="model.extend") as error:
        CONTINUATIONS[name](tiny_model, row, cache)
    assert len(one_line(error)) < 120


def test_cache_of_a_prefill_is_not_continued_by_generate(tiny_model):
    """Guards against the same for the cache that `prefill` and `extend` return."""
    prefill = tiny_model.prefill(**tiny.image_prompt(), enable_kdv=True, kdv_ratio=0.5)
    longer = tiny_model.extend(prefill, torch.tensor([[5, 6, 7]]))
    for one in (prefill, longer):
        ids = torch.cat([one.input_ids, torch.tensor([[8, 9]])], dim=1)
        with pytest.raises(ValueError, match="model.extend") as error:
            tiny_model.generate(input_ids=ids, past_key_values=one.cache, max_new_tokens=2)
        one_line(error)
    assert tiny_model.rollout(longer, 2, max_new_tokens=2).tokens, "a prefill can be used after the refusal"


@pytest.mark.parametrize("pruning", [{}, {"enable_kdv": True, "kdv_ratio": 0.0}], ids=["off", "nothing pruned"])
def test_whole_cache_is_continued(tiny_model, pruning):
    """Guards against refusing too much: a cache from which nothing was pruned is upstream's, and continues as there."""
    row, cache = answered(tiny_model, **pruning)
    got = tiny_model.generate(**row, past_key_values=cache, max_new_tokens=3, do_sample=False)
    assert torch.equal(got, tiny_model.generate(**row, max_new_tokens=3, do_sample=False))


CALLS = {
    "forward": lambda model, row: model(**row, enable_kdv=True),
    "generate": lambda model, row: model.generate(**row, enable_kdv=True, max_new_tokens=2),
    "prefill": lambda model, row: model.prefill(**row, enable_kdv=True),
    "prefill with KDV off": lambda model, row: model.prefill(**row),
}


@pytest.mark.parametrize("name", CALLS)
def test_gradient_checkpointing_in_train_mode_is_refused(name):
    """Guards against an empty cache: checkpointed layers take none in train mode, and warn of it once or not at all."""
    model = tiny.build_model()
    model.gradient_checkpointing_enable()
    row = tiny.image_prompt()
    assert CALLS[name](model, row) is not None, "in eval mode nothing is checkpointed"
    model.train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)") as error:
        CALLS[name](model, row)
    assert len(one_line(error)) < 120
    model.gradient_checkpointing_disable()
    assert CALLS[name](model, row) is not None
