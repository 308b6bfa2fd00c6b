"""From images, videos and a question to one `Answer`: the only composition of AVIS's stages, read top to bottom.

    image or video + question -> processor -> prefill (keys -> kept indices -> pruned prompt -> cache)
                              -> rollouts -> vote -> Answer

The demo, the evaluation and the adapters all call `answer()`::

    model, processor = load("models/garden-tiny")
    messages = [{"role": "user", "content": [{"type": "image", "image": "example.jpg"},
                                             {"type": "text", "text": "How many cats are there?"}]}]
    print(answer(model, processor, messages, AvisSettings(enable_kdv=True, num_rollouts=5)).answer)
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from qwen_vl_utils import fetch_video, vision_process
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import flops
from transformers.models.qwen2_5_vl.key_diversity import KdvSettings
from transformers.utils import cached_file, is_flash_attn_2_available

from policy.prompts import with_instruction
from policy.vote import extract_answer, majority_vote


@dataclass(frozen=True)
class AvisSettings:
    """What to spend on a query. Out-of-range and contradictory values raise ValueError with one line.

    Attributes:
        enable_kdv: prune visual tokens: by `kdv_ratio`, the fraction pruned (0.75 when neither is given), or by
            `kdv_threshold`, an angle in radians (adaptive). kdv_pruner: "kdv" or "random".
        num_rollouts: K. 1 is greedy; more are sampled at `temperature` and `top_p`, then voted on.
        thinking: ask for `<think>` reasoning before the answer, or for the answer alone.
        max_new_tokens: of each rollout.
        min_pixels, max_pixels: bounds of a picture, or of a video's frame, after resizing; None: the processor's own.
        fps, nframes: frames per second, or number of frames, taken from a video; at most one of them.
        seed: of sampling and of pruners that draw.
    """

    enable_kdv: bool = False
    kdv_ratio: float | None = None
    kdv_threshold: float | None = None
    kdv_pruner: str = "kdv"
    num_rollouts: int = 1
    thinking: bool = True
    max_new_tokens: int = 2048
    temperature: float = 0.7
    top_p: float = 0.9
    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    nframes: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.enable_kdv:
            KdvSettings(self.kdv_ratio, self.kdv_threshold, self.kdv_pruner)
        elif (self.kdv_ratio, self.kdv_threshold, self.kdv_pruner) != (None, None, "kdv"):
            raise ValueError("kdv_ratio, kdv_threshold and kdv_pruner need enable_kdv")
        if self.num_rollouts < 1:
            raise ValueError(f"num_rollouts must be at least 1, got {self.num_rollouts}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature must be between 0.01 and 100, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be between 0 and 2**64 - 1, got {self.seed}")
        for name in ("min_pixels", "max_pixels"):
            if getattr(self, name) is not None and getattr(self, name) < 28 * 28:
                raise ValueError(f"{name} must be at least 784 (one visual token), got {getattr(self, name)}")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} exceeds max_pixels {self.max_pixels}")
        if self.fps is not None and self.nframes is not None:
            raise ValueError("fps and nframes exclude each other")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be positive and finite, got {self.fps}")
        if self.nframes is not None and self.nframes < 2:
            raise ValueError(f"nframes must be at least 2, got {self.nframes}")


@dataclass(frozen=True)
class ItemReport:
    """What was kept of one image or video: `kept` of `total` merged visual tokens; `rho` is the fraction pruned."""

    kind: str
    total: int
    kept: int
    rho: float


@dataclass(frozen=True)
class RolloutReport:
    """One rollout: its text, the answer read from it (None: it abstains), its tokens, whether it ended itself."""

    text: str
    answer: str | None
    tokens: int
    finished: bool


@dataclass(frozen=True)
class Answer:
    """The outcome of one query.

    Attributes:
        text: the text of the rollout that stands for the winner (the first rollout when all abstain).
        answer: the voted answer, as that rollout wrote it; None when all abstain.
        votes: votes per normalised answer, in order of first appearance.
        rollouts: every rollout, by index. num_rollouts: K.
        items: images, then videos. prompt_tokens, kept_tokens: the prompt's length before and after pruning.
        flops: by stage (vision, prefill, decode), and relative to vanilla (rho = 0, K = 1 with the rollouts' mean
            length) in both accountings: `relative_llm` (the paper's #F) and `relative_total`.
        seconds: by stage. cache_bytes: the largest size of the decoding cache.
        backend: dtype, device and attention implementation. pixel_bounds: of pictures and of frames, as applied.
        versions, weights_sha256, settings, item: with these, what is needed to make this answer again.
    """

    text: str
    answer: str | None
    votes: dict[str, int]
    rollouts: tuple[RolloutReport, ...]
    num_rollouts: int
    items: tuple[ItemReport, ...]
    prompt_tokens: int
    kept_tokens: int
    flops: dict[str, float]
    seconds: dict[str, float]
    cache_bytes: int
    backend: dict[str, str]
    pixel_bounds: dict[str, tuple[int, int]]
    versions: dict[str, str]
    weights_sha256: str | None
    settings: AvisSettings
    item: int

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready dictionaries and lists."""
        return json.loads(json.dumps(asdict(self)))  # tuples become lists


def answer(
    model: Qwen2_5_VLForConditionalGeneration,
    processor,
    messages: list[dict],
    settings: AvisSettings = AvisSettings(),
    item: int = 0,
) -> Answer:
    """Answer one question about images and videos.

    Args:
        model, processor: from `load`, or any Qwen2.5-VL loaded through the fork.
        messages: a chat in Transformers' form; the content of a turn is text or a list of parts
            `{"type": "image", "image": path or PIL picture}`, `{"type": "video", "video": path}` and
            `{"type": "text", "text": ..}`, in any order.
        settings: see `AvisSettings`.
        item: the query's number in its set; with `settings.seed` it fixes the rollouts' randomness.

    Returns:
        An `Answer`. Raises ValueError or OSError with one line for input that cannot be read.
    """
    inputs = prepare(processor, messages, settings).to(model.device)
    prefill = model.prefill(
        **inputs,
        enable_kdv=settings.enable_kdv,
        kdv_ratio=settings.kdv_ratio,
        kdv_threshold=settings.kdv_threshold,
        kdv_pruner=settings.kdv_pruner,
        kdv_seed=_pruner_seed(settings, item),
    )
    rollouts = model.rollout(
        prefill,
        settings.num_rollouts,
        max_new_tokens=settings.max_new_tokens,
        temperature=0.0 if settings.num_rollouts == 1 else settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        item=item,
    )
    texts = processor.tokenizer.batch_decode(rollouts.tokens, skip_special_tokens=True)
    # Templates of some post-trained models open the thought themselves; the vote has to know that it is open.
    opened = "<think>" if processor.tokenizer.decode(inputs["input_ids"][0, -8:]).rstrip().endswith("<think>") else ""
    answers = [
        extract_answer(opened + text, finished=finished)
        for text, finished in zip(texts, rollouts.finished, strict=True)
    ]
    vote = majority_vote(answers)

    lengths = [len(tokens) for tokens in rollouts.tokens]
    merge = model.config.vision_config.spatial_merge_size
    grids = [(t, h * merge, w * merge) for t, h, w in (visual.grid for visual in prefill.visual_items)]
    spent = flops.cost(model.config, grids, prefill.prompt_length, prefill.kept_length, lengths)
    vanilla = flops.vanilla_cost(model.config, grids, prefill.prompt_length, flops.mean_length(lengths))
    relative = flops.relative(spent, vanilla)
    return Answer(
        text=texts[vote.index or 0],
        answer=vote.answer,
        votes=vote.counts,
        rollouts=tuple(map(RolloutReport, texts, answers, lengths, rollouts.finished)),
        num_rollouts=settings.num_rollouts,
        items=tuple(
            ItemReport(visual.kind, len(visual.embeds), len(kept), 1 - len(kept) / len(visual.embeds))
            for visual, kept in zip(prefill.visual_items, prefill.kept, strict=True)
        ),
        prompt_tokens=prefill.prompt_length,
        kept_tokens=prefill.kept_length,
        flops={
            "vision": spent.vision,
            "prefill": spent.prefill,
            "decode": spent.decode,
            "relative_llm": relative["llm"],
            "relative_total": relative["total"],
        },
        seconds={**prefill.seconds, "decode": rollouts.seconds},
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
        weights_sha256=weights_sha256(model.config._name_or_path),
        settings=settings,
        item=item,
    )


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
    messages = deepcopy(messages)
    _check_messages(processor, messages)
    _add_instruction(messages, settings.thinking)
    parts = [part for turn in messages if not isinstance(turn["content"], str) for part in turn["content"]]
    images = [read_image(part["image"]) for part in parts if part["type"] == "image"]
    bounds = pixel_bounds(processor.video_processor, settings)
    videos = [
        read_video(part["video"], bounds, settings.fps, settings.nframes) for part in parts if part["type"] == "video"
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
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
    if not any(turn["role"] == "user" for turn in messages):
        raise ValueError("the chat has no user turn")
    texts = [turn["content"] for turn in messages if isinstance(turn["content"], str)]
    for part in (part for turn in messages if not isinstance(turn["content"], str) for part in turn["content"]):
        kind = part.get("type")
        if kind not in ("image", "video", "text") or kind not in part:
            raise ValueError(f"a part of a turn is an image, a video or a text with its content, got {sorted(part)}")
        if kind == "text":
            texts.append(part["text"])
    for text in texts:
        text.encode()  # UnicodeEncodeError, a ValueError, for what no tokenizer takes
    special = [token for token in processor.tokenizer.all_special_tokens if any(token in text for text in texts)]
    if special:
        raise ValueError(f"text must not hold the special token {special[0]}")


def _add_instruction(messages: list[dict], thinking: bool) -> None:
    """Append the instruction for the answer's form to the last text of the last user turn, in place."""
    turn = [turn for turn in messages if turn["role"] == "user"][-1]
    if isinstance(turn["content"], str):
        turn["content"] = with_instruction(turn["content"], thinking)
        return
    texts = [part for part in turn["content"] if part["type"] == "text"]
    if not texts:
        raise ValueError("the last user turn asks nothing: it has no text")
    texts[-1]["text"] = with_instruction(texts[-1]["text"], thinking)


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


def read_image(source: str | Path | Image.Image) -> Image.Image:
    """A picture from a file or from memory, turned as its EXIF says, RGB; transparency is laid on white.

    Raises:
        ValueError: the file is not a picture, or a URL. OSError: it cannot be read.
    """
    if not isinstance(source, Image.Image):
        _check_file(source)
        path = source
        try:
            source = Image.open(path)
            source.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read {path} as a picture: {error}") from None
    source = ImageOps.exif_transpose(source)
    if source.mode.startswith("I;16"):
        source = Image.fromarray((np.asarray(source) >> 8).astype(np.uint8))  # convert() would clip at 255
    if source.has_transparency_data:
        source = source.convert("RGBA")
        white = Image.new("RGBA", source.size, (255, 255, 255, 255))
        source = Image.alpha_composite(white, source)
    return source.convert("RGB")


def read_video(
    source: str | Path, bounds: tuple[int, int], fps: float | None = None, nframes: int | None = None
) -> tuple[torch.Tensor, float]:
    """Frames of a video file, sampled and resized by qwen-vl-utils, and their rate.

    Args:
        source: a file.
        bounds: least and most pixels of a frame.
        fps, nframes: see `AvisSettings`.

    Returns:
        (frames, 3, height, width) float32 in [0, 255], and frames per second. Raises as `read_image` does.
    """
    _check_file(source)
    sampling = {name: value for name, value in (("fps", fps), ("nframes", nframes)) if value is not None}
    request = {"video": str(source), "min_pixels": bounds[0], "max_pixels": bounds[1], **sampling}
    _quiet_video_reader()
    try:
        return fetch_video(request, return_video_sample_fps=True)
    except Exception as error:  # readers have errors of their own kinds
        # When a reader fails, qwen-vl-utils tries its torchvision reader, whose own failure hides the reason.
        reason = error.__context__ or error
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        raise ValueError(f"cannot read {source} as a video: {lines[-1]}") from None


def _check_file(source: str | Path) -> None:
    if "://" in str(source):
        raise ValueError(f"only files are read, not URLs: {source}")
    if not Path(source).is_file():
        raise ValueError(f"no such file: {source}")


def load(
    path: str | Path, device: str | None = None, dtype: str = "auto", attn_implementation: str = "auto"
) -> tuple[Qwen2_5_VLForConditionalGeneration, Any]:
    """Load a Qwen2.5-VL checkpoint and its processor.

    Args:
        path: a `from_pretrained` folder with safetensors weights, or a hub name.
        device: None: CUDA when there is one, else the CPU.
        dtype: "auto" (float32 on the CPU, the checkpoint's own elsewhere), "float32", "bfloat16" or "float16".
        attn_implementation: "auto" (FlashAttention-2 when it is installed and usable, else SDPA), or a name.

    Returns:
        (model in eval mode, processor). Raises ValueError or OSError with one line for what cannot be loaded.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device}: no CUDA device is there")
    config = AutoConfig.from_pretrained(path)
    if config.model_type != "qwen2_5_vl":
        raise ValueError(f"{path} is a {config.model_type} model, not a Qwen2.5-VL")
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else str(config.dtype or torch.float32).removeprefix("torch.")
    if attn_implementation == "auto":
        attn_implementation = "flash_attention_2" if _flash_is_usable(device, dtype) else "sdpa"
    try:
        model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
        )
        model = model.to(device).eval()
    # A kernel that is not installed; a device that is not there; a damaged file.
    except (ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"cannot load {path}: {str(error).strip().splitlines()[0]}") from None
    if loading["missing_keys"] or loading["mismatched_keys"]:
        lacking = sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])])
        raise ValueError(f"{path} is incomplete: {len(lacking)} tensors are missing or misshapen, as {lacking[0]}")
    return model, AutoProcessor.from_pretrained(path)


def _flash_is_usable(device: str, dtype: str) -> bool:
    """Whether FlashAttention-2 is installed, and can run there: half precision, Ampere or newer."""
    if not device.startswith("cuda") or dtype == "float32" or not is_flash_attn_2_available():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _quiet_video_reader() -> None:
    """Its warnings are about fall-backs that are told, if they fail, in the error."""
    logging.getLogger(vision_process.__name__).setLevel(logging.ERROR)


@lru_cache(maxsize=8)
def weights_sha256(path: str) -> str | None:
    """SHA-256 over a checkpoint's safetensors files in order of name; None for a model that came from no files."""
    if not path:
        return None
    folder = Path(path) if Path(path).is_dir() else Path(cached_file(path, "config.json")).parent
    return _digest(sorted(folder.glob("*.safetensors")))


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what decides a result, and the hash of the fork's own patches and files."""
    fork = Path(transformers.__file__).parents[2] / "fork"
    ours = [fork / "upstream.toml", *sorted(fork.glob("patches/*.patch")), *sorted(fork.glob("overlay/**/*.py"))]
    others = {name: version(name) for name in ("transformers", "qwen-vl-utils", "pillow")}
    return {"torch": torch.__version__, **others, "patch_set": _digest(ours)}


def _digest(files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                total.update(block)
    return total.hexdigest()
