"""Chats about small images and the bundled ones, and other pieces that tests of several modules share.

For instance `answer(*bundled, chat(image_part(draw_image(140, 140))), AvisConfig())`.
"""

import base64
import io
import random
from pathlib import Path

from PIL import Image, ImageDraw

from avis.config import AvisConfig
from avis.images import ImageInput

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "models" / "garden-tiny"
EXAMPLE_IMAGE, EXAMPLE_VIDEO = ROOT / "example.jpg", ROOT / "example.mp4"
QUESTION = "How many wooden rabbits are wearing glasses?"
BOUNDS = (4 * 784, 640 * 784)  # the bundled processor's own
# Near-uniform over about 400 tokens: two rollouts of 20 tokens agree by luck with odds far below 1e-9, whatever
# the weights.
WILD = {"num_rollouts": 3, "temperature": 50.0, "top_p": 1.0, "max_new_tokens": 20}


def image_part(source: ImageInput = EXAMPLE_IMAGE) -> dict:
    return {"type": "image", "image": source}


def video_part(source=EXAMPLE_VIDEO) -> dict:
    return {"type": "video", "video": source}


def chat(*parts: dict, question: str = QUESTION) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def draw_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image with something on it."""
    dice = random.Random(seed)
    image = Image.new("RGB", (width, height), (120, 160, 90))
    for _ in range(12):
        x, y = dice.randrange(width), dice.randrange(height)
        ImageDraw.Draw(image).ellipse([x, y, x + 30, y + 20], fill=tuple(dice.choices(range(256), k=3)))
    return image


def data_uri(image: Image.Image, kind: str = "png") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def prompt_text(processor, messages: list[dict], config: AvisConfig = AvisConfig()) -> str:
    """The prompt as the model reads it."""
    from avis.inputs import prepare_inputs

    return processor.tokenizer.decode(prepare_inputs(processor, messages, config).input_ids[0])


def one_line(error) -> str:
    """The message of a `pytest.raises` block, which has to be one line."""
    message = str(error.value)
    assert message and "\n" not in message, f"not one line: {message!r}"
    return message
