"""With KDV off the fork is upstream, the same bits and the same number of tensor operations, with one exception.

The exception: seconds per grid step of a video that are no whole number. Upstream cuts their fraction before it
multiplies, the fork after it. Both then do the same with other positions.

The other side of each comparison is the pristine `upstream` commit of the fork's own history, unpacked and run in
another process. This file is the program of both sides: `python test_upstream_identity.py OUT.pt` writes the results.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import reference
import tiny
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

FORK = Path(__file__).resolve().parents[1] / "transformers"
ATTENTION = ["sdpa", "eager"]
# Seconds per grid step, for as many videos as a prompt has.
SECONDS = {
    "whole": [3.0, 1.0],
    "half": [0.5, 0.5],
    "below one": [0.875, 1 / 3],
    "above one": [1.75, 2.3333333],
    "one of two": [2.0, 0.7],
    "NTSC": [0.999, 1.001],
}
VIDEOS = {"video": 1, "video_then_image": 1, "interleaved": 2}


class CountOperations(TorchDispatchMode):
    """Counts every tensor operation, views included."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def with_seconds(prompt: str, seconds: str) -> dict[str, torch.Tensor]:
    return tiny.PROMPTS[prompt]() | {"second_per_grid_ts": torch.tensor(SECONDS[seconds][: VIDEOS[prompt]])}


def positions(model) -> dict[str, torch.Tensor]:
    """Return the positions (3, L) of prompts with videos, by prompt and seconds."""
    found = {}
    for prompt in VIDEOS:
        for seconds in SECONDS:
            row = with_seconds(prompt, seconds)
            for name in ("pixel_values", "pixel_values_videos"):
                row.pop(name, None)
            found[f"{prompt}-{seconds}"] = model.model.get_rope_index(**row)[0][:, 0]
    return found


def run_everything() -> dict[str, dict]:
    """Return logits, greedy tokens, operation counts and more for every prompt and attention implementation."""
    torch.set_num_threads(1)
    results = {"positions": positions(tiny.build_model())}
    for attention in ATTENTION:
        model = tiny.build_model(attn_implementation=attention)
        for name, build in tiny.PROMPTS.items():
            inputs = build()
            with torch.no_grad(), CountOperations() as forward_operations:
                output = model(**inputs)
            with CountOperations() as generate_operations:
                tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            results[f"{name}-{attention}"] = {
                "logits": output.logits,
                "rope_deltas": output.rope_deltas,
                "fields": list(output.keys()),
                "tokens": tokens,
                "operations": (forward_operations.count, generate_operations.count),
            }
    return results


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """Return the results of the pristine tree."""
    folder = tmp_path_factory.mktemp("upstream")
    git = ["git", "-C", str(FORK)]
    roots = subprocess.run([*git, "rev-list", "--max-parents=0", "HEAD"], check=True, capture_output=True, text=True)
    root = roots.stdout.strip()
    subject = subprocess.run([*git, "log", "-1", "--format=%s", root], check=True, capture_output=True, text=True)
    assert subject.stdout.strip() == "upstream", f"{FORK} has no history of the fork: run fork/materialise.py apply"
    archive = subprocess.run([*git, "archive", root, "src/transformers"], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    out = folder / "results.pt"
    environment = os.environ | {"PYTHONPATH": str(folder / "src")}
    subprocess.run([sys.executable, __file__, str(out)], check=True, env=environment)
    results = torch.load(out, weights_only=True)
    assert Path(results.pop("package")).is_relative_to(folder), "the other process did not run the pristine tree"
    return results


@pytest.fixture(scope="module")
def fork():
    return run_everything()


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", tiny.PROMPTS)
def test_logits_and_tokens_are_bit_identical(upstream, fork, name, attention):
    """Guards against patches that change upstream's path: another order of additions, another mask, other positions."""
    ours, theirs = fork[f"{name}-{attention}"], upstream[f"{name}-{attention}"]
    assert torch.equal(ours["logits"], theirs["logits"])
    assert torch.equal(ours["rope_deltas"], theirs["rope_deltas"])
    assert torch.equal(ours["tokens"], theirs["tokens"])
    assert ours["fields"] == theirs["fields"], "with KDV off the output has fields that upstream's lacks"


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", tiny.PROMPTS)
def test_off_costs_nothing(upstream, fork, name, attention):
    """Guards against keys that are captured, averaged or scored and then not used."""
    assert fork[f"{name}-{attention}"]["operations"] == upstream[f"{name}-{attention}"]["operations"]


@pytest.mark.parametrize("prompt", VIDEOS)
@pytest.mark.parametrize("seconds", SECONDS)
def test_positions_differ_for_fractional_seconds_alone(upstream, fork, tiny_model, prompt, seconds):
    """Guards against a patch that moves more than the time of frames whose seconds are no whole number."""
    row = with_seconds(prompt, seconds)
    ours, theirs = (side["positions"][f"{prompt}-{seconds}"] for side in (fork, upstream))
    cut = row | {"second_per_grid_ts": row["second_per_grid_ts"].long()}
    assert torch.equal(ours, reference.positions(tiny_model, row)), "ours are not the due ones"
    assert torch.equal(theirs, reference.positions(tiny_model, cut)), (
        "upstream does something else than cut the seconds"
    )
    assert torch.equal(ours, theirs) or bool((row["second_per_grid_ts"] % 1 > 0).any())


@pytest.mark.parametrize("seconds", [name for name in SECONDS if name != "whole"])
def test_fractional_seconds_move_the_time_of_frames_alone(upstream, fork, seconds):
    """Guards against rows and columns that change with time. What follows the video goes on after its largest position,
    as in upstream."""
    row = with_seconds("video", seconds)
    ours, theirs = (side["positions"][f"video-{seconds}"] for side in (fork, upstream))
    is_video = row["input_ids"][0] == tiny.VIDEO
    first, last = (int(end) for end in is_video.nonzero()[[0, -1], 0])
    assert torch.equal(ours[:, :first], theirs[:, :first])
    assert torch.equal(ours[1:, first : last + 1], theirs[1:, first : last + 1])
    steps = torch.arange(tiny.VIDEO_GRID[0]).repeat_interleave(tiny.VIDEO_GRID[1] * tiny.VIDEO_GRID[2])
    due = (steps * row["second_per_grid_ts"] * 2).floor().long()  # two positions a second
    assert torch.equal(ours[0, first : last + 1] - first, due)
    for side in (ours, theirs):
        follow = side[:, : last + 1].max() + 1 + torch.arange(side.shape[1] - last - 1)
        assert torch.equal(side[:, last + 1 :], follow.expand(3, -1))


if __name__ == "__main__":
    torch.save(run_everything() | {"package": transformers.__file__}, sys.argv[1])
