"""The pages of the repository, for the tests that read them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_AT_ROOT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for path in [
        *(ROOT / name for name in _AT_ROOT),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "models").glob("*/MODEL_CARD.md")),
    ]
)
_FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)


def read_page(name: str) -> str:
    """Return the text of a page."""
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(text: str, *languages: str) -> list[str]:
    """Return the fenced blocks of these languages, in order."""
    return [code for language, code in _FENCE.findall(text) if language in languages]


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", text)
