"""The difficulty predictor: from a query's visual embeddings to its solvability p, and from p to K rollouts.

    policy = PolicyModel("policy_checkpoint.pt")
    policy(embeds)                                                        # (1, N, D) -> K
    policy.predict([item.embeds for item in prefill.visual_items], prefill.last_hidden_state)

p estimates the probability that one sampled rollout is right. A piecewise-constant rule, fitted and not typed in, maps
it to K (AVIS, Jeddi et al. 2026, arXiv 2606.11576). The checkpoint is made by `python -m policy.training`.
"""

import hashlib
import json
import math
import os
import zipfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avis.files import check_file

FORMAT, VERSION = "avis-policy", 1
CHOICES = (1, 3, 5, 7)
CHANNELS, GROUPS, DROPOUT = 48, 8, 0.1
MAX_BYTES = 2**28  # a checkpoint at 7B width takes 3 MB
COMMANDS = "python -m policy.training.collect, python -m policy.training.fit, python -m policy.training.calibrate"


@dataclass(frozen=True)
class Prediction:
    """p: solvability, in (0, 1). bin: of the rule, from 0. num_rollouts: K of that bin."""

    p: float
    bin: int
    num_rollouts: int


@dataclass(frozen=True)
class Rule:
    """From p to K, constant between edges: bin b is `edges[b - 1] <= p < edges[b]`.

    Attributes:
        edges: ascending, in (0, 1). num_rollouts: per bin its K, one more than edges. Raises ValueError for others.
    """

    edges: tuple[float, ...] = ()
    num_rollouts: tuple[int, ...] = (1,)

    def __post_init__(self):
        inside = all(type(edge) is float and 0 < edge < 1 for edge in self.edges)
        ascending = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
        known = all(type(k) is int and k in CHOICES for k in self.num_rollouts)
        if not (inside and ascending and known and len(self.num_rollouts) == len(self.edges) + 1):
            raise ValueError(f"not a rule: K = {self.num_rollouts!r:.100} between edges {self.edges!r:.100}")

    def predict(self, p: float) -> Prediction:
        """The bin that p falls into, and its K."""
        found = bisect_right(self.edges, p)
        return Prediction(p, found, self.num_rollouts[found])


class Network(nn.Module):
    """Blocks of 1-D convolution, GroupNorm and SiLU over an item's tokens, global average pooling, and a 2-layer MLP.

    The question-aware form (`hidden_width` given) has the MLP read the prefill's last hidden state as well. Inputs are
    standardised by channel, with means and scales from the data it was fitted on.
    """

    def __init__(self, width: int, hidden_width: int | None = None):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        if hidden_width is not None:
            self.register_buffer("hidden_mean", torch.zeros(hidden_width))
            self.register_buffer("hidden_scale", torch.ones(hidden_width))
        layers: list[nn.Module] = []
        for inputs, kernel in ((width, 1), (CHANNELS, 3), (CHANNELS, 3)):
            layers += [nn.Conv1d(inputs, CHANNELS, kernel, padding=kernel // 2)]
            layers += [nn.GroupNorm(GROUPS, CHANNELS), nn.SiLU()]
        self.blocks = nn.Sequential(*layers)
        first = nn.Linear(CHANNELS + (hidden_width or 0), CHANNELS)
        self.head = nn.Sequential(nn.Dropout(DROPOUT), first, nn.SiLU(), nn.Linear(CHANNELS, 1))

    def forward(self, items: Sequence[torch.Tensor], hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `(Q,)` of Q questions about the same items.

        Args:
            items: images and videos of a query, each `(N_i, D)` float32; run one by one, since GroupNorm would see
                padding, and their pooled features averaged.
            hidden: `(Q, D_lm)` float32, of a question-aware network; None is one question.
        """
        pooled = [self.blocks(((item - self.mean) * self.scale).T[None]).mean(dim=2) for item in items]
        features = torch.stack(pooled).mean(dim=0)
        if hidden is not None:
            hidden = (hidden - self.hidden_mean) * self.hidden_scale
            features = torch.cat([features.expand(len(hidden), -1), hidden], dim=1)
        return self.head(features).squeeze(1)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a policy file holds: two networks, each with its rule, and what they were fitted on.

    Attributes:
        width: D of the visual embeddings. hidden_width: D_lm of the prefill's last hidden state.
        default: "visual" or "question", the network that `PolicyModel.predict` asks.
        tau: radians of the adaptive pruning that it was fitted under. rho: the mean rho that tau was chosen for.
        fingerprint: `weights_sha256` of the backbone. metadata: plain values, for the reader.
        networks, rules: by name, "visual" and "question".
    """

    width: int
    hidden_width: int
    default: str
    tau: float
    rho: float
    fingerprint: str
    metadata: dict[str, Any]
    networks: dict[str, Network]
    rules: dict[str, Rule]

    def save(self, path: str | Path) -> None:
        """Write the file under another name, then rename it. Tensors and plain values only."""
        content = {"format": FORMAT, "version": VERSION}
        content |= {name: value for name, value in vars(self).items() if name not in ("networks", "rules")}
        content["metadata"] = json.loads(json.dumps(self.metadata))  # plain: torch's version is a class of its own
        content["networks"] = {
            name: {"weights": network.state_dict(), "rule": asdict(self.rules[name])}
            for name, network in self.networks.items()
        }
        part = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part")
        torch.save(content, part)
        os.replace(part, path)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a policy file, trusting nothing in it.

    Raises:
        ValueError: no such file, not a policy, damaged, of another version, or holding what no fitting wrote.
    """
    path = check_file(path)
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
    except Exception:  # what is no archive of tensors fails in any way, and a hostile pickle's words are its own
        raise ValueError(f"{path} is not a policy checkpoint: it cannot be read as tensors and plain values") from None
    try:
        return _checked(content)
    except Exception as error:  # whatever stands where something else is expected
        reason = error if isinstance(error, ValueError) else "a part of it is missing or of another kind"
        raise ValueError(f"{path} is not a policy checkpoint: {str(reason).splitlines()[0]:.200}") from None


def _checked(content: dict) -> Checkpoint:
    if type(content) is not dict or type(content.get("format")) is not str or content["format"] != FORMAT:
        raise ValueError("it is something else")
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise ValueError(f"it has format version {content.get('version')!r:.20}, this program reads {VERSION}")
    width, hidden_width = content["width"], content["hidden_width"]
    if not all(type(value) is int and 1 <= value <= 2**16 for value in (width, hidden_width)):
        raise ValueError("its widths are no widths")
    tau, rho = content["tau"], content["rho"]
    if not all(type(value) is float for value in (tau, rho)) or not (0 < tau < math.pi and 0 <= rho <= 1):
        raise ValueError("its tau or rho is out of range")
    fingerprint, metadata = content["fingerprint"], content["metadata"]
    if type(fingerprint) is not str or type(metadata) is not dict or content["default"] not in ("visual", "question"):
        raise ValueError("its description is damaged")
    json.dumps(metadata)  # raises for what is not plain
    networks, rules = {}, {}
    for name, hidden in (("visual", None), ("question", hidden_width)):
        held = content["networks"][name]
        with torch.device("meta"):  # nothing of this size is made before it is known to be there
            network = Network(width, hidden)
        weights, wanted = held["weights"], network.state_dict()
        if weights.keys() != wanted.keys() or any(weights[key].shape != wanted[key].shape for key in wanted):
            raise ValueError(f"its {name} network has another form")
        if not all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in weights.values()):
            raise ValueError(f"its {name} network has weights that are not finite float32")
        network.load_state_dict(weights, assign=True)
        networks[name] = network.eval().requires_grad_(False)
        rule = {field: tuple(values) for field, values in dict(held["rule"]).items()}
        rules[name] = Rule(**rule)
    return Checkpoint(width, hidden_width, content["default"], tau, rho, fingerprint, metadata, networks, rules)


class PolicyModel:
    """Says how many rollouts a query is worth.

    Attributes:
        tau: radians; full AVIS prunes by it. rho: the mean rho that tau was fitted for.
        width: D of the visual embeddings. hidden_width: D_lm when `predict` reads the prefill's last hidden state,
            None when it looks at the visual embeddings alone.
        fingerprint: SHA-256 of the backbone's weights. metadata: how it was fitted, and how well.
        sha256: of the file.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu"):
        """Raises ValueError or OSError, with one line, for a file that is not a policy."""
        held = read_checkpoint(path)
        self.tau, self.rho, self.width = held.tau, held.rho, held.width
        self.hidden_width = held.hidden_width if held.default == "question" else None
        self.fingerprint, self.metadata = held.fingerprint, held.metadata
        self.sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        self.device = torch.device(device)
        self._default, self._rules = held.default, held.rules
        self._networks = {name: network.to(self.device) for name, network in held.networks.items()}

    def check(self, width: int, fingerprint: str | None) -> str | None:
        """Whether this policy is for a backbone.

        Args:
            width: of its visual embeddings. fingerprint: `weights_sha256` of its weights; None: not known.

        Returns:
            One line of warning for other weights of the same width, else None. Raises ValueError for another width.
        """
        if width != self.width:
            raise ValueError(
                f"this policy reads embeddings of width {self.width}, the model's have {width}: fit one for it with "
                f"{COMMANDS}"
            )
        if fingerprint != self.fingerprint:
            return (
                f"the policy was fitted on other weights ({self.fingerprint[:12]}, the model's are "
                f"{str(fingerprint)[:12]}): its p may be off, and so may tau"
            )
        return None

    def predict(self, items: Sequence[torch.Tensor], hidden: torch.Tensor | None = None) -> Prediction:
        """p and K of one query.

        Args:
            items: the query's images and videos, each `(N_i, D)`: unpruned, in raster order. Their order and their
                number of tokens may be any.
            hidden: `(1, D_lm)`, the prefill's last hidden state. Needed when `hidden_width` is set, else not looked at.

        Returns:
            The `Prediction`. Raises ValueError for no items, wrong shapes, and values that are not finite.
        """
        if self._default == "visual":
            return self._predict("visual", items, None)
        if hidden is None or tuple(hidden.shape) != (1, self.hidden_width):
            shape = None if hidden is None else tuple(hidden.shape)
            raise ValueError(f"this policy reads the last hidden state, (1, {self.hidden_width}), got {shape}")
        return self._predict("question", items, hidden)

    def __call__(self, embeds: torch.Tensor | Sequence[torch.Tensor]) -> int | list[int]:
        """K of each visual item, from its embeddings alone.

        Args:
            embeds: `(B, N, D)`, or a list of `(N_i, D)` of unequal sizes.

        Returns:
            An int for one item, else a list of them. Raises ValueError as `predict` does.
        """
        chosen = [self._predict("visual", [item], None).num_rollouts for item in embeds]
        return chosen[0] if len(chosen) == 1 else chosen

    @torch.no_grad()
    def _predict(self, name: str, items: Sequence[torch.Tensor], hidden: torch.Tensor | None) -> Prediction:
        if len(items) == 0:
            raise ValueError("the policy looks at images and videos, and there are none")
        for item in items:
            if item.ndim != 2 or item.shape[0] == 0 or item.shape[1] != self.width:
                raise ValueError(f"a visual item's embeddings are (N, {self.width}), got {tuple(item.shape)}")
        inputs = [item.to(self.device, torch.float32) for item in items]
        if hidden is not None:
            hidden = hidden.to(self.device, torch.float32)
        p = self._networks[name](inputs, hidden).sigmoid().item()
        if not math.isfinite(p):
            raise ValueError("the embeddings are not finite: use another dtype")
        return self._rules[name].predict(p)
