"""The words that ask a model to think, or not to: one place for garden, demo and adapters.

Example::

    from policy.prompts import with_instruction
    check_text("How many cats?")
    with_instruction("How many cats?", thinking=True)
"""

import re
from collections.abc import Iterable

THINKING = "Reason inside <think></think>, then give the final answer inside <answer></answer>."
DIRECT = "Give only the final answer inside <answer></answer>."

# How Qwen's special tokens are written, and the word that its processor replaces with image tokens.
_SPECIAL = re.compile(r"<\|\w+\|>")


def check_text(text: str, special: Iterable[str] = ()) -> None:
    """Refuse a text of which a part would be read as the chat's structure.

    Args:
        text: a question, or any other turn.
        special: the tokenizer's special tokens.

    Raises:
        ValueError: it holds a special token or what looks like one, or is not text (a lone surrogate).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text must be valid Unicode: {error.reason} at character {error.start + 1}") from None
    found = [match.group() for match in _SPECIAL.finditer(text)] or [token for token in special if token in text]
    if found:
        raise ValueError(f"a text must not hold a special token, this one holds {found[0]}")


def with_instruction(question: str, thinking: bool = True) -> str:
    """The question followed by the instruction for its answer's form."""
    return f"{question}\n{THINKING if thinking else DIRECT}"
