"""Whether a folder holds a Qwen2.5-VL checkpoint, read from its small files alone, without torch::

check_model_folder("models/garden-tiny")
"""

import json
import re
from pathlib import Path

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_model_folder(path: str | Path) -> None:
    """Refuse what cannot be loaded: no folder, another architecture, pickled, missing or truncated weights.

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
    config = _json_object(folder / "config.json")
    if config.get("model_type") != "qwen2_5_vl":
        raise ValueError(f"{path} is a {config.get('model_type')} model, not a Qwen2.5-VL")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        shards = _json_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{index} names no weights")
        files = [folder / name for name in sorted(set(shards.values()))]
    elif any(file for pattern in _PICKLED for file in folder.glob(pattern)):
        raise ValueError(f"{path} has pickled weights only, which can run code: safetensors are needed")
    else:
        raise ValueError(f"{path} has no weights: model.safetensors is missing")
    for file in files:
        _check_length(file)


def _json_object(path: Path) -> dict:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a model folder: {path.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"cannot read {path}: not a JSON object")
    return value


def _check_length(path: Path) -> None:
    """A safetensors file is a length, a JSON header of that length, and the bytes that the header's offsets span."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ValueError("its header is cut off")
            tensors = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        held = size - 8 - length
        if max(ends, default=0) != held:
            raise ValueError(f"it holds {held} bytes of tensors where its header says {max(ends, default=0)}")
    except Exception as error:  # what stands in a damaged header may be anything
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cannot read the weights {path}: {reason}") from None
