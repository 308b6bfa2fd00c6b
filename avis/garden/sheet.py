"""Draws a garden's contact sheet: for each task and level, the first item of each form.

python -m avis.garden.sheet --out assets/garden.png
python -m avis.garden.sheet --garden garden2 --out out/garden2.png

The second garden's has a column for each `see`; `think` goes up by one from column to column and from task to task.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from avis.cli import ArgumentParser, run_command
from avis.garden.render import render, render_frames
from avis.garden.scenes import LEVELS, SECOND, SEE, THINK
from avis.garden.tasks import ALL_TASKS, FORMS, LETTERS, SECOND_TASKS, TASKS, Item, item_for
from avis.garden.tasks.splits import turn_of

CELL, TALL = 274, 210  # pixels: an image's width, and its height at most
GAP, SIDE, HEAD = 12, 122, 118  # between cells, left of them for the tasks' names, above them for title and levels
TEXT, LINE = 14, 18  # size of the small type, and from one line to the next
PAPER, STRIPE, INK, FAINT, GREEN, RED = "#faf6ec", "#f1ead8", "#3a2f28", "#8d8071", "#2f6b3c", "#a04030"
MEDIA = {"image": "one image", "images": "two images", "video": "a video"}
COLOURS = 256  # enough for the drawings, and the file stays small


def first_items(split: str = "train") -> dict[tuple[str, int], list[Item]]:
    """Return the first free and the first multiple-choice item of a split for each task and level."""
    found: dict[tuple[str, int, str], Item] = {}
    index = 0
    while len(found) < len(TASKS) * len(LEVELS) * len(FORMS):
        item = item_for(split, index)
        found.setdefault((item.task, item.level, item.form), item)
        index += 1
    return {(t, n): [found[t, n, form] for form in FORMS] for t in TASKS for n in range(1, len(LEVELS) + 1)}


def draw_strip(item: Item) -> Image.Image:
    """Return an item's image, its two images, or three frames of its video, at most `CELL` pixels wide in all."""
    if item.medium == "video":
        seconds = item.scenes[0].seconds
        images = list(render_frames(item.scenes[0], [seconds / 6, seconds / 2, seconds * 5 / 6]))
    else:
        images = [render(scene) for scene in item.scenes]
    wide = (CELL - 4 * (len(images) - 1)) // len(images)
    scale = min(min(wide / image.width, TALL / image.height) for image in images)
    small = [p.resize((round(scale * p.width), round(scale * p.height)), Image.LANCZOS) for p in images]
    sheet = Image.new("RGB", (sum(p.width + 4 for p in small) - 4, max(p.height for p in small)), PAPER)
    left = 0
    for image in small:
        sheet.paste(image, (left, 0))
        left += image.width + 4
    return sheet


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return the text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def caption_lines(item: Item, font: ImageFont.FreeTypeFont) -> list[tuple[str, str]]:
    """Return the lines beneath an image, each with its colour: question, options, answer."""
    lines = [(line, INK) for line in wrap_text(item.stem, font, CELL)]
    options = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, item.options, strict=False))
    lines += [(line, FAINT) for line in wrap_text(options, font, CELL) if line]
    answer = item.answer if item.form == "free" else f"{item.answer}, {item.value}"
    if item.see:
        answer = f"{answer}  (think {item.think})"
    return lines + [(answer, GREEN) if item.answerable else (f"{answer} (not answerable)", RED)]


def second_items() -> dict[tuple[str, int], list[Item]]:
    """Return an item of the second garden's train split for each of its tasks and each `see`."""
    found = {}
    for medium in ("image", "video"):
        tasks = SECOND_TASKS["video"] if medium == "video" else SECOND_TASKS["image"] + SECOND_TASKS["images"]
        for row, task in enumerate(tasks):
            for see in range(1, len(SEE) + 1):
                think, form = 1 + (row + see - 1) % len(THINK), (row + see) % len(FORMS)
                numbers = (row + len(tasks) * turn for turn in range(50))
                number = next(n for n in numbers if turn_of(n, len(tasks)) == (row, see, think, form))
                index = 5 * number + 4 if medium == "video" else number // 4 * 5 + number % 4
                found[task.name, see] = [item_for(f"{SECOND}train", index)]
    return found


def draw_sheet(garden: str = "garden") -> Image.Image:
    """Return the whole sheet, RGB: a row for each task, one or two columns for each level or `see`.

    Args:
        garden: "garden" or "garden2".
    """
    small, middle = ImageFont.load_default(TEXT), ImageFont.load_default(20)
    items = first_items() if garden == "garden" else second_items()
    word, step = "level" if garden == "garden" else "see", CELL + GAP
    by_task: dict[str, list[Item]] = {}
    for (task, _), found in items.items():
        by_task.setdefault(task, []).extend(found)
    rows = [(task, [(draw_strip(item), caption_lines(item, small)) for item in own]) for task, own in by_task.items()]
    per_level = len(rows[0][1]) // len(LEVELS)
    tops = [HEAD]
    for _, cells in rows:
        height = max(image.height for image, _ in cells)
        num_lines = max(len(lines) for _, lines in cells)
        tops.append(tops[-1] + height + 8 + num_lines * LINE + 20)
    width = SIDE + per_level * len(LEVELS) * step + GAP
    canvas = Image.new("RGB", (width, tops[-1]), PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_head(draw, canvas.height, word, per_level)
    for (task, cells), top in zip(rows, tops[:-1], strict=True):
        draw.line([GAP, top - 9, width - GAP, top - 9], "#ddd2bb")
        draw.text((GAP + 4, top), task, INK, middle)
        draw.text((GAP + 4, top + 27), MEDIA[ALL_TASKS[task].medium], FAINT, small)
        tallest = max(image.height for image, _ in cells)
        for column, (image, lines) in enumerate(cells):
            left = SIDE + column * step
            canvas.paste(image, (left + (CELL - image.width) // 2, top + (tallest - image.height) // 2))
            for number, (line, colour) in enumerate(lines):
                draw.text((left, top + tallest + 8 + number * LINE), line, colour, small)
    return canvas


def _draw_head(draw: ImageDraw.ImageDraw, height: int, word: str, per_level: int) -> None:
    """Draw the title, and the levels with a stripe behind every second one."""
    middle, step = ImageFont.load_default(20), CELL + GAP
    draw.text((GAP + 4, 16), "The garden", INK, ImageFont.load_default(40))
    note = "Every task at every level, the first free question and the first with options. The answer stands beneath."
    if per_level == 1:
        note = "Every task at every see, with another think in each column. The answer stands beneath."
    draw.text((GAP + 244, 34), note, FAINT, middle)
    for number, level in enumerate(LEVELS):
        left, wide = SIDE + per_level * number * step, per_level * step
        if number % 2 == 0:
            draw.rectangle([left - GAP // 2, HEAD - 44, left + wide - GAP // 2 - 1, height], STRIPE)
        draw.text((left + (wide - GAP) / 2, HEAD - 24), f"{word} {level.number}", INK, middle, anchor="mm")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for a file that cannot be written."""
    parser = ArgumentParser(prog="python -m avis.garden.sheet", description="Draw the garden's contact sheet.")
    parser.add_argument("--garden", choices=("garden", "garden2"), default="garden", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="PNG (default: assets/GARDEN.png)")
    args = parser.parse_args(argv)
    out = args.out or Path("assets") / f"{args.garden}.png"

    def command() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet = draw_sheet(args.garden).quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        sheet.save(out, "PNG", optimize=True)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
