"""FLOPs and cache bytes of a query, as its record has them, against torch's counter and the shapes that ran."""

import pytest
import torch
from chats import BUNDLED, WILD, chat, draw_image, image_part, video_part
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers.models.qwen2_5_vl import flops

from avis import steps
from avis.config import AvisConfig
from avis.loading import load_model
from avis.pipeline import answer


@pytest.mark.parametrize("early", [{}, {"vote_stop": "decided", "rollout_batch_size": 3}], ids=["all", "stopped"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_flops_equal_the_counter(attention, early, monkeypatch):
    """Guards against: a record that prices other grids, lengths or rollouts than those that ran. All that torch
    counts between question and record, rollouts of several lengths and three items included; stopped rollouts as far
    as they ran."""
    if attention == "sdpa" and torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry:
        pytest.skip("this torch's counter has no formula for the SDPA kernel of the CPU")
    model, processor = load_model(BUNDLED, device="cpu", attn_implementation=attention)
    ends = model.generation_config.eos_token_id
    # With many tokens that end a rollout, wild rollouts end at different lengths.
    model.generation_config.eos_token_id = [*ends, *range(0, 400, 8)]
    messages = chat(video_part(), image_part(), image_part(draw_image(196, 140)))
    options = WILD | {"num_rollouts": 5, "vote_stop": "off"} | early
    config = AvisConfig(enable_kdv=True, kdv_ratio=0.6, num_frames=4, **options)
    monkeypatch.setattr(steps, "is_decided", lambda forms, *_: len(forms) >= 2)
    with FlopCounterMode(display=False) as counter:
        result = answer(model, processor, messages, config)
    assert len({rollout.tokens for rollout in result.rollouts}) > 1, "want rollouts of several lengths"
    assert bool(early) == any(rollout.stopped for rollout in result.rollouts)
    spent = sum(result.flops[stage] for stage in ("vision", "prefill", "decode"))
    assert spent == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_flops_relative_to_vanilla(bundled):
    """Guards against: vanilla itself not at 1, or the two accountings swapped: the vision encoder is not
    pruned, so the total falls less than the language model's share."""
    vanilla = answer(*bundled, chat(image_part()), AvisConfig(max_new_tokens=8)).flops
    assert vanilla["relative_llm"] == vanilla["relative_total"] == 1.0
    pruned = answer(*bundled, chat(image_part()), AvisConfig(enable_kdv=True, max_new_tokens=8)).flops
    assert pruned["vision"] == vanilla["vision"] and pruned["prefill"] < vanilla["prefill"]
    assert pruned["relative_llm"] < pruned["relative_total"] < 1


def test_vanilla_is_as_long_as_rollouts_that_were_not_stopped(bundled, monkeypatch):
    """Guards against: vanilla priced with the lengths of rollouts that were broken off, or never begun."""
    model, processor = bundled
    monkeypatch.setattr(steps, "is_decided", lambda *_: True)
    config = AvisConfig(num_rollouts=3, rollout_batch_size=1, max_new_tokens=7, temperature=9.0)
    result = answer(model, processor, chat(image_part(draw_image(140, 140))), config)
    assert [(rollout.tokens, rollout.stopped) for rollout in result.rollouts] == [(7, False), (0, True), (0, True)]
    alone = flops.cost(model.config, [(1, 10, 10)], result.prompt_tokens, result.prompt_tokens, [7])
    assert result.flops["decode"] == alone.decode > 0
    assert result.flops["relative_llm"] == result.flops["relative_total"] == 1.0


def test_cache_bytes_of_one_rollout(bundled):
    """Guards against: the unpruned prompt's size, the prefill's own cache counted in, or values without keys."""
    model, _ = bundled
    text = model.config.text_config
    result = answer(*bundled, chat(image_part()), AvisConfig(enable_kdv=True, max_new_tokens=6))
    held = result.kept_tokens + result.rollouts[0].tokens - 1
    width = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    assert result.cache_bytes == 2 * text.num_hidden_layers * width * held * 4
