"""From images, videos and a question to one `Answer`: the only composition of AVIS's stages, read top to bottom.

    image or video + question -> processor -> prefill (keys -> kept indices -> pruned prompt -> cache)
                              -> policy -> K -> rollouts -> vote -> Answer

The demo, the evaluation and the adapters all call `answer()`::

    model, processor = load("models/garden-tiny")
    messages = [{"role": "user", "content": [{"type": "image", "image": "example.jpg"},
                                             {"type": "text", "text": "How many cats are there?"}]}]
    first = answer(model, processor, messages, AvisSettings(enable_kdv=True, num_rollouts=5), keep=True)
    print(first.answer)

A follow-up reads its own turn alone, and is the same answer as of the whole chat asked anew::

    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And dogs?"}]
    print(answer(model, processor, messages, first.settings, after=first).answer)
"""

import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from jinja2 import TemplateError
from torchvision.transforms import InterpolationMode, functional
from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import flops
from transformers.models.qwen2_5_vl.key_diversity import VisualItem
from transformers.models.qwen2_5_vl.shared_prefill import Ended, Prefill
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.utils import is_flash_attn_2_available

from policy.checkpoint import check_model_folder
from policy.media import Clip, Picture, frames, open_clip, read_image, sample_indices
from policy.prompts import Profile, check_text, profile_for, with_instruction
from policy.settings import AvisSettings
from policy.vote import confidence, extract_answer, is_decided, majority_vote, normal_form

if TYPE_CHECKING:
    from policy.policy_model import PolicyModel, Prediction

# What the processor makes of pictures and videos; and of how long the videos' frames last.
PIXELS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
RATES = ("second_per_grid_ts",)
# Of a model on the hub: all that is fetched, which is neither code nor pickled; what shows that it is all there; and
# how long the hub may take to say that it has it.
_FETCHED = ("*.json", "*.jinja", "*.txt", "*.safetensors")
_SMALL = ("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")
HUB_SECONDS = 5.0


@dataclass(frozen=True)
class ItemReport:
    """What was kept of one image or video: `kept` of `total` merged visual tokens; `rho` is the fraction pruned."""

    kind: str
    total: int
    kept: int
    rho: float


@dataclass(frozen=True)
class RolloutReport:
    """One rollout.

    Attributes:
        text: what it wrote. answer: read from it; None: it abstains, or was stopped. tokens: new ones.
        finished: whether it ended itself. stopped: whether it was given up, or not begun, since the vote was decided.
        mean_logprob: of its tokens under the model's own distribution, before temperature and top-p; None for none.
    """

    text: str
    answer: str | None
    tokens: int
    finished: bool
    stopped: bool = False
    mean_logprob: float | None = None


@dataclass(frozen=True, eq=False)
class Turn:
    """What a follow-up to an answer starts from.

    Attributes:
        model: that read the prompt. prefill: the prompt as read. pruning: how, the arguments of `model.prefill`.
        shown: the processor's pixel values, grids and rates, on the CPU: what the follow-up has to show, too.
    """

    model: Any
    prefill: Prefill
    pruning: dict[str, Any]
    shown: dict[str, torch.Tensor]

    def new_tokens(self, model: Any, input_ids: torch.Tensor, pruning: dict, shown: dict) -> torch.Tensor:
        """The tokens `(1, n)` that a chat goes on with. Raises ValueError when it does not go on from here."""
        earlier = self.prefill.prompt_length
        goes_on = input_ids.shape[1] > earlier and torch.equal(input_ids[:, :earlier], self.prefill.input_ids.cpu())
        if model is not self.model:
            raise ValueError("after: that answer is another model's")
        if pruning != self.pruning:
            raise ValueError(f"after: a follow-up is pruned as the first turn was, {self.pruning}, got {pruning}")
        if not _are_same(shown, self.shown):
            raise ValueError("after: a follow-up shows the pictures and videos of the first turn, and no others")
        if not goes_on:
            raise ValueError("after: the chat does not begin with the one that was answered, its reply and a new turn")
        return input_ids[:, earlier:]


def _are_same(pixels: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return pixels.keys() == others.keys() and all(torch.equal(pixels[name], others[name]) for name in pixels)


@dataclass(frozen=True)
class Answer:
    """The outcome of one query.

    Attributes:
        text: the text of the rollout that stands for the winner (the first rollout when all abstain).
        answer: the voted answer, as that rollout wrote it; None when all abstain.
        votes: votes per normalised answer, in order of first appearance; of a vote by confidence the sums of weights.
        rollouts: every rollout, by index. num_rollouts: K.
        stopped_rollouts: how many of them were stopped or not begun. new_tokens: decoded, by all together.
        p, bin: the policy's solvability and the bin of its rule; None without a policy.
        items: images, then videos. rho: the fraction pruned of all their tokens together.
        prompt_tokens, kept_tokens: the prompt's length before and after pruning. reused_tokens: how many of the kept
            ones the turns before a follow-up had read.
        flops: by stage (vision, prefill, decode), and relative to vanilla (rho = 0, K = 1) in both accountings:
            `relative_llm` (the paper's #F) and `relative_total`. Vanilla's length is the mean length of the rollouts
            that were not stopped; shorter ones end first, so an early stop makes that, and vanilla, look cheaper.
            A follow-up's are those of its own turn; vanilla reads the whole chat, pictures included.
        seconds: by stage; "policy" with one. cache_bytes: the largest size of the decoding cache.
        backend: dtype, device and attention implementation. pixel_bounds: of pictures and of frames, as applied.
        versions, weights_sha256, policy_sha256, settings, item: with these, what is needed to make this answer again.
        turn: what a follow-up starts from, of an answer that was asked with `keep`; no part of the record.
    """

    text: str
    answer: str | None
    votes: dict[str, float]
    rollouts: tuple[RolloutReport, ...]
    num_rollouts: int
    stopped_rollouts: int
    new_tokens: int
    p: float | None
    bin: int | None
    items: tuple[ItemReport, ...]
    rho: float
    prompt_tokens: int
    kept_tokens: int
    reused_tokens: int
    flops: dict[str, float]
    seconds: dict[str, float]
    cache_bytes: int
    backend: dict[str, str]
    pixel_bounds: dict[str, tuple[int, int]]
    versions: dict[str, str]
    weights_sha256: str | None
    policy_sha256: str | None
    settings: AvisSettings
    item: int
    turn: Turn | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready dictionaries and lists."""
        record = asdict(replace(self, turn=None))
        del record["turn"]
        return json.loads(json.dumps(record))  # tuples become lists


@dataclass
class VisualMemory:
    """What the last query showed: for the next query, which encodes nothing anew if it shows the same, and to look at.

    Attributes:
        model: that encoded it. pixels: the processor's pixel values and grids, on the CPU.
        items: images, then videos, encoded. kept: per item the ascending indices of the tokens that were kept.
    """

    model: Any = None
    pixels: dict[str, torch.Tensor] = field(default_factory=dict)
    items: tuple[VisualItem, ...] = ()
    kept: tuple[torch.Tensor, ...] = ()

    def holds(self, model: Any, pixels: dict[str, torch.Tensor], keys: bool) -> bool:
        """Whether the items are what `model` makes of these pixels, with their keys if these are needed."""
        return (
            self.model is model
            and bool(pixels)
            and _are_same(pixels, self.pixels)
            and not (keys and any(visual.keys is None for visual in self.items))
        )


def answer(
    model: Qwen2_5_VLForConditionalGeneration,
    processor,
    messages: list[dict],
    settings: AvisSettings = AvisSettings(),
    item: int = 0,
    memory: VisualMemory | None = None,
    policy: "PolicyModel | None" = None,
    after: Answer | None = None,
    keep: bool = False,
) -> Answer:
    """Answer one question about images and videos.

    Args:
        model, processor: from `load`, or any Qwen2.5-VL loaded through the fork.
        messages: a chat in Transformers' form; the content of a turn is text or a list of parts
            `{"type": "image", "image": ..}`, `{"type": "video", "video": ..}` and `{"type": "text", "text": ..}`, in
            any order. A picture is a path, a PIL picture, an array or a data URI (`read_image`); a video is a path or
            a list of pictures, `"fps"` of them a second (2 when the part does not say).
        settings: see `AvisSettings`.
        item: the query's number in its set; with `settings.seed` it fixes the rollouts' randomness.
        memory: of the query before, which this one replaces. Pictures and videos that are the same, pixel by pixel,
            are not encoded again; the answer is the same as without, and its FLOPs are still those of the whole query.
        policy: chooses K, and with KDV on and neither ratio nor threshold given, the threshold. It warns
            (UserWarning) when it was fitted on another backbone.
        after: the answer to the chat's earlier turns, asked with `keep`: what it has read is not read again. `messages`
            are then the whole chat: those turns as they were, the reply, and a new turn of text.
        keep: for a follow-up; the answer then holds the prompt's cache, and with it memory of the device.

    Returns:
        An `Answer`. Raises ValueError or OSError with one line for input that cannot be read, a policy of another
        width or a chat that does not go on from `after`, and MemoryError with one line that says what to lower.
    """
    if after is not None and after.turn is None:
        raise ValueError("after: that answer was not kept for a follow-up; ask it with keep=True")
    sha256 = weights_sha256(model.config._name_or_path)
    threshold = settings.kdv_threshold
    if policy is not None:
        if other := policy.check(model.config.vision_config.out_hidden_size, sha256):
            warnings.warn(other, stacklevel=2)
        if settings.enable_kdv and settings.kdv_ratio is None and threshold is None:
            threshold = policy.tau
    inputs = prepare(processor, messages, settings)
    _check_length(model, inputs["input_ids"].shape[1])
    pixels = {name: inputs[name] for name in PIXELS if name in inputs}
    pruning = {
        "enable_kdv": settings.enable_kdv,
        "kdv_ratio": settings.kdv_ratio,
        "kdv_threshold": threshold,
        "kdv_pruner": settings.kdv_pruner,
        "kdv_seed": _pruner_seed(settings, item),
    }
    shown = pixels | {name: inputs[name] for name in RATES if name in inputs}
    earlier = None if after is None else after.turn
    with _advice("lower max_pixels, for videos fps or nframes"):
        if earlier is not None:
            prefill = model.extend(earlier.prefill, earlier.new_tokens(model, inputs["input_ids"], pruning, shown))
        else:
            if memory is not None and memory.holds(model, pixels, keys=settings.enable_kdv):
                inputs = type(inputs)({name: value for name, value in inputs.items() if name not in PIXELS})
                inputs["visual_items"] = memory.items
            prefill = model.prefill(**inputs.to(model.device), **pruning)
        seconds, predicted = dict(prefill.seconds), None
        if policy is not None:
            predicted, seconds["policy"] = _predicted(policy, prefill)
    if memory is not None:
        memory.model, memory.pixels, memory.items, memory.kept = model, pixels, prefill.visual_items, prefill.kept
    count = settings.num_rollouts if predicted is None else predicted.num_rollouts

    def read(text: str, finished: bool) -> str | None:
        return extract_answer(opened + text, finished=finished)

    # Templates of some post-trained models open the thought themselves; the vote has to know that it is open.
    opened = "<think>" if processor.tokenizer.decode(inputs["input_ids"][0, -8:]).rstrip().endswith("<think>") else ""
    is_weighted = settings.vote == "confidence"
    forms: dict[int, str | None] = {}

    def decided(ended: Mapping[int, Ended]) -> bool:
        for index in ended.keys() - forms.keys():
            text = processor.tokenizer.decode(ended[index].tokens, skip_special_tokens=True)
            forms[index] = normal_form(read(text, ended[index].finished))
        weights = {index: confidence(rollout.mean_logprob) for index, rollout in ended.items()} if is_weighted else None
        return is_decided(forms, count, weights)

    with _advice("lower num_rollouts, rollouts_at_once or max_new_tokens"):
        rollouts = model.rollout(
            prefill,
            count,
            max_new_tokens=settings.max_new_tokens,
            temperature=0.0 if count == 1 else settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            item=item,
            at_once=settings.rollouts_at_once,
            decided=decided if settings.early_stop else None,
        )
    seconds["decode"] = rollouts.seconds
    texts = processor.tokenizer.batch_decode(rollouts.tokens, skip_special_tokens=True)
    answers = [read(text, finished) for text, finished in zip(texts, rollouts.finished, strict=True)]
    weights = [0.0 if mean is None else confidence(mean) for mean in rollouts.mean_logprobs] if is_weighted else None
    vote = majority_vote(answers, weights=weights)

    lengths = [len(tokens) for tokens in rollouts.tokens]
    whole = [length for length, stopped in zip(lengths, rollouts.stopped, strict=True) if not stopped]
    merge = model.config.vision_config.spatial_merge_size
    grids = [(t, h * merge, w * merge) for t, h, w in (visual.grid for visual in prefill.visual_items)]
    spent = flops.cost(model.config, grids, prefill.prompt_length, prefill.kept_length, lengths)
    reused = 0 if earlier is None else earlier.prefill.kept_length
    if earlier is not None:
        spent = replace(spent, vision=0, prefill=_turn_flops(model.config.text_config, reused, prefill.kept_length))
    vanilla = flops.vanilla_cost(model.config, grids, prefill.prompt_length, flops.mean_length(whole))
    relative = flops.relative(spent, vanilla)
    items = tuple(
        ItemReport(visual.kind, len(visual.embeds), len(kept), 1 - len(kept) / len(visual.embeds))
        for visual, kept in zip(prefill.visual_items, prefill.kept, strict=True)
    )
    return Answer(
        text=texts[vote.index or 0],
        answer=vote.answer,
        votes=vote.counts,
        rollouts=tuple(
            map(RolloutReport, texts, answers, lengths, rollouts.finished, rollouts.stopped, rollouts.mean_logprobs)
        ),
        num_rollouts=count,
        stopped_rollouts=sum(rollouts.stopped),
        new_tokens=sum(lengths),
        p=None if predicted is None else predicted.p,
        bin=None if predicted is None else predicted.bin,
        items=items,
        rho=1 - sum(part.kept for part in items) / sum(part.total for part in items) if items else 0.0,
        prompt_tokens=prefill.prompt_length,
        kept_tokens=prefill.kept_length,
        reused_tokens=reused,
        flops={
            "vision": spent.vision,
            "prefill": spent.prefill,
            "decode": spent.decode,
            "relative_llm": relative["llm"],
            "relative_total": relative["total"],
        },
        seconds=seconds,
        cache_bytes=rollouts.cache_bytes,
        backend={
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "attention": model.config._attn_implementation,
        },
        pixel_bounds={
            "image": pixel_bounds(processor.image_processor, settings),
            "video": pixel_bounds(processor.video_processor, settings),
        },
        versions=versions(),
        weights_sha256=sha256,
        policy_sha256=None if policy is None else policy.sha256,
        settings=settings,
        item=item,
        turn=Turn(model, prefill, pruning, shown) if keep else None,
    )


def _turn_flops(text_config, reused: int, whole: int) -> int:
    """FLOPs of the language model over the tokens that follow `reused` ones up to `whole`, and of one row of logits.

    n new tokens meet n (reused + n) pairs, which is half of (reused + n)^2 + n^2 - reused^2; and what tokens and logits
    cost is linear.
    """
    longer = flops.prefill_flops(text_config, whole) + flops.prefill_flops(text_config, whole - reused)
    return (longer - flops.prefill_flops(text_config, reused, logits=0)) // 2


def _predicted(policy: "PolicyModel", prefill: Prefill) -> "tuple[Prediction, float]":
    """What the policy says of a query, and the seconds it took (reading p waits for the device)."""
    start = time.perf_counter()
    hidden = None if policy.hidden_width is None else prefill.last_hidden_state
    predicted = policy.predict([visual.embeds for visual in prefill.visual_items], hidden)
    return predicted, time.perf_counter() - start


@contextmanager
def _advice(advice: str) -> Iterator[None]:
    """Tells a lack of memory, of a device or of the computer, in one line with this advice, as MemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_lack = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if is_lack or "can't allocate memory" in str(error) or "ALLOC_FAILED" in str(error):
            raise MemoryError(f"out of memory: {advice}") from None
        raise


def _check_length(model: Qwen2_5_VLForConditionalGeneration, length: int) -> None:
    most = model.config.get_text_config().max_position_embeddings
    if length > most:
        raise ValueError(f"the prompt has {length} tokens, this model reads at most {most}: ask less or show less")


def _pruner_seed(settings: AvisSettings, item: int) -> int:
    """For pruners that draw: another seed for every query, or a whole table would measure one draw."""
    if settings.kdv_pruner == "kdv":
        return 0
    return int(np.random.SeedSequence((settings.seed, item)).generate_state(1)[0])


def prepare(processor, messages: list[dict], settings: AvisSettings):
    """The model's inputs for one chat: pictures read and resized, text templated and tokenised.

    Returns:
        A `BatchFeature` with what `model.prefill` takes, on the CPU. Raises as `answer` does.
    """
    _check_messages(processor, messages)
    messages = [_copied(turn) for turn in messages]
    profile = profile_for(processor.tokenizer.name_or_path, settings.profile)
    _add_instruction(messages, settings.thinking, profile)
    if profile.system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": profile.system})
    parts = [part for turn in messages if not isinstance(turn["content"], str) for part in turn["content"]]
    images = [read_image(part["image"]) for part in parts if part["type"] == "image"]
    bounds = pixel_bounds(processor.video_processor, settings)
    videos = [
        read_video(part["video"], bounds, settings.fps, settings.nframes, part.get("fps"))
        for part in parts
        if part["type"] == "video"
    ]
    try:
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(f"the model's chat template cannot be used: {error}") from None
    least, most = pixel_bounds(processor.image_processor, settings)
    arguments: dict[str, Any] = {"images_kwargs": {"min_pixels": least, "max_pixels": most}}
    if videos:
        rates = [fps for _, fps in videos]
        arguments["videos_kwargs"] = {"fps": rates, "do_resize": False, "do_sample_frames": False}
    return processor(
        text=[text],
        images=images or None,
        videos=[video for video, _ in videos] or None,
        return_tensors="pt",
        **arguments,
    )


def _check_messages(processor, messages: list[dict]) -> None:
    """Refuse, with one line, a chat that would fail deep inside or be answered without one of its parts."""
    if not {turn["role"] for turn in messages} <= {"system", "user", "assistant"}:
        raise ValueError("the role of a turn is system, user or assistant")
    if not any(turn["role"] == "user" for turn in messages):
        raise ValueError("the chat has no user turn")
    texts = [turn["content"] for turn in messages if isinstance(turn["content"], str)]
    for part in (part for turn in messages if not isinstance(turn["content"], str) for part in turn["content"]):
        kind = part.get("type")
        if kind not in ("image", "video", "text") or kind not in part:
            raise ValueError(f"a part of a turn is an image, a video or a text with its content, got {sorted(part)}")
        if kind == "text":
            texts.append(part["text"])
    special = set(processor.tokenizer.all_special_tokens)
    for text in texts:
        check_text(text, special)


def _copied(turn: dict) -> dict:
    """A turn whose texts can be changed; pictures and frames are the same objects."""
    content = turn["content"]
    return {**turn, "content": content if isinstance(content, str) else [dict(part) for part in content]}


def _add_instruction(messages: list[dict], thinking: bool, profile: Profile) -> None:
    """Append the instruction for the answer's form to the last text of every user turn, in place.

    Of every one: earlier questions then stand in the chat as they were asked, and a follow-up can go on from them.
    """
    asks = False
    for turn in (turn for turn in messages if turn["role"] == "user"):
        texts = [] if isinstance(turn["content"], str) else [part for part in turn["content"] if part["type"] == "text"]
        if isinstance(turn["content"], str):
            turn["content"] = with_instruction(turn["content"], thinking, profile)
        elif texts:
            texts[-1]["text"] = with_instruction(texts[-1]["text"], thinking, profile)
        asks = bool(texts) or isinstance(turn["content"], str)
    if not asks:
        raise ValueError("the last user turn asks nothing: it has no text")


def pixel_bounds(image_or_video_processor, settings: AvisSettings) -> tuple[int, int]:
    """Least and most pixels of a picture or a frame: the settings', else the processor's, moved to fit the given one.

    Args:
        image_or_video_processor: a part of the model's processor.
    """
    size = image_or_video_processor.size
    least, most = settings.min_pixels, settings.max_pixels
    if least is None:
        least = min(size["shortest_edge"], most or size["shortest_edge"])
    if most is None:
        most = max(size["longest_edge"], least)
    return least, most


def read_video(
    source: str | Path | Clip | Sequence[Picture],
    bounds: tuple[int, int],
    fps: float | None = None,
    nframes: int | None = None,
    rate: float | None = None,
) -> tuple[torch.Tensor, float]:
    """Frames of a video, sampled and resized as qwen-vl-utils does, and their rate.

    Args:
        source: a file, an opened one, or a list of pictures.
        bounds: least and most pixels of a frame.
        fps, nframes: see `AvisSettings`.
        rate: of a list, its pictures a second (default 2).

    Returns:
        (frames, 3, height, width) uint8, and frames per second. Only one frame at a time is held in full size.
        Raises ValueError for what cannot be read.
    """
    clip = open_clip(source, rate)
    indices, rate = sample_indices(clip, fps, nframes)
    # qwen-vl-utils's own limits: 768 tokens a frame, and 90% of 128,000 for all pairs of frames.
    most = max(min(768, 0.9 * 128_000 / len(indices) * 2) * 784, int(1.05 * bounds[0]))
    shown = []
    for picture in frames(clip, indices):
        size = smart_resize(picture.height, picture.width, 28, bounds[0], min(bounds[1], most))
        frame = functional.pil_to_tensor(picture)
        shown.append(functional.resize(frame, list(size), InterpolationMode.BICUBIC, antialias=True))
    return torch.stack(shown), rate


def load(
    path: str | Path, device: str | None = None, dtype: str = "auto", attn_implementation: str = "auto"
) -> tuple[Qwen2_5_VLForConditionalGeneration, Any]:
    """Load a Qwen2.5-VL checkpoint and its processor.

    Args:
        path: a `from_pretrained` folder with safetensors weights, or a hub name, whose files are fetched when they are
            not on this disk.
        device: None: CUDA when there is one, else the CPU. "auto": spread over all CUDA devices there are.
        dtype: "auto" (float32 on the CPU, the checkpoint's own elsewhere), "float32", "bfloat16" or "float16".
        attn_implementation: "auto" (FlashAttention-2 when it is installed and usable, else SDPA), or a name.

    Returns:
        (model in eval mode, processor). Raises ValueError, OSError or MemoryError with one line.
    """
    if device is None or (device == "auto" and torch.cuda.device_count() < 2):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device}: no CUDA device is there")
    check_model_folder(path)
    try:
        with _advice("use a smaller model, or dtype bfloat16"):
            folder = _folder(path)
            model, processor = _loaded(folder, device, dtype, attn_implementation)
            processor.tokenizer.name_or_path = str(path)  # by which `profile_for` knows the model
            return model, processor
    except (MemoryError, OSError, ValueError):
        raise
    except Exception as error:  # what stands in a folder may be anything, and fails in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot load {path}: {reason}") from None


def _folder(path: str | Path) -> Path:
    """Where a model's files are on this disk: a folder, or of a hub name what earlier calls have fetched.

    Raises:
        ValueError, OSError: with one line; the hub is asked once, and only when something is missing.
    """
    if Path(path).is_dir():
        return Path(path)
    name = str(path)
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        check_model_folder(folder)
        if all((folder / small).is_file() for small in _SMALL):
            return folder
    except HFValidationError:
        raise ValueError(f"no such model folder, and no hub name: {name}") from None
    except (OSError, ValueError):  # nothing of it is here, or not all
        pass
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except RepositoryNotFoundError:
        raise ValueError(f"the hub has no model {name}, or not for you") from None
    except OSError as error:
        reason = f"the hub cannot be asked for it ({type(error).__name__})"
        raise OSError(f"{name} is not on this disk, and {reason}: name a folder") from None
    return Path(snapshot_download(name, allow_patterns=list(_FETCHED)))


def _loaded(path: Path, device: str, dtype: str, attn_implementation: str):
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.model_type != "qwen2_5_vl":
        raise ValueError(f"{path} is a {config.model_type} model, not a Qwen2.5-VL")
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else str(config.dtype or torch.float32).removeprefix("torch.")
    if attn_implementation == "auto":
        attn_implementation = "flash_attention_2" if _flash_is_usable(device, dtype) else "sdpa"
    spread = {"device_map": "auto"} if device == "auto" else {}
    model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        attn_implementation=attn_implementation,
        use_safetensors=True,
        output_loading_info=True,
        **spread,
    )
    if loading["missing_keys"] or loading["mismatched_keys"]:
        lacking = sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])])
        raise ValueError(f"{path} is incomplete: {len(lacking)} tensors are missing or misshapen, as {lacking[0]}")
    if not spread:
        return model.to(device).eval(), processor
    if {"cpu", "disk"} & set(map(str, model.hf_device_map.values())):
        raise MemoryError  # larger than all CUDA devices together
    return model.eval(), processor


def _flash_is_usable(device: str, dtype: str) -> bool:
    """Whether FlashAttention-2 is installed, and can run there: half precision, Ampere or newer."""
    if not device.startswith(("cuda", "auto")) or dtype == "float32" or not is_flash_attn_2_available():
        return False
    return torch.cuda.get_device_capability(None if device == "auto" else device) >= (8, 0)


@lru_cache(maxsize=8)
def weights_sha256(path: str) -> str | None:
    """SHA-256 over a checkpoint's safetensors files in order of name; None for a model that came from no files."""
    if not path:
        return None
    return _digest(sorted(_folder(path).glob("*.safetensors")))


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what decides a result, and the hash of the fork's own patches and files."""
    fork = Path(transformers.__file__).parents[2] / "fork"
    ours = [fork / "upstream.toml", *sorted(fork.glob("patches/*.patch")), *sorted(fork.glob("overlay/**/*.py"))]
    others = {name: version(name) for name in ("transformers", "av", "pillow")}
    return {"torch": torch.__version__, **others, "patch_set": _digest(ours)}


def _digest(files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                total.update(block)
    return total.hexdigest()
