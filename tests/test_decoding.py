"""The parts of the decoding loop: random numbers, sampling, oneDNN, CUDA graphs, and waiting for the device."""

import pytest
import tiny
import torch
from invariants import assert_same_logits
from rollout_calls import SAMPLED, rollout_with_logits, snapshot
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache
from transformers.models.qwen2_5_vl import decoding, shared_prefix_cache
from transformers.models.qwen2_5_vl.shared_prefill import Prefill


def test_seed_query_rollout_and_step_change_the_number():
    """Bug guarded: a counter field that is left out, so that queries or rollouts share random numbers."""
    first = decoding.counter_uniform(0, 0, 0, 0)
    fields = ("seed", "query_index", "rollout", "step")
    others = [decoding.counter_uniform(**{name: int(name == changed) for name in fields}) for changed in fields]
    assert len({first, *others}) == 5
    draws = torch.tensor([decoding.counter_uniform(0, 0, i, t) for i in range(20) for t in range(100)])
    assert 0 <= draws.min() and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 5 * 0.2887 / 2000**0.5  # five standard errors: odds of 6e-7


def test_sampling_inverts_the_cdf():
    """Bug guarded: an off-by-one error in the inversion, which would select tokens of probability zero."""
    scores = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf")]])
    uniforms = torch.tensor([0.0, 0.25, 0.499, 0.5, 0.75, 1 - 2**-53], dtype=torch.double)
    assert decoding.sample_inverse_cdf(scores.expand(6, -1), uniforms).tolist() == [0, 0, 0, 2, 2, 2]


needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN"
)


class CountProducts(TorchDispatchMode):
    """Counts the matrix products that oneDNN computes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.mkldnn._linear_pointwise.default
        return func(*args, **(kwargs or {}))


@needs_onednn
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("rows, taken", [(1, 1), (3, 1), (7, 1), (32, 1), (33, 0)])
def test_onednn_multiplies_few_rows(rows, taken, bias):
    """Bug guarded: a product without its bias, and a product that is replaced for many rows or in another type."""
    generator = torch.Generator().manual_seed(rows)
    for dtype, width, expected in ((torch.float32, 24, taken), (torch.float64, 24, 0), (torch.float32, 1, taken)):
        linear = torch.nn.Linear(width, 40, bias=bias, dtype=dtype)
        states = torch.randn(rows, 1, width, generator=generator, dtype=dtype)
        with torch.no_grad():
            want = linear(states)
            with CountProducts() as products, decoding.OneDnnLinearMode():
                got = linear(states)
        assert products.count == expected
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@needs_onednn
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("leaving", [False, True], ids=["all_stay", "rows_leave"])
def test_onednn_changes_no_rollout(tiny_model, monkeypatch, seed, leaving):
    """Bug guarded: tokens or logits that depend on the library of the products; a mode that is never entered, or that
    remains active for the next call of the model."""
    prefill = tiny_model.prefill(**tiny.image_prompt(seed=seed), enable_kdv=True, kdv_ratio=0.5)
    if leaving:
        free = tiny_model.rollout(prefill, 7, seed=seed, **SAMPLED).tokens
        ends = {token for tokens in free for token in tokens[3:6]} - {tokens[0] for tokens in free}
        monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", sorted(ends))
    runs = []
    for large in (2**20, 0):
        monkeypatch.setattr(decoding, "ONEDNN_MIN_WEIGHT_ELEMENTS", large)
        with CountProducts() as products:
            runs.append(rollout_with_logits(tiny_model, prefill, 7, seed=seed, **SAMPLED))
        assert (products.count > 0) == (large == 0)
    with CountProducts() as products, torch.no_grad():
        tiny_model(**tiny.prompt(5))
    assert products.count == 0
    (plain, logits), (replaced, replaced_logits) = runs
    assert (replaced.tokens, replaced.finished) == (plain.tokens, plain.finished)
    assert (len({len(tokens) for tokens in plain.tokens}) > 1) == leaving
    for got, want in zip(replaced_logits, logits, strict=True):
        assert_same_logits(got, want, "the matrix products", atol=2e-5)


class Tape(TorchDispatchMode):
    """Stands for a CUDA graph on the CPU.

    It records operators with their tensors and undoes their writes, because capturing runs nothing. A replay runs them
    again and writes into the tensors that they returned when they were recorded.
    """

    # Capturing forbids values that the host reads, and data that the host sends to the device.
    FORBIDDEN = (torch.ops.aten._local_scalar_dense, torch.ops.aten.lift_fresh, torch.ops.aten.nonzero)

    def __init__(self):
        super().__init__()
        self.played, self.written = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in self.FORBIDDEN, func
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.written.append((value, value.clone()))
        result = func(*args, **kwargs)
        fresh = all(returned.alias_info is None for returned in func._schema.returns)
        self.played.append((func, args, kwargs, result if fresh else None))
        return result

    @classmethod
    def capture(cls, step, device):
        with cls() as tape:
            output = step()
        for tensor, before in reversed(tape.written):
            tensor.copy_(before)

        def replay():
            for func, args, kwargs, result in tape.played:
                again = func(*args, **kwargs)
                if result is not None:
                    result.copy_(again)
            return output

        return replay


@pytest.mark.parametrize("leaving", [False, True], ids=["all_stay", "rows_leave"])
@pytest.mark.parametrize("count", [1, 5])
def test_replayed_steps_equal_steps_that_are_run(monkeypatch, count, leaving):
    """Bug guarded: a captured step that writes its token to the recorded place, reads a cache of the recorded length,
    has the recorded position, reads tensors that have been replaced since (the cache grows after 5 and 10 steps here),
    returns another row's logits when some have ended, or waits for the host."""
    monkeypatch.setattr(shared_prefix_cache, "INITIAL_CAPACITY", 5)
    model = tiny.build_model()
    prefill = model.prefill(**tiny.video_then_image_prompt(), enable_kdv=True, kdv_ratio=0.5)
    before = snapshot(prefill)
    settings = {"max_new_tokens": 18, "temperature": 1.0, "top_p": 1.0, "seed": 4}
    if leaving:
        free = model.rollout(prefill, count, **settings).tokens
        model.generation_config.eos_token_id = [free[1 % count][2], free[3 % count][7]]
    expected = model.rollout(prefill, count, **settings)
    captured = []

    def capture(step, device):
        captured.append(step)
        return Tape.capture(step, device)

    monkeypatch.setattr(decoding, "can_capture", lambda model, device: True)
    monkeypatch.setattr(decoding, "capture_cuda_graph", capture)
    replayed = model.rollout(prefill, count, **settings)
    assert (replayed.tokens, replayed.finished) == (expected.tokens, expected.finished)
    assert replayed.mean_logprobs == pytest.approx(expected.mean_logprobs, abs=1e-5)
    # The capacities are 5, 10 and 17 tokens, and the first step in each is run. Early ends may leave some out.
    steps = max(map(len, expected.tokens)) - 1
    assert len(captured) == sum(steps > first + 1 for first in (0, 5, 10)) > 0
    for (keys, values), layer in zip(before, prefill.cache.layers, strict=True):
        assert torch.equal(keys, layer.keys) and torch.equal(values, layer.values)


def test_failed_capture_decodes_step_by_step(tiny_model, monkeypatch, caplog):
    """Bug guarded: a model with layers that no graph can hold raises, or returns unfinished rollouts; and rows that
    were not removed because of the graph are mixed up when others leave after it."""
    settings = {"max_new_tokens": 14, "temperature": 1.0, "top_p": 1.0, "seed": 3, "query_index": 5}
    prefill = tiny_model.prefill(**tiny.image_prompt())
    free = tiny_model.rollout(prefill, 5, **settings).tokens
    monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", [free[0][0], free[1][6], free[2][9]])
    expected = tiny_model.rollout(prefill, 5, **settings)
    assert len({len(tokens) for tokens in expected.tokens}) > 2

    def capture(step, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(decoding, "can_capture", lambda model, device: True)
    monkeypatch.setattr(decoding, "capture_cuda_graph", capture)
    rollouts = tiny_model.rollout(prefill, 5, **settings)
    assert (rollouts.tokens, rollouts.finished) == (expected.tokens, expected.finished)


def test_a_step_on_a_gpu_uses_no_other_device():
    """Bug guarded: a constant that each step copies from the host, or a number that the host reads, neither of which
    can be captured; and a hook that is called for two steps only. Fake tensors have shapes and devices alone, so this
    needs no GPU."""
    devices = set()

    class Devices(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            devices.update(x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor))
            return result

    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            model = tiny.build_model()
            text = model.config.text_config
            shape = 1, text.num_key_value_heads, 50, text.hidden_size // text.num_attention_heads
            cache = DynamicCache()
            for number in range(text.num_hidden_layers):
                cache.update(torch.zeros(shape), torch.zeros(shape), number)
            ids, logits = torch.zeros(1, 50, dtype=torch.long), torch.zeros(1, text.vocab_size)
        hook = model.lm_head.register_forward_hook(lambda module, args, output: None)
        assert not decoding.can_capture(model, ids.device)
        hook.remove()
        assert decoding.can_capture(model, ids.device)
        prefill = Prefill(ids, cache, logits, logits, 0, (), (), {})
        decoder = decoding.Decoder(model, prefill, 3, max_new_tokens=9)
        decoder.cache.grow()
        with Devices():
            assert decoder.run_step().shape == (3, text.vocab_size)
    assert devices == {"cuda"}


class CountReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values that it reads, and data that it copies to tensors."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stopping", [{}, {"stopping_fn": lambda ended: False}], ids=["plain", "stopping_fn"])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_a_step_waits_for_the_device_once(tiny_model, monkeypatch, temperature, stopping):
    """Bug guarded: hidden synchronisation in the decoding loop, for random numbers, positions, log-probabilities, a
    check for NaN or `stopping_fn`."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    lists = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(1) or to_list(self))

    def waits(new_tokens):
        lists.clear()
        with CountReads() as counter:
            tiny_model.rollout(prefill, 3, max_new_tokens=new_tokens, temperature=temperature, **stopping)
        return len(lists), counter.reads

    few, many = waits(4), waits(24)
    assert many[0] - few[0] == 20
    assert many[1] == few[1]
