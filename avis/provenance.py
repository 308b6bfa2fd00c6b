"""Where a result comes from: hashes of weights and versions of software, computed only when a record needs them."""

import hashlib
import json
import os
import re
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from avis.files import sha256, write_json

_FINGERPRINT_BYTES = 2**20  # read of each weights file, after its header
_SHA256 = re.compile("[0-9a-f]{64}")
_Stamped = tuple[tuple[str, int, int], ...]  # of each file: absolute path, size, time of the last change


def weights_files(path: str) -> list[Path]:
    """Return a checkpoint's safetensors files in order of name; none for a model that came from no files.

    Args:
        path: a model folder, or a hub name whose files are on this disk.
    """
    if not path:
        return []
    from avis.loading import model_folder  # which imports torch and the hub's client

    return sorted(model_folder(path).glob("*.safetensors"))


def weights_sha256(path: str) -> str | None:
    """Return the SHA-256 over a checkpoint's weights; None for a model that came from no files.

    A file is read once: its hash is remembered by path, size and time stamp in a small cache folder, which may be
    missing or not writable.

    Args:
        path: a model folder, or a hub name whose files are on this disk.
    """
    files = _stamped(weights_files(path))
    return _remembered_sha256(files) if files else None


def _stamped(files: list[Path]) -> _Stamped:
    found = []
    for file in files:
        status = file.stat()
        found.append((str(file.absolute()), status.st_size, status.st_mtime_ns))
    return tuple(found)


@lru_cache(maxsize=8)
def _remembered_sha256(files: _Stamped) -> str:
    name = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:32]
    entry = _cache_folder() / f"weights-{name}.json"
    try:
        remembered = json.loads(entry.read_bytes())
        if remembered["files"] == [list(file) for file in files] and _SHA256.fullmatch(remembered["sha256"]):
            return remembered["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # not hashed yet, or a damaged entry
    found = sha256(Path(path) for path, _, _ in files)
    try:
        write_json(entry, {"files": files, "sha256": found})
    except OSError:
        pass  # a read-only home: hashed again next time
    return found


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "avis"


def weights_path(model) -> str:
    """Return the folder or hub name of which a model's weights are; empty when other weights have been put in.

    Adapters and weights quantised while loading are not in the files that the model's configuration names.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    is_changed = quantizer is not None and not quantizer.pre_quantized
    if is_changed or getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        return ""
    return model.config._name_or_path


def quick_fingerprint(path: str) -> str | None:
    """Return a fingerprint of a checkpoint's weights that takes milliseconds, whatever their size.

    It covers names and sizes of the safetensors files, their headers, and the first MiB of each file's tensors.

    Args:
        path: a model folder, or a hub name whose files are on this disk.

    Returns:
        A SHA-256; None for a model that came from no files.
    """
    files = _stamped(weights_files(path))
    return _read_fingerprint(files) if files else None


@lru_cache(maxsize=8)
def _read_fingerprint(files: _Stamped) -> str:
    digest = hashlib.sha256()
    for name, size, _ in files:
        path = Path(name)
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            length = file.read(8)
            header = min(int.from_bytes(length, "little"), size)
            digest.update(length + file.read(header + _FINGERPRINT_BYTES))
    return digest.hexdigest()


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return versions of what decides a result, and the hash of the fork's patches and overlay as "patch_set"."""
    import torch  # seconds, as the next one
    import transformers

    fork = Path(transformers.__file__).parents[2] / "fork"
    ours = [fork / "upstream.toml", *sorted(fork.glob("patches/*.patch")), *sorted(fork.glob("overlay/**/*.py"))]
    others = {name: version(name) for name in ("transformers", "av", "pillow")}
    return {"torch": str(torch.__version__), **others, "patch_set": sha256(ours)}


def describe_backend(model) -> dict[str, str]:
    """Return the model's dtype, device and attention implementation."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "attention": model.config._attn_implementation,
    }
