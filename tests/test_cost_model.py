"""Shapes, counters and the cost model of the speed benchmark: on the tiny geometry, and on hand-made numbers."""

from dataclasses import replace

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import flops

from avis.evaluation.benchmark import geometry
from avis.evaluation.benchmark.cost_model import (
    StageCost,
    floor_seconds,
    predict_seconds,
    stage_costs,
    vision_attention_flops,
)
from avis.evaluation.benchmark.counters import count_operators
from avis.evaluation.benchmark.latency import spread_mix
from avis.evaluation.benchmark.queries import pruning_arguments
from avis.evaluation.benchmark.scale import Machine, estimate_gpus

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name, published", [("3b", 3_754_622_976), ("7b", 8_292_166_656)])
def test_published_geometries_have_the_published_parameters(name, published):
    """Guards against: a depth, width, head or vocabulary that is not that of the published model, or weights that are
    tied in one of the two and not in the other (the totals are those of the published weight files)."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(geometry.build_config(name))
    assert sum(weight.numel() for weight in model.parameters()) == published


def test_mid_has_the_ratios_of_7b():
    """Guards against: a `mid` whose vision encoder, heads or depth weigh otherwise than the real model's."""
    mid, real = (geometry.build_config(name) for name in ("mid", "7b"))
    for part, names in {
        "text_config": ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"],
        "vision_config": ["hidden_size", "intermediate_size", "depth", "num_heads", "out_hidden_size"],
    }.items():
        for name in [*names, *(["num_key_value_heads"] if part == "text_config" else [])]:
            assert 4 * getattr(getattr(mid, part), name) == getattr(getattr(real, part), name), name
    assert len(real.vision_config.fullatt_block_indexes) == 4 * len(mid.vision_config.fullatt_block_indexes)


@pytest.mark.parametrize("n, sides", [(1024, (32, 32)), (6, (2, 3)), (2, (1, 2)), (16384, (128, 128))])
def test_images_have_the_tokens_asked_for(n, sides):
    """Guards against: a prompt with another number of visual tokens than the report says."""
    assert geometry.token_grid(n) == sides
    if n < 100:
        inputs = geometry.build_prompt(geometry.build_config("tiny"), n, "cpu")
        image = geometry.build_config("tiny").image_token_id
        assert int((inputs["input_ids"] == image).sum()) == n == len(inputs["pixel_values"]) // 4
        assert inputs["input_ids"].shape[1] == n + geometry.TEXT_TOKENS + 2


def test_videos_have_the_frames_asked_for():
    """Guards against: a video that goes through the model as an image, or with other frames than the report says."""
    model = geometry.build_model("tiny", "cpu")
    inputs = geometry.build_prompt(model.config, 24, "cpu", frames=4)
    assert inputs["video_grid_thw"].tolist() == [[4, 4, 6]] and len(inputs["pixel_values_videos"]) == 4 * 24
    prefill = model.prefill(**inputs, **pruning_arguments(0.75))
    assert [(item.kind, item.grid) for item in prefill.visual_items] == [("video", (4, 2, 3))]
    with pytest.raises(ValueError, match="equal frames"):
        geometry.build_prompt(model.config, 25, "cpu", frames=4)


def test_rho_is_the_fraction_pruned():
    """Guards against: rho taken for the fraction that is kept, in the model's call or in the cost model."""
    model = geometry.build_model("tiny", "cpu")
    inputs = geometry.build_prompt(model.config, 16, "cpu")
    for rho, kept in {0.0: 16, 0.75: 4, 0.9: 1}.items():
        assert model.prefill(**inputs, **pruning_arguments(rho)).kept_length == geometry.TEXT_TOKENS + 2 + kept
        assert geometry.kept_length(16, rho) == geometry.TEXT_TOKENS + 2 + kept


def test_work_counts_operators_and_their_bytes():
    """Guards against: bytes of matrix products or views counted as traffic, in-place results counted twice, expanded
    tensors counted as if they were stored."""
    x, y = torch.zeros(10, 10), torch.zeros(10)

    assert count_operators(lambda: x @ x) == {"calls": 1, "bytes": 0}
    assert count_operators(lambda: x.t()[2:]) == {"calls": 0, "bytes": 0}
    assert count_operators(lambda: x + y) == {"calls": 1, "bytes": 400 + 40 + 400}
    assert count_operators(lambda: x.add_(y)) == {"calls": 1, "bytes": 400 + 40}
    index = torch.tensor([3])
    assert count_operators(lambda: x.index_copy_(0, index, y[None])) == {"calls": 1, "bytes": 8 + 40 + 40}
    assert count_operators(lambda: y.expand(10, 10) * 2) == {"calls": 1, "bytes": 40 + 400}
    table = torch.nn.Embedding(1000, 10).weight.detach()
    assert count_operators(lambda: torch.nn.functional.embedding(torch.tensor([3]), table))["bytes"] == 8 + 2 * 40


@pytest.mark.parametrize("grid", [(1, 16, 16), (1, 10, 14), (3, 8, 8)])
def test_attention_and_matrices_make_the_vision_encoders_flops(grid):
    """Guards against: windows' attention priced as full attention or the other way round. By hand: the tiny vision
    encoder has width 64, two blocks of each kind, windows of 8 x 8 patches."""
    config = geometry.build_config("tiny").vision_config
    t, h, w = grid
    full, windows = vision_attention_flops(config, grid)
    assert full == 2 * 4 * 64 * t * (h * w) ** 2
    parts = [min(8, h - top) * min(8, w - left) for top in range(0, h, 8) for left in range(0, w, 8)]
    assert windows == 2 * 4 * 64 * t * sum(part**2 for part in parts)


def test_costs_are_the_closed_forms():
    """Guards against: stages that do not sum to the FLOPs of `flops.cost`, bytes without a part of the cache, a step
    that is not the mean step. By hand: 3 layers, 2 key heads of width 16, so a token takes 2 * 3 * 2 * 16 floats."""
    config, n, k, new = geometry.build_config("tiny"), 16, 5, 9
    counts = {name: {"calls": 7, "bytes": 11, "replayed": 3} for name in ("vision", "prefill", "decode_step")}
    work = stage_costs(config, {"vision": 1000, "language": 2000, "element": 4}, counts, n, 0.75, k, new)
    kept = geometry.TEXT_TOKENS + 2 + 4
    spent = flops.cost(config, [(1, 8, 8)], geometry.TEXT_TOKENS + 2 + n, kept, [new] * k)
    assert (work["vision"].flops, work["prefill"].flops) == (spent.vision, spent.prefill)
    assert work["decode_step"].flops == pytest.approx(spent.decode / (new - 1), abs=2)
    cache = 2 * 3 * 2 * 16 * 4
    assert work["prefill"].bytes == 2000 + kept * cache
    assert work["decode_step"].bytes == 2000 + cache * (kept + k * 4.5)  # 1 to 8 tokens of its own, 4.5 on average


RATES = {
    "copy": 100.0,
    "best_matrix": 1000.0,
    "matrix": {"language": {"5": 10.0, "512": 1000.0}, "vision": {"64": 500.0}},
    "attention": {"language": {"70": 20.0}, "vision": {"64": 40.0}, "windows": 80.0},
    "elementwise": {"language": {"5": 50.0, "70": 25.0}, "vision": {"64": 5.0}},
    "call": 0.5,
    "replayed": 0.25,
    "sort": {"1": 1.0, "5": 3.0},
    "language_bytes": 2000,
}


def test_predictions_by_hand():
    """Guards against: a rate of another number of rows or another part of the model, a part of the time left out, and a
    GPU that waits for its own start although it is busy."""
    vision = StageCost("vision", 1000, 64, ((80, "vision", 64), (160, "windows", 0)), 1, calls=4, traffic=10)
    assert predict_seconds(vision, RATES, "cpu") == {
        "matrices": 2.0, "attention": 4.0, "elementwise": 2.0, "sort": 0.0, "replayed": 0.0, "starts": 2.0,
        "total": 10.0,
    }  # fmt: skip
    assert predict_seconds(vision, RATES, "cuda")["total"] == 8.0
    step = StageCost("language", 50, 5, ((500, "decode", 70),), 2300, calls=100, traffic=100, sorts=5)
    # attention: 500 FLOPs at 1000 a second are less than the 300 bytes of cache at 100 a second
    assert predict_seconds(step, RATES, "cpu")["total"] == 5 + 3 + 2 + 3 + 50
    assert predict_seconds(step, RATES, "cuda")["total"] == 50
    graph = replace(step, calls=20, replayed=80)  # 80 of the 100 at half the time, and the others are hidden
    assert predict_seconds(graph, RATES, "cuda")["total"] == 5 + 3 + 2 + 3 + 20
    long_prompt = StageCost("language", 3000, 70, ((40, "language", 70),), 2000, calls=0, traffic=0)
    with pytest.raises(KeyError):
        predict_seconds(long_prompt, RATES, "cpu")  # a rate that was not measured is not made up


def test_floor_by_hand():
    """Guards against: a floor that adds FLOPs and bytes, takes the shorter of the two, or is above what can be reached,
    where a causal mask takes half of attention away."""
    assert floor_seconds(StageCost("language", 3000, 1, ((1000, "decode", 9),), 100, 0, 0), RATES) == 4.0
    assert floor_seconds(StageCost("language", 3000, 1, ((1000, "decode", 9),), 900, 0, 0), RATES) == 9.0
    assert floor_seconds(StageCost("language", 3000, 9, ((1000, "language", 9),), 100, 0, 0), RATES) == 3.5
    assert floor_seconds(StageCost("vision", 3000, 9, ((1000, "vision", 9),), 100, 0, 0), RATES) == 4.0


def test_internet_scale_by_hand():
    """Guards against: K or rho that does not reach the estimate, and an estimate that hides that it is one."""
    machine = Machine("one GPU", 1e15, 1e12, 100 * 10**9)
    settings = {"vanilla": (0.0, {1: 1.0}), "five": (0.0, {5: 1.0}), "pruned": (0.75, {1: 0.5, 5: 0.5})}
    found = estimate_gpus("7b", machine, settings, visual_tokens=1024, new_tokens=101)
    vanilla, five, pruned = found["rows"]
    assert found["estimate"] is True and found["assumptions"]
    text = geometry.build_config("7b").text_config
    assert vanilla["seconds"]["prefill"] == flops.prefill_flops(text, 1090) / 1e15
    # 100 passes; 16.58 GB of weights shared by all that fit beside them; 57,344 bytes of cache a token
    batch = int((90e9 - 2 * 8_292_166_656) // (57344 * (1090 + 101)))
    read = 100 * (2 * 8_292_166_656 / batch + 57344 * (1090 + 50.5)) / 1e12
    assert vanilla["batch"] == batch
    assert vanilla["seconds"]["decode"] == pytest.approx(max(read, flops.decode_flops(text, 1090, 101) / 1e15))
    assert vanilla["gpus"] == pytest.approx(sum(vanilla["seconds"].values()) * 1e6 / 3600)
    assert five["seconds"]["decode"] > vanilla["seconds"]["decode"] and pruned["mean_k"] == 3
    assert pruned["seconds"]["vision"] == vanilla["seconds"]["vision"]


def test_mixed_k_has_its_shares():
    """Guards against: a row of the latency table whose mean K is not the mix's, or that changes from run to run."""
    given = spread_mix({1: 0.5, 3: 0.2, 5: 0.2, 7: 0.1}, 100, seed=0)
    assert [given.count(k) for k in (1, 3, 5, 7)] == [50, 20, 20, 10]
    assert given == spread_mix({1: 0.5, 3: 0.2, 5: 0.2, 7: 0.1}, 100, seed=0) != sorted(given)
    assert sorted(spread_mix({1: 0.5, 7: 0.5}, 3, seed=1)) in ([1, 1, 7], [1, 7, 7])
