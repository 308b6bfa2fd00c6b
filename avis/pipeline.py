"""From images, videos and a question to one `AvisOutput`: AVIS's stages in order, each a function of `avis.steps`.

    image or video + question -> processor -> prefill (keys -> kept indices -> pruned prompt -> cache)
                              -> policy -> K -> rollouts -> vote -> AvisOutput

`AvisPipeline` owns what a query needs and answers queries; `answer()` is the same with everything passed in::

    avis = AvisPipeline.from_pretrained("models/garden-tiny", policy="policy_checkpoint.pt")
    output = avis("example.jpg", "How many wooden rabbits are wearing glasses?", enable_kdv=True, num_rollouts=5)
    print(output.answer, output.votes)

A follow-up reads its own turn alone, and gives the same answer as the whole chat asked anew::

    first = avis(messages, enable_kdv=True, return_state=True)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And dogs?"}]
    print(avis(messages, enable_kdv=True, previous=first).answer)
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Qwen2_5_VLForConditionalGeneration

from avis import steps
from avis.config import AvisConfig
from avis.inputs import as_messages
from avis.loading import load_model
from avis.outputs import AvisOutput
from avis.provenance import quick_fingerprint, weights_path
from avis.session import ConversationState, VisionCache

if TYPE_CHECKING:
    from policy.policy_model import PolicyModel


class AvisPipeline:
    """A loaded model with its processor, policy and vision cache.

    Attributes:
        model: the language model with its vision encoder, in eval mode.
        processor: the model's.
        policy: chooses K; None: K is the configuration's.
        vision_cache: the last query's encoded images and videos.
        policy_warning: one line when the policy was fitted on another backbone; else None.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor, policy: "PolicyModel | None" = None):
        """Take what was loaded. Warns (UserWarning) of a policy of another backbone.

        Raises:
            ValueError: a policy of another width.
        """
        self.model, self.processor, self.policy = model, processor, policy
        self.vision_cache = VisionCache()
        self.policy_warning = _check_policy(policy, model)
        if self.policy_warning:
            warnings.warn(self.policy_warning, stacklevel=2)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        policy: "str | Path | PolicyModel | None" = None,
        engine: str = "transformers",
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str = "auto",
    ) -> "AvisPipeline":
        """Load a model and, when given, a policy.

        Args:
            path: as in `load_model`, and so are `device`, `dtype` and `attn_implementation`.
            policy: a policy checkpoint's path, or a loaded one.
            engine: "transformers", the only one so far.
            device: as in `load_model`.
            dtype: as in `load_model`.
            attn_implementation: as in `load_model`.

        Raises:
            ValueError, OSError, MemoryError: with one line, as `load_model`, and for a policy of another width.
        """
        if engine != "transformers":
            raise ValueError(f"engine must be transformers, got {engine!r:.100}")
        if not isinstance(policy, (str, Path)):
            return cls(*load_model(path, device, dtype, attn_implementation), policy)
        from policy.policy_model import PolicyModel

        PolicyModel(policy)  # what is wrong with it is reported before the wait for the model
        model, processor = load_model(path, device, dtype, attn_implementation)
        return cls(model, processor, PolicyModel(policy, model.device))

    def __call__(
        self,
        inputs: Any,
        question: str | None = None,
        *,
        config: AvisConfig | None = None,
        query_index: int = 0,
        previous: AvisOutput | None = None,
        return_state: bool = False,
        streamer: Any = None,
        **fields: Any,
    ) -> AvisOutput:
        """Answer a question about an image or video, or a chat.

        Args:
            inputs: an image or video file, a PIL image, an array, a list of images (the frames of one video), or a chat
                as `answer` takes it.
            question: about the image or video; None for a chat.
            config: how much to spend; None: `AvisConfig()`.
            query_index: as in `answer`, and so are `previous`, `return_state` and `streamer`.
            previous: as in `answer`.
            return_state: as in `answer`.
            streamer: as in `answer`.
            **fields: fields of `AvisConfig`, which replace those of `config`.

        Returns:
            An `AvisOutput`.

        Raises:
            ValueError, OSError, MemoryError: as `answer`, and for a field that `AvisConfig` does not have.
        """
        unknown = [name for name in fields if name not in AvisConfig.__dataclass_fields__]
        if unknown:
            raise ValueError(f"AvisConfig has no field {unknown[0]!r:.100}")
        if config is not None:
            _check_config(config)
        return _answer(
            self.model,
            self.processor,
            as_messages(inputs, question),
            config=replace(config or AvisConfig(), **fields),
            query_index=query_index,
            vision_cache=self.vision_cache,
            policy=self.policy,
            previous=previous,
            return_state=return_state,
            streamer=streamer,
        )


def answer(
    model: Qwen2_5_VLForConditionalGeneration,
    processor,
    messages: list[dict],
    config: AvisConfig = AvisConfig(),
    query_index: int = 0,
    vision_cache: VisionCache | None = None,
    policy: "PolicyModel | None" = None,
    previous: AvisOutput | None = None,
    return_state: bool = False,
    streamer: Any = None,
) -> AvisOutput:
    """Answer one question about images and videos.

    Args:
        model: from `load_model`, or any Qwen2.5-VL loaded through the fork.
        processor: the model's.
        messages: a chat in Transformers' form; the content of a turn is text or a list of parts
            `{"type": "image", "image": ..}`, `{"type": "video", "video": ..}` and `{"type": "text", "text": ..}`, in
            any order. An image is a path, a PIL image, an array or a data URI (`read_image`); a video is a path or a
            list of images, `"fps"` of them a second (2 when the part does not say). An image or video may have the keys
            of qwen-vl-utils in `avis.messages.PART_KEYS`, which replace `config`'s bounds and sampling; any other key
            is refused.
        config: how much to spend.
        query_index: the query's number in its set; with `config.seed` it fixes the rollouts' randomness.
        vision_cache: of the last query, replaced by this one's. Images and videos that are the same, pixel by pixel,
            are not encoded again; the answer is the same as without, and its FLOPs are those of the whole query.
        policy: chooses K and, with KDV on and neither ratio nor threshold given, the threshold. It warns
            (UserWarning) when it was fitted on another backbone.
        previous: the output of the chat's earlier turns, made with `return_state`: what it has read is not read again.
            `messages` are then the whole chat: those turns as they were, the reply, and a new turn of text.
        return_state: for a follow-up; the output then keeps the prompt's cache, and with it memory of the device.
        streamer: has `start(num_rollouts)`, `put(steps)` with (rollout index, new token, whether it ended) per running
            rollout, and `end()`; called while rollouts are decoded.

    Returns:
        An `AvisOutput`.

    Raises:
        ValueError: input that cannot be read, a policy of another width, or a chat that does not continue `previous`.
        OSError: a file that cannot be read.
        MemoryError: with what to lower. All with one line.
    """
    _check_config(config)
    warning = _check_policy(policy, model)
    if warning:
        warnings.warn(warning, stacklevel=2)
    return _answer(
        model, processor, messages, config, query_index, vision_cache, policy, previous, return_state, streamer
    )


def _answer(
    model,
    processor,
    messages: list[dict],
    config: AvisConfig,
    query_index: int,
    vision_cache: VisionCache | None,
    policy: "PolicyModel | None",
    previous: AvisOutput | None,
    return_state: bool,
    streamer: Any,
) -> AvisOutput:
    """Run the six steps of `answer` with a policy that was checked."""
    query = steps.resolve(model, processor, messages, config, query_index, policy, previous)
    prefill = steps.prefill(model, query, vision_cache)
    choice = steps.choose_k(policy, query, prefill)
    rollouts = steps.rollout(model, processor, query, prefill, choice, streamer)
    ballot = steps.vote(processor, query, rollouts)
    output = steps.build_output(model, processor, query, prefill, choice, rollouts, ballot)
    if not return_state:
        return output
    return replace(output, state=ConversationState(model, prefill, query.pruning, query.visual_inputs))


def _check_config(config: AvisConfig) -> None:
    if not isinstance(config, AvisConfig):
        raise ValueError(f"config must be an AvisConfig, got {type(config).__name__}")


def _check_policy(policy: "PolicyModel | None", model) -> str | None:
    """Return one line of warning for another backbone of the same width. Raises ValueError for another width."""
    if policy is None:
        return None
    return policy.check(model.config.vision_config.out_hidden_size, quick_fingerprint(weights_path(model)))
