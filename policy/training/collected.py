"""Read what `policy.training.collect` has written, and group and split it by scene::

data = CollectedRollouts(Path("runs/policy/fitting"))
parts = split_by_scene(data.lines, seed=0)
data.embeds(parts["fit"][0]["scene"])          # a scene's visual embeddings, each (N_i, D)

A line is the record of one question: its labels, and the answers, lengths and FLOPs of its rollouts.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from avis.files import read_json

Line = dict[str, Any]
PARTS = {"fit": 0.6, "stop": 0.2, "rule": 0.2}


class CollectedRollouts:
    """A complete folder of collected questions.

    Attributes:
        config: what the rollouts depend on.
        lines: of the questions that could be read, by index.
        failed: how many questions could not be read.
        sha256: of all lines.
    """

    def __init__(self, folder: Path):
        """Open the folder.

        Raises:
            ValueError: the folder is not one of collected questions, or is not complete.
        """
        plan = read_json(folder / "collect.json", "run python -m policy.training.collect")
        self.config: dict[str, Any] = plan["config"]
        if "fingerprint" not in self.config:
            raise ValueError(f"{folder} was collected by version 0.1: collect again into another folder")
        paths = [shard_path(folder, number) for number in range(self.config["shards"])]
        missing = sum(not path.with_suffix(".safetensors").exists() for path in paths)
        if missing:
            raise ValueError(f"{folder} lacks {missing} of {len(paths)} shards: run collect again, which resumes")
        content = b"".join(path.read_bytes() for path in paths)
        self.sha256 = hashlib.sha256(content).hexdigest()
        lines: list[Line] = sorted(map(json.loads, content.splitlines()), key=lambda line: line["index"])
        self.lines = [line for line in lines if "error" not in line]
        self.failed = len(lines) - len(self.lines)
        if not self.lines:
            raise ValueError(f"none of the {len(lines)} questions of {folder} could be read: {lines[0]['error']}")
        self._files: dict[str, Any] = {}  # by tensor's name, the file that it is in, mapped and not read
        for path in paths:
            file = safe_open(path.with_suffix(".safetensors"), "pt")
            self._files |= dict.fromkeys(file.keys(), file)

    def embeds(self, scene: str) -> list[torch.Tensor]:
        """Return the unpruned embeddings of a scene's images and videos, each `(N_i, D)` float32."""
        found: list[torch.Tensor] = []
        for place in count():
            name = f"embeds/{scene}/{place}"
            if name not in self._files:
                return found
            found.append(self._files[name].get_tensor(name).float())
        return found

    def hidden(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the prefills' last hidden states, `(questions, D_lm)` float32."""
        names = [f"hidden/{index}" for index in indices]
        return torch.stack([self._files[name].get_tensor(name) for name in names]).float()


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a shard's lines; its tensors have the same name with the ending .safetensors."""
    return folder / f"shard-{number:05d}.jsonl"


def check_same_drawing(data: CollectedRollouts, dev: CollectedRollouts) -> None:
    """Refuse two folders that were not drawn in the same way, or that share data.

    Raises:
        ValueError: in one line.
    """
    for name in ("weights_sha256", "tau", "max_new_tokens"):
        if data.config[name] != dev.config[name]:
            raise ValueError(f"--dev was collected with another {name}: {dev.config[name]}, not {data.config[name]}")
    if data.config["data_sha256"] == dev.config["data_sha256"]:
        raise ValueError("--dev is the data that is fitted on")


def pass_rate(line: Line) -> float:
    """Return the share of a question's sampled rollouts that are right."""
    return float(np.mean(line["rollouts"]["right"]))


def mean_pass_rate(lines: Sequence[Line]) -> float:
    """Return the mean pass rate of questions."""
    return float(np.mean([pass_rate(line) for line in lines]))


def group_by_scene(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the lines of each scene, in the order of the scenes' first lines."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line["scene"], []).append(line)
    return list(found.values())


def split_by_scene(lines: Sequence[Line], seed: int) -> dict[str, list[Line]]:
    """Return the lines of each of `PARTS`, drawn at random; a scene's lines are all in one part.

    Raises:
        ValueError: fewer than 5 scenes.
    """
    scenes = sorted({line["scene"] for line in lines})
    if len(scenes) < 5:
        raise ValueError(f"fitting needs questions about at least 5 different scenes, got {len(scenes)}")
    ends = np.cumsum([round(share * len(scenes)) for share in list(PARTS.values())[:-1]])
    drawn = np.split(np.random.default_rng(seed).permutation(scenes), ends)
    part_of = {str(scene): name for name, part in zip(PARTS, drawn, strict=True) for scene in part}
    return {name: [line for line in lines if part_of[line["scene"]] == name] for name in PARTS}
