"""A split of the garden as a set of questions, and the one function that opens any set by its name::

source = open_source("garden2:dev")         # or garden:dev, or a .tsv or .jsonl file
question = source.question(7)
messages = question.messages(source.media(7, folder))
"""

from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from string import ascii_uppercase

from avis.garden.hashes import items_sha256
from avis.garden.media import chat_parts
from avis.garden.scenes import SECOND
from avis.garden.tasks import SPLIT_SIZES, item_for
from avis.questions import Label, Question, QuestionFile


class GardenSource:
    """A split of the garden, each item drawn when it is asked for.

    Attributes:
        name: `garden-<split>` or `garden2-<split>`.
        split: its name.
    """

    def __init__(self, split: str):
        """Open a split.

        Args:
            split: one of `tasks.SPLIT_SIZES`.

        Raises:
            ValueError: no such split.
        """
        if split not in SPLIT_SIZES:
            raise ValueError(f"split must be one of {', '.join(SPLIT_SIZES)}, got {split!r:.100}")
        self.split, self.name = split, (split if split.startswith(SECOND) else f"garden-{split}").replace(":", "-")

    def __len__(self) -> int:
        return SPLIT_SIZES[self.split]

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the split's items as drawn: scenes, questions and answers, without their pixels."""
        return items_sha256(self.split, range(len(self)))

    def groups(self) -> Iterator[list[int]]:
        """Yield the questions' indices in order, those about one scene together."""
        for _, group in groupby(range(len(self)), lambda index: item_for(self.split, index).scene_id):
            yield list(group)

    def question(self, index: int) -> Question:
        """Return a question, with its label."""
        item = item_for(self.split, index)
        label = Label(
            truth=item.answer,
            options=dict(zip(ascii_uppercase, item.options, strict=False)) or None,
            scene=item.scene_id,
            task=item.task,
            level=item.level or None,
            form=item.form,
            medium=item.medium,
            answerable=item.answerable,
            see=item.see or None,
            think=item.think or None,
        )
        return Question(index, item.question, label=label)

    def media(self, index: int, folder: Path) -> list[dict]:
        """Return what a question shows, as parts of a turn.

        Args:
            index: of the question.
            folder: videos are written there, as a user's are files.
        """
        return chat_parts(item_for(self.split, index).scenes, folder)


def open_source(name: str, split: str = "calibration") -> GardenSource | QuestionFile:
    """Return the set of questions of a name: "garden", "garden:<split>", the same of garden2, or a .tsv or .jsonl file.

    Args:
        name: of the set.
        split: of the garden, when the name has none.

    Raises:
        ValueError: no such split or file, or a file of another kind.
    """
    kind, _, given = name.partition(":")
    if kind == "garden":
        return GardenSource(given or split)
    if f"{kind}:" == SECOND:
        return GardenSource(SECOND + (given or split))
    path = Path(name)
    if path.suffix.lower() not in (".jsonl", ".tsv"):
        raise ValueError(f"questions are garden, garden:SPLIT, garden2:SPLIT, or a .jsonl or .tsv file, got {name}")
    return QuestionFile(path)
