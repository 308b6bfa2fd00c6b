"""Questions about images and videos from a JSONL file, a VLMEvalKit table, or a folder of images::

    source = QuestionFile(Path("MMStar.tsv"))
    question = source.question(7)
    messages = question.messages(source.media(7))

A line of JSONL has `image` and `video` (a path or a list of paths, relative to the file, shown in the order of the
line), and `prompt`, or `question` with `options` (a list or an object). The keys of an image or video in a chat
(`avis.messages.PART_KEYS`: `max_pixels`, `nframes` and so on) hold for all that the line shows. A `prompt` that is a
list is a question and its follow-ups. With an `answer` the question has a label, and may have `task`, `level` (or
`see` and `think`) and `scene`. Questions of one scene are resampled and split together; without the key they share a
scene when they show the same.

A table (`.tsv`) has the columns `image` (base64, a list of such, or another row's `index`), `question` and `answer`, of
multiple choice A, B, ..; and any of `index`, `hint`, `category` and `l2-category`. Needs no torch.
"""

import ast
import base64
import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import relpath
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image

from avis.files import check_file
from avis.images import read_image
from avis.messages import PART_KEYS, check_item_keys
from avis.prompts import check_text, with_options

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_KINDS = ("image", "video")
_ITEM_KEYS = dict.fromkeys(PART_KEYS["image"] + PART_KEYS["video"])  # an ordered set
# Other names for what these keys say, in qwen-vl-utils, on our command line and elsewhere. Any other key of a line is a
# note of its author, and is copied into the record.
_OTHER_NAMES = (
    *("num_frames", "nframe", "min_frames", "max_frames", "total_pixels", "sample_fps", "raw_fps"),
    *("image_url", "video_url"),
)


@dataclass(frozen=True)
class Label:
    """The right answer to a question, and how the question is grouped in tables.

    Attributes:
        truth: the right answer; a letter of `options`, or free text.
        options: the options' texts by letter; None for a free answer.
        scene: its name; questions that show the same share it.
        task: its kind of question.
        level: of difficulty; None when not known.
        form: "choice" or "free".
        medium: "image", "images" (several) or "video".
        answerable: whether the image shows the answer, as far as is known.
        see: how hard it is to see, from 1; None when not known.
        think: how many steps of reasoning it takes, from 1; None when not known.
    """

    truth: str
    options: dict[str, str] | None
    scene: Any
    task: str
    level: Any
    form: str
    medium: str
    answerable: bool = True
    see: Any = None
    think: Any = None


@dataclass(frozen=True)
class Question:
    """One example of a data set.

    Attributes:
        index: its number in the set, from 0.
        text: as put to the model, options included.
        follow_ups: asked one by one after the answer.
        system_prompt: of the chat; None: the model's own.
        label: its right answer and its groups; None for a question without an answer.
        input: the line it came from, as JSON.
    """

    index: int
    text: str
    follow_ups: tuple[str, ...] = ()
    system_prompt: str | None = None
    label: Label | None = None
    input: Any = None

    def messages(self, media: list[dict]) -> list[dict]:
        """Return the chat that asks this question about media, which are parts of a turn."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": [*media, {"type": "text", "text": self.text}]}]


class QuestionFile:
    """The questions of a JSONL file or a VLMEvalKit table, in order, each read when it is asked for.

    Attributes:
        name: of the set: the file's, without its ending.
        sha256: of the file.
    """

    def __init__(
        self, path: Path, prompt: str | None = None, system_prompt: str | None = None, needs_answers: bool = True
    ):
        """Read the file.

        Args:
            path: of the file; a name that ends with .tsv is a table.
            prompt: of lines that have none.
            system_prompt: of all questions.
            needs_answers: whether a question without an answer is an error.

        Raises:
            ValueError: no such file, or not of questions.
        """
        data = check_file(path).read_bytes()
        self.path, self.name, self.sha256 = path, path.stem, hashlib.sha256(data).hexdigest()
        self._prompt, self._system_prompt, self._needs_answers = prompt, system_prompt, needs_answers
        self._is_table = path.suffix.lower() == ".tsv"
        if self._is_table:
            self._rows: list[Any] = _table_rows(path, data)
            self._numbers: Sequence[int] = range(1, len(self._rows) + 1)
        else:
            lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
            self._numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
            self._rows = [line for line in lines if line.strip()]
        if not self._rows:
            raise ValueError(f"no questions in {path}")
        self._images = {row["index"]: row["image"] for row in self._rows if row.get("index")} if self._is_table else {}

    def __len__(self) -> int:
        return len(self._rows)

    def groups(self) -> Iterator[list[int]]:
        """Yield the questions' indices, those of one scene together, in the order of the scenes' first questions."""
        found: dict[Any, list[int]] = {}
        for index in range(len(self)):
            label = self.question(index).label
            found.setdefault(index if label is None else label.scene, []).append(index)
        yield from found.values()

    def question(self, index: int) -> Question:
        """Return a question.

        Args:
            index: from 0.

        Raises:
            ValueError: it cannot be asked. The message has the number of its line or row.
        """
        try:
            return self._question(index, *self._read(index))
        except (ValueError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{self._place(index)}: {str(reason).partition(chr(10))[0]}") from None

    def media(self, index: int, folder: Path | None = None) -> list[dict]:
        """Return what a question shows, as parts of a turn.

        Args:
            index: of the question.
            folder: not used: the files are where they are.

        Raises:
            ValueError: a table's image cannot be read.
        """
        row, names = self._read(index)
        if not self._is_table:
            keys = _item_keys(row, names)
            return [{"type": kind, kind: name} | keys[kind] for kind in names for name in names[kind]]
        try:
            images = [Image.open(io.BytesIO(base64.b64decode(cell))) for cell in names["image"]]
            return [{"type": "image", "image": read_image(image)} for image in images]
        except Exception:  # a table's cell may hold anything
            raise ValueError(f"{self._place(index)}: its image cannot be read") from None

    def input(self, index: int) -> Any:
        """Return the line of a question as JSON; its text when it is no JSON."""
        if self._is_table:
            return {name: cell for name, cell in self._rows[index].items() if name not in ("image", None)}
        try:
            return _json_value(self._rows[index])
        except ValueError:
            return self._rows[index].decode(errors="replace")

    def _place(self, index: int) -> str:
        return f"{self.path} {'row' if self._is_table else 'line'} {self._numbers[index]}"

    def _read(self, index: int) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """Return a row or line, and by kind what it shows: images in base64, or paths."""
        row, names = self._read_row(index) if self._is_table else self._read_line(index)
        if not any(names.values()):
            raise ValueError('nothing to see: "image" or "video" is missing')
        return row, names

    def _read_row(self, index: int) -> tuple[dict[str, Any], dict[str, list[str]]]:
        row = self._rows[index]
        cell = self._images.get(row["image"], row["image"]) or ""
        letters = [letter for letter in ascii_uppercase if row.get(letter)]
        text = "\n".join(part for part in (row.get("hint"), row["question"]) if part)
        row = row | {"question": text, "options": {letter: row[letter] for letter in letters}}
        return row, {"image": ast.literal_eval(cell) if cell.startswith("[") else [cell] * bool(cell)}

    def _read_line(self, index: int) -> tuple[dict[str, Any], dict[str, list[str]]]:
        row = _json_value(self._rows[index])
        if not isinstance(row, dict):
            raise ValueError("a question is a JSON object")
        names: dict[str, list[str]] = {}
        for kind in (key for key in row if key in _KINDS):
            paths = row[kind] if isinstance(row[kind], list) else [row[kind]]
            if not all(isinstance(path, str) and path for path in paths):
                raise ValueError(f'"{kind}" must be a path or a list of paths')
            names[kind] = [path if "://" in path else str(self.path.parent / path) for path in paths]
        _item_keys(row, names)
        return row, names

    def _question(self, index: int, row: dict[str, Any], names: dict[str, list[str]]) -> Question:
        options = _lettered(row.get("options"))
        asked = [row[name] for name in ("prompt", "question") if name in row] or [self._prompt]
        texts = _texts(next(filter(None, asked), asked[0]))  # an empty prompt is an error, and not the default's case
        if not row.get("prompt"):
            texts[0] = with_options(texts[0], options)
        label = None
        if row.get("answer") not in (None, ""):
            label = Label(
                truth=str(row["answer"]),
                options=options,
                scene=str(row.get("scene") or self._shown(row, names)),
                task=str(row.get("task") or row.get("category") or self.name),
                level=row.get("level") or row.get("l2-category") or None,
                form="choice" if options else "free",
                medium="video" if names.get("video") else "image" if len(names["image"]) == 1 else "images",
                see=row.get("see") or None,
                think=row.get("think") or None,
            )
        elif self._needs_answers:
            raise ValueError('"answer" is missing')
        return Question(index, texts[0], tuple(texts[1:]), self._system_prompt, label, self.input(index))

    def _shown(self, row: dict[str, Any], names: dict[str, list[str]]) -> str:
        """Return a name for what a question shows: the same for the same images, however the file's path is written."""
        shown: dict[str, Any] = names
        if not self._is_table:
            shown = {kind: [relpath(name, self.path.parent) for name in names[kind]] for kind in names}
            keys = _item_keys(row, names)
            if any(keys.values()):  # other frames or sizes of the same file are something else to see
                shown = shown | {"keys": keys}
        return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


class ImageFolder:
    """One question about each image of a folder, by name.

    Attributes:
        name: of the folder.
    """

    def __init__(self, path: Path, prompt: str | None, system_prompt: str | None = None):
        """List the folder.

        Args:
            path: of the folder.
            prompt: the question.
            system_prompt: of all chats.

        Raises:
            ValueError: no images, or no prompt.
        """
        self.path, self.name = path, path.name
        self._names = sorted(file.name for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not self._names:
            raise ValueError(f"no images in {path}")
        if prompt is None:
            raise ValueError("a folder of images needs --prompt")
        self._prompt, self._system_prompt = _texts(prompt)[0], system_prompt

    def __len__(self) -> int:
        return len(self._names)

    def question(self, index: int) -> Question:
        """Return the question about an image."""
        return Question(index, self._prompt, (), self._system_prompt, None, self.input(index))

    def media(self, index: int, folder: Path | None = None) -> list[dict]:
        """Return the image as a part of a turn; `folder` is not used."""
        return [{"type": "image", "image": str(self.path / self._names[index])}]

    def input(self, index: int) -> Any:
        """Return the line that a JSONL file would have for this question."""
        return {"image": self._names[index]}

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the images' names."""
        return hashlib.sha256("\n".join(self._names).encode(errors="surrogateescape")).hexdigest()


def _item_keys(row: dict[str, Any], names: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Return by kind the keys of a line that are those of its images and videos.

    Raises:
        ValueError: a key that none of them has, another name of one, or a value that cannot be.
    """
    given = {key: row[key] for key in _ITEM_KEYS if row.get(key) is not None}
    found = {}
    for kind in (kind for kind in names if names[kind]):
        found[kind] = check_item_keys(kind, None, {key: given[key] for key in given if key in PART_KEYS[kind]})
    unused = [key for key in given if not any(key in keys for keys in found.values())]
    if found and unused:
        raise ValueError(f'"{unused[0]}" is a key of videos, and the line shows none')
    other = [key for key in _OTHER_NAMES if row.get(key) is not None]
    if other:
        raise ValueError(f'unknown key "{other[0]}": the keys of images and videos are {", ".join(_ITEM_KEYS)}')
    return found


def _lettered(options: Any) -> dict[str, str] | None:
    """Return options by letter; None for none. Raises ValueError for anything but a list or an object."""
    if not options:
        return None
    if isinstance(options, list):
        if len(options) > len(ascii_uppercase):
            raise ValueError(f"{len(options)} options need letters of their own: give an object")
        options = dict(zip(ascii_uppercase, options, strict=False))
    if not isinstance(options, dict):
        raise ValueError('"options" must be a list or an object')
    return {str(letter): str(option) for letter, option in options.items()}


def _texts(asked: Any) -> list[str]:
    """Return the question and its follow-ups. Raises ValueError for what cannot be asked."""
    texts = asked if isinstance(asked, list) else [asked]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError('no question: "prompt" must be a text, or a list of texts')
    for text in texts:
        check_text(text)
    return list(texts)


def _json_value(line: bytes) -> Any:
    """Return the value of a line of JSON. Raises ValueError for anything else, NaN and 1e999 included."""

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number} is not a JSON number")
        return float(number)

    try:
        return json.loads(line.decode(), parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, too
        raise ValueError(f"not a line of JSON: {error}") from None


def _table_rows(path: Path, data: bytes) -> list[dict]:
    """Return the rows of a table. Raises ValueError when it is none of VLMEvalKit's."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    csv.field_size_limit(2**31 - 1)  # a cell holds an image
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    except csv.Error as error:
        raise ValueError(f"{path} is not a table: {error}") from None
    missing = {"image", "question", "answer"} - set(rows[0] if rows else ())
    if rows and missing:
        raise ValueError(f"{path} is not a VLMEvalKit table: it has no column {', '.join(sorted(missing))}")
    return rows
