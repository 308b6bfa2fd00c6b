"""Where questions with known answers come from: a split of the garden, or a file (`policy.training.data`): a table of
VLMEvalKit, or JSONL.

    source = load_source("garden", split="dev")
    with TemporaryDirectory() as folder:
        asked = source.ask(7, Path(folder))
        asked.messages, asked.facts["truth"]
"""

from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase

from policy.training.data import QuestionFile


@dataclass(frozen=True)
class Asked:
    """One question. facts: task, medium ("image", "images" or "video"), level, form ("free" or "choice"), scene, truth
    and answerable. options: the choices' texts by letter, None for a free answer."""

    messages: list[dict] = field(repr=False)
    facts: dict
    options: dict[str, str] | None


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
        options = dict(zip(ascii_uppercase, item.options, strict=False)) or None
        return Asked(_turn(content, item.question), facts, options)


class File:
    """A file of questions with their answers, as `policy.training` reads it."""

    def __init__(self, path: Path):
        self._file = QuestionFile(path)
        self.name, self.digest = path.stem, self._file.sha256

    def __len__(self) -> int:
        return len(self._file)

    def ask(self, index: int, folder: Path) -> Asked:
        question = self._file.question(index)
        facts = {name: getattr(question, name) for name in _FACTS}
        return Asked(_turn(self._file.parts(index), question.text), facts, question.options)


_FACTS = ("task", "medium", "level", "form", "scene", "truth", "answerable")


def _turn(content: list[dict], question: str) -> list[dict]:
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def load_source(name: str, split: str) -> Garden | File:
    """The source of this name: "garden", or the path of a .jsonl or .tsv file. Raises ValueError with one line."""
    if name == "garden":
        return Garden(split)
    path = Path(name)
    if path.suffix not in (".jsonl", ".tsv"):
        raise ValueError(f"tasks are garden, or .jsonl or .tsv files, got {name}")
    return File(path)
