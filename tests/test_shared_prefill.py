"""The shared prefill and its rollouts, against `generate` and against themselves."""

import copy

import accelerate
import pytest
import reference
import tiny
import torch
from invariants import assert_same_logits
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling
from transformers.models.qwen2_5_vl import shared_prefill

KINDS = [kind for kind in tiny.PROMPTS if kind != "mixed_batch"]
SAMPLED = {"max_new_tokens": 12, "temperature": 0.7, "top_p": 0.9}


def snapshot(prefill):
    return [(layer.keys.clone(), layer.values.clone()) for layer in prefill.cache.layers]


@pytest.fixture
def calls(tiny_model):
    """How often the vision tower and the language model ran, and on how many rows and columns."""
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
    """Bug guarded: positions, mask or cache length of the shared path differ from those of `generate`."""
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


def test_rollout_is_the_same_for_every_k(tiny_model):
    """Bug guarded: one generator shared by all rows, so that rollout i changes with K (nobody could then vote
    offline for a smaller K over rollouts sampled at the largest)."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    by_k = {k: tiny_model.rollout(prefill, k, seed=3, item=5, **SAMPLED).tokens for k in (1, 3, 7)}
    assert by_k[7][:3] == by_k[3]
    assert by_k[7][:1] == by_k[1]


def test_seed_item_rollout_and_step_all_matter():
    """Bug guarded: a counter field that is left out, so that items or rollouts repeat each other's randomness."""
    first = shared_prefill.uniform(0, 0, 0, 0)
    others = [shared_prefill.uniform(*((0,) * i + (1,) + (0,) * (3 - i))) for i in range(4)]
    assert len({first, *others}) == 5
    draws = torch.tensor([shared_prefill.uniform(0, 0, i, t) for i in range(20) for t in range(100)])
    assert 0 <= draws.min() and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 5 * 0.2887 / 2000**0.5  # five standard errors: 6e-7 by luck


def test_sampling_inverts_the_cdf():
    """Bug guarded: off-by-one in the inversion, which would pick tokens of probability zero."""
    scores = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf")]])
    uniforms = torch.tensor([0.0, 0.25, 0.499, 0.5, 0.75, 1 - 2**-53], dtype=torch.double)
    assert shared_prefill.sample_inverse_cdf(scores.expand(6, -1), uniforms).tolist() == [0, 0, 0, 2, 2, 2]


def test_first_tokens_differ_across_rollouts(tiny_model):
    """Bug guarded: the first token is sampled once and copied to all rows (as nanochat's engine once did).

    Under flat logits over about 295 tokens, 8 rollouts share all one first token by luck with odds below 1e-16.
    """
    prefill = tiny_model.prefill(**tiny.image_prompt())
    flat = shared_prefill.Prefill(**{**vars(prefill), "logits": torch.zeros_like(prefill.logits)})
    rollouts = tiny_model.rollout(flat, 8, max_new_tokens=1, temperature=1.0, top_p=1.0)
    assert len({tokens[0] for tokens in rollouts.tokens}) > 1


def test_tower_and_prefill_run_once_for_seven_rollouts(tiny_model, calls):
    """Bug guarded: `num_return_sequences` encodes the image K times (the published code's K-fold cost)."""
    inputs = tiny.image_prompt()
    prefill = tiny_model.prefill(**inputs, enable_kdv=True, kdv_ratio=0.75)
    tiny_model.rollout(prefill, 7, max_new_tokens=4, temperature=0.7)
    assert calls["vision"] == 1
    assert [shape for shape in calls["language"] if shape[1] > 1] == [(1, prefill.kept_length)]


def test_rollouts_leave_the_prefill_unchanged(tiny_model):
    """Bug guarded: decoding writes into the shared cache, so that a second rollout reads the first one's tokens."""
    prefill = tiny_model.prefill(**tiny.video_prompt(), enable_kdv=True, kdv_ratio=0.5)
    before = snapshot(prefill)
    first = tiny_model.rollout(prefill, 3, seed=1, **SAMPLED)
    for (keys, values), layer in zip(before, prefill.cache.layers, strict=True):
        assert torch.equal(keys, layer.keys) and torch.equal(values, layer.values)
    assert tiny_model.rollout(prefill, 3, seed=1, **SAMPLED).tokens == first.tokens


def rollout_with_logits(model, prefill, count, **settings):
    """Rollouts, and per rollout the logits after each token but its last, as `reference.copied_rollout_logits`."""
    steps = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: steps.append(output))
    try:
        rollouts = model.rollout(prefill, count, **settings)
    finally:
        hook.remove()
    logits = [[] for _ in range(count)]
    for step, rows in enumerate(steps):
        going = [i for i, tokens in enumerate(rollouts.tokens) if len(tokens) > step + 1]
        assert len(going) == len(rows), "a finished row is decoded on, or an unfinished one is not"
        for i, row in zip(going, rows):
            logits[i].append(row)
    return rollouts, [torch.stack(rows) for rows in logits]


@pytest.mark.parametrize("leaving", [False, True], ids=["all_stay", "rows_leave"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_prefix_equals_copied_prefix(monkeypatch, attention, leaving):
    """Bug guarded: the rows' own tokens and the prompt are normalised apart, query heads meet another head's keys, rows
    are mixed up when one leaves, or a buffer loses tokens when it grows (here every 5 steps)."""
    monkeypatch.setattr(shared_prefill, "BLOCK", 5)
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
    """Bug guarded: random numbers drawn ahead for a block of steps belong to other steps or rows than they should."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    expected = tiny_model.rollout(prefill, 3, seed=6, **SAMPLED).tokens
    monkeypatch.setattr(shared_prefill, "BLOCK", 5)
    assert tiny_model.rollout(prefill, 3, seed=6, **SAMPLED).tokens == expected


def storage_bytes(cache) -> int:
    """Bytes of all memory that a rollout's cache keeps alive, each piece once."""
    tensors = [x for layer in cache.layers for x in vars(layer).values() if isinstance(x, torch.Tensor)]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def test_seven_rollouts_hold_the_prompt_once(tiny_model):
    """Bug guarded: K copies of the prompt's keys and values, which is most of the memory that K rollouts take."""
    prefill = tiny_model.prefill(**tiny.prompt(4096))
    prompt = {x.data_ptr() for layer in prefill.cache.layers for x in (layer.keys, layer.values)}
    held, reported = {}, {}

    def look(module, args, kwargs, output):
        cache = kwargs["past_key_values"]
        assert {x.data_ptr() for layer in cache.layers for x in (layer.prefix_keys, layer.prefix_values)} == prompt
        held[count] = max(held.get(count, 0), storage_bytes(cache))

    hook = tiny_model.language_model.register_forward_hook(look, with_kwargs=True)
    try:
        for count in (1, 7):
            reported[count] = tiny_model.rollout(prefill, count, max_new_tokens=128).cache_bytes
    finally:
        hook.remove()
    text = tiny_model.config.text_config
    per_token = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * 16
    assert reported == held == {1: per_token * (4096 + 127), 7: per_token * (4096 + 7 * 127)}
    assert reported[7] <= 1.25 * reported[1]


def test_decoding_needs_no_configured_attention(tiny_model, monkeypatch):
    """Bug guarded: a kernel that cannot see two caches (FlashAttention-2) is handed the rows' own tokens alone."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    expected = tiny_model.rollout(prefill, 2, **SAMPLED).tokens
    monkeypatch.setitem(modeling.ALL_ATTENTION_FUNCTIONS, "sdpa", None)
    assert tiny_model.rollout(prefill, 2, **SAMPLED).tokens == expected


needs_few_rows = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN"
)


class CountProducts(TorchDispatchMode):
    """Counts the matrix products that oneDNN makes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.mkldnn._linear_pointwise.default
        return func(*args, **(kwargs or {}))


@needs_few_rows
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("rows, taken", [(1, 1), (3, 1), (7, 1), (32, 1), (33, 0)])
def test_few_rows_are_multiplied_by_onednn(rows, taken, bias):
    """Bug guarded: a product without its bias, and one replaced where it is slower, in another type or shape."""
    generator = torch.Generator().manual_seed(rows)
    for dtype, width, expected in ((torch.float32, 24, taken), (torch.float64, 24, 0), (torch.float32, 1, taken)):
        linear = torch.nn.Linear(width, 40, bias=bias, dtype=dtype)
        states = torch.randn(rows, 1, width, generator=generator, dtype=dtype)
        with torch.no_grad():
            want = linear(states)
            with CountProducts() as products, shared_prefill._FewRows():
                got = linear(states)
        assert products.count == expected
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@needs_few_rows
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("leaving", [False, True], ids=["all_stay", "rows_leave"])
def test_few_rows_change_no_rollout(tiny_model, monkeypatch, seed, leaving):
    """Bug guarded: tokens or logits that hang on which library multiplies; a mode that is never entered, or is left on
    for whoever calls the model next."""
    prefill = tiny_model.prefill(**tiny.image_prompt(seed=seed), enable_kdv=True, kdv_ratio=0.5)
    if leaving:
        free = tiny_model.rollout(prefill, 7, seed=seed, **SAMPLED).tokens
        ends = {token for tokens in free for token in tokens[3:6]} - {tokens[0] for tokens in free}
        monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", sorted(ends))
    runs = []
    for large in (2**20, 0):
        monkeypatch.setattr(shared_prefill, "LARGE", large)
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
    """A CUDA graph's part, played on the CPU: records operators with their very tensors, and undoes what they did, as
    capturing runs nothing; a replay runs them again, into the tensors that they gave when they were recorded."""

    # What capturing forbids: values that the host reads, and data of the host's that goes to the device.
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
def test_replayed_steps_decode_as_steps_that_are_run(monkeypatch, count, leaving):
    """Bug guarded: a captured step that writes its token where the recorded one stood, sees a cache of the recorded
    length, stands at the recorded position, reads tensors that have moved since (a cache that grew, here after 5
    and 10 steps), or hands out another row's logits when some have ended; one that waits for the host."""
    monkeypatch.setattr(shared_prefill, "BLOCK", 5)
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

    monkeypatch.setattr(shared_prefill, "_can_be_captured", lambda model, device: True)
    monkeypatch.setattr(shared_prefill, "_capture", capture)
    replayed = model.rollout(prefill, count, **settings)
    assert (replayed.tokens, replayed.finished) == (expected.tokens, expected.finished)
    assert replayed.mean_logprobs == pytest.approx(expected.mean_logprobs, abs=1e-5)
    # Rooms of 5, 10 and 17 tokens, of which the first step in each is run: where rollouts end early, not all are seen.
    steps = max(map(len, expected.tokens)) - 1
    assert len(captured) == sum(steps > first + 1 for first in (0, 5, 10)) > 0
    for (keys, values), layer in zip(before, prefill.cache.layers, strict=True):
        assert torch.equal(keys, layer.keys) and torch.equal(values, layer.values)


def test_what_cannot_be_captured_is_decoded_step_by_step(tiny_model, monkeypatch, caplog):
    """Bug guarded: a model whose layers a graph cannot hold has no rollouts at all, or half-written ones; and rows that
    had stayed for the graph's sake mixed up when others leave after it."""
    settings = {"max_new_tokens": 14, "temperature": 1.0, "top_p": 1.0, "seed": 3, "item": 5}
    prefill = tiny_model.prefill(**tiny.image_prompt())
    free = tiny_model.rollout(prefill, 5, **settings).tokens
    monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", [free[0][0], free[1][6], free[2][9]])
    expected = tiny_model.rollout(prefill, 5, **settings)
    assert len({len(tokens) for tokens in expected.tokens}) > 2

    def capture(step, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(shared_prefill, "_can_be_captured", lambda model, device: True)
    monkeypatch.setattr(shared_prefill, "_capture", capture)
    rollouts = tiny_model.rollout(prefill, 5, **settings)
    assert (rollouts.tokens, rollouts.finished) == (expected.tokens, expected.finished)


def test_a_step_on_a_gpu_touches_nothing_else():
    """Bug guarded: a constant that each step brings from the host, or a number that the host reads: neither can be
    captured; and a hook that is called for two steps alone. Shapes and devices alone are computed, so this needs no
    GPU."""
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
        assert not shared_prefill._can_be_captured(model, ids.device)
        hook.remove()
        assert shared_prefill._can_be_captured(model, ids.device)
        prefill = shared_prefill.Prefill(ids, cache, logits, logits, 0, (), (), {})
        decoder = shared_prefill._Decoder(model, prefill, 3, limit=9)
        decoder.cache.grow()
        with Devices():
            assert decoder._step().shape == (3, text.vocab_size)
    assert devices == {"cuda"}


class CountReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read, and data that goes to tensors."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("asked", [{}, {"decided": lambda ended: False}], ids=["to_the_end", "asked"])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_a_step_waits_for_the_device_once(tiny_model, monkeypatch, temperature, asked):
    """Bug guarded: hidden synchronisation in the decode loop, for random numbers, positions, log-probabilities, a check
    for NaN or whether all is decided."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    lists = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(1) or to_list(self))

    def waits(new_tokens):
        lists.clear()
        with CountReads() as counter:
            tiny_model.rollout(prefill, 3, max_new_tokens=new_tokens, temperature=temperature, **asked)
        return len(lists), counter.reads

    few, many = waits(4), waits(24)
    assert many[0] - few[0] == 20
    assert many[1] == few[1]


def test_layers_may_be_brought_from_elsewhere(tiny_model):
    """Bug guarded: weights, a mask or an index expected on one device, for models that accelerate spreads over several
    and whose layers it feeds by hooks. Here the layers' weights come to the CPU for each call, and go again."""
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
    """Bug guarded: rows that attend to more of the prompt than their model was made for."""
    prefill = tiny_model.prefill(**tiny.text_prompt())
    text = copy.deepcopy(tiny_model.config.text_config)
    text.sliding_window, text.layer_types = 8, ["full_attention", "sliding_attention", "full_attention"]
    cache = DynamicCache(config=text)
    for number, layer in enumerate(prefill.cache.layers):
        cache.update(layer.keys, layer.values, number)
    with pytest.raises(ValueError, match="sliding"):
        tiny_model.rollout(shared_prefill.Prefill(**{**vars(prefill), "cache": cache}), 2)


def test_encoded_items_can_be_reused(tiny_model, calls):
    """Bug guarded: a second question about one picture pays for the vision tower again, or sees other tokens."""
    inputs = tiny.image_prompt()
    first = tiny_model.prefill(**inputs)
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    again = tiny_model.prefill(**ids, visual_items=first.visual_items)
    assert calls["vision"] == 1
    torch.testing.assert_close(again.logits, first.logits, atol=0, rtol=0)


def test_end_token_finishes_a_row_and_the_others_go_on(tiny_model):
    """Bug guarded: a finished row keeps decoding, or the row that leaves takes another one's cache with it."""
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
    loud = shared_prefill.Prefill(**{**vars(prefill), "logits": prefill.logits.clone()})
    loud.logits[0, tiny.IMAGE] = 1e4
    rollouts = tiny_model.rollout(loud, 5, max_new_tokens=1, temperature=1.0)
    assert all(tokens[0] != tiny.IMAGE for tokens in rollouts.tokens)


@pytest.mark.parametrize("version", ["4.49.0", "4.57.6"])
@pytest.mark.parametrize("wanted", [{"temperature": 1.0}, {"top_p": 1.0}], ids=str)
def test_a_checkpoints_sampling_defaults_never_replace_ours(tiny_model, monkeypatch, wanted, version):
    """Bug guarded: a value that equals Transformers' global default counts as "not given" for checkpoints saved by
    newer versions, and Qwen2.5-VL's own near-greedy defaults take its place: K equal rollouts.

    Under flat logits over about 295 tokens, 8 rollouts share one first token by luck with odds below 1e-16.
    """
    config = copy.deepcopy(tiny_model.generation_config)
    config.update(temperature=1e-6, top_p=0.001, top_k=1, do_sample=True, transformers_version=version)
    monkeypatch.setattr(tiny_model, "generation_config", config)
    prefill = tiny_model.prefill(**tiny.image_prompt())
    flat = shared_prefill.Prefill(**{**vars(prefill), "logits": torch.zeros_like(prefill.logits)})
    rollouts = tiny_model.rollout(flat, 8, max_new_tokens=1, **wanted)
    assert len({tokens[0] for tokens in rollouts.tokens}) > 1


def test_logits_that_are_not_finite_are_refused(tiny_model):
    """Bug guarded: an overflow in half precision is sampled as the last token of the vocabulary."""
    prefill = tiny_model.prefill(**tiny.image_prompt())
    broken = shared_prefill.Prefill(**{**vars(prefill), "logits": torch.full_like(prefill.logits, float("nan"))})
    with pytest.raises(ValueError, match="not finite"):
        tiny_model.rollout(broken, 2, max_new_tokens=1)


def test_misspelt_settings_are_refused(tiny_model):
    """Bug guarded: `kdv_rato=0.5` is swallowed, and the prompt is pruned at the default."""
    with pytest.raises(TypeError, match="kdv_rato"):
        tiny_model.prefill(**tiny.image_prompt(), enable_kdv=True, kdv_rato=0.5)


def test_keys_are_kept_only_when_they_are_needed(tiny_model):
    """Bug guarded: with KDV off every picture's keys are pooled and kept, a hidden cost; or an item without keys is
    pruned by something else than its keys."""
    inputs = tiny.image_prompt()
    plain = tiny_model.prefill(**inputs)
    assert plain.visual_items[0].keys is None
    assert tiny_model.prefill(**inputs, enable_kdv=True).visual_items[0].keys is not None
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="without keys"):
        tiny_model.prefill(**ids, visual_items=plain.visual_items, enable_kdv=True)


@pytest.fixture
def ending(tiny_model, monkeypatch):
    """The tiny model with many end tokens, so that rollouts end at several lengths and some are cut off."""
    monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", list(range(0, tiny.TEXT_IDS, 11)))
    return tiny_model


ENDING = {"max_new_tokens": 14, "temperature": 1.0, "top_p": 1.0, "seed": 3, "item": 5}


@pytest.mark.parametrize("rollout_batch_size", [1, 2, 3, 5, 9])
def test_waves_change_no_rollout(ending, rollout_batch_size):
    """Bug guarded: a rollout of a later wave with an earlier one's random numbers, one that is lost or doubled where K
    is no multiple of the wave, and the caches of all waves held together."""
    prefill = ending.prefill(**tiny.image_prompt())
    together = ending.rollout(prefill, 7, **ENDING)
    lengths = {len(tokens) for tokens in together.tokens}
    assert len(lengths) > 2 and set(together.finished) == {True, False}, "want rollouts that end, and cut-off ones"
    waves = ending.rollout(prefill, 7, rollout_batch_size=rollout_batch_size, **ENDING)
    assert (waves.tokens, waves.finished) == (together.tokens, together.finished)
    assert waves.mean_logprobs == pytest.approx(together.mean_logprobs, abs=1e-5)
    assert waves.stopped == together.stopped == (False,) * 7
    assert rollout_batch_size > 3 or waves.cache_bytes < together.cache_bytes


@pytest.mark.parametrize("rollout_batch_size", [None, 1, 2, 3])
@pytest.mark.parametrize("wanted", [1, 2, 4, 5])
def test_what_is_decided_stops_the_others_where_they_are(ending, rollout_batch_size, wanted):
    """Bug guarded: rollouts that go on, or waves that begin, after all is decided; a stopped rollout that counts as
    finished, or that changed those which had ended; and a question asked about half-written rollouts, or when nothing
    has ended since."""
    prefill = ending.prefill(**tiny.image_prompt())
    whole = ending.rollout(prefill, 7, **ENDING)
    seen = []

    def decided(ended):
        assert not seen or len(ended) > len(seen[-1]), "asked again although nothing has ended"
        assert len(ended) < 7, "asked although none is left"
        for i, rollout in ended.items():
            assert (rollout.tokens, rollout.finished) == (whole.tokens[i], whole.finished[i])
            assert rollout.mean_logprob == pytest.approx(whole.mean_logprobs[i], abs=1e-5)
        seen.append(dict(ended))
        return len(ended) >= wanted

    some = ending.rollout(prefill, 7, rollout_batch_size=rollout_batch_size, stopping_fn=decided, **ENDING)
    assert len(seen[-1]) >= wanted and all(len(ended) < wanted for ended in seen[:-1])
    assert [i for i in range(7) if not some.stopped[i]] == sorted(seen[-1])
    for i in range(7):
        assert some.tokens[i] == whole.tokens[i][: len(some.tokens[i])]
        assert some.finished[i] == (whole.finished[i] and not some.stopped[i])
        assert (some.mean_logprobs[i] is None) == (not some.tokens[i])
        if some.stopped[i] and some.tokens[i]:
            # Side by side: as far as the others of its wave were, and no further.
            assert len(some.tokens[i]) == max(
                len(some.tokens[j]) for j in wave_of(i, rollout_batch_size) if j in seen[-1]
            )
            assert len(some.tokens[i]) < len(whole.tokens[i])
    begun = [i for i in range(7) if some.tokens[i]]
    assert begun == list(range(len(begun))) and (rollout_batch_size is None or len(begun) - wanted < rollout_batch_size)


def wave_of(index: int, rollout_batch_size: int | None) -> range:
    first = 0 if rollout_batch_size is None else index // rollout_batch_size * rollout_batch_size
    return range(first, 7 if rollout_batch_size is None else min(first + rollout_batch_size, 7))


def test_log_probabilities_are_the_models_own(ending):
    """Bug guarded: those of the processed distribution (temperature, top-p, suppressed tokens), of a neighbour's token
    or row, a sum for a mean, and the end token or the first token left out."""
    prefill = ending.prefill(**tiny.video_then_image_prompt(), enable_kdv=True, kdv_ratio=0.5)
    rollouts = ending.rollout(prefill, 4, max_new_tokens=16, temperature=0.7, top_p=0.9, seed=1)
    assert len({len(tokens) for tokens in rollouts.tokens}) > 1
    later = reference.copied_rollout_logits(ending, prefill, rollouts.tokens)
    for tokens, logits, mean in zip(rollouts.tokens, later, rollouts.mean_logprobs, strict=True):
        logits = torch.cat([prefill.logits, logits])
        expected = logits.log_softmax(dim=-1)[torch.arange(len(tokens)), list(tokens)].mean()
        assert mean == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"num_rollouts": 0}, {"max_new_tokens": 0}, {"rollout_batch_size": 0}, {"temperature": -1.0}]
    + [{"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"seed": -1}, {"item": 2**64}],
    ids=str,
)
def test_settings_out_of_range_are_refused(tiny_model, wrong):
    """Bug guarded: an impossible setting that fails deep inside, or quietly does something else."""
    prefill = tiny_model.prefill(**tiny.text_prompt())
    with pytest.raises(ValueError) as error:
        tiny_model.rollout(prefill, **wrong)
    assert "\n" not in str(error.value)


def test_prefill_refuses_batches_and_padding(tiny_model):
    """Bug guarded: a batch whose first row alone is read, or padding that is taken for text."""
    with pytest.raises(ValueError, match="one prompt at a time"):
        tiny_model.prefill(**tiny.mixed_batch())
    inputs = tiny.text_prompt()
    inputs["attention_mask"][0, 0] = 0
    with pytest.raises(ValueError, match="padding"):
        tiny_model.prefill(**inputs)
