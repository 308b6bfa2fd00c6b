"""From a chat to the model's inputs: the words of the prompt, and images and frames in their bounds."""

import copy
import math

import numpy as np
import pytest
import torch
from chats import (
    BOUNDS,
    EXAMPLE_IMAGE,
    EXAMPLE_VIDEO,
    QUESTION,
    chat,
    data_uri,
    draw_image,
    image_part,
    one_line,
    prompt_text,
    video_part,
)
from clips import write_clip
from odd_files import unreadable_files
from PIL import Image

from avis.config import AvisConfig
from avis.images import read_image
from avis.inputs import prepare_inputs, read_video
from avis.pipeline import answer
from avis.prompts import ANSWER_FORMATS, DIRECT, THINKING

# ----------------------------------------------------------------------------------------------------------- the prompt


def test_prompt_forms(bundled):
    """Guards against: the instruction missing, given twice, or before the question; a question that is answered under
    other words than it stands under in a follow-up's chat; a system prompt beside the default one; string content that
    loses its images' place."""
    _, processor = bundled
    see = "<|vision_start|>" + "<|image_pad|>" * 25 + "<|vision_end|>"
    head, tail = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    usual = head.format("You are a helpful assistant.")
    parts = [image_part(draw_image(140, 140))]
    assert prompt_text(processor, chat(*parts)) == f"{usual}{see}{QUESTION}\n{THINKING}{tail}"
    direct = AvisConfig(enable_thinking=False)
    assert prompt_text(processor, chat(*parts), direct) == f"{usual}{see}{QUESTION}\n{DIRECT}{tail}"
    system = [{"role": "system", "content": "Be brief."}]
    assert (
        prompt_text(processor, system + chat(*parts)) == f"{head.format('Be brief.')}{see}{QUESTION}\n{THINKING}{tail}"
    )
    plain = [{"role": "user", "content": "How many?"}]
    assert prompt_text(processor, plain) == f"{usual}How many?\n{THINKING}{tail}"
    turns = [*chat(*parts), {"role": "assistant", "content": "2"}, {"role": "user", "content": "And cats?"}]
    expected = f"{usual}{see}{QUESTION}\n{THINKING}<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    assert prompt_text(processor, turns) == f"{expected}<|im_start|>user\nAnd cats?\n{THINKING}{tail}"
    assert prompt_text(processor, chat({"type": "text", "text": "First."}, *parts)).count(THINKING) == 1


def test_answers_are_asked_for_in_the_models_own_form(bundled, monkeypatch):
    """Guards against: a post-trained model that is asked for another form of answer than it was trained to give, a name
    that does not win over the model's, and a system prompt put before the user's own."""
    _, processor = bundled
    question = [{"role": "user", "content": "How many?"}]
    known = {answer_format.name: answer_format for answer_format in ANSWER_FORMATS}
    boxed, own = known["vl-rethinker"], known["openvlthinker"]
    assert f"How many?\n{boxed.thinking}<" in prompt_text(processor, question, AvisConfig(answer_format="vl-rethinker"))
    direct = AvisConfig(answer_format="vl-rethinker", enable_thinking=False)
    assert f"How many?\n{boxed.direct}<" in prompt_text(processor, question, direct)
    said = prompt_text(processor, question, AvisConfig(answer_format="openvlthinker"))
    assert said.startswith(f"<|im_start|>system\n{own.system_prompt}<") and said.count("system\n") == 1
    system = [{"role": "system", "content": "Be brief."}]
    assert own.system_prompt not in prompt_text(processor, system + question, AvisConfig(answer_format="openvlthinker"))
    monkeypatch.setattr(processor.tokenizer, "name_or_path", "TIGER-Lab/VL-Rethinker-7B")
    assert boxed.thinking in prompt_text(processor, question)
    assert THINKING in prompt_text(processor, question, AvisConfig(answer_format="avis"))


def test_messages_are_left_alone(bundled):
    """Guards against: the instruction written into the caller's own messages, so that asking twice adds it twice."""
    _, processor = bundled
    image = draw_image(140, 140)
    messages = [{"role": "system", "content": "Be brief."}, *chat(image_part(image), image_part(), video_part())]
    before, pixels = copy.deepcopy(messages[1]["content"][1:]), image.tobytes()
    prepare_inputs(processor, messages, AvisConfig(num_frames=2))
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert messages[1]["content"][1:] == before
    assert messages[1]["content"][0]["image"] is image and image.tobytes() == pixels


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "system", "content": "Be brief."}],
        [{"role": "user", "content": [{"type": "image", "image": EXAMPLE_IMAGE}]}],
    ],
    ids=["nothing", "no question", "no text"],
)
def test_chats_without_a_question_are_refused(bundled, messages):
    """Guards against: an IndexError from deep inside for a chat in which nothing is asked."""
    with pytest.raises(ValueError) as error:
        answer(*bundled, messages, AvisConfig(max_new_tokens=1))
    one_line(error)


@pytest.mark.parametrize("word", ["<|image_pad|>", "<|video_pad|>", "<|placeholder|>"])
@pytest.mark.parametrize("parts", [(), (image_part(),), (video_part(),)], ids=["text", "image", "video"])
def test_placeholders_in_a_question_are_refused(bundled, word, parts):
    """Guards against: a question that names a placeholder token and takes an item's place: the image's tokens
    would land in the sentence, or the processor runs out of items."""
    with pytest.raises(ValueError) as error:
        answer(*bundled, chat(*parts, question=f"What is {word}?"), AvisConfig(max_new_tokens=1, num_frames=2))
    one_line(error)


def test_prompts_of_the_table_reach_the_model_as_text(bundled):
    """Guards against: odd characters of a prompt that are dropped or change the turns around them."""
    _, processor = bundled
    text = "Is 1 <| 2 |> 3, \x1b[31m\x7f?"
    messages = [{"role": "user", "content": text}]
    said = prompt_text(processor, messages)
    assert text in said and said.count("<|im_start|>") == 3


# ---------------------------------------------------------------------------------------------------- images and videos


def test_pixel_bounds_change_the_tokens(bundled):
    """Guards against: bounds that are parsed and not applied, or one bound that contradicts the processor's other."""
    _, processor = bundled

    def total(image=None, **bounds) -> int:
        inputs = prepare_inputs(processor, chat(image_part(image or EXAMPLE_IMAGE)), AvisConfig(**bounds))
        return int(inputs.image_grid_thw.prod()) // 4

    assert total() == 252
    assert total(max_pixels=100 * 784) <= 100
    assert total(min_pixels=400 * 784) >= 400
    assert total(min_pixels=900 * 784) >= 900  # above the processor's own upper bound
    assert total(max_pixels=784) == 1  # below its lower one
    assert 90 <= total(min_pixels=90 * 784, max_pixels=110 * 784) <= 110
    assert total(draw_image(2000, 1500)) <= 640  # the processor's own bounds
    assert total(draw_image(3, 2)) >= 4


def test_videos_are_sampled_as_asked(bundled):
    """Guards against: `fps` and `num_frames` that change nothing, and seconds per step that do not follow the frames
    taken (time positions would then be another video's)."""
    _, processor = bundled  # the video: 7 seconds, 12 frames each

    def sampled(**config) -> tuple[int, float]:
        inputs = prepare_inputs(processor, chat(video_part()), AvisConfig(**config))
        (grid,), (seconds,) = inputs.video_grid_thw.tolist(), inputs.second_per_grid_ts
        return grid[0], float(seconds)

    assert sampled() == (7, 1.0)  # Qwen's own: 2 frames a second
    assert sampled(fps=1.0) == (3, pytest.approx(7 / 3))  # of seven frames, an even number
    assert sampled(fps=6.0) == (21, pytest.approx(1 / 3))
    assert sampled(num_frames=4) == (2, 3.5)
    assert sampled(num_frames=12) == (6, pytest.approx(7 / 6))


def test_frames_keep_to_the_pixel_bounds(bundled):
    """Guards against: one bound alone refused because it contradicts a default of the video reader, and frames within
    the processor's own bounds (as `AvisConfig` says they count when none is given) resized all the same."""
    _, processor = bundled  # the video's frames: 9 x 8 tokens

    def frame_tokens(**bounds) -> int:
        inputs = prepare_inputs(processor, chat(video_part()), AvisConfig(num_frames=2, **bounds))
        return int(inputs.video_grid_thw[0, 1:].prod()) // 4

    assert frame_tokens(min_pixels=60 * 784, max_pixels=100 * 784) == 72
    assert frame_tokens(min_pixels=300 * 784) >= 300
    assert frame_tokens(min_pixels=700 * 784) >= 700  # above the processor's own upper bound
    assert frame_tokens(max_pixels=50 * 784) <= 50
    assert frame_tokens() == 72


def test_two_videos_keep_their_own_rates(bundled, tmp_path):
    """Guards against: one video's rate used for all."""
    _, processor = bundled
    write_clip(tmp_path / "short.mp4", count=8, rate=8)
    messages = chat(video_part(), video_part(tmp_path / "short.mp4"))
    inputs = prepare_inputs(processor, messages, AvisConfig(num_frames=4))
    assert inputs.video_grid_thw[:, 0].tolist() == [2, 2]
    assert [float(seconds) for seconds in inputs.second_per_grid_ts] == [3.5, 0.5]


def test_images_in_memory_are_read(bundled):
    """Guards against: an image in memory treated otherwise than its file, opened lazily or not."""
    _, processor = bundled
    sources = (EXAMPLE_IMAGE, str(EXAMPLE_IMAGE), Image.open(EXAMPLE_IMAGE), read_image(EXAMPLE_IMAGE))
    inputs = [prepare_inputs(processor, chat(image_part(source)), AvisConfig()) for source in sources]
    assert all(torch.equal(other.pixel_values, inputs[0].pixel_values) for other in inputs[1:])


def test_lists_of_frames_are_videos(bundled, tmp_path):
    """Guards against: frames in another order or at another rate than given, one lost where their number is odd, and
    options for files that do not hold for lists."""
    _, processor = bundled
    images = [draw_image(140, 140, seed) for seed in range(5)]
    images[1].save(tmp_path / "1.png")
    mixed = [images[0], tmp_path / "1.png", np.asarray(images[2]), data_uri(images[3]), images[4]]
    shown, rate = read_video(mixed, BOUNDS)
    assert rate == 2.0 and shown.shape == (6, 3, 140, 140)
    for frame, image in zip(shown, [*images, images[4]], strict=True):
        assert np.array_equal(frame.permute(1, 2, 0), np.asarray(image))
    assert read_video(images[:1], BOUNDS)[0].shape[0] == 2
    assert read_video(images * 20, BOUNDS, num_frames=4, list_fps=25)[1] == 1.0
    few, rate = read_video(images * 20, BOUNDS, list_fps=25)  # four seconds
    assert (len(few), rate) == (8, 2.0) and np.array_equal(few[0].permute(1, 2, 0), np.asarray(images[0]))
    part = {"type": "video", "video": images * 20, "fps": 25}
    inputs = prepare_inputs(processor, chat(part), AvisConfig())
    assert (inputs.video_grid_thw[0, 0], float(inputs.second_per_grid_ts[0])) == (4, 1.0)
    result = answer(*bundled, chat({"type": "video", "video": images}), AvisConfig(max_new_tokens=1))
    assert [(item.kind, item.total) for item in result.items] == [("video", 3 * 25)]


@pytest.mark.parametrize(
    ("source", "rate"),
    [
        ([], None),
        ([Image.new("RGB", (30, 20)), Image.new("RGB", (20, 30))], None),
        ([Image.new("RGB", (30, 20)), 3], None),
        *(([Image.new("RGB", (30, 20))] * 2, rate) for rate in (0, -1.0, math.nan, math.inf, "2", True)),
        (EXAMPLE_VIDEO, 2.0),
        (3, None),
        (np.zeros((4, 8, 8, 3), np.uint8), None),
        ([EXAMPLE_VIDEO], None),
        (["http://localhost/a.png"], None),
    ],
    ids=str,
)
def test_wrong_lists_of_frames_are_refused(source, rate):
    """Guards against: a traceback for frames of several sizes or none, and a rate that is ignored."""
    with pytest.raises(ValueError) as error:
        read_video(source, BOUNDS, list_fps=rate)
    one_line(error)


@pytest.mark.parametrize("name", ["text.mp4", "cut.mp4", "text.jpg", "none.png", "folder"])
def test_unreadable_videos_are_named(tmp_path, name):
    """Guards against: tracebacks; and the error of a fall-back reader that is not even installed in place of the error
    of the one that read."""
    path = unreadable_files(tmp_path)[name]
    with pytest.raises(ValueError) as error:
        read_video(path, BOUNDS)
    message = one_line(error)
    assert str(path) in message and "no attribute" not in message


def test_more_frames_than_there_are_is_reported(bundled):
    """Guards against: the reason (the video has 84 frames) hidden behind a fall-back reader's own error."""
    with pytest.raises(ValueError, match="84"):
        read_video(EXAMPLE_VIDEO, BOUNDS, num_frames=1000)


@pytest.mark.parametrize("url", ["http://localhost/a.jpg", "https://localhost/a.mp4", "file:///a.jpg", "s3://a/b.jpg"])
def test_urls_are_refused(url):
    """Guards against: a prompt that makes this machine fetch something."""
    for read in (read_image, lambda source: read_video(source, BOUNDS)):
        with pytest.raises(ValueError, match="URL"):
            read(url)
