"""Where questions with known answers come from: a split of the garden, a JSONL file, or a table of VLMEvalKit.

    source = load_source("garden", split="dev")
    with TemporaryDirectory() as folder:
        asked = source.ask(7, Path(folder))
        asked.messages, asked.facts["truth"]

A line of JSONL is one of `demo.py --input` with its answer: `{"image": "a.jpg", "prompt": "How many?", "answer": "3"}`,
and any of `options` (texts, lettered A, B, .. in the prompt), `task`, `level`, `scene` (what questions share).
"""

import ast
import base64
import csv
import hashlib
import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase

from PIL import Image

from policy.batch import parse_question
from policy.media import check_file


@dataclass(frozen=True)
class Asked:
    """One question. facts: task, medium ("image", "images" or "video"), level, form ("free" or "choice"), scene, truth
    and answerable. options: the choices' texts, None for a free answer."""

    messages: list[dict] = field(repr=False)
    facts: dict
    options: list[str] | None


class Garden:
    """A split of the garden, drawn when it is asked for; clips are written into the folder, as a user's are files."""

    def __init__(self, split: str):
        from garden.tasks import SPLIT_SIZES

        if split not in SPLIT_SIZES:
            raise ValueError(f"split must be one of {', '.join(SPLIT_SIZES)}, got {split!r}")
        self.split, self.name, self.digest = split, f"garden-{split}", None
        self._size = SPLIT_SIZES[split]

    def __len__(self) -> int:
        return self._size

    def ask(self, index: int, folder: Path) -> Asked:
        from garden.make import chat_parts
        from garden.tasks import item_for

        item = item_for(self.split, index)
        content = chat_parts(item.scenes, folder)
        facts = {name: getattr(item, name) for name in ("task", "medium", "level", "form")}
        facts |= {"scene": item.scene_id, "truth": item.answer, "answerable": item.answerable}
        return Asked(_turn(content, item.question), facts, list(item.options) or None)


class Lines:
    """A JSONL file of questions with their answers."""

    def __init__(self, path: Path):
        data = check_file(path).read_bytes()
        self.name, self.digest = path.stem, hashlib.sha256(data).hexdigest()
        self._path = path
        self._lines = [line for line in data.split(b"\n") if line.strip()]

    def __len__(self) -> int:
        return len(self._lines)

    def ask(self, index: int, folder: Path) -> Asked:
        question = parse_question(index, self._lines[index], self._path.parent)
        if question.error:
            raise ValueError(f"{self._path} line {index + 1}: {question.error}")
        line, parts = question.input, question.messages[-1]["content"]
        if not isinstance(line.get("answer"), str):
            raise ValueError(f'{self._path} line {index + 1}: "answer" is a text')
        shown = [part["type"] for part in parts if part["type"] != "text"]
        medium = "video" if "video" in shown else "image" if len(shown) == 1 else "images"
        options = line.get("options")
        facts = {"task": line.get("task", self.name), "medium": medium, "level": line.get("level")}
        facts |= {"form": "choice" if options else "free", "scene": line.get("scene", index)}
        return Asked(question.messages, facts | {"truth": line["answer"], "answerable": True}, options)


class Table:
    """A TSV of VLMEvalKit: `index`, `image` (base64, a list of such, or another row's index), `question`, `answer`, and
    for multiple choice the columns A, B, ..; `hint`, `category` and `l2-category` where they are."""

    def __init__(self, path: Path):
        data = check_file(path).read_bytes()
        self.name, self.digest = path.stem, hashlib.sha256(data).hexdigest()
        csv.field_size_limit(sys.maxsize)  # a cell holds a picture
        self._rows = list(csv.DictReader(io.StringIO(data.decode(), newline=""), delimiter="\t"))
        lacking = {"index", "image", "question", "answer"} - set(self._rows[0] if self._rows else ())
        if lacking:
            raise ValueError(f"{path} is not a table of VLMEvalKit: it has no column {', '.join(sorted(lacking))}")
        self._image = {row["index"]: row["image"] for row in self._rows}

    def __len__(self) -> int:
        return len(self._rows)

    def ask(self, index: int, folder: Path) -> Asked:
        row = self._rows[index]
        cell = self._image.get(row["image"], row["image"])
        cells = ast.literal_eval(cell) if cell.startswith("[") else [cell]
        pictures = [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in cells]
        letters = [letter for letter in ascii_uppercase if row.get(letter)]
        text = "\n".join(part for part in (row.get("hint"), row["question"]) if part)
        if letters:
            text += "\n" + " ".join(f"{letter}. {row[letter]}" for letter in letters)
        facts = {
            "task": row.get("category") or self.name,
            "medium": "image" if len(cells) == 1 else "images",
            "level": row.get("l2-category") or None,
            "form": "choice" if letters else "free",
            "scene": row["image"] if row["image"] in self._image else row["index"],
            "truth": row["answer"],
            "answerable": True,
        }
        content = [{"type": "image", "image": picture} for picture in pictures]
        return Asked(_turn(content, text), facts, [row[letter] for letter in letters] or None)


def _turn(content: list[dict], question: str) -> list[dict]:
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def load_source(name: str, split: str) -> Garden | Lines | Table:
    """The source of this name: "garden", or the path of a .jsonl or .tsv file. Raises ValueError with one line."""
    if name == "garden":
        return Garden(split)
    kinds = {".jsonl": Lines, ".tsv": Table}
    path = Path(name)
    if path.suffix not in kinds:
        raise ValueError(f"tasks are garden, or .jsonl or .tsv files, got {name}")
    return kinds[path.suffix](path)
