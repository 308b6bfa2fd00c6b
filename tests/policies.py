"""Real policy files for tests, with random weights and a known rule.

For instance `write_policy(tmp_path / "policy.pt", num_rollouts=(3,))`, whose K is 3 whatever p is.
"""

import json
from pathlib import Path

import torch

import demo
from avis.provenance import quick_fingerprint, weights_sha256
from policy.binning import BinningRule
from policy.checkpoint import PolicyCheckpoint
from policy.networks import SolvabilityNetwork


def write_policy(path: Path, num_rollouts=(3,), edges=(), default: str = "visual", **changes) -> Path:
    """Write a policy for the bundled model; `changes` are fields of the checkpoint (width, tau, fingerprint ..)."""
    config = json.loads((demo.BUNDLED / "config.json").read_text())
    width = config["vision_config"]["out_hidden_size"]  # and the language model's, whose tokens these embeddings are
    rule = BinningRule(tuple(edges), tuple(num_rollouts))
    values = {
        "width": width,
        "hidden_width": width,
        "default": default,
        "tau": 1.2,
        "rho": 0.5,
        "weights_sha256": weights_sha256(str(demo.BUNDLED)),
        "fingerprint": quick_fingerprint(str(demo.BUNDLED)),
        "metadata": {},
        "rules": {"visual": rule, "question": rule},
    } | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "visual": SolvabilityNetwork(values["width"]),
            "question": SolvabilityNetwork(values["width"], values["hidden_width"]),
        }
    PolicyCheckpoint(networks=networks, **values).save(path)
    return path


def one_line(capsys, main, *arguments) -> str:
    """Run a command line that has to refuse, and return what it says."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert status == 2 and printed.out == "" and printed.err.count("\n") == 1, printed
    assert printed.err.startswith("error: "), printed
    return printed.err
