"""Questions with known answers from a file: a table of VLMEvalKit, or JSONL.

    asked = QuestionFile(Path("MMStar.tsv"))
    asked.question(7).text, asked.parts(7)

A table (`.tsv`) has the columns `image` (base64, a list of such, or another row's `index`), `question` and `answer`, of
multiple choice A, B, ..; and any of `index`, `hint`, `category` and `l2-category`. A line of JSONL has `image` or
`video` (a path or a list, relative to the file), `question` and `options` (a list or an object; none for free answers),
or `prompt` with the options in it, `answer`, and any of `task`, `level` and `scene` (what questions share, by which
intervals and splits go; else it is what they show).
"""

import ast
import base64
import csv
import hashlib
import io
import json
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image

from policy.media import check_file, read_image


@dataclass(frozen=True)
class Question:
    """One question. `scene`: what it shares with others, as pictures. `medium`: "image", "images"
    or "video". `text`: as put, with the options; `options`: their texts by letter, None for a free answer.
    `answerable`: whether its pixels tell, as far as is known."""

    index: int
    scene: str
    task: str
    level: Any
    form: str
    medium: str
    text: str
    options: dict[str, str] | None
    truth: str
    answerable: bool = True


class QuestionFile:
    """The questions of a file, in its order; each is looked at when it is asked for.

    sha256: of the file. Raises ValueError, with one line, for what is no such file.
    """

    def __init__(self, path: Path):
        data = check_file(path).read_bytes()
        self.path, self.sha256 = path, hashlib.sha256(data).hexdigest()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None
        self._is_table = path.suffix.lower() == ".tsv"
        self._rows = _table(path, text) if self._is_table else [line for line in text.split("\n") if line.strip()]
        if not self._rows:
            raise ValueError(f"no questions in {path}")
        rows = self._rows if self._is_table else []
        self._pictures = {row["index"]: row["image"] for row in rows if row.get("index")}

    def __len__(self) -> int:
        return len(self._rows)

    def question(self, index: int) -> Question:
        """Raises ValueError, with the number of the line or row, for one that lacks something."""
        try:
            return self._question(index, *self._read(index))
        except (ValueError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{self._place(index)}: {str(reason).partition(chr(10))[0]}") from None

    def parts(self, index: int) -> list[dict]:
        """What is shown, as parts of a chat. Raises ValueError for a table's picture that cannot be read."""
        _, shown = self._read(index)
        if not self._is_table:
            return [{"type": kind, kind: name} for kind, names in shown.items() for name in names]
        try:
            pictures = [Image.open(io.BytesIO(base64.b64decode(cell))) for cell in shown["image"]]
            return [{"type": "image", "image": read_image(picture)} for picture in pictures]
        except Exception:  # a table's cell may hold anything
            raise ValueError(f"{self._place(index)}: its picture cannot be read") from None

    def _place(self, index: int) -> str:
        return f"{self.path} {'row' if self._is_table else 'line'} {index + 1}"

    def _read(self, index: int) -> tuple[dict, dict[str, list[str]]]:
        """A row or line, and by kind what it shows: pictures in base64, or paths."""
        if self._is_table:
            row = self._rows[index]
            cell = self._pictures.get(row["image"], row["image"]) or ""
            letters = [letter for letter in ascii_uppercase if row.get(letter)]
            text = "\n".join(part for part in (row.get("hint"), row["question"]) if part)
            row = row | {"question": text, "options": {letter: row[letter] for letter in letters}}
            return row, {"image": ast.literal_eval(cell) if cell.startswith("[") else [cell] * bool(cell)}
        row = json.loads(self._rows[index])
        if not isinstance(row, dict):
            raise ValueError("a question is a JSON object")
        shown = {kind: row[kind] if isinstance(row[kind], list) else [row[kind]] for kind in row if kind in _KINDS}
        folder = self.path.parent
        return row, {
            kind: [name if "://" in name else str(folder / name) for name in names] for kind, names in shown.items()
        }

    def _question(self, index: int, row: dict, shown: dict[str, list[str]]) -> Question:
        options = row.get("options") or None
        if isinstance(options, list):
            if len(options) > len(ascii_uppercase):
                raise ValueError(f"{len(options)} options need letters of their own: give an object")
            options = dict(zip(ascii_uppercase, options, strict=False))
        if options is not None and not isinstance(options, dict):
            raise ValueError("options are a list or an object")
        options = options and {letter: str(option) for letter, option in options.items()}
        text, truth = row.get("prompt") or row["question"], row["answer"]
        if not (isinstance(text, str) and text.strip() and truth not in (None, "") and any(shown.values())):
            raise ValueError("it needs a question, an answer, and an image or a video")
        if options and not row.get("prompt"):
            text += "\n" + " ".join(f"{letter}. {option}" for letter, option in options.items())
        folder = self.path.parent  # however its own path is written, the same pictures are the same scene
        told = {kind: names if self._is_table else [relpath(n, folder) for n in names] for kind, names in shown.items()}
        return Question(
            index=index,
            scene=str(row.get("scene") or hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]),
            task=str(row.get("task") or row.get("category") or self.path.stem),
            level=row.get("level") or row.get("l2-category") or None,
            form="choice" if options else "free",
            medium="video" if shown.get("video") else "image" if len(shown["image"]) == 1 else "images",
            text=text,
            options=options,
            truth=str(truth),
        )


_KINDS = ("image", "video")


def _table(path: Path, text: str) -> list[dict]:
    csv.field_size_limit(2**31 - 1)  # a cell holds a picture
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    except csv.Error as error:
        raise ValueError(f"{path} is not a table: {error}") from None
    lacking = {"image", "question", "answer"} - set(rows[0] if rows else ())
    if rows and lacking:
        raise ValueError(f"{path} is not a table of VLMEvalKit: it has no column {', '.join(sorted(lacking))}")
    return rows
