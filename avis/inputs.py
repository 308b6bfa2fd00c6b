"""From a chat to the model's inputs: images and frames read and resized, text templated and tokenised::

inputs = prepare_inputs(processor, messages, AvisConfig())
prefill = model.prefill(**inputs.to(model.device))
"""

import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torchvision.transforms import InterpolationMode, functional
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from avis.config import AvisConfig
from avis.files import check_file
from avis.images import ImageInput, read_image
from avis.prompts import AnswerFormat, answer_format_for, check_text, with_instruction
from avis.video import Video, decode_frames, open_video, sample_frame_indices

# What the processor makes of images and videos, and of how long the videos' frames last.
PIXEL_INPUTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
TIME_INPUTS = ("second_per_grid_ts",)


def prepare_inputs(processor, messages: list[dict], config: AvisConfig):
    """Return the model's inputs for one chat.

    Args:
        processor: the model's.
        messages: a chat, as in `avis.pipeline.answer`.
        config: its pixel bounds, frame sampling, answer format and `enable_thinking` are used.

    Returns:
        A `BatchFeature` with the arguments of `model.prefill`, on the CPU.

    Raises:
        ValueError: the chat, an image or a video cannot be read, in one line.
    """
    _check_messages(processor, messages)
    messages = [_copied(turn) for turn in messages]
    answer_format = answer_format_for(processor.tokenizer.name_or_path, config.answer_format)
    _add_instruction(messages, config.enable_thinking, answer_format)
    if answer_format.system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": answer_format.system_prompt})
    parts = [part for turn in messages if not isinstance(turn["content"], str) for part in turn["content"]]
    images = [read_image(part["image"]) for part in parts if part["type"] == "image"]
    bounds = pixel_bounds(processor.video_processor, config)
    videos = [
        read_video(part["video"], bounds, config.fps, config.num_frames, part.get("fps"))
        for part in parts
        if part["type"] == "video"
    ]
    try:
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(f"the model's chat template cannot be used: {error}") from None
    least, most = pixel_bounds(processor.image_processor, config)
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


def as_messages(inputs: Any, question: str | None) -> list[dict]:
    """Return the chat that asks a question about one image or video; a chat is returned as it is.

    Args:
        inputs: an image or video file, a PIL image, an array, a list of images (the frames of one video), or a chat.
        question: about the image or video; None for a chat.

    Raises:
        ValueError: a question without words, or beside a chat; a file that is neither image nor video.
    """
    if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], dict):
        if question is not None:
            raise ValueError("a chat has its question in its last turn: pass no question beside it")
        return list(inputs)
    if not isinstance(question, str) or not question.strip():
        raise ValueError("a question about the image or video is required")
    if isinstance(inputs, (list, tuple)):
        part = {"type": "video", "video": list(inputs)}
    elif isinstance(inputs, (str, Path)) and _is_video(inputs):
        part = {"type": "video", "video": str(inputs)}
    else:
        part = {"type": "image", "image": inputs}
    return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]


def _is_video(path: str | Path) -> bool:
    """Return whether a file is a video: by its name's ending, else by what can be read from it.

    Raises:
        ValueError: the name does not say, and neither an image nor a video can be read from it.
    """
    kind = (mimetypes.guess_type(str(path))[0] or "").partition("/")[0]
    if kind in ("image", "video") or str(path).startswith("data:"):
        return kind == "video"
    check_file(path)
    for is_video, read in ((False, read_image), (True, open_video)):
        try:
            read(path)
            return is_video
        except ValueError:
            pass  # not of this kind, or damaged
    raise ValueError(f"{path} is neither an image nor a video that can be read here")


def asked_question(messages: list[dict]) -> str:
    """Return the texts of the last user turn: the question, with options that stand in it.

    Args:
        messages: a chat that has been checked.
    """
    content = next(turn["content"] for turn in reversed(messages) if turn["role"] == "user")
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def opened_thought(processor, input_ids: torch.Tensor) -> str:
    """Return "<think>" when the prompt itself has opened a thought, else an empty text.

    The templates of some post-trained models do; the text is to be put in front of a rollout's before
    `extract_answer` reads it.

    Args:
        processor: the model's.
        input_ids: `(1, L)`, the whole prompt.
    """
    ending = processor.tokenizer.decode(input_ids[0, -8:]).rstrip()
    return "<think>" if ending.endswith("<think>") else ""


def pixel_bounds(image_or_video_processor, config: AvisConfig) -> tuple[int, int]:
    """Return the least and the most pixels of an image or frame.

    A bound is the configuration's, else the processor's. Where only one is configured and lies beyond the processor's
    other one, both are the configured one.

    Args:
        image_or_video_processor: a part of the model's processor.
        config: its `min_pixels` and `max_pixels` are used.
    """
    size = image_or_video_processor.size
    least, most = config.min_pixels, config.max_pixels
    if least is None:
        least = min(size["shortest_edge"], most or size["shortest_edge"])
    if most is None:
        most = max(size["longest_edge"], least)
    return least, most


def pixel_bounds_by_kind(processor, config: AvisConfig) -> dict[str, tuple[int, int]]:
    """Return `pixel_bounds` of images and of video frames, as "image" and "video"."""
    return {
        "image": pixel_bounds(processor.image_processor, config),
        "video": pixel_bounds(processor.video_processor, config),
    }


def read_video(
    source: str | Path | Video | Sequence[ImageInput],
    bounds: tuple[int, int],
    fps: float | None = None,
    num_frames: int | None = None,
    list_fps: float | None = None,
) -> tuple[torch.Tensor, float]:
    """Return the frames of a video, sampled and resized as qwen-vl-utils does, and their rate.

    Only one frame at a time is in memory in full size.

    Args:
        source: a file, an opened one, or a list of images.
        bounds: least and most pixels of a frame.
        fps: as in `AvisConfig`.
        num_frames: as in `AvisConfig`.
        list_fps: how many images of a list are a second (default 2).

    Returns:
        The frames, `(frames, 3, height, width)` uint8, and how many of them are a second.

    Raises:
        ValueError: the video cannot be read.
    """
    video = open_video(source, list_fps)
    indices, rate = sample_frame_indices(video, fps, num_frames)
    # qwen-vl-utils's own limits: 768 tokens a frame, and 90% of 128,000 tokens for all pairs of frames.
    most = max(min(768, 0.9 * 128_000 / len(indices) * 2) * 784, int(1.05 * bounds[0]))
    resized = []
    for image in decode_frames(video, indices):
        size = smart_resize(image.height, image.width, 28, bounds[0], min(bounds[1], most))
        frame = functional.pil_to_tensor(image)
        resized.append(functional.resize(frame, list(size), InterpolationMode.BICUBIC, antialias=True))
    return torch.stack(resized), rate


def _check_messages(processor, messages: list[dict]) -> None:
    """Refuse, in one line, a chat that would fail deep inside or be answered without one of its parts."""
    texts = []
    for turn in messages:
        if not isinstance(turn, dict) or turn.get("role") not in ("system", "user", "assistant"):
            raise ValueError("a turn is a dictionary, and its role must be system, user or assistant")
        content = turn.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, (list, tuple)):
            texts += [text for text in map(_checked_text, content) if text is not None]
        else:
            raise ValueError(f"the content of a turn is a text or a list of parts, got {type(content).__name__}")
    if not any(turn["role"] == "user" for turn in messages):
        raise ValueError("the chat has no user turn")
    special = set(processor.tokenizer.all_special_tokens)
    for text in texts:
        check_text(text, special)


def _checked_text(part: Any) -> str | None:
    """Return the text of a part of a turn; None for an image or video. Raises ValueError for anything else."""
    if not isinstance(part, dict) or part.get("type") not in ("image", "video", "text") or part["type"] not in part:
        found = sorted(map(str, part)) if isinstance(part, dict) else type(part).__name__
        raise ValueError(f"a part of a turn is an image, a video or a text with its content, got {found!s:.200}")
    if part["type"] != "text":
        return None
    if not isinstance(part["text"], str):
        raise ValueError(f"a text must be a string, got {type(part['text']).__name__}")
    return part["text"]


def _copied(turn: dict) -> dict:
    """Copy a turn so that its texts can be changed; images and frames are the same objects."""
    content = turn["content"]
    return {**turn, "content": content if isinstance(content, str) else [dict(part) for part in content]}


def _add_instruction(messages: list[dict], enable_thinking: bool, answer_format: AnswerFormat) -> None:
    """Append the instruction for the answer's form to the last text of every user turn, in place.

    Every turn gets it, so that earlier questions stand in the chat as they were asked and a follow-up can reuse them.
    """
    has_text = False
    for turn in (turn for turn in messages if turn["role"] == "user"):
        texts = [] if isinstance(turn["content"], str) else [part for part in turn["content"] if part["type"] == "text"]
        if isinstance(turn["content"], str):
            turn["content"] = with_instruction(turn["content"], enable_thinking, answer_format)
        elif texts:
            texts[-1]["text"] = with_instruction(texts[-1]["text"], enable_thinking, answer_format)
        has_text = bool(texts) or isinstance(turn["content"], str)
    if not has_text:
        raise ValueError("the last user turn asks nothing: it has no text")
