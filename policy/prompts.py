"""The words that ask a model to think, or not to: one place for garden, demo and adapters.

Example::

    from policy.prompts import with_instruction
    with_instruction("How many cats?", thinking=True)
"""

THINKING = "Reason inside <think></think>, then give the final answer inside <answer></answer>."
DIRECT = "Give only the final answer inside <answer></answer>."


def with_instruction(question: str, thinking: bool = True) -> str:
    """The question followed by the instruction for its answer's form."""
    return f"{question}\n{THINKING if thinking else DIRECT}"
