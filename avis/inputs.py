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
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from avis.config import AvisConfig
from avis.files import check_file
from avis.images import ImageInput, read_image
from avis.messages import check_messages, turn_texts
from avis.prompts import AnswerFormat, answer_format_for, check_text, with_instruction
from avis.qwen import resized, video_max_pixels
from avis.video import Video, decode_frames, open_video, sample_frame_indices

# What the processor makes of images and videos, and of how long the videos' frames last.
PIXEL_INPUTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
TIME_INPUTS = ("second_per_grid_ts",)


def prepare_inputs(processor, messages: list[dict], config: AvisConfig):
    """Return the model's inputs for one chat.

    Args:
        processor: the model's.
        messages: a chat, as in `avis.pipeline.answer`.
        config: its pixel bounds, frame sampling, answer format and `enable_thinking` are used. The keys of a part
            replace its bounds and sampling.

    Returns:
        A `BatchFeature` with the arguments of `model.prefill`, on the CPU.

    Raises:
        ValueError: the chat, an image or a video cannot be read, in one line.
    """
    turns = check_messages(messages)
    special = set(processor.tokenizer.all_special_tokens)
    for text in (text for turn in turns for text in turn_texts(turn)):
        check_text(text, special)
    answer_format = answer_format_for(processor.tokenizer.name_or_path, config.answer_format)
    _add_instruction(turns, config.enable_thinking, answer_format)
    if answer_format.system_prompt and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": answer_format.system_prompt})
    parts = [part for turn in turns if not isinstance(turn["content"], str) for part in turn["content"]]
    images = _encode_images(processor, [part for part in parts if part["type"] == "image"], config)
    videos = [_read_part(part, processor, config) for part in parts if part["type"] == "video"]
    try:
        text = processor.apply_chat_template(_shown(turns), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(f"the model's chat template cannot be used: {error}") from None
    arguments: dict[str, Any] = {}
    if videos:
        rates = [fps for _, fps in videos]
        arguments["videos"] = [frames for frames, _ in videos]
        arguments["videos_kwargs"] = {"fps": rates, "do_resize": False, "do_sample_frames": False}
    inputs = processor(text=[_with_image_tokens(processor, text, images)], return_tensors="pt", **arguments)
    inputs.update(images)
    return inputs


def _encode_images(processor, parts: list[dict], config: AvisConfig) -> dict[str, torch.Tensor]:
    """Return the patches and grids of the images of a chat, each in its own bounds."""
    encoded = []
    for part in parts:
        image = read_image(part["image"])
        least, most = pixel_bounds(processor.image_processor, config, part)
        is_sized = "resized_height" in part
        if is_sized:  # as qwen-vl-utils does it
            height, width = _resized(part["resized_height"], part["resized_width"])
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        encoded.append(
            processor.image_processor(
                images=image, min_pixels=least, max_pixels=most, do_resize=not is_sized, return_tensors="pt"
            )
        )
    if not encoded:
        return {}
    return {name: torch.cat([one[name] for one in encoded]) for name in ("pixel_values", "image_grid_thw")}


def _with_image_tokens(processor, text: str, images: dict[str, torch.Tensor]) -> str:
    """Return the prompt with as many placeholders for each image as it has tokens, as the processor does it."""
    first, *others = text.split(processor.image_token)
    grids = images["image_grid_thw"].tolist() if images else []
    if len(grids) != len(others):
        raise ValueError(f"the model's chat template shows {len(others)} of {len(grids)} images")
    merged = processor.image_processor.merge_size**2
    for (t, h, w), other in zip(grids, others, strict=True):
        first += processor.image_token * (t * h * w // merged) + other
    return first


def _read_part(part: dict, processor, config: AvisConfig) -> tuple[torch.Tensor, float]:
    """Return the frames of a video of a chat and their rate, by its own keys where it has them."""
    is_list = isinstance(part["video"], (list, tuple))
    own_fps, own_frames = None if is_list else part.get("fps"), part.get("nframes")
    fps, num_frames = (config.fps, config.num_frames) if own_fps is own_frames is None else (own_fps, own_frames)
    return read_video(
        part["video"],
        pixel_bounds(processor.video_processor, config, part),
        fps,
        num_frames,
        list_fps=part.get("fps") if is_list else None,
        video_start=part.get("video_start"),
        video_end=part.get("video_end"),
        frame_size=(part["resized_height"], part["resized_width"]) if "resized_height" in part else None,
    )


def _shown(turns: list[dict]) -> list[dict]:
    """Return the chat as a template reads it: of images and videos their type alone."""
    shown = []
    for turn in turns:
        content = turn["content"]
        if not isinstance(content, str):
            content = [{name: part[name] for name in ("type", "text") if name in part} for part in content]
        shown.append({"role": turn["role"], "content": content})
    return shown


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
    if question is None and isinstance(inputs, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in inputs):
        return list(inputs)  # a batch of chats, which is refused as one
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


def pixel_bounds(image_or_video_processor, config: AvisConfig, part: dict | None = None) -> tuple[int, int]:
    """Return the least and the most pixels of an image or frame.

    A bound is the part's, else the configuration's, else the processor's. Where only one is given and lies beyond the
    other one of the next source, both are the given one.

    Args:
        image_or_video_processor: a part of the model's processor.
        config: its `min_pixels` and `max_pixels` are used.
        part: of a chat; None: of any part without bounds of its own.
    """
    size = image_or_video_processor.size
    bounds = size["shortest_edge"], size["longest_edge"]
    for least, most in (
        (config.min_pixels, config.max_pixels),
        ((part or {}).get("min_pixels"), (part or {}).get("max_pixels")),
    ):
        least = min(bounds[0], most or bounds[0]) if least is None else least
        bounds = least, max(bounds[1], least) if most is None else most
    return bounds


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
    video_start: float | None = None,
    video_end: float | None = None,
    frame_size: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, float]:
    """Return the frames of a video, sampled and resized as qwen-vl-utils does, and their rate.

    Only one frame at a time is in memory in full size.

    Args:
        source: a file, an opened one, or a list of images.
        bounds: least and most pixels of a frame.
        fps: as in `AvisConfig`.
        num_frames: as in `AvisConfig`.
        list_fps: how many images of a list are a second (default 2).
        video_start: as in `sample_frame_indices`.
        video_end: as in `sample_frame_indices`.
        frame_size: height and width of a frame instead of bounds; each becomes a multiple of 28.

    Returns:
        The frames, `(frames, 3, height, width)` uint8, and how many of them are a second.

    Raises:
        ValueError: the video cannot be read.
    """
    video = open_video(source, list_fps)
    indices, rate = sample_frame_indices(video, fps, num_frames, video_start, video_end)
    most = min(bounds[1], video_max_pixels(len(indices), bounds[0]))
    frames = []
    for image in decode_frames(video, indices):
        if frame_size:
            size = _resized(*frame_size)
        else:
            size = resized(image.height, image.width, (bounds[0], most))
        frame = functional.pil_to_tensor(image)
        frames.append(functional.resize(frame, size, InterpolationMode.BICUBIC, antialias=True))
    return torch.stack(frames), rate


def _resized(height: int, width: int) -> list[int]:
    """Return the size for a part's `resized_height` and `resized_width`."""
    try:
        return resized(height, width)
    except ValueError as error:
        raise ValueError(f"resized_height {height} and resized_width {width}: {error}") from None


def _add_instruction(messages: list[dict], enable_thinking: bool, answer_format: AnswerFormat) -> None:
    """Append the instruction for the answer's form to the last text of every user turn, in place.

    Every turn gets it, so that earlier questions stand in the chat as they were asked and a follow-up can reuse them.
    """
    for turn in (turn for turn in messages if turn["role"] == "user"):
        texts = [] if isinstance(turn["content"], str) else [part for part in turn["content"] if part["type"] == "text"]
        if isinstance(turn["content"], str):
            turn["content"] = with_instruction(turn["content"], enable_thinking, answer_format)
        elif texts:
            texts[-1]["text"] = with_instruction(texts[-1]["text"], enable_thinking, answer_format)
