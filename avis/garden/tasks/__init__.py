"""All tasks of the garden, and the items that splits are made of::

from avis.garden.tasks import item_for
item = item_for("dev", 7)
print(item.task, item.level, item.question, item.trace, item.answer)
"""

from avis.garden.tasks.base import LETTERS
from avis.garden.tasks.items import FORMS, SECOND_SIZES, SIZES, Item, ask, make_item
from avis.garden.tasks.registry import (
    ALL_TASKS,
    IMAGE_TASKS,
    PAGE_TASKS,
    PAIR_TASKS,
    SECOND_TASKS,
    TASKS,
    VIDEO_TASKS,
    companions,
)
from avis.garden.tasks.splits import QUESTIONS_PER_IMAGE, SPLIT_SIZES, UNANSWERABLE_SHARE, item_for

__all__ = [
    "ALL_TASKS",
    "FORMS",
    "IMAGE_TASKS",
    "LETTERS",
    "PAGE_TASKS",
    "PAIR_TASKS",
    "QUESTIONS_PER_IMAGE",
    "SECOND_SIZES",
    "SECOND_TASKS",
    "SIZES",
    "SPLIT_SIZES",
    "TASKS",
    "UNANSWERABLE_SHARE",
    "VIDEO_TASKS",
    "Item",
    "ask",
    "companions",
    "item_for",
    "make_item",
]
