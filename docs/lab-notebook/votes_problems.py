"""Problems for `votes.py`: scenes of labels, questions about them, and steps to the answers.

A scene is a grid of cells, some of which hold an animal. Steps are short, `rank value result`, and every valid order of
them can be drawn; or one order alone is, from the left.
"""

from dataclasses import dataclass

import numpy as np
import torch

from avis.garden.scenes import KINDS, MAX_ANIMALS, WEARS

ROWS, COLUMNS = 4, 6
THINK = ((2, 2), (3, 3), (4, 5), (6, 7), (8, 10))  # least and most steps at each level
TASKS = ("total", "change", "two totals", "count")
LEVEL_SHARES = (0.1, 0.15, 0.2, 0.25, 0.3)  # of the scenes; short questions fill the rest of their rows
ROW_LENGTH, PROMPT_LENGTH = 200, 7
CONDITIONS = ("all", *KINDS, *WEARS)
WORDS = ["<pad>", "<end>", ":", ",", ";", "and", "or", "not", *TASKS, *CONDITIONS]
WORDS += [f"#{rank}" for rank in range(1, MAX_ANIMALS + 1)]
WORDS += [f"{space}{digit}" for space in (" ", "") for digit in range(10)]
IDS = {word: number for number, word in enumerate(WORDS)}
# Of each cell: kind, wears, rank from the left, tens and ones of the tag; 0 for nothing.
LABEL_CLASSES = (len(KINDS) + 1, len(WEARS) + 1, MAX_ANIMALS + 1, 10, 11)
# The word that each class begins as.
LABEL_WORDS = ("<pad>", *KINDS, "<pad>", *WEARS, "<pad>", *WORDS[-20 - MAX_ANIMALS : -20])
LABEL_WORDS += ("<pad>", *WORDS[-19:-10], "<pad>", *WORDS[-20:-10])


@dataclass(frozen=True)
class Settings:
    """What a run is made of; a run that was begun with others is not resumed."""

    order: str
    seed: int
    trace: str
    largest: int
    batches: int
    scenes: int
    rate: float
    decay: float


@dataclass(frozen=True)
class Scene:
    """Animals from left to right: kinds and wears as numbers from 0, prices, and the cell of each."""

    kinds: np.ndarray
    wears: np.ndarray
    prices: np.ndarray
    cells: np.ndarray

    def members(self, condition: str) -> np.ndarray:
        """Return which animals match: (animals,) bool."""
        number = CONDITIONS.index(condition) - 1
        if number < 0:
            return np.ones(len(self.kinds), dtype=bool)
        return self.kinds == number if number < len(KINDS) else self.wears == number - len(KINDS)

    def labels(self) -> np.ndarray:
        """Return the label classes of all cells, (ROWS * COLUMNS, 5), numbered on from label to label."""
        labels = np.zeros((ROWS * COLUMNS, len(LABEL_CLASSES)), dtype=np.int64)
        ranks = np.arange(1, len(self.kinds) + 1)
        columns = (self.kinds + 1, self.wears + 1, ranks, self.prices // 10, self.prices % 10 + 1)
        labels[self.cells] = np.stack(columns, axis=1)
        return labels + np.cumsum((0, *LABEL_CLASSES[:-1]))


def draw_scene(rng: np.random.Generator, settings: Settings, kinds: np.ndarray, wears: np.ndarray) -> Scene:
    """Draw where the animals stand, and their prices."""
    count = len(kinds)
    cells = rng.permutation(ROWS * COLUMNS)[:count]
    cells = cells[np.argsort(cells % COLUMNS * ROWS + cells // COLUMNS)]
    return Scene(kinds, wears, rng.integers(1, settings.largest + 1, count), cells)


def draw_first(rng: np.random.Generator, settings: Settings, task: str, steps: int) -> tuple[Scene, tuple]:
    """Draw a scene on which a question of this task takes `steps` steps, and the question's subject."""
    spare = min(4, MAX_ANIMALS - steps)
    condition = CONDITIONS[rng.integers(1, len(CONDITIONS))] if spare and rng.random() < 0.7 else "all"
    is_about_all = task == "count" or (task != "two totals" and condition == "all")
    spare = 0 if is_about_all else int(rng.integers(0, spare + 1))
    kinds, wears = rng.integers(0, len(KINDS), steps + spare), rng.integers(0, len(WEARS), steps + spare)
    about: tuple = (condition,)
    shuffled = rng.permutation(steps + spare)
    if task == "two totals":
        names = rng.permutation(len(KINDS))
        first = int(rng.integers(1, steps))
        kinds[shuffled[:first]], kinds[shuffled[first:steps]] = names[0], names[1]
        kinds[shuffled[steps:]] = names[rng.integers(2, len(KINDS), spare)]
        about = (KINDS[names[0]], KINDS[names[1]])
    elif task in ("total", "change") and condition != "all":
        number = CONDITIONS.index(condition) - 1
        of = kinds if number < len(KINDS) else wears
        of[shuffled[:steps]] = number % 4
        of[shuffled[steps:]] = (number + rng.integers(1, 4, spare)) % 4
    scene = draw_scene(rng, settings, kinds, wears)
    return scene, draw_conditions(rng) if task == "count" else about


def draw_conditions(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw one or two conditions, each perhaps negated, and the word that joins them."""
    names = rng.permutation(CONDITIONS[1:])[:2]
    parts = [("not", str(name)) if rng.random() < 0.35 else (str(name),) for name in names]
    return parts[0] if rng.random() < 0.25 else (*parts[0], str(rng.choice(("and", "or"))), *parts[1])


def draw_another(rng: np.random.Generator, scene: Scene) -> tuple[str, tuple]:
    """Draw another question about a scene: its task and subject. More animals are likelier to be asked about."""
    task = TASKS[rng.integers(len(TASKS))]
    counts = np.array([scene.members(name).sum() for name in CONDITIONS])
    if task == "two totals":
        names = [KINDS[number] for number in rng.permutation(len(KINDS)) if counts[1 + number]]
        return (task, tuple(names[:2])) if len(names) > 1 else ("total", ("all",))
    if task == "count":
        return task, draw_conditions(rng)
    weights = np.where(counts > 1, counts, 0)
    return task, (CONDITIONS[rng.choice(len(CONDITIONS), p=weights / weights.sum())],)


def digits(number: int) -> list[str]:
    """Return a number's words; the first carries the space."""
    first, *others = str(number)
    return [f" {first}", *others]


def arrange(rng: np.random.Generator, settings: Settings, members: np.ndarray) -> list[int]:
    """Return the animals' numbers in the order of the steps."""
    found = np.flatnonzero(members)
    return [int(number) for number in (rng.permutation(found) if settings.order == "random" else found)]


def reckon(scene: Scene, settings: Settings, order: list[int], start: int = 0, sign: int = 1) -> tuple[list[str], int]:
    """Return the steps that add tags to a sum, or take them from it, and the result."""
    words, running = [], start
    for number in order:
        price = int(scene.prices[number])
        running += sign * price
        words += [",", f"#{number + 1}", *digits(price), *(digits(running) if settings.trace != "silent" else ())]
    listed = [f"#{number + 1}" for number in sorted(order)] + [";"] if settings.trace == "listed" else []
    return listed + words[1:], running


def is_counted(scene: Scene, about: tuple[str, ...], number: int) -> bool:
    """Return whether an animal fulfils conditions as `draw_conditions` draws them."""
    split = next((place for place, word in enumerate(about) if word in ("and", "or")), len(about))
    parts = [part for part in (about[:split], about[split + 1 :]) if part]
    values = [bool(scene.members(part[-1])[number]) != (part[0] == "not") for part in parts]
    return any(values) if "or" in about else all(values)


def ask(
    rng: np.random.Generator, settings: Settings, scene: Scene, task: str, about: tuple
) -> tuple[list[str], list[str], str]:
    """Return a question's prompt, the steps to its answer, and the answer."""
    prompt = [task, *about]
    if task in ("total", "change"):
        members = scene.members(about[0])
        start = int(scene.prices[members].sum() + rng.integers(0, 60)) if task == "change" else 0
        prompt += digits(start) if start else []
        steps, result = reckon(scene, settings, arrange(rng, settings, members), start, -1 if task == "change" else 1)
    elif task == "two totals":
        sides = [about[side] for side in (rng.permutation(2) if settings.order == "random" else (0, 1))]
        found = [reckon(scene, settings, arrange(rng, settings, scene.members(side))) for side in sides]
        steps = [sides[0], *found[0][0], ";", sides[1], *found[1][0]]
        result = abs(found[0][1] - found[1][1])
    else:
        result, steps = 0, []
        for number in arrange(rng, settings, scene.members("all")):
            result += is_counted(scene, about, number)
            steps += [",", f"#{number + 1}", KINDS[scene.kinds[number]], WEARS[scene.wears[number]], *digits(result)]
        steps = steps[1:]
    return prompt + ["<pad>"] * (PROMPT_LENGTH - 1 - len(prompt)) + [":"], steps, "".join(digits(result)).strip()


def draw_problem(settings: Settings, think: int, number: int) -> tuple[Scene, list[str], str]:
    """Draw a fresh problem: scene, prompt and answer. The tasks take turns; all runs get the same problems."""
    rng = np.random.default_rng(np.random.SeedSequence((9, settings.largest, think, number)))
    task = TASKS[number % len(TASKS)]
    scene, about = draw_first(rng, settings, task, int(rng.integers(THINK[think][0], THINK[think][1] + 1)))
    prompt, _, answer = ask(rng, settings, scene, task, about)
    return scene, prompt, answer


def first_slip(scene: Scene, prompt: list[str], response: str) -> str:
    """Return what goes wrong first in the steps to a total or to change; "none" when all steps are right.

    Args:
        scene: that the question is about.
        prompt: the question's words.
        response: its steps, as written, with running results.

    Returns:
        "pick" for an animal that is not asked about or was gone through before, "read" for a wrong tag, "sum" for a
        wrong running result, "left out" for steps that end too early, "form" for anything else.
    """
    left = {f"#{rank + 1}": int(scene.prices[rank]) for rank in np.flatnonzero(scene.members(prompt[1]))}
    running = int("0" + "".join(prompt[2:]).replace("<pad>", "").strip(" :"))
    sign = 1 if prompt[0] == "total" else -1
    for step in response.split(","):
        parts = step.split()
        if len(parts) != 3 or not all(part.isdigit() for part in parts[1:]):
            return "form"
        rank, price, result = parts[0], int(parts[1]), int(parts[2])
        if rank not in left:
            return "pick"
        if price != left[rank]:
            return "read"
        running += sign * left.pop(rank)
        if result != running:
            return "sum"
    return "left out" if left else "none"


def draw_batch(settings: Settings, batch: int) -> dict[str, torch.Tensor]:
    """Draw a batch: labels (B, cells, 5); ids, owners and places of words, (B, ROW_LENGTH), see `Reader.loss`."""
    labels = np.zeros((settings.scenes, ROWS * COLUMNS, len(LABEL_CLASSES)), dtype=np.int64)
    ids, owners, places = (np.zeros((settings.scenes, ROW_LENGTH), dtype=np.int64) for _ in range(3))
    for row in range(settings.scenes):
        rng = np.random.default_rng(np.random.SeedSequence((1, settings.seed, batch, row)))
        least, most = THINK[rng.choice(len(THINK), p=LEVEL_SHARES)]
        task = TASKS[rng.integers(len(TASKS))]
        scene, about = draw_first(rng, settings, task, int(rng.integers(least, most + 1)))
        labels[row] = scene.labels()
        begin = 0
        for owner in range(1, ROW_LENGTH):  # as many questions as the row has room for
            prompt, steps, answer = ask(rng, settings, scene, task, about)
            block = [IDS[word] for word in (*prompt, *steps, ";", *digits(int(answer)), "<end>")]
            end = begin + len(block)
            if end > ROW_LENGTH:
                break
            ids[row, begin:end], owners[row, begin:end], places[row, begin:end] = block, owner, range(len(block))
            begin = end
            task, about = draw_another(rng, scene)
    return {name: torch.from_numpy(x) for name, x in dict(labels=labels, ids=ids, owners=owners, places=places).items()}
