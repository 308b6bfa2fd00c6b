"""Read and write policy files: tensors and plain values only, nothing in a file is trusted::

checkpoint = read_checkpoint("policy_checkpoint.pt")
checkpoint.save("copy.pt")
"""

import hashlib
import io
import json
import math
import os
import stat
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from policy.binning import BinningRule
from policy.networks import SolvabilityNetwork

FORMAT, VERSION = "avis-policy", 2
MAX_BYTES = 2**28  # a checkpoint at 7B width takes 3 MB
FITTING_COMMANDS = (
    "python -m policy.training.collect, python -m policy.training.fit, python -m policy.training.calibrate"
)


@dataclass(frozen=True, eq=False)
class PolicyCheckpoint:
    """The content of a policy file: two networks, each with its rule, and what they were fitted on.

    Attributes:
        width: D of the visual embeddings.
        hidden_width: D_lm of the prefill's last hidden state.
        default: "visual" or "question", the network that `PolicyModel.predict` uses.
        tau: angle in radians of the adaptive pruning that the networks were fitted under.
        rho: the mean rho that tau was chosen for.
        weights_sha256: SHA-256 of the backbone's weights.
        fingerprint: quick fingerprint of the backbone's weights (`avis.provenance.quick_fingerprint`).
        metadata: plain values for the reader.
        networks: by name, "visual" and "question".
        rules: by name, as the networks.
    """

    width: int
    hidden_width: int
    default: str
    tau: float
    rho: float
    weights_sha256: str
    fingerprint: str
    metadata: dict[str, Any]
    networks: dict[str, SolvabilityNetwork]
    rules: dict[str, BinningRule]

    def save(self, path: str | Path) -> None:
        """Write the file under another name, then rename it. The bytes do not depend on the name."""
        content = {"format": FORMAT, "version": VERSION}
        content |= {name: value for name, value in vars(self).items() if name not in ("networks", "rules")}
        content["metadata"] = json.loads(json.dumps(self.metadata))  # plain: torch's version is a class of its own
        content["networks"] = {
            name: {"weights": network.state_dict(), "rule": asdict(self.rules[name])}
            for name, network in self.networks.items()
        }
        buffer = io.BytesIO()  # torch would write the name of a file into it
        torch.save(content, buffer)
        part = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part")
        part.write_bytes(buffer.getvalue())
        os.replace(part, path)


def read_checkpoint(path: str | Path) -> PolicyCheckpoint:
    """Read a policy file, trusting nothing in it.

    Raises:
        ValueError: no such file, not a policy, damaged, of another version, or with content that no fitting wrote; in
            one line.
    """
    path = _check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise ValueError(f"it holds more than {MAX_BYTES // 2**20} MiB")
            if archive.testzip() is not None:
                raise ValueError("it is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is not a policy checkpoint, or is cut off") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a policy checkpoint: {str(error).splitlines()[0]}") from None
    except Exception:  # a file that is no archive of tensors fails in any way, and a hostile pickle chooses its message
        raise ValueError(f"{path} is not a policy checkpoint: it cannot be read as tensors and plain values") from None
    try:
        return _checked(content)
    except Exception as error:  # any part may be missing or of another kind
        reason = error if isinstance(error, ValueError) else "a part of it is missing or of another kind"
        raise ValueError(f"{path} is not a policy checkpoint: {str(reason).splitlines()[0]:.250}") from None


def recorded_hashes(path: str | Path) -> set[str]:
    """Return the SHA-256 values by which results may name a policy file.

    They are the file's own and, for a file that was converted from an older format, the older file's: its networks and
    rules are the same.

    Raises:
        OSError: the file cannot be read.
    """
    hashes = {hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    try:
        before = read_checkpoint(path).metadata.get("converted_from_sha256")
    except ValueError:
        return hashes
    return hashes | ({before} if isinstance(before, str) else set())


def _check_file(source: str | Path) -> Path:
    """Return the path of a regular file with content; raise ValueError, in one line, for anything else."""
    path = Path(source)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a folder without access, a null byte
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path} is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"cannot read {path}: Permission denied")
    if status.st_size == 0:
        raise ValueError(f"{path} is empty")
    return path


def _checked(content: Any) -> PolicyCheckpoint:
    """Return the checkpoint of a file's content; raise anything for content that no fitting wrote."""
    if type(content) is not dict or type(content.get("format")) is not str or content["format"] != FORMAT:
        raise ValueError("it is something else")
    _check_version(content.get("version"))
    width, hidden_width = content["width"], content["hidden_width"]
    if not all(type(value) is int and 1 <= value <= 2**16 for value in (width, hidden_width)):
        raise ValueError("its widths are no widths")
    tau, rho = content["tau"], content["rho"]
    if not all(type(value) is float for value in (tau, rho)) or not (0 < tau < math.pi and 0 <= rho <= 1):
        raise ValueError("its tau or rho is out of range")
    names, metadata = [content["weights_sha256"], content["fingerprint"]], content["metadata"]
    is_described = all(type(name) is str for name in names) and type(metadata) is dict
    if not is_described or content["default"] not in ("visual", "question"):
        raise ValueError("its description is damaged")
    json.dumps(metadata)  # raises for values that are not plain
    networks, rules = {}, {}
    for name, hidden in (("visual", None), ("question", hidden_width)):
        stored = content["networks"][name]
        networks[name] = _checked_network(name, stored["weights"], width, hidden)
        rules[name] = BinningRule(**{field: tuple(values) for field, values in dict(stored["rule"]).items()})
    return PolicyCheckpoint(
        width=width,
        hidden_width=hidden_width,
        default=content["default"],
        tau=tau,
        rho=rho,
        weights_sha256=content["weights_sha256"],
        fingerprint=content["fingerprint"],
        metadata=metadata,
        networks=networks,
        rules=rules,
    )


def _check_version(version: Any) -> None:
    if type(version) is not int or version > VERSION:
        raise ValueError(f"it has format version {version!r:.20}, this program reads {VERSION}")
    if version != VERSION:
        raise ValueError(
            f"it has the older format version {version}, this program reads {VERSION}: fit it again with "
            f"{FITTING_COMMANDS}"
        )


def _checked_network(
    name: str, weights: dict[str, torch.Tensor], width: int, hidden_width: int | None
) -> SolvabilityNetwork:
    with torch.device("meta"):  # nothing of this size is allocated before the file is known to have it
        network = SolvabilityNetwork(width, hidden_width)
    wanted = network.state_dict()
    if weights.keys() != wanted.keys() or any(weights[key].shape != wanted[key].shape for key in wanted):
        raise ValueError(f"its {name} network has another form")
    if not all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in weights.values()):
        raise ValueError(f"its {name} network has weights that are not finite float32")
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
