"""K rollouts from one prefill: sampling, shared prefix, batches, early stop and log-probabilities."""

import copy

import pytest
import reference
import tiny
import torch
from invariants import assert_same_logits
from rollout_calls import SAMPLED, rollout_with_logits, snapshot
from transformers.models.qwen2_5_vl import decoding, shared_prefix_cache
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling
from transformers.models.qwen2_5_vl.shared_prefill import Prefill


def test_rollout_is_the_same_for_every_k(tiny_model):
    """Bug guarded: one generator shared by all rows, so that rollout i changes with K, and rollouts of the largest K
    cannot be used to evaluate a smaller one."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    by_k = {k: tiny_model.rollout(prefill, k, seed=3, query_index=5, **SAMPLED).tokens for k in (1, 3, 7)}
    assert by_k[7][:3] == by_k[3]
    assert by_k[7][:1] == by_k[1]


def test_first_tokens_differ_across_rollouts(tiny_model):
    """Bug guarded: the first token is sampled once and copied to all rows (as nanochat's engine once did).

    Under flat logits over about 295 tokens, 8 rollouts share one first token by chance with odds below 1e-16.
    """
    prefill = tiny_model.prefill(**tiny.image_prompt())
    flat = Prefill(**{**vars(prefill), "logits": torch.zeros_like(prefill.logits)})
    rollouts = tiny_model.rollout(flat, 8, max_new_tokens=1, temperature=1.0, top_p=1.0)
    assert len({tokens[0] for tokens in rollouts.tokens}) > 1


def test_rollouts_leave_the_prefill_unchanged(tiny_model):
    """Bug guarded: decoding writes into the shared cache, so that a second rollout reads the first one's tokens."""
    prefill = tiny_model.prefill(**tiny.video_prompt(), enable_kdv=True, kdv_ratio=0.5)
    before = snapshot(prefill)
    first = tiny_model.rollout(prefill, 3, seed=1, **SAMPLED)
    for (keys, values), layer in zip(before, prefill.cache.layers, strict=True):
        assert torch.equal(keys, layer.keys) and torch.equal(values, layer.values)
    assert tiny_model.rollout(prefill, 3, seed=1, **SAMPLED).tokens == first.tokens


@pytest.mark.parametrize("leaving", [False, True], ids=["all_stay", "rows_leave"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_prefix_equals_copied_prefix(monkeypatch, attention, leaving):
    """Bug guarded: the rows' own tokens and the prompt are normalised apart, query heads read another head's keys, rows
    are mixed up when one leaves, or the cache loses tokens when it grows (here every 5 steps)."""
    monkeypatch.setattr(shared_prefix_cache, "INITIAL_CAPACITY", 5)
    model = tiny.build_model(attn_implementation=attention)
    prefill = model.prefill(**tiny.video_then_image_prompt(), enable_kdv=True, kdv_ratio=0.5)
    settings = {"max_new_tokens": 18, "temperature": 1.0, "top_p": 1.0, "seed": 4}
    if leaving:
        free = model.rollout(prefill, 5, **settings).tokens
        model.generation_config.eos_token_id = [free[1][2], free[3][7]]
    rollouts, logits = rollout_with_logits(model, prefill, 5, **settings)
    lengths = {len(tokens) for tokens in rollouts.tokens}
    assert (len(lengths) > 1) == leaving and max(lengths) > 11
    for got, want in zip(logits, reference.copied_rollout_logits(model, prefill, rollouts.tokens), strict=True):
        assert_same_logits(got, want, "the softmax over prompt and own tokens", atol=2e-5)


def test_block_size_changes_nothing(tiny_model, monkeypatch):
    """Bug guarded: random numbers drawn for a block of steps are used for other steps or rows."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    expected = tiny_model.rollout(prefill, 3, seed=6, **SAMPLED).tokens
    monkeypatch.setattr(decoding, "RANDOM_BLOCK_STEPS", 5)
    monkeypatch.setattr(shared_prefix_cache, "INITIAL_CAPACITY", 5)
    assert tiny_model.rollout(prefill, 3, seed=6, **SAMPLED).tokens == expected


def storage_bytes(cache) -> int:
    """Return the bytes of all memory that a rollout's cache refers to, each piece once."""
    tensors = [x for layer in cache.layers for x in vars(layer).values() if isinstance(x, torch.Tensor)]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def test_seven_rollouts_store_the_prompt_once(tiny_model):
    """Bug guarded: K copies of the prompt's keys and values, which would be most of the memory of K rollouts."""
    prefill = tiny_model.prefill(**tiny.prompt(4096))
    prompt = {x.data_ptr() for layer in prefill.cache.layers for x in (layer.keys, layer.values)}
    measured, reported = {}, {}

    def measure(module, args, kwargs, output):
        cache = kwargs["past_key_values"]
        assert {x.data_ptr() for layer in cache.layers for x in (layer.prefix_keys, layer.prefix_values)} == prompt
        measured[count] = max(measured.get(count, 0), storage_bytes(cache))

    hook = tiny_model.language_model.register_forward_hook(measure, with_kwargs=True)
    try:
        for count in (1, 7):
            reported[count] = tiny_model.rollout(prefill, count, max_new_tokens=128).cache_bytes
    finally:
        hook.remove()
    text = tiny_model.config.text_config
    per_token = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * 16
    assert reported == measured == {1: per_token * (4096 + 127), 7: per_token * (4096 + 7 * 127)}
    assert reported[7] <= 1.25 * reported[1]


def test_decoding_needs_no_configured_attention(tiny_model, monkeypatch):
    """Bug guarded: a kernel that cannot read two caches (FlashAttention-2) receives the rows' own tokens alone."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    expected = tiny_model.rollout(prefill, 2, **SAMPLED).tokens
    monkeypatch.setitem(modeling.ALL_ATTENTION_FUNCTIONS, "sdpa", None)
    assert tiny_model.rollout(prefill, 2, **SAMPLED).tokens == expected


def test_end_token_finishes_a_row_and_the_others_continue(tiny_model):
    """Bug guarded: a finished row is still decoded, or the cache of another row is removed with it."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    free = tiny_model.rollout(prefill, 4, seed=2, **SAMPLED)
    end = free.tokens[1][3]
    config = tiny_model.generation_config
    before, config.eos_token_id = config.eos_token_id, end
    try:
        stopped = tiny_model.rollout(prefill, 4, seed=2, **SAMPLED)
    finally:
        config.eos_token_id = before
    for tokens, cut, finished in zip(free.tokens, stopped.tokens, stopped.finished, strict=True):
        length = tokens.index(end) + 1 if end in tokens else len(tokens)
        assert cut == tokens[:length]
        assert finished == (end in tokens)
    assert stopped.finished[1] and not all(stopped.finished)


def test_processors_are_transformers_own(tiny_model):
    """Bug guarded: the model's generation config (repetition penalty, suppressed tokens) is ignored by rollouts."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    loud = Prefill(**{**vars(prefill), "logits": prefill.logits.clone()})
    loud.logits[0, tiny.IMAGE] = 1e4
    rollouts = tiny_model.rollout(loud, 5, max_new_tokens=1, temperature=1.0)
    assert all(tokens[0] != tiny.IMAGE for tokens in rollouts.tokens)


@pytest.mark.parametrize("version", ["4.49.0", "4.57.6"])
@pytest.mark.parametrize("wanted", [{"temperature": 1.0}, {"top_p": 1.0}], ids=str)
def test_a_checkpoints_sampling_defaults_never_replace_ours(tiny_model, monkeypatch, wanted, version):
    """Bug guarded: a value that equals Transformers' global default counts as "not given" for checkpoints saved by
    newer versions, and Qwen2.5-VL's own near-greedy defaults replace it: K equal rollouts.

    Under flat logits over about 295 tokens, 8 rollouts share one first token by chance with odds below 1e-16.
    """
    config = copy.deepcopy(tiny_model.generation_config)
    config.update(temperature=1e-6, top_p=0.001, top_k=1, do_sample=True, transformers_version=version)
    monkeypatch.setattr(tiny_model, "generation_config", config)
    prefill = tiny_model.prefill(**tiny.image_prompt())
    flat = Prefill(**{**vars(prefill), "logits": torch.zeros_like(prefill.logits)})
    rollouts = tiny_model.rollout(flat, 8, max_new_tokens=1, **wanted)
    assert len({tokens[0] for tokens in rollouts.tokens}) > 1


def test_logits_that_are_not_finite_are_refused(tiny_model):
    """Bug guarded: an overflow in half precision is sampled as the last token of the vocabulary."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    broken = Prefill(**{**vars(prefill), "logits": torch.full_like(prefill.logits, float("nan"))})
    with pytest.raises(ValueError, match="not finite"):
        tiny_model.rollout(broken, 2, max_new_tokens=1)


@pytest.fixture
def ending(tiny_model, monkeypatch):
    """Return the tiny model with many end tokens: rollouts end at several lengths, and some are cut off."""
    monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", list(range(0, tiny.TEXT_IDS, 11)))
    return tiny_model


ENDING = {"max_new_tokens": 14, "temperature": 1.0, "top_p": 1.0, "seed": 3, "query_index": 5}


@pytest.mark.parametrize("rollout_batch_size", [1, 2, 3, 5, 9])
def test_batch_size_changes_no_rollout(ending, rollout_batch_size):
    """Bug guarded: a rollout of a later batch with an earlier one's random numbers, a rollout that is lost or doubled
    where K is no multiple of the batch size, and the caches of all batches in memory at once."""
    prefill = ending.prefill(**tiny.image_prompt())
    together = ending.rollout(prefill, 7, **ENDING)
    lengths = {len(tokens) for tokens in together.tokens}
    assert len(lengths) > 2 and set(together.finished) == {True, False}, "want rollouts that end, and cut-off ones"
    batches = ending.rollout(prefill, 7, rollout_batch_size=rollout_batch_size, **ENDING)
    assert (batches.tokens, batches.finished) == (together.tokens, together.finished)
    assert batches.mean_logprobs == pytest.approx(together.mean_logprobs, abs=1e-5)
    assert batches.stopped == together.stopped == (False,) * 7
    assert rollout_batch_size > 3 or batches.cache_bytes < together.cache_bytes


@pytest.mark.parametrize("rollout_batch_size", [None, 1, 2, 3])
@pytest.mark.parametrize("wanted", [1, 2, 4, 5])
def test_stopping_fn_stops_the_other_rollouts(ending, rollout_batch_size, wanted):
    """Bug guarded: rollouts that continue, or batches that begin, after `stopping_fn` has returned True; a stopped
    rollout that counts as finished, or that changes those which have ended; and a call of `stopping_fn` with unfinished
    rollouts, or when no rollout has ended since the last call."""
    prefill = ending.prefill(**tiny.image_prompt())
    whole = ending.rollout(prefill, 7, **ENDING)
    seen = []

    def stop(ended):
        assert not seen or len(ended) > len(seen[-1]), "called again although no rollout has ended"
        assert len(ended) < 7, "called although no rollout is left"
        for i, rollout in ended.items():
            assert (rollout.tokens, rollout.finished) == (whole.tokens[i], whole.finished[i])
            assert rollout.mean_logprob == pytest.approx(whole.mean_logprobs[i], abs=1e-5)
        seen.append(dict(ended))
        return len(ended) >= wanted

    some = ending.rollout(prefill, 7, rollout_batch_size=rollout_batch_size, stopping_fn=stop, **ENDING)
    assert len(seen[-1]) >= wanted and all(len(ended) < wanted for ended in seen[:-1])
    assert [i for i in range(7) if not some.stopped[i]] == sorted(seen[-1])
    for i in range(7):
        assert some.tokens[i] == whole.tokens[i][: len(some.tokens[i])]
        assert some.finished[i] == (whole.finished[i] and not some.stopped[i])
        assert (some.mean_logprobs[i] is None) == (not some.tokens[i])
        if some.stopped[i] and some.tokens[i]:
            # It has as many tokens as the longest ended rollout of its batch.
            assert len(some.tokens[i]) == max(
                len(some.tokens[j]) for j in batch_of(i, rollout_batch_size) if j in seen[-1]
            )
            assert len(some.tokens[i]) < len(whole.tokens[i])
    begun = [i for i in range(7) if some.tokens[i]]
    assert begun == list(range(len(begun))) and (rollout_batch_size is None or len(begun) - wanted < rollout_batch_size)


def batch_of(index: int, rollout_batch_size: int | None) -> range:
    first = 0 if rollout_batch_size is None else index // rollout_batch_size * rollout_batch_size
    return range(first, 7 if rollout_batch_size is None else min(first + rollout_batch_size, 7))


def test_log_probabilities_are_the_models_own(ending):
    """Bug guarded: log-probabilities of the processed distribution (temperature, top-p, suppressed tokens), or of
    another token or row; a sum in place of the mean; and the end token or the first token left out."""
    prefill = ending.prefill(**tiny.video_then_image_prompt(), enable_kdv=True, kdv_ratio=0.5)
    rollouts = ending.rollout(prefill, 4, max_new_tokens=16, temperature=0.7, top_p=0.9, seed=1)
    assert len({len(tokens) for tokens in rollouts.tokens}) > 1
    later = reference.copied_rollout_logits(ending, prefill, rollouts.tokens)
    for tokens, logits, mean in zip(rollouts.tokens, later, rollouts.mean_logprobs, strict=True):
        logits = torch.cat([prefill.logits, logits])
        expected = logits.log_softmax(dim=-1)[torch.arange(len(tokens)), list(tokens)].mean()
        assert mean == pytest.approx(float(expected), abs=1e-5)
