"""The instructions that ask a model for an answer, in one place for the pipeline, the garden and the adapters::

check_text("How many cats?")
with_instruction("How many cats?", enable_thinking=True)
with_instruction("How many cats?", answer_format=answer_format_for("TIGER-Lab/VL-Rethinker-7B"))
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

THINKING = "Reason inside <think></think>, then give the final answer inside <answer></answer>."
DIRECT = "Give only the final answer inside <answer></answer>."


@dataclass(frozen=True)
class AnswerFormat:
    """The form in which a model was trained to answer. `extract_answer` reads every one of them.

    Attributes:
        name: to choose it by.
        model_marks: parts of the names of models that were trained in it; letters and digits alone, in lower case.
        system_prompt: of a chat that has none; None: the chat template's own.
        thinking: the instruction after the question, with reasoning.
        direct: the instruction after the question, without reasoning.
    """

    name: str
    model_marks: tuple[str, ...] = ()
    system_prompt: str | None = None
    thinking: str = THINKING
    direct: str = DIRECT


# The models' cards and evaluation code name these formats; the words are our own. Qwen2.5-VL itself was trained in none
# and takes the one that is asked for: AVIS's.
ANSWER_FORMATS = (
    AnswerFormat("avis"),
    # TIGER-Lab/VL-Rethinker-7B: a chain of thought that checks itself, in plain text, then a box.
    AnswerFormat(
        "vl-rethinker",
        ("vlrethinker",),
        thinking="Reason step by step and check your reasoning as you go. Put the final answer inside \\boxed{}.",
        direct="Give only the final answer, inside \\boxed{}.",
    ),
    # Osilly/Vision-R1-7B: <think>..</think><answer>Final Answer: B</answer>.
    AnswerFormat(
        "vision-r1",
        ("visionr1",),
        thinking='Reason inside <think></think>, then write "Final Answer:" and the answer inside <answer></answer>.',
        direct='Write only "Final Answer:" and the answer, inside <answer></answer>.',
    ),
    # ydeng9/OpenVLThinker-7B: <think>..</think><answer>B</answer>, which the system prompt asks for.
    AnswerFormat(
        "openvlthinker",
        ("openvlthinker",),
        system_prompt="You answer questions in two parts: the reasoning inside <think></think>, the answer inside "
        "<answer></answer>.",
        thinking="Think it through first, then give the final answer.",
    ),
)


def answer_format_for(model_path: str, name: str | None = None) -> AnswerFormat:
    """Return the answer format of this name, else the one that fits the model's name, else AVIS's own.

    Args:
        model_path: a folder or hub name; its last part is the model's name.
        name: of an answer format; None: by the model's name.

    Raises:
        ValueError: no answer format has this name.
    """
    if name is not None:
        for answer_format in ANSWER_FORMATS:
            if answer_format.name == name:
                return answer_format
        known = ", ".join(answer_format.name for answer_format in ANSWER_FORMATS)
        raise ValueError(f"answer_format must be one of {known}, got {name!r:.100}")
    model = re.sub(r"[^a-z0-9]", "", str(model_path).lower().rstrip("/").rpartition("/")[2])
    for answer_format in ANSWER_FORMATS:
        if any(mark in model for mark in answer_format.model_marks):
            return answer_format
    return ANSWER_FORMATS[0]


def with_options(question: str, options: Mapping[str, object] | None) -> str:
    """Return a question followed by its options on one line, as in the garden: `A. red B. blue`.

    Args:
        question: as the user asked it.
        options: texts by letter, in order; None or empty: the question has none.
    """
    if not options:
        return question
    return question + "\n" + " ".join(f"{letter}. {option}" for letter, option in options.items())


# How Qwen's special tokens are written; its processor replaces one of them by the image's tokens.
_SPECIAL = re.compile(r"<\|\w+\|>")


def check_text(text: str, special: Iterable[str] = ()) -> None:
    """Refuse a text with a part that would be read as the chat's structure.

    Args:
        text: a question, or any other turn.
        special: the tokenizer's special tokens.

    Raises:
        ValueError: the text holds a special token or what looks like one, or is not valid Unicode (a lone surrogate).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text must be valid Unicode: {error.reason} at character {error.start + 1}") from None
    found = [match.group() for match in _SPECIAL.finditer(text)] or [token for token in special if token in text]
    if found:
        raise ValueError(f"a text must not hold a special token, this one holds {found[0]}")


def with_instruction(
    question: str, enable_thinking: bool = True, answer_format: AnswerFormat = ANSWER_FORMATS[0]
) -> str:
    """Return a question followed by the instruction for the form of its answer.

    Args:
        question: as the user asked it.
        enable_thinking: ask for reasoning before the answer.
        answer_format: of the answer.
    """
    return f"{question}\n{answer_format.thinking if enable_thinking else answer_format.direct}"
