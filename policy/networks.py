"""The network that predicts solvability from visual embeddings and, in its question-aware form, a hidden state::

network = SolvabilityNetwork(width=3584)
p = network([item.embeds.float() for item in prefill.visual_items]).sigmoid()        # (1,)
"""

from collections.abc import Sequence

import torch
from torch import nn

CHANNELS, GROUPS, DROPOUT = 48, 8, 0.1


class SolvabilityNetwork(nn.Module):
    """Blocks of 1-D convolution, GroupNorm and SiLU over an item's tokens, global average pooling, and a 2-layer MLP.

    The question-aware form has the MLP read the prefill's last hidden state as well. Inputs are standardised by
    channel, with means and scales of the data that the network was fitted on.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    hidden_mean: torch.Tensor
    hidden_scale: torch.Tensor

    def __init__(self, width: int, hidden_width: int | None = None):
        """Make a network with random weights.

        Args:
            width: D of the visual embeddings.
            hidden_width: D_lm of the last hidden state; None: the network reads visual embeddings alone.
        """
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        if hidden_width is not None:
            self.register_buffer("hidden_mean", torch.zeros(hidden_width))
            self.register_buffer("hidden_scale", torch.ones(hidden_width))
        layers: list[nn.Module] = []
        for inputs, kernel in ((width, 1), (CHANNELS, 3), (CHANNELS, 3)):
            layers.append(nn.Conv1d(inputs, CHANNELS, kernel, padding=kernel // 2))
            layers.append(nn.GroupNorm(GROUPS, CHANNELS))
            layers.append(nn.SiLU())
        self.blocks = nn.Sequential(*layers)
        first = nn.Linear(CHANNELS + (hidden_width or 0), CHANNELS)
        self.head = nn.Sequential(nn.Dropout(DROPOUT), first, nn.SiLU(), nn.Linear(CHANNELS, 1))

    def forward(self, items: Sequence[torch.Tensor], hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits of Q questions about the same items.

        Args:
            items: images and videos of a query, each `(N_i, D)` float32. They run one by one, because GroupNorm would
                see padding, and their pooled features are averaged.
            hidden: `(Q, D_lm)` float32, for a question-aware network; None is one question.

        Returns:
            `(Q,)`.
        """
        pooled = [self.blocks(((item - self.mean) * self.scale).T[None]).mean(dim=2) for item in items]
        features = torch.stack(pooled).mean(dim=0)
        if hidden is not None:
            hidden = (hidden - self.hidden_mean) * self.hidden_scale
            features = torch.cat([features.expand(len(hidden), -1), hidden], dim=1)
        return self.head(features).squeeze(1)
