"""With KDV off the fork is upstream: the same bits and the same number of tensor operations.

The other side of each comparison is the pristine `upstream` commit of the fork's own history, unpacked and run in
another process. This file is the program of both sides: `python test_upstream_identity.py OUT.pt` writes the results.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

FORK = Path(__file__).resolve().parents[1] / "transformers"
ATTENTION = ["sdpa", "eager"]


class CountOperations(TorchDispatchMode):
    """Counts every tensor operation, views included."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def run_everything() -> dict[str, dict]:
    """Return logits, greedy tokens, operation counts and more for every prompt and attention implementation."""
    torch.set_num_threads(1)
    results = {}
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


if __name__ == "__main__":
    torch.save(run_everything() | {"package": transformers.__file__}, sys.argv[1])
