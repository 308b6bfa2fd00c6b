"""The optimisers of a training: Muon for the matrices of layers, AdamW for all else, saved and stepped as one.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix, so that every direction learns
at the same rate. On small language models it needs a fraction of AdamW's batches (docs/lab-notebook/votes.md).
"""

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from avis.garden.training.stages import Stage

# Its rate over AdamW's, when a step is as large as AdamW's (`match_rms_adamw`).
MUON_FACTOR = 2.5
_WEIGHT_DECAY = 0.02


class Optimisers:
    """Muon and AdamW over a model, its heads and its label embeddings.

    Attributes:
        muon: matrices of the vision encoder's and of the language model's layers, a group each.
        adamw: the rest of both, the heads and the label embeddings, a group each.
    """

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        heads: torch.nn.Module,
        label_embeddings: torch.nn.Parameter,
    ):
        encoder, layers = model.visual, model.model.language_model.layers
        vision_matrices = [parameter for parameter in encoder.blocks.parameters() if parameter.ndim == 2]
        text_matrices = [parameter for parameter in layers.parameters() if parameter.ndim == 2]
        seen = {id(parameter) for parameter in (*vision_matrices, *text_matrices)}
        vision_rest = [parameter for parameter in encoder.parameters() if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in vision_rest}
        text_rest = [parameter for parameter in model.parameters() if id(parameter) not in seen]
        self.muon = torch.optim.Muon(
            [{"params": vision_matrices}, {"params": text_matrices}],
            weight_decay=_WEIGHT_DECAY,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = torch.optim.AdamW(
            [
                {"params": vision_rest},
                {"params": text_rest},
                {"params": list(heads.parameters())},
                {"params": [label_embeddings], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            weight_decay=_WEIGHT_DECAY,
        )

    def parameters_with_gradients(self) -> list[torch.nn.Parameter]:
        """Return the parameters that the last backward pass reached."""
        groups = self.muon.param_groups + self.adamw.param_groups
        return [parameter for group in groups for parameter in group["params"] if parameter.grad is not None]

    def set_learning_rates(self, stage: Stage, batch: int) -> None:
        """Set the rates of encoder, language model, heads and label embeddings for a batch of a stage."""
        vision, text = (stage.learning_rate(peak, batch) for peak in (stage.vision_lr, stage.text_lr))
        for group, rate in zip(self.muon.param_groups, (vision, text), strict=True):
            group["lr"] = MUON_FACTOR * rate
        for group, rate in zip(
            self.adamw.param_groups, (vision, text, 5 * vision, 0.0 if stage.has_images else text), strict=True
        ):
            group["lr"] = rate

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimiser in (self.muon, self.adamw):
            optimiser.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Change the parameters that have gradients."""
        for optimiser in (self.muon, self.adamw):
            optimiser.step()

    def state_dict(self) -> dict[str, dict]:
        """Return the states of both, by their names."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Take over what `state_dict` returned."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
