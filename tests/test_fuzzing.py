"""Rollouts' texts and prompts, fuzzed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from avis.answers import extract_answer
from avis.prompts import check_text
from avis.voting import majority_vote

PIECES = [
    "<answer>",
    "</answer>",
    "<think>",
    "</think>",
    "\\boxed{",
    "}",
    "answer is",
    "3",
    " ",
    "\n",
    "\0",
    "\ud800",
    "½",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=9).map("".join), max_size=5))
def test_fuzzed_rollouts_are_voted_on(texts):
    """Guards against: an exception for anything a model may write, and votes that do not add up."""
    answers = [extract_answer(text) for text in texts]
    vote = majority_vote(answers)
    assert sum(vote.counts.values()) + vote.abstained == len(texts)
    assert vote.winner is None or vote.counts[vote.winner] == max(vote.counts.values())
    assert vote.winner is None or vote.answer == answers[vote.index]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["<|", "|>", "im_end", "image_pad", "vision_start", "<", "|", ">", "<|im_end|>"])
        | st.text(max_size=3),
        max_size=8,
    ).map("".join)
)
def test_fuzzed_prompts_never_become_structure(bundled, text):
    """Guards against: a text that passes the check and holds a token of the chat's structure once it is tokenised."""
    model, processor = bundled
    try:
        check_text(text)
    except ValueError:
        return
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert not set(ids) & set(processor.tokenizer.all_special_ids)
