"""Real policy files for tests, with random weights and a known rule.

For instance `write_policy(tmp_path / "policy.pt", num_rollouts=(3,))`, whose K is 3 whatever p is.
"""

import json
from pathlib import Path

import torch

import demo
from avis.provenance import weights_sha256
from policy.policy_model import Checkpoint, Network, Rule


def write_policy(path: Path, num_rollouts=(3,), edges=(), default: str = "visual", **changes) -> Path:
    """A policy for the bundled model; `changes` are of the checkpoint's fields (width, tau, fingerprint ..)."""
    config = json.loads((demo.BUNDLED / "config.json").read_text())
    width = config["vision_config"]["out_hidden_size"]  # and the language model's, whose tokens these embeddings are
    rule = Rule(tuple(edges), tuple(num_rollouts))
    values = {
        "width": width,
        "hidden_width": width,
        "default": default,
        "tau": 1.2,
        "rho": 0.5,
        "fingerprint": weights_sha256(str(demo.BUNDLED)),
        "metadata": {},
        "rules": {"visual": rule, "question": rule},
    } | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "visual": Network(values["width"]),
            "question": Network(values["width"], values["hidden_width"]),
        }
    Checkpoint(networks=networks, **values).save(path)
    return path
