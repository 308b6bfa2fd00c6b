"""The closed-form FLOPs against torch's own counter, stage by stage, on tiny random models.

The requirement is agreement within 0.1%; the formulas are written to agree exactly, so the tests ask for
equality.

Eager attention is the reference: it is two plain matrix multiplications, which every torch counts. SDPA calls a fused
kernel, and a counter without a formula for that kernel silently counts 0. SDPA is therefore compared only where this
torch has the formula, and there it must give the same number, with grouped key-value heads and without.

Example:

    python -m pytest -m unit tests/test_flops.py
"""

import subprocess
import sys
import textwrap
from itertools import pairwise

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import flops
from transformers.models.qwen2_5_vl.flops import (
    Cost,
    cost,
    decode_flops,
    mean_length,
    prefill_flops,
    relative,
    vanilla_cost,
    vision_encoder_flops,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

pytestmark = pytest.mark.unit


def variant(vision=None, text=None):
    """Return the shared tiny config with some of its numbers replaced."""
    base = tiny.build_config()
    return Qwen2_5_VLConfig(
        vision_config=base.vision_config.to_dict() | (vision or {}),
        # None: layer_types has one entry per layer, and is derived again from the replaced numbers
        text_config=base.text_config.to_dict() | {"layer_types": None} | (text or {}),
        image_token_id=tiny.IMAGE,
        video_token_id=tiny.VIDEO,
        vision_start_token_id=tiny.VISION_START,
        vision_end_token_id=tiny.VISION_END,
    )


# Nearly every number that a formula reads differs between the two. In the second, all heads share one key-value head,
# the window is no multiple of a merge group's pixels, and one full-attention index is beyond the depth.
CONFIGS = {
    "grouped": tiny.build_config(),
    "multi-query": variant(
        vision={
            "depth": 5,
            "hidden_size": 48,
            "num_heads": 3,
            "intermediate_size": 52,
            "out_hidden_size": 96,
            "fullatt_block_indexes": [0, 3, 7],
            "window_size": 7 * tiny.PATCH,
        },
        text={
            "vocab_size": 317,
            "hidden_size": 96,
            "intermediate_size": 140,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 1,
        },
    ),
}
# (t, h, w) in patches
GRIDS = {
    "image of whole windows": [(1, 16, 8)],
    "image with ragged windows": [(1, 10, 14)],
    "image smaller than a window": [(1, 2, 4)],
    "video": [(3, 10, 6)],
    "two images": [(1, 8, 8), (1, 4, 18)],
    "image and video": [(1, 6, 10), (2, 4, 14)],
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(CONFIGS[request.param]).eval()


@pytest.fixture(params=["eager", "sdpa"])
def attention(request, model):
    if request.param == "sdpa" and (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry):
        pytest.skip("this torch's counter has no formula for the SDPA kernel of the CPU")
    model.set_attn_implementation(request.param)
    return request.param


def counted(run):
    """Return the FLOPs that torch's counter counts while `run()` runs, and the result of `run()`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def step(model, cache, rows):
    """Run one cached decode pass of `rows` rows, with explicit positions as a shared prefill needs them."""
    at = cache.get_seq_length()
    return model(
        input_ids=torch.full((rows, 1), 5),
        past_key_values=cache,
        position_ids=torch.full((3, rows, 1), at),
        cache_position=torch.tensor([at]),
        logits_to_keep=1,
    )


# --- against torch's counter ---


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())
def test_vision_encoder_equals_the_counter(model, attention, grids):
    """Guards against: cut windows counted as whole ones; full-attention blocks that attend across frames or images; a
    full-attention index counted although no such block exists; no patch embedding or merger."""
    pixels = torch.randn(sum(t * h * w for t, h, w in grids), tiny.PATCH_VALUES)
    expected, _ = counted(lambda: model.model.visual(pixels, grid_thw=torch.tensor(grids)))
    assert vision_encoder_flops(model.config.vision_config, grids) == expected


@pytest.mark.parametrize("length", [1, 2, 33])
@pytest.mark.parametrize("logits", ["last", "all"])
def test_prefill_equals_the_counter(model, attention, length, logits):
    """Guards against: lm_head counted for the whole prompt when only the last position's logits are computed; attention
    halved for the causal mask; k and v counted at q's width; a part of a layer left out or doubled."""
    ids = torch.arange(length)[None] + 1
    keep = 1 if logits == "last" else length
    expected, _ = counted(lambda: model(input_ids=ids, logits_to_keep=keep))
    assert prefill_flops(model.config.text_config, length, logits=keep) == expected


def test_prefill_with_a_padding_mask_equals_the_counter(model, attention):
    """Guards against: attention FLOPs that depend on how key-value heads are shared. Without a mask SDPA receives the
    few heads and shares them itself; with a mask they are repeated before the call. Both cost the same."""
    ids = torch.arange(24).reshape(2, 12) + 1
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    expected, _ = counted(lambda: model(input_ids=ids, attention_mask=mask, logits_to_keep=1))
    assert 2 * prefill_flops(model.config.text_config, 12) == expected


def test_decode_steps_equal_the_counter(model, attention):
    """Guards against: the new token left out of its own context, or a context that does not grow."""
    text = model.config.text_config
    prefix = 11
    with torch.no_grad():
        cache = model(input_ids=torch.arange(prefix)[None] + 1, use_cache=True).past_key_values
    total = 0
    for taken in range(1, 5):
        flop, _ = counted(lambda: step(model, cache, rows=1))
        total += flop
        assert decode_flops(text, prefix, new_tokens=taken + 1) == total


def test_decode_of_a_batch_of_rollouts_equals_the_counter(model, attention):
    """Guards against: rollouts that share the FLOPs of their prefix's attention, which each row spends."""
    prefix, rows = 9, 3
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.arange(prefix)[None] + 1, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    expected, _ = counted(lambda: [step(model, cache, rows) for _ in range(4)])
    assert rows * decode_flops(model.config.text_config, prefix, new_tokens=5) == expected


@pytest.mark.parametrize("new_tokens", [1, 2, 6])
def test_generate_equals_the_counter(model, attention, new_tokens):
    """Guards against: an off-by-one error between sampled tokens and forward passes (the last token is never read), and
    a stage counted twice or not at all when the whole of `generate` runs."""
    row = tiny.two_images_prompt()
    length = row["input_ids"].shape[1]
    expected, output = counted(
        lambda: model.generate(
            **row,
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=tiny.PAD,
            suppress_tokens=tiny.SPECIAL,
        )
    )
    assert output.shape[1] == length + new_tokens
    query = cost(model.config, row["image_grid_thw"], length, length, [new_tokens])
    assert query.total == expected
    assert query == vanilla_cost(model.config, row["image_grid_thw"], length, new_tokens)


def test_video_and_image_query_equals_the_counter(model, attention):
    """Guards against: a video counted as one image of all its frames, in the encoder or in the prompt."""
    row = tiny.video_then_image_prompt()
    length = row["input_ids"].shape[1]
    grids = row["image_grid_thw"].tolist() + row["video_grid_thw"].tolist()
    expected, _ = counted(lambda: model(**row, logits_to_keep=1))
    assert cost(model.config, grids, length, length, [1]).total == expected


# --- properties that need no model ---

CONFIG = CONFIGS["grouped"]
TEXT, VISION = CONFIG.text_config, CONFIG.vision_config
even = st.integers(1, 30).map(lambda n: 2 * n)
grid = st.tuples(st.integers(1, 6), even, even)


@settings(max_examples=60, deadline=None)
@given(grids=st.lists(grid, min_size=1, max_size=3), side=st.integers(1, 5), slack=st.integers(0, 27))
def test_windows_are_those_of_the_model(grids, side, slack):
    """Guards against: windows other than upstream's. Upstream pads by a whole empty window where the grid fits exactly,
    and floors the window size twice. The formula must count the windows that upstream cuts and no others."""
    shape = {"depth": 1, "window_size": side * tiny.MERGE * tiny.PATCH + slack}
    windowed = variant(vision=shape | {"fullatt_block_indexes": []}).vision_config
    full = variant(vision=shape | {"fullatt_block_indexes": [0]}).vision_config
    _, edges = Qwen2_5_VisionTransformerPretrainedModel(windowed).get_window_index(torch.tensor(grids))
    window_pairs = sum((end - start) ** 2 for start, end in pairwise(edges))
    full_pairs = sum(t * (h * w) ** 2 for t, h, w in grids)
    difference = vision_encoder_flops(full, grids) - vision_encoder_flops(windowed, grids)
    assert difference == 4 * windowed.hidden_size * (full_pairs - window_pairs)


@given(first=st.lists(grid, max_size=3), second=st.lists(grid, max_size=3))
def test_vision_cost_adds_over_items_and_frames(first, second):
    """Guards against: FLOPs of items or frames that attend to each other, which they never do in the encoder."""
    together = vision_encoder_flops(VISION, first + second)
    assert together == vision_encoder_flops(VISION, first) + vision_encoder_flops(VISION, second)
    frames = [(1, h, w) for t, h, w in first + second for _ in range(t)]
    assert together == vision_encoder_flops(VISION, frames)


@given(prefix=st.integers(1, 400), new_tokens=st.integers(0, 60))
def test_decode_closed_form_is_the_sum_over_its_steps(prefix, new_tokens):
    """Guards against: an off-by-one in the arithmetic series. Two new tokens take one pass."""
    explicit = sum(decode_flops(TEXT, prefix + done, 2) for done in range(new_tokens - 1))
    assert decode_flops(TEXT, prefix, new_tokens) == explicit


@given(length=st.integers(1, 3000), more=st.integers(1, 300))
def test_every_stage_grows(length, more):
    """Guards against: a sign or floor error that makes a longer prompt or answer cheaper."""
    assert prefill_flops(TEXT, length + more) > prefill_flops(TEXT, length)
    assert decode_flops(TEXT, length + more, 10) > decode_flops(TEXT, length, 10)
    assert decode_flops(TEXT, 50, length + more) > decode_flops(TEXT, 50, length)
    assert vision_encoder_flops(VISION, [(1, 4, 2 * (length + more))]) > vision_encoder_flops(
        VISION, [(1, 4, 2 * length)]
    )


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=7), kept=st.integers(20, 35))
def test_rollouts_share_one_prefill(lengths, kept):
    """Guards against: vision encoder or prefill multiplied by K, and a decode that is not the sum of its rollouts."""
    grids = [(1, 8, 4), (1, 4, 8)]
    query = cost(CONFIG, grids, prompt_length=36, kept_length=kept, rollout_lengths=lengths)
    single = cost(CONFIG, grids, prompt_length=36, kept_length=kept, rollout_lengths=lengths[:1])
    assert (query.vision, query.prefill) == (single.vision, single.prefill)
    assert query.decode == sum(cost(CONFIG, grids, 36, kept, [n]).decode for n in lengths)
    assert cost(CONFIG, grids, 36, kept, lengths * 3).decode == 3 * query.decode
    assert query.llm == query.prefill + query.decode
    assert query.total == query.llm + query.vision
    assert query + single == Cost(2 * query.vision, 2 * query.prefill, query.decode + single.decode)


def test_pruning_shortens_prefill_and_every_decode():
    """Guards against: a rollout that attends to pruned tokens, which are not in its cache."""
    grids = [(1, 20, 20)]
    pruned = cost(CONFIG, grids, prompt_length=120, kept_length=45, rollout_lengths=[7, 9])
    assert pruned == Cost(
        vision=vision_encoder_flops(VISION, grids),
        prefill=prefill_flops(TEXT, 45),
        decode=decode_flops(TEXT, 45, 7) + decode_flops(TEXT, 45, 9),
    )


def test_relative_names_both_accountings():
    """Guards against: the two accountings swapped. The encoder is not pruned, so `total` falls less."""
    grids = [(1, 20, 20)]
    vanilla = vanilla_cost(CONFIG, grids, prompt_length=120, decode_length=10)
    assert relative(vanilla, vanilla) == {"llm": 1.0, "total": 1.0}
    pruned = cost(CONFIG, grids, prompt_length=120, kept_length=45, rollout_lengths=[10])
    assert pruned.vision == vanilla.vision
    share = relative(pruned, vanilla)
    assert share["llm"] == pruned.llm / vanilla.llm
    assert share["llm"] < share["total"] < 1


def test_matches_the_published_size_of_the_7b_model():
    """Guards against: formula and counter that agree only because the tiny model hides a term. Qwen2.5-7B's
    model card gives 6.53 billion non-embedding weights; a token costs 2 FLOPs for each, plus its logits."""
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    config = variant(text=text).text_config
    attention = 4 * 28 * 3584 * 2
    weights = (decode_flops(config, prefix=1, new_tokens=2) - attention) / 2
    assert weights == pytest.approx(6.53e9 + 152064 * 3584, rel=1e-3)


def test_mean_length_rounds_halves_up():
    """Guards against: round(), which rounds halves to even, so that vanilla's length would depend on parity."""
    assert [mean_length(n) for n in ([4], [4, 5], [5, 6], [1, 1, 2], [1, 2, 2])] == [4, 5, 6, 1, 2]
    with pytest.raises(ValueError, match="no rollouts"):
        mean_length([])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vision_encoder_flops(VISION, [(1, 3, 4)]), "multiples of 2"),
        (lambda: vision_encoder_flops(VISION, [(0, 4, 4)]), "positive"),
        (lambda: prefill_flops(TEXT, 0), "at least 1"),
        (lambda: prefill_flops(TEXT, 4, logits=5), "between 0 and"),
        (lambda: decode_flops(TEXT, 0, 4), "at least 1"),
        (lambda: decode_flops(TEXT, 4, -1), "0 or more"),
        (lambda: cost(CONFIG, [(1, 8, 8)], 15, 15, [3]), "cannot hold"),
        (lambda: cost(CONFIG, [(1, 8, 8)], 30, 31, [3]), "expected 14 to 30"),
        (lambda: cost(CONFIG, [(1, 8, 8)], 30, 30, []), "at least one rollout"),
    ],
)
def test_impossible_numbers_are_refused(call, message):
    """Guards against: a wrong number that looks right, from swapped lengths or a grid that is not in patches."""
    with pytest.raises(ValueError, match=message):
        call()


def test_kept_visual_tokens_are_not_taken_for_the_kept_length():
    """Guards against: only the kept *visual* tokens, which would leave out the cost of the question."""
    kept_visual = 4
    with pytest.raises(ValueError, match="text and kept visual tokens"):
        cost(CONFIG, [(1, 8, 8)], prompt_length=30, kept_length=kept_visual, rollout_lengths=[3])


def test_sliding_windows_are_refused():
    """Guards against: FLOPs of full attention for a model whose cache drops old tokens."""
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    sliding = variant(text=window).text_config
    for call in (lambda: prefill_flops(sliding, 20), lambda: decode_flops(sliding, 20, 3)):
        with pytest.raises(ValueError, match="sliding"):
            call()


def test_tensor_grids_give_plain_integers():
    """Guards against: tensors in a Cost, which are not JSON and overflow where Python integers do not."""
    query = cost(CONFIG, torch.tensor([[1, 4, 4]]), prompt_length=9, kept_length=9, rollout_lengths=[2, 3])
    assert all(type(part) is int for part in (query.vision, query.prefill, query.decode))


def test_needs_no_torch():
    """Guards against: an import that keeps the formulas from being used where torch is not installed."""
    program = "import sys, runpy; sys.modules['torch'] = None; runpy.run_path(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, flops.__file__], check=True)


def test_the_docstring_example_runs(capsys):
    """Guards against: an example that no longer runs."""
    _, _, example = flops.__doc__.partition("three rollouts.\n")
    exec(textwrap.dedent(example), {})  # the text is that of the module under test
    assert "'llm': " in capsys.readouterr().out
