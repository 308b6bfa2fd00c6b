"""A second reading of reasoning questions: their own words are parsed here, everything is counted again from the
scene's record without the tasks' code, and traces are replayed step by step.
"""

import re
from typing import NamedTuple

from avis.garden.scenes import Animal, Scene, video_times

KIND = r"(rabbit|bear|cat|duck)"
WORN = r"(glasses|a hat|a scarf|nothing)"
GROUP = f"all (animal|rabbit|bear|cat|duck)s(?: that wear {WORN})?"
THIRD = "(second|third) (cheapest|dearest) animal"
RULE = "Each tag gives the place, from the left, of the next animal\\."
START = "the (leftmost|rightmost) animal"
PLACE = f"What is the place of the first {KIND} that you reach\\?"
BACK = {"left": "right", "right": "left", "up": "down", "down": "up"}
MOVE = "(left|right|up|down)"
CROSSING = "the animals that cross the picture(?: from (left to right|right to left))?"
# How conditions are joined, and whom such a question asks for.
JOINS = {
    "kind, not worn": f"{KIND}s that do not wear {WORN}",
    "kind or worn": f"animals that are {KIND}s or wear {WORN}",
    "neither": f"animals that are not {KIND}s and do not wear {WORN}",
    "kind, worn or worn": f"{KIND}s that wear {WORN} or {WORN}",
    "kind and kind, not worn": f"{KIND}s and {KIND}s that do not wear {WORN}",
    "kind, not dear": f"{KIND}s that do not cost more than (\\d)",
    "kind or dear": f"animals that are {KIND}s or cost more than (\\d)",
    "worn and dear": f"animals that wear {WORN} and cost more than (\\d)",
}


def rows(task: str, how: str, *wordings: str) -> list[tuple[str, str, str]]:
    """Task, what is asked, and each wording of it; groups of the wording are the question's subjects."""
    return [(task, how, wording) for wording in wordings]


WORDINGS: tuple[tuple[str, str, str], ...] = (
    *rows("total", "", f"What do you pay for {GROUP} together\\?", f"What is the total of the tags of {GROUP}\\?"),
    *rows("total", "", f"How much are {GROUP} in all\\?"),
    *rows("change", "sum last", f"You pay for {GROUP} with (\\d+)\\. How much change do you get\\?"),
    *rows("change", "sum first", f"You have (\\d+) and buy {GROUP}\\. How much is left\\?"),
    *rows("change", "sum first", f"What remains of (\\d+) when {GROUP} are paid for\\?"),
    *rows(
        *("dearer", "kind"),
        f"How much more do the {KIND}s cost than the {KIND}s\\?",
        f"Add up the tags: by how much are the {KIND}s dearer than the {KIND}s\\?",
        f"What is the total of the {KIND}s minus the total of the {KIND}s\\?",
    ),
    *rows(
        *("dearer", "half"),
        r"How much more does the (left|right) half cost than the (left|right) half\?",
        r"Add up the tags: by how much is the (left|right) half dearer than the (left|right) half\?",
        r"What is the total of the (left|right) half minus the total of the (left|right) half\?",
    ),
    *rows(
        *("afford", ""),
        r"You have (\d+) and buy the cheapest animals first\. How many can you buy\?",
        r"How many of the cheapest animals can be bought for (\d+)\?",
        r"What is the largest number of animals that (\d+) can pay for\?",
    ),
    *rows("third", "", f"What does the {THIRD} cost\\?", f"What is the price of the {THIRD}\\?"),
    *rows("third", "", f"How much is the {THIRD}\\?"),
    *rows(
        *("follow", ""),
        f"{RULE} Start at {START}\\. {PLACE}",
        f"{RULE} Follow the tags from {START}\\. {PLACE}",
        f"Go from {START} to the place, from the left, on its tag, and on in the same way\\. {PLACE}",
    ),
    *(
        row
        for how, who in JOINS.items()
        for row in rows(
            "filter", how, f"How many {who} are there\\?", f"Count all {who}\\.", f"What is the number of {who}\\?"
        )
    ),
    *rows("all_hops", "", f"How many hops do {GROUP} make in all\\?", f"Count the hops of {GROUP}\\."),
    *rows("all_hops", "", f"How often do {GROUP} hop, taken together\\?"),
    *rows(
        *("displacement", ""),
        f"The {KIND} takes equal steps\\. How many steps further (?:to the )?{MOVE} is it at the end\\?",
        f"Count the steps of the {KIND}: how many more go {MOVE} than (?:left|right|up|down)\\?",
        f"By how many of its steps has the {KIND} moved (?:to the )?{MOVE} in all\\?",
    ),
    *rows("fares", "", f"Each tag is a fare\\. What do {CROSSING} pay together\\?"),
    *rows("fares", "", f"What is the total of the tags of {CROSSING}\\?", f"Add up the fares of {CROSSING}\\."),
)
COMPILED = tuple((task, how, re.compile(wording)) for task, how, wording in WORDINGS)


class Reading(NamedTuple):
    """What a question's words ask: the task, what of it, the groups of the wording, and which of `WORDINGS` it is."""

    task: str
    how: str
    subjects: tuple
    wording: int


def read_question(stem: str) -> Reading:
    """The one way in which a question can be read."""
    found = [
        Reading(task, how, match.groups(), number)
        for number, (task, how, wording) in enumerate(COMPILED)
        if (match := wording.fullmatch(stem))
    ]
    assert len(found) == 1, f"{len(found)} readings of {stem!r}"
    task, how, subjects, number = found[0]
    return Reading(task, how, subjects[-1:] + subjects[:-1] if how == "sum last" else subjects, number)


def from_left(scene: Scene) -> dict[int, Animal]:
    """The animals by their place from the left, from 1."""
    return dict(enumerate(sorted(scene.animals, key=lambda animal: animal.x), start=1))


def is_meant(animal: Animal, kind: str, worn: str | None) -> bool:
    """Whether an animal is of a group that the question's words name."""
    return kind in ("animal", animal.kind) and (worn is None or worn.removeprefix("a ") == animal.wears)


def meets(how: str, animal: Animal, subjects: tuple) -> bool:
    """Whether an animal meets joined conditions."""
    kinds = [animal.kind == subject for subject in subjects]
    worn = [animal.wears == subject.removeprefix("a ") for subject in subjects]
    dear = subjects[-1].isdigit() and animal.price > int(subjects[-1])
    return {
        "kind, not worn": kinds[0] and not worn[-1],
        "kind or worn": kinds[0] or worn[-1],
        "neither": not kinds[0] and not worn[-1],
        "kind, worn or worn": kinds[0] and (worn[1] or worn[-1]),
        "kind and kind, not worn": any(kinds[:2]) and not worn[-1],
        "kind, not dear": kinds[0] and not dear,
        "kind or dear": kinds[0] or dear,
        "worn and dear": worn[0] and dear,
    }[how]


def two_groups(reading: Reading, scene: Scene) -> list[list[int]]:
    """The two groups that are compared, as places from the left."""
    assert all(animal.price for animal in scene.animals)
    names = {rank: animal.kind for rank, animal in from_left(scene).items()}
    if reading.how == "half":
        assert min(abs(animal.x - scene.width / 2) for animal in scene.animals) > 0.02 * scene.width, "in the middle"
        names = {rank: ("left", "right")[animal.x > scene.width / 2] for rank, animal in from_left(scene).items()}
    return [[rank for rank, name in names.items() if name == subject] for subject in reading.subjects]


def way_of(reading: Reading, scene: Scene) -> list[int]:
    """The places that one gets to from tag to tag."""
    animals, kind = from_left(scene), reading.subjects[1]
    way = [1 if reading.subjects[0] == "leftmost" else len(animals)]
    while animals[way[-1]].kind != kind:
        way.append(animals[way[-1]].price)
        assert len(set(way)) == len(way), "round and round"
    return way


def hops_of(reading: Reading, scene: Scene) -> list[tuple[int, int]]:
    """The hops of a group, as (place from the left, time step): the animal is on the ground in the step's first frame,
    in the air in its second one, and on the ground in the next step's first frame."""
    times, found = video_times(scene.seconds), []
    group = [one for one in from_left(scene).items() if is_meant(one[1], *reading.subjects)]
    for rank, animal in group:
        lifts = [animal.at(second).lift / animal.size for second in times] + [animal.at(scene.seconds).lift]
        assert not any(lifts[::2]) and all(lift == 0 or lift > 0.2 for lift in lifts), "a hop that hardly shows"
        found += [(rank, step) for step, lift in enumerate(lifts[1::2], start=1) if lift]
    assert len(found) == sum(len(animal.hops) for _, animal in group) and len(group) > 1
    return found


def moves_of(scene: Scene, animal: Animal) -> dict[int, str]:
    """The moves that are seen of an animal, by time step: all of one length, straight, between a step's two frames."""
    times, found, strides = video_times(scene.seconds), {}, []
    places = [(animal.at(second).x, animal.at(second).y) for second in times]
    for step, ((x, y), (later_x, later_y)) in enumerate(zip(places[::2], places[1::2], strict=True), start=1):
        dx, dy = later_x - x, later_y - y
        if dx or dy:
            found[step] = ("left" if dx < 0 else "right") if dx else ("up" if dy < 0 else "down")
            assert not (dx and dy)
            strides.append(abs(dx + dy))
    assert places[1:-1:2] == places[2::2], "it moves between steps, too"
    assert max(strides) < 1.001 * min(strides) and min(strides) > 8, "steps that cannot be told"
    return found


def crossing(reading: Reading, scene: Scene) -> dict[int, Animal]:
    """Those that cross the image (in the direction asked for), by the time step at which they stand in it."""
    found = {}
    times = video_times(scene.seconds)
    for animal in scene.animals:
        xs = [animal.at(second).x for second in (0.0, *times, scene.seconds)]
        half = 0.375 * animal.size
        assert not -half < xs[0] < scene.width + half and not -half < xs[-1] < scene.width + half, "somebody stays"
        way = " to ".join("left" if x < 0 else "right" for x in (xs[0], xs[-1]))
        stands = [
            n for n in range(1, len(times) // 2 + 1) if xs[2 * n - 1] == xs[2 * n] and 0 < xs[2 * n] < scene.width
        ]
        assert len(stands) == 1, "it does not stand still for one step"
        x = animal.at(times[2 * stands[0] - 1]).x
        assert half < x < scene.width - half and 0.5 * animal.size <= animal.y <= scene.height - 0.5 * animal.size
        if way in ((reading.subjects[0],) if reading.subjects[0] else ("left to right", "right to left")):
            assert stands[0] not in found
            found[stands[0]] = animal
    return found


def count_again(reading: Reading, scenes: tuple[Scene, ...]) -> str:
    """The answer to a question, from its words and the scenes' record alone."""
    scene, (task, how, subjects, _) = scenes[0], reading
    prices, animals = sorted(animal.price for animal in scene.animals), from_left(scene)
    if task == "total":
        return str(sum(a.price for a in scene.animals if is_meant(a, *subjects)))
    if task == "change":
        return str(int(subjects[0]) - sum(a.price for a in scene.animals if is_meant(a, *subjects[1:])))
    if task == "dearer":
        first, second = two_groups(reading, scene)
        assert first and second
        return str(sum(animals[rank].price for rank in first) - sum(animals[rank].price for rank in second))
    if task == "afford":
        assert prices[0] > 0
        return str(max(count for count in range(len(prices) + 1) if sum(prices[:count]) <= int(subjects[0])))
    if task == "third":
        number = {"second": 1, "third": 2}[subjects[0]]
        price = prices[number] if subjects[1] == "cheapest" else prices[-1 - number]
        assert prices[0] > 0 and prices.count(price) == 1, "two of one price"
        return str(price)
    if task == "follow":
        return str(way_of(reading, scene)[-1])
    if task == "filter":
        assert not subjects[-1].isdigit() or prices[0] > 0
        return str(sum(meets(how, animal, subjects) for animal in scene.animals))
    if task == "all_hops":
        return str(len(hops_of(reading, scene)))
    if task == "displacement":
        (animal,) = [animal for animal in scene.animals if animal.kind == subjects[0]]
        moves = list(moves_of(scene, animal).values())
        return str(moves.count(subjects[1]) - moves.count(BACK[subjects[1]]))
    if task == "fares":
        return str(sum(animal.price for animal in crossing(reading, scene).values()))
    raise AssertionError(task)


def steps_of(part: str, width: int) -> list[tuple]:
    """The steps of a part of a trace, `width` words each, numbers as such."""
    steps = [tuple(int(word) if word.isdigit() else word for word in step.split(" ")) for step in part.split(", ")]
    assert {len(step) for step in steps} == {width}, part
    return steps


def replay_sum(steps: list[tuple], animals: dict[int, Animal], start: int = 0, sign: int = 1) -> int:
    """Check that steps read tags and add them up; the result."""
    for rank, price, running in steps:
        start += sign * price
        assert animals[rank].price == price and running == start
    return start


def replay_picks(listed: list[tuple], picked: list[tuple], is_least_first: bool) -> None:
    """Check that of the listed (place, tag), the least (or greatest) that are left are picked in turn."""
    left = list(listed)
    for rank, price, *_ in picked:
        left.remove((rank, price))
        assert all(price <= other if is_least_first else price >= other for _, other in left)


def replay(reading: Reading, scenes: tuple[Scene, ...], trace: str, value: str) -> tuple:
    """Check a trace step by step, from what it says is seen to the answer; the order in which it goes.

    Every number that is read must be the record's, every running result must follow from the one before, every step
    that has to be made must be made once, and the answer must follow from the last step.
    """
    task, _, subjects, _ = reading
    scene, animals = scenes[0], from_left(scenes[0])
    head, _, tail = trace.partition("; ")
    needed = [rank for rank, animal in animals.items() if animal.price]
    if task == "total":
        steps = steps_of(trace, 3)
        assert str(replay_sum(steps, animals)) == value
        needed = [rank for rank, animal in animals.items() if is_meant(animal, *subjects)]
    elif task == "change":
        steps = steps_of(tail, 3)
        assert head == subjects[0] and str(replay_sum(steps, animals, int(head), -1)) == value
        needed = [rank for rank, animal in animals.items() if is_meant(animal, *subjects[1:])]
    elif task == "dearer":
        steps, groups, totals = steps_of(trace, 4), two_groups(reading, scene), [0, 0]
        for rank, price, *running in steps:
            totals[rank in groups[1]] += price
            assert animals[rank].price == price and running == totals
        needed = sorted(groups[0] + groups[1])
        assert value == str(totals[0] - totals[1])
    elif task == "afford":
        steps, picked = steps_of(head, 2), steps_of(tail, 3)
        replay_picks(steps, picked, is_least_first=True)
        spent = [running for *_, running in picked]
        assert replay_sum(picked, animals) == spent[-1]
        assert value == str(sum(running <= int(subjects[0]) for running in spent))
        assert len(picked) == min(len(needed), int(value) + 1)
    elif task == "third":
        steps, picked = steps_of(head, 2), steps_of(tail, 2)
        replay_picks(steps, picked, subjects[1] == "cheapest")
        assert len(picked) == {"second": 2, "third": 3}[subjects[0]]
        assert value == str(picked[-1][1])
    elif task == "follow":
        steps, (*way, last) = steps_of(head, 2), tail.split(", ")
        way = [*steps_of(", ".join(way), 3), (*steps_of(last, 2)[0], 0)]
        assert [rank for rank, *_ in way] == way_of(reading, scene)
        assert [kind for _, kind, _ in way] == [animals[rank].kind for rank, *_ in way]
        assert all(tag == there for (*_, tag), (there, *_) in zip(way, way[1:], strict=False))
        assert value == str(way[-1][0])
    elif task == "filter":
        return replay_filter(reading, animals, trace, value)
    elif task == "fares":
        steps, animals = steps_of(trace, 3), crossing(reading, scene)
        assert str(replay_sum(steps, animals)) == value
        needed = sorted(animals)
    elif task == "all_hops":
        steps = steps_of(trace, 3)
        assert [running for *_, running in steps] == list(range(1, int(value) + 1))
        assert sorted((rank, step) for rank, step, _ in steps) == hops_of(reading, scene)
        return tuple((rank, step) for rank, step, _ in steps)
    elif task == "displacement":
        (animal,) = [animal for animal in scene.animals if animal.kind == subjects[0]]
        steps, moves, counts = steps_of(trace, 4), moves_of(scene, animal), [0, 0]
        for step, move, *running in steps:
            counts = [counts[0] + (move == subjects[1]), counts[1] + (move == BACK[subjects[1]])]
            assert moves[step] == move and running == counts
        assert value == str(counts[0] - counts[1]) and sorted(step for step, *_ in steps) == sorted(moves)
        return tuple(step for step, *_ in steps)
    assert all(animals[rank].price == price for rank, price, *_ in steps)
    assert sorted(rank for rank, *_ in steps) == needed
    return tuple(rank for rank, *_ in steps)


def replay_filter(reading: Reading, animals: dict[int, Animal], trace: str, value: str) -> tuple:
    """The part of `replay` for a count over conditions."""
    words = reading.how.replace("neither", "kind worn")
    looked = [name for name, word in (("kind", "kind"), ("wears", "worn"), ("price", "dear")) if word in words]
    count, steps = 0, steps_of(trace, 2 + len(looked))
    for rank, *seen, running in steps:
        count += meets(reading.how, animals[rank], reading.subjects)
        assert seen == [getattr(animals[rank], name) for name in looked] and running == count
    assert str(count) == value and sorted(rank for rank, *_ in steps) == list(animals)
    return tuple(rank for rank, *_ in steps)
