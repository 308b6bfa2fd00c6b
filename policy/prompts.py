"""The words that ask a model to think, or not to: one place for garden, demo and adapters.

Example::

    from policy.prompts import profile_for, with_instruction
    check_text("How many cats?")
    with_instruction("How many cats?", thinking=True)
    with_instruction("How many cats?", profile=profile_for("TIGER-Lab/VL-Rethinker-7B"))
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

THINKING = "Reason inside <think></think>, then give the final answer inside <answer></answer>."
DIRECT = "Give only the final answer inside <answer></answer>."


@dataclass(frozen=True)
class Profile:
    """In what form a model was trained to answer, and the words that ask for it. `extract_answer` reads every form.

    Attributes:
        name: to choose it by.
        marks: the model's name holds one of them; letters and digits only, lower case.
        system: the system prompt of a chat that brings none; None: the chat template's own.
        thinking, direct: the instruction after the question, with reasoning and without.
    """

    name: str
    marks: tuple[str, ...] = ()
    system: str | None = None
    thinking: str = THINKING
    direct: str = DIRECT


# The forms are those that the models' cards and evaluation code name; the words are our own. Qwen2.5-VL itself has no
# such form, and takes the one asked for: AVIS's.
PROFILES = (
    Profile("avis"),
    # A chain of thought that checks itself, in plain text, then a box: TIGER-Lab/VL-Rethinker-7B.
    Profile(
        "vl-rethinker",
        ("vlrethinker",),
        thinking="Reason step by step and check your reasoning as you go. Put the final answer inside \\boxed{}.",
        direct="Give only the final answer, inside \\boxed{}.",
    ),
    # <think>..</think><answer>Final Answer: B</answer>: Osilly/Vision-R1-7B.
    Profile(
        "vision-r1",
        ("visionr1",),
        thinking='Reason inside <think></think>, then write "Final Answer:" and the answer inside <answer></answer>.',
        direct='Write only "Final Answer:" and the answer, inside <answer></answer>.',
    ),
    # <think>..</think><answer>B</answer>, asked for in the system prompt: ydeng9/OpenVLThinker-7B.
    Profile(
        "openvlthinker",
        ("openvlthinker",),
        system="You answer questions in two parts: the reasoning inside <think></think>, the answer inside "
        "<answer></answer>.",
        thinking="Think it through first, then give the final answer.",
    ),
)


def profile_for(model_path: str, name: str | None = None) -> Profile:
    """The profile of this name, else the one whose mark the model's name holds, else AVIS's own.

    Args:
        model_path: a folder or hub name; its last part is the model's name.
        name: of a profile.

    Raises:
        ValueError: no profile has the name.
    """
    if name is not None:
        for profile in PROFILES:
            if profile.name == name:
                return profile
        raise ValueError(f"profile must be one of {', '.join(profile.name for profile in PROFILES)}, got {name!r:.100}")
    model = re.sub(r"[^a-z0-9]", "", str(model_path).lower().rstrip("/").rpartition("/")[2])
    return next((profile for profile in PROFILES if any(mark in model for mark in profile.marks)), PROFILES[0])


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


def with_instruction(question: str, thinking: bool = True, profile: Profile = PROFILES[0]) -> str:
    """The question followed by the instruction for its answer's form."""
    return f"{question}\n{profile.thinking if thinking else profile.direct}"
