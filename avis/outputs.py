"""What a query gives back: `AvisOutput` and its parts, frozen and JSON-ready by `to_dict()`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from avis.config import AvisConfig
from avis.provenance import versions, weights_sha256

if TYPE_CHECKING:
    from transformers.models.qwen2_5_vl.shared_prefill import Prefill, Rollouts

    from avis.session import ConversationState


@dataclass(frozen=True)
class VisualItemOutput:
    """What was kept of one image or video.

    Attributes:
        kind: "image" or "video".
        total: merged visual tokens.
        kept: tokens that the language model read.
        rho: fraction pruned.
    """

    kind: str
    total: int
    kept: int
    rho: float


@dataclass(frozen=True)
class RolloutOutput:
    """One rollout.

    Attributes:
        text: what it generated.
        answer: read from the text; None: it abstains, or was stopped.
        tokens: number of new tokens.
        finished: whether it ended by itself.
        stopped: whether it was stopped, or never begun, because the vote was decided.
        mean_logprob: mean log-probability of its tokens under the model's own distribution, before temperature and
            top-p; None without tokens.
        vote: the canonical form under which its answer was counted; None: it abstains, or was stopped.
    """

    text: str
    answer: str | None
    tokens: int
    finished: bool
    stopped: bool = False
    mean_logprob: float | None = None
    vote: str | None = None


@dataclass(frozen=True)
class AvisOutput:
    """The outcome of one query.

    Attributes:
        text: text of the rollout that stands for the winner; of the first rollout when all abstain.
        answer: the voted answer, as that rollout wrote it; None when all abstain.
        votes: votes per canonical answer, in order of first appearance; sums of weights when votes are weighted.
        rollouts: every rollout, by index.
        num_rollouts: K.
        stopped_rollouts: how many rollouts were stopped or never begun.
        new_tokens: tokens decoded, by all rollouts together.
        p: the policy's solvability; None without a policy.
        bin: the bin of the policy's rule that p falls into; None without a policy.
        items: images, then videos.
        rho: fraction pruned of all items' tokens together.
        prompt_tokens: length of the prompt before pruning.
        kept_tokens: length of the prompt after pruning.
        reused_tokens: kept tokens that earlier turns of the conversation had already read.
        flops: by stage ("vision", "prefill", "decode"), and relative to vanilla (rho = 0, K = 1) in both accountings:
            "relative_llm" (the paper's #F) and "relative_total". Vanilla's length is the mean length of the rollouts
            that were not stopped; shorter rollouts end first, so early stopping makes vanilla look cheaper. A
            follow-up's FLOPs are those of its own turn, while vanilla reads the whole chat, images included.
        seconds: by stage; "policy" with a policy.
        cache_bytes: largest size of the decoding cache.
        backend: dtype, device and attention implementation.
        pixel_bounds: least and most pixels of images and of video frames, as applied.
        policy_sha256: SHA-256 of the policy's file; None without a policy.
        config: of the query.
        query_index: the query's number in its set; with `config.seed` it fixes the rollouts' randomness.
        model_path: folder or hub name of the model.
        state: what a follow-up starts from, when asked for with `return_state`; no part of the record.
    """

    text: str
    answer: str | None
    votes: dict[str, float]
    rollouts: tuple[RolloutOutput, ...]
    num_rollouts: int
    stopped_rollouts: int
    new_tokens: int
    p: float | None
    bin: int | None
    items: tuple[VisualItemOutput, ...]
    rho: float
    prompt_tokens: int
    kept_tokens: int
    reused_tokens: int
    flops: dict[str, float]
    seconds: dict[str, float]
    cache_bytes: int
    backend: dict[str, str]
    pixel_bounds: dict[str, tuple[int, int]]
    policy_sha256: str | None
    config: AvisConfig
    query_index: int
    model_path: str
    state: "ConversationState | None" = field(default=None, repr=False, compare=False)

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 of the model's weights, computed when asked for; None for a model that came from no files."""
        return weights_sha256(self.model_path)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready dictionaries and lists, with versions and the hash of the weights."""
        values = {name: value for name, value in vars(self).items() if name != "state"}
        values["config"] = asdict(self.config)
        values["rollouts"] = [asdict(rollout) for rollout in self.rollouts]
        values["items"] = [asdict(item) for item in self.items]
        values |= {"versions": versions(), "weights_sha256": self.weights_sha256}
        return json.loads(json.dumps(values))  # tuples become lists


def visual_item_outputs(prefill: "Prefill") -> tuple[VisualItemOutput, ...]:
    """Return what was kept of each image and video of a prefill."""
    found = []
    for item, kept in zip(prefill.visual_items, prefill.kept, strict=True):
        total = len(item.embeds)
        found.append(VisualItemOutput(item.kind, total, len(kept), 1 - len(kept) / total))
    return tuple(found)


def pruned_fraction(items: Sequence[VisualItemOutput]) -> float:
    """Return the fraction of all items' tokens that was pruned; 0 without items."""
    return 1 - sum(item.kept for item in items) / sum(item.total for item in items) if items else 0.0


def rollout_outputs(
    rollouts: "Rollouts", texts: Sequence[str], answers: Sequence[str | None], votes: Sequence[str | None]
) -> tuple[RolloutOutput, ...]:
    """Return each rollout with its text, the answer read from it, and the form under which that was counted."""
    return tuple(
        RolloutOutput(
            text=texts[index],
            answer=answers[index],
            tokens=len(tokens),
            finished=rollouts.finished[index],
            stopped=rollouts.stopped[index],
            mean_logprob=rollouts.mean_logprobs[index],
            vote=votes[index],
        )
        for index, tokens in enumerate(rollouts.tokens)
    )
