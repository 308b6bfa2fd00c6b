"""The losses that the garden's models are trained on, and what progress shows of them."""

import torch
import torch.nn.functional as F

from avis.garden.labels import LABEL_CLASSES, LABEL_NAMES

# Few tokens lie on letters, tags or moving animals: these labels count more.
_RARE_LABELS = {"glyph", "place", "price", "move", "height"}
# A misread digit spoils an answer that no vote can repair; an absolute place need only be about right.
_LABEL_WEIGHTS = {"price": 4.0, "glyph": 2.0, "height": 2.0, "column": 0.25, "row": 0.25, "step": 0.5}


def token_weights(labels: torch.Tensor) -> torch.Tensor:
    """Return the loss weight of visual tokens, (tokens,): 1 on things, 0.2 on the ground.

    Args:
        labels: (tokens, labels), see `labels.dense_labels`.
    """
    return torch.where(labels.amax(1) > 0, 1.0, 0.2)


def one_hot_labels(labels: torch.Tensor) -> torch.Tensor:
    """Return (tokens, sum(LABEL_CLASSES)) float32, one class of each label, for labels (tokens, labels)."""
    parts = [F.one_hot(part, count) for part, count in zip(labels.unbind(-1), LABEL_CLASSES, strict=True)]
    return torch.cat(parts, dim=-1).float()


def dense_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the weighed sum of the dense labels' cross-entropies, and each one's accuracy where it is not 0.

    Args:
        logits: (tokens, sum(LABEL_CLASSES)).
        labels: (tokens, labels).
    """
    weights = token_weights(labels)
    loss = logits.new_zeros((), dtype=torch.float)
    accuracy = {}
    parts = logits.split(LABEL_CLASSES, dim=-1)
    for name, part, target in zip(LABEL_NAMES, parts, labels.unbind(-1), strict=True):
        losses = F.cross_entropy(part.float(), target, reduction="none")
        own = weights * torch.where(target > 0, 4.0 if name in _RARE_LABELS else 1.0, 1.0)
        loss = loss + _LABEL_WEIGHTS.get(name, 1.0) * (losses * own).sum() / own.sum().clamp_min(1)
        accuracy[name] = (part.argmax(-1) == target)[target > 0].float().mean()
    return loss, accuracy


def alignment_loss(features: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the weighted squared distance of features from targets, as a share of the targets' variance.

    Args:
        features: (tokens, D).
        targets: (tokens, D), without gradients.
        labels: (tokens, labels).
    """
    weights = token_weights(labels)[:, None]
    distance = (weights * (features - targets) ** 2).sum() / weights.sum()
    return distance / targets.var(0).sum()


def response_loss(
    logits: torch.Tensor, targets: torch.Tensor, eos_token_id: int, separator_id: int, conclusion_weight: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the cross-entropy of responses, and for progress its plain mean and the share of exact responses.

    Args:
        logits: (tokens, vocabulary) float32, response after response.
        targets: (tokens,); each response ends with the end token.
        eos_token_id: the end token.
        separator_id: the token between the parts of a trace.
        conclusion_weight: of tokens after a trace's last separator; others count 1.
    """
    losses = F.cross_entropy(logits, targets, reduction="none")
    is_right = logits.argmax(-1) == targets
    # A response is exact when every token of it is right.
    ends = targets == eos_token_id
    number = torch.cumsum(ends, 0) - ends.long()
    wrong = torch.zeros(int(ends.sum()), device=targets.device).index_add_(0, number, (~is_right).float())
    weights = torch.where(conclusion_mask(targets, number, separator_id), conclusion_weight, 1.0)
    loss = (weights * losses).sum() / weights.sum()
    return loss, {"loss": losses.detach().mean(), "exact": (wrong == 0).float().mean()}


def conclusion_mask(targets: torch.Tensor, number: torch.Tensor, separator_id: int) -> torch.Tensor:
    """Return which tokens follow their response's last separator; without a separator, all.

    Args:
        targets: (tokens,), response after response.
        number: (tokens,), of each token's response, from 0.
        separator_id: the token between the parts of a trace.

    Returns:
        (tokens,) bool.
    """
    is_separator = (targets == separator_id).long()
    passed = torch.cumsum(is_separator, 0)  # over all responses so far
    by_its_end = torch.zeros_like(passed).scatter_reduce_(0, number, passed, "amax", include_self=True)
    return (passed == by_its_end[number]) & (is_separator == 0)
