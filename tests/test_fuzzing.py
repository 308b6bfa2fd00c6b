"""The parsers, fuzzed: questions, rollouts' texts and prompts."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from avis.answers import extract_answer
from avis.batch import parse_question
from avis.prompts import check_text
from avis.voting import majority_vote

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


KEYS = st.sampled_from(["prompt", "image", "video", "id"])


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60)
    | st.dictionaries(KEYS | st.text(max_size=5), JSON | st.just("a.png"), max_size=5).map(
        lambda v: json.dumps(v).encode()
    )
)
def test_fuzzed_lines_are_questions_or_errors(line):
    """Guards against: one odd line of a file that ends the whole run, or an error that cannot be written down."""
    question = parse_question(3, line, Path("/images"), None, None)
    assert (question.messages is None) == (question.error is not None)
    assert json.loads(json.dumps(question.asked(), allow_nan=False)) == question.asked()
    if question.error is None:
        content = question.messages[-1]["content"]
        texts = question.prompt if isinstance(question.prompt, list) else [question.prompt]
        assert [content[-1]["text"], *question.follow_ups] == texts and len(content) > 1
        assert all(isinstance(part[part["type"]], str) for part in content)


def test_deep_and_long_lines_are_errors():
    """Guards against: a line that exhausts the parser: nesting without end, numbers without end."""
    for line in (b"[" * 10**5, b'{"a": ' * 10**4, b"9" * 10**5, b'{"prompt": NaN}', b"\xff\xfe", b"null", b"[]"):
        assert parse_question(0, line, Path(), "How many?").error


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
