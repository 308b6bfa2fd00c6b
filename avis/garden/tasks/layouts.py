"""The layouts in which evaluation harnesses put a question, in whose words some of the second garden's are put.

Sources: VLMEvalKit's `build_prompt` for multiple choice, lmms-eval's post-prompt of MMStar and MMBench, and the
short-answer sentence of LLaVA-1.5, which both harnesses use for free answers.
"""

import numpy as np

from avis.garden.tasks.base import LETTERS

OWN_SHARE = 0.9  # of questions in the garden's own layout
# By form of question; "{options}" is a line for each.
LAYOUTS = {
    "choice": {
        "vlmevalkit": (
            "Question: {stem}\nOptions:\n{options}\nPlease select the correct answer from the options above. \n"
        ),
        "lmms-eval": "{stem}\n{options}\nAnswer with the option's letter from the given choices directly.",
    },
    "free": {"llava": "{stem}\nAnswer the question using a single word or phrase."},
}


def draw_layout(rng: np.random.Generator, form: str) -> str:
    """Draw the layout of a question of a form: "", the garden's own, or a name in `LAYOUTS`."""
    if rng.random() < OWN_SHARE:
        return ""
    return str(rng.choice(list(LAYOUTS[form])))


def lay_out(stem: str, options: tuple[str, ...], layout: str = "") -> str:
    """Return a question as it is put to the model, without the instruction for the form of the answer.

    Args:
        stem: the question itself.
        options: their texts; () for a free answer.
        layout: "" or a name in `LAYOUTS`.
    """
    lettered = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    if not layout:
        return "\n".join([stem, " ".join(lettered)] if options else [stem])
    return LAYOUTS["choice" if options else "free"][layout].format(stem=stem, options="\n".join(lettered))
