"""Checks of a Qwen2.5-VL checkpoint folder that take milliseconds and no torch::

check_model_folder("models/garden-tiny")
"""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from avis.files import check_file

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_model_folder(path: str | Path) -> None:
    """Refuse a folder that cannot be loaded: another architecture, or pickled, missing or cut-off weights.

    Args:
        path: a `from_pretrained` folder. The name of a model on the hub passes: nothing of it is here yet.

    Raises:
        ValueError: with one line that says what is wrong.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists() or not _HUB_NAME.fullmatch(str(path)):
            raise ValueError(f"no such model folder: {path}")
        return
    config = _read_object(folder / "config.json")
    if config.get("model_type") != "qwen2_5_vl":
        raise ValueError(f"{path} is a {config.get('model_type')} model, not a Qwen2.5-VL")
    for file in _weight_files(folder):
        _check_weights(file)


def _weight_files(folder: Path) -> list[Path]:
    """Return the folder's safetensors files, by its index when it has several."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        shards = _read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{index} names no weights")
        return [folder / name for name in sorted(set(shards.values()))]
    if any(file for pattern in _PICKLED for file in folder.glob(pattern)):
        raise ValueError(f"{folder} has pickled weights only, which can run code: safetensors are needed")
    raise ValueError(f"{folder} has no weights: model.safetensors is missing")


def _read_object(path: Path) -> dict:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a model folder: {path.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"cannot read {path}: not a JSON object")
    return value


def _check_weights(path: Path) -> None:
    """Open a safetensors file, which reads its header and compares it with the file's length."""
    check_file(path)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the weights {path} are damaged or cut off: {error}") from None
