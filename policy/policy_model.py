"""From a query's visual embeddings to its solvability p, and from p to K rollouts::

    policy = PolicyModel("policy_checkpoint.pt")
    policy(embeds)                                                        # (1, N, D) -> K
    policy.predict([item.embeds for item in prefill.visual_items], prefill.last_hidden_state)

p estimates the probability that one sampled rollout is right. A piecewise-constant rule, which is fitted, maps it to K
(AVIS, Jeddi et al. 2026, arXiv 2606.11576). `python -m policy.training` makes the checkpoint.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from policy.binning import CHOICES, BinningRule, Prediction
from policy.checkpoint import FITTING_COMMANDS, PolicyCheckpoint, read_checkpoint

__all__ = ["CHOICES", "BinningRule", "PolicyCheckpoint", "PolicyModel", "Prediction", "read_checkpoint"]


class PolicyModel:
    """A fitted policy, which predicts how many rollouts a query is worth.

    Attributes:
        tau: angle in radians; full AVIS prunes by it.
        rho: the mean rho that tau was fitted for.
        width: D of the visual embeddings.
        hidden_width: D_lm when `predict` reads the prefill's last hidden state; None when it reads the visual
            embeddings alone.
        weights_sha256: SHA-256 of the weights of the backbone that it was fitted on.
        fingerprint: quick fingerprint of the same weights.
        metadata: how it was fitted, and how well.
        sha256: SHA-256 of the policy file.
        device: that the networks run on.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu"):
        """Load a policy file.

        Args:
            path: of the file.
            device: to run the networks on.

        Raises:
            ValueError, OSError: the file is not a policy, in one line.
        """
        checkpoint = read_checkpoint(path)
        self.tau, self.rho, self.width = checkpoint.tau, checkpoint.rho, checkpoint.width
        self.hidden_width = checkpoint.hidden_width if checkpoint.default == "question" else None
        self.weights_sha256, self.fingerprint = checkpoint.weights_sha256, checkpoint.fingerprint
        self.metadata = checkpoint.metadata
        self.sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        self.device = torch.device(device)
        self._default, self._rules = checkpoint.default, checkpoint.rules
        self._networks = {name: network.to(self.device) for name, network in checkpoint.networks.items()}

    def check(self, width: int, fingerprint: str | None) -> str | None:
        """Return whether this policy fits a backbone.

        Args:
            width: of the backbone's visual embeddings.
            fingerprint: quick fingerprint of its weights (`avis.provenance.quick_fingerprint`); None: not known.

        Returns:
            One line of warning for other weights of the same width, else None.

        Raises:
            ValueError: the backbone has another width.
        """
        if width != self.width:
            raise ValueError(
                f"this policy reads embeddings of width {self.width}, the model's have {width}: fit one for it with "
                f"{FITTING_COMMANDS}"
            )
        if fingerprint != self.fingerprint:
            return (
                f"the policy was fitted on other weights (fingerprint {self.fingerprint[:12]}, the model's is "
                f"{str(fingerprint)[:12]}): its p may be off, and so may tau"
            )
        return None

    def predict(self, items: Sequence[torch.Tensor], hidden: torch.Tensor | None = None) -> Prediction:
        """Return p and K of one query.

        Args:
            items: the query's images and videos, each `(N_i, D)`: unpruned, in raster order. Any number of items and
                tokens, in any order of items.
            hidden: `(1, D_lm)`, the prefill's last hidden state. Needed when `hidden_width` is set, else ignored.

        Raises:
            ValueError: no items, wrong shapes, or values that are not finite.
        """
        if self._default == "visual":
            return self._predict("visual", items, None)
        if hidden is None or tuple(hidden.shape) != (1, self.hidden_width):
            shape = None if hidden is None else tuple(hidden.shape)
            raise ValueError(f"this policy reads the last hidden state, (1, {self.hidden_width}), got {shape}")
        return self._predict("question", items, hidden)

    def __call__(self, embeds: torch.Tensor | Sequence[torch.Tensor]) -> int | list[int]:
        """Return K of each visual item, from its embeddings alone.

        Args:
            embeds: `(B, N, D)`, or a list of `(N_i, D)` of unequal sizes.

        Returns:
            An int for one item, else a list of them.

        Raises:
            ValueError: as `predict`.
        """
        counts = [self._predict("visual", [item], None).num_rollouts for item in embeds]
        return counts[0] if len(counts) == 1 else counts

    @torch.no_grad()
    def _predict(self, name: str, items: Sequence[torch.Tensor], hidden: torch.Tensor | None) -> Prediction:
        if len(items) == 0:
            raise ValueError("the policy reads images and videos, and there are none")
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
