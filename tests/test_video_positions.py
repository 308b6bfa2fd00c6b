"""The temporal positions of a video's tokens: grid step times its seconds times positions per second, then cut."""

import math

import pytest
import reference
import tiny
import torch
from chats import chat, video_part
from kdv_calls import generate
from reference import kept

from avis.config import AvisConfig
from avis.inputs import prepare_inputs

STEPS = 6


def temporal(model, row: dict) -> list[int]:
    """Return the temporal positions of the grid steps of a prompt's only video, from 0."""
    where, _ = model.model.get_rope_index(
        row["input_ids"],
        row.get("image_grid_thw"),
        row["video_grid_thw"],
        second_per_grid_ts=row["second_per_grid_ts"],
        attention_mask=row["attention_mask"],
    )
    of_video = where[0, 0][row["input_ids"][0] == model.config.video_token_id]
    return sorted({int(position - of_video[0]) for position in of_video})


@pytest.mark.parametrize("kind", ["tensor", "list", "half precision"])
@pytest.mark.parametrize(
    "seconds, due",
    [
        (0.875, [0, 1, 3, 5, 7, 8]),
        (0.25, [0, 1, 2]),
        (0.5, [0, 1, 2, 3, 4, 5]),
        (1.0, [0, 2, 4, 6, 8, 10]),
        (1.75, [0, 3, 7, 10, 14, 17]),
        (3.0, [0, 6, 12, 18, 24, 30]),
    ],
)
def test_seconds_per_grid_step_keep_their_fraction(tiny_model, seconds, due, kind):
    """Guards against seconds that are cut to whole numbers first, which gives every frame above 2 fps position 0."""
    row = tiny.prompt(3, ("video", (STEPS, 2, 2)), 5)
    values = {
        "tensor": torch.tensor([seconds]),
        "list": [seconds],
        "half precision": torch.tensor([seconds]).bfloat16(),
    }
    assert temporal(tiny_model, row | {"second_per_grid_ts": values[kind]}) == due


def test_whole_seconds_of_a_long_video_stay_exact_in_half_precision(tiny_model):
    """Guards against positions above 256 that half precision rounds, where upstream counts in whole numbers."""
    row = tiny.prompt(3, ("video", (300, 1, 1)), 5) | {"second_per_grid_ts": torch.tensor([3.0], dtype=torch.bfloat16)}
    assert temporal(tiny_model, row) == list(range(0, 1800, 6))


@pytest.mark.parametrize("num_frames, due", [(16, [0, 1, 3, 5, 7, 8, 10, 12]), (14, [0, 2, 4, 6, 8, 10, 12])])
def test_positions_of_the_example(bundled, num_frames, due):
    """The report's own case: all 16 frames of the example had position 0."""
    model, processor = bundled
    inputs = prepare_inputs(processor, chat(video_part()), AvisConfig(num_frames=num_frames))
    assert temporal(model, inputs) == due


@pytest.mark.parametrize("name", ["video", "video_then_image", "interleaved"])
@pytest.mark.parametrize("factor", [0.2, 0.3125, 0.77])
def test_pruned_generation_has_these_positions(tiny_model, name, factor):
    """Guards against another rule for the pruned prompt, or for the text after a video, than for the unpruned one."""
    row = tiny.PROMPTS[name]()
    row["second_per_grid_ts"] = row["second_per_grid_ts"] * factor
    assert not math.isclose(float(row["second_per_grid_ts"][0]) % 1, 0)
    output = generate(tiny_model, row, enable_kdv=True, kdv_ratio=0.5)
    want = reference.logits(tiny_model, row, kept(tiny_model, row, rho=0.5), output.sequences[0, -len(output.logits) :])
    torch.testing.assert_close(torch.cat(output.logits), want, atol=1e-3, rtol=0)
