"""The tasks of both gardens. A new task is added to one of the lists of the second garden.

The first garden's tuples are what the shipped model was trained on and stay as they are.
"""

from avis.garden.tasks.above import Above
from avis.garden.tasks.afford import Afford
from avis.garden.tasks.all_hops import AllHops
from avis.garden.tasks.appear import Appear
from avis.garden.tasks.attribute import Attribute
from avis.garden.tasks.bar import Bar
from avis.garden.tasks.bars import Bars
from avis.garden.tasks.base import Task
from avis.garden.tasks.cell import Cell
from avis.garden.tasks.change import Change
from avis.garden.tasks.changed import Changed
from avis.garden.tasks.compare import Compare
from avis.garden.tasks.count import Count
from avis.garden.tasks.dearer import Dearer
from avis.garden.tasks.differ import Differ
from avis.garden.tasks.displacement import Displacement
from avis.garden.tasks.exist import Exist
from avis.garden.tasks.fares import Fares
from avis.garden.tasks.filter import Filter
from avis.garden.tasks.follow import Follow
from avis.garden.tasks.gap import Gap
from avis.garden.tasks.hops import Hops
from avis.garden.tasks.more import More
from avis.garden.tasks.motion import Motion
from avis.garden.tasks.odd import Odd
from avis.garden.tasks.order import Order
from avis.garden.tasks.passed import Passed
from avis.garden.tasks.price import Price
from avis.garden.tasks.ranked import Ranked
from avis.garden.tasks.read import Read
from avis.garden.tasks.relation import Relation, RelationByPlace
from avis.garden.tasks.sum import Sum
from avis.garden.tasks.taller import Taller
from avis.garden.tasks.third import Third
from avis.garden.tasks.total import Total
from avis.garden.tasks.whose import Whose
from avis.garden.tasks.word import Word

IMAGE_TASKS: tuple[Task, ...] = (Count(), Exist(), Attribute(), Compare(), Relation(), Odd(), Read(), Price())
PAIR_TASKS: tuple[Task, ...] = (More(), Differ())
VIDEO_TASKS: tuple[Task, ...] = (Motion(), Hops(), Appear(), Passed(), Changed())
TASKS: dict[str, Task] = {task.name: task for task in IMAGE_TASKS + PAIR_TASKS + VIDEO_TASKS}

# The second garden has all of these, one of them in another form, and the following.
NEW_IMAGE_TASKS: tuple[Task, ...] = (Total(), Change(), Dearer(), Afford(), Third(), Follow(), Filter())
NEW_VIDEO_TASKS: tuple[Task, ...] = (AllHops(), Displacement(), Fares())
PAGE_TASKS: tuple[Task, ...] = (
    *(Cell(), Word(), Sum(), Gap(), Ranked(), Above(), Order(), Whose()),
    *(Bar(), Bars(), Taller()),
)
_second_image_tasks = tuple(RelationByPlace() if isinstance(task, Relation) else task for task in IMAGE_TASKS)
SECOND_TASKS: dict[str, tuple[Task, ...]] = {
    "image": (*_second_image_tasks, *NEW_IMAGE_TASKS, *PAGE_TASKS),
    "images": PAIR_TASKS,
    "video": VIDEO_TASKS + NEW_VIDEO_TASKS,
}
ALL_TASKS: dict[str, Task] = {task.name: task for tasks in SECOND_TASKS.values() for task in tasks}


def companions(task: str) -> tuple[Task, ...]:
    """Return the second garden's tasks that can ask about the scenes of a task: pages and animals never mix."""
    if ALL_TASKS[task] in PAGE_TASKS:
        return PAGE_TASKS
    return tuple(other for other in SECOND_TASKS[ALL_TASKS[task].medium] if other not in PAGE_TASKS)
