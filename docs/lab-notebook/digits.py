"""How many digits of tags, and glyphs of pages and signs, the vision encoder of a training in progress reads, by `see`.

    python docs/lab-notebook/digits.py --run runs/garden/thinking-0 --images 20

A digit counts as read when the token at its tag's middle predicts it. Images are of full size, of the dev split's
generators, and have as many animals as `think` says.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from avis.cli import ArgumentParser, run_command
from avis.garden.labels import LABEL_CLASSES, LABEL_NAMES, dense_labels
from avis.garden.model import new_model
from avis.garden.render import render
from avis.garden.scenes import SEE, THINK, level_for, rng_for, token_at
from avis.garden.tasks import PAGE_TASKS, make_item
from avis.garden.training.data import patchify
from avis.garden.training.trainer import STATE_FILE

ROOT = Path(__file__).resolve().parents[2]


class Reader:
    """The vision encoder and the heads of a training's state."""

    def __init__(self, state: dict, model: Qwen2_5_VLForConditionalGeneration, mean: list[float], std: list[float]):
        """Load the weights of a state into a model of its shape."""
        self.encoder, self.mean, self.std = model.visual.eval(), mean, std
        model.load_state_dict(state["model"])
        self.heads = torch.nn.Linear(state["heads"]["weight"].shape[1], sum(LABEL_CLASSES))
        self.heads.load_state_dict(state["heads"])

    @torch.no_grad()
    def predict(self, scene) -> dict[str, np.ndarray]:
        """Return the predicted labels of a scene's tokens, (rows, columns) of each name."""
        pixels = torch.from_numpy(np.asarray(render(scene))[None].copy())
        grid = torch.tensor([[1, scene.height // 14, scene.width // 14]])
        features = self.encoder(patchify(pixels, self.mean, self.std), grid_thw=grid)
        parts = self.heads(features).split(LABEL_CLASSES, dim=-1)
        shape = (scene.height // 28, scene.width // 28)
        return {name: part.argmax(-1).reshape(shape).numpy() for name, part in zip(LABEL_NAMES, parts, strict=True)}


def count_right(reader: Reader, see: int, images: int) -> dict[str, tuple[int, int]]:
    """Return right ones and all of each kind of thing to read."""
    found = {"price": [0, 0], "glyph": [0, 0], "kind": [0, 0], "from_left": [0, 0], "column": [0, 0]}
    for number in range(images):
        names = ("total", "read", PAGE_TASKS[number // 3 % len(PAGE_TASKS)].name)
        level = level_for(see, 1 + number % len(THINK))
        scene = make_item(rng_for("garden2:dev", 9100, see, number), names[number % 3], level).scenes[0]
        predicted = reader.predict(scene)
        labels = dict(zip(LABEL_NAMES, np.moveaxis(dense_labels(scene)[0], -1, 0), strict=True))
        for animal in scene.animals:
            x, y, _ = animal.tag_box
            at = token_at(scene, x, y)
            if animal.price and labels["price"][at] == animal.price:
                found["price"][0] += int(predicted["price"][at] == animal.price)
                found["price"][1] += 1
        for name in ("glyph", "kind", "from_left", "column"):
            there = labels[name] > 0
            found[name][0] += int((predicted[name] == labels[name])[there].sum())
            found[name][1] += int(there.sum())
    return {name: (right, count) for name, (right, count) in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input."""
    parser = ArgumentParser(prog="python docs/lab-notebook/digits.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a training's state")
    parser.add_argument("--images", type=int, default=15, help="of each see (default: %(default)s)")
    args = parser.parse_args(argv)

    def command() -> None:
        path = args.run / STATE_FILE
        if not path.exists():
            raise ValueError(f"no {STATE_FILE} in {args.run}")
        torch.set_num_threads(1)
        state = torch.load(path, weights_only=True)
        processor = AutoProcessor.from_pretrained(ROOT / "models" / "garden-tiny")  # the words are not used
        image = processor.image_processor
        reader = Reader(state, new_model(processor.tokenizer, 0), image.image_mean, image.image_std)
        print(f"stage {state['stage']}, batch {state['batch']}, {state['seconds'] / 60:.0f} min")
        for see in range(1, len(SEE) + 1):
            found = count_right(reader, see, args.images)
            print(f"see {see}: " + ", ".join(f"{n} {r / max(1, c):.3f} of {c}" for n, (r, c) in found.items()))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
