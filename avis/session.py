"""What one query leaves for the next: encoded images and videos, and the state of a conversation."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.models.qwen2_5_vl.key_diversity import VisualItem
from transformers.models.qwen2_5_vl.shared_prefill import Prefill


@dataclass
class VisionCache:
    """Encoded images and videos of the last query: the next query reuses them when it shows the same.

    Attributes:
        model: that encoded them.
        pixels: the processor's pixel values and grids, on the CPU.
        items: images, then videos, encoded.
        kept: per item the ascending indices of the kept tokens.
    """

    model: Any = None
    pixels: dict[str, torch.Tensor] = field(default_factory=dict)
    items: tuple[VisualItem, ...] = ()
    kept: tuple[torch.Tensor, ...] = ()

    def has(self, model: Any, pixels: dict[str, torch.Tensor], needs_keys: bool) -> bool:
        """Return whether the cached items are what `model` makes of these pixels, with their keys if needed."""
        return (
            self.model is model
            and bool(pixels)
            and _are_equal(pixels, self.pixels)
            and not (needs_keys and any(item.keys is None for item in self.items))
        )

    def store(self, model: Any, pixels: dict[str, torch.Tensor], prefill: Prefill) -> None:
        """Replace what is cached by the items of a query."""
        self.model, self.pixels, self.items, self.kept = model, pixels, prefill.visual_items, prefill.kept


@dataclass(frozen=True, eq=False)
class ConversationState:
    """What a follow-up starts from.

    Attributes:
        model: that read the prompt.
        prefill: the prompt as read.
        pruning: how it was pruned: keyword arguments of `model.prefill`.
        visual_inputs: the processor's pixel values, grids and frame times, on the CPU.
    """

    model: Any
    prefill: Prefill
    pruning: dict[str, Any]
    visual_inputs: dict[str, torch.Tensor]

    def new_tokens(
        self, model: Any, input_ids: torch.Tensor, pruning: dict[str, Any], visual_inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the tokens `(1, n)` that the chat adds to what was read.

        Args:
            model: of the follow-up.
            input_ids: `(1, L)`, the whole chat.
            pruning: as in the attribute.
            visual_inputs: as in the attribute.

        Raises:
            ValueError: the chat does not continue this state, or another model, pruning or image is given.
        """
        if model is not self.model:
            raise ValueError("previous: that output is another model's")
        if pruning != self.pruning:
            raise ValueError(f"previous: a follow-up is pruned as its first turn was, {self.pruning}, got {pruning}")
        if not _are_equal(visual_inputs, self.visual_inputs):
            raise ValueError("previous: a follow-up shows the images and videos of its first turn, and no others")
        length = self.prefill.prompt_length
        if input_ids.shape[1] <= length or not torch.equal(input_ids[:, :length], self.prefill.input_ids.cpu()):
            raise ValueError(
                "previous: the chat does not begin with the answered one: pass that chat, its reply, and a new turn"
            )
        return input_ids[:, length:]


def _are_equal(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
