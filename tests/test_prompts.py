"""Tests of avis/prompts.py: which answer format is chosen, what it asks for, and that its answers are read."""

import json

import pytest

from avis.answers import answers_match, extract_answer
from avis.prompts import ANSWER_FORMATS, DIRECT, THINKING, answer_format_for, check_text, with_instruction
from avis.voting import majority_vote

pytestmark = pytest.mark.unit

NAMES = {
    "Qwen/Qwen2.5-VL-7B-Instruct": "avis",
    "models/garden-tiny": "avis",
    "TIGER-Lab/VL-Rethinker-7B": "vl-rethinker",
    "/data/checkpoints/VL_Rethinker_72B/": "vl-rethinker",
    "Osilly/Vision-R1-7B": "vision-r1",
    "ydeng9/OpenVLThinker-7B": "openvlthinker",
    "ydeng9/OpenVLThinker-7B-v1.2": "openvlthinker",
    "/home/vision-r1/Qwen2.5-VL-7B-Instruct": "avis",  # a folder's name is not the model's
    "": "avis",
}


@pytest.mark.parametrize("model, name", NAMES.items())
def test_the_model_s_name_chooses_its_format(model, name):
    """Guards against: a post-trained model asked for a form that it was not trained to write."""
    assert answer_format_for(model).name == name


def test_a_name_given_wins_and_an_unknown_one_is_refused():
    """Guards against: a flag that is ignored, and a slip of the finger that means the default."""
    assert answer_format_for("Osilly/Vision-R1-7B", "openvlthinker").name == "openvlthinker"
    assert answer_format_for("Osilly/Vision-R1-7B", "avis") is ANSWER_FORMATS[0]
    with pytest.raises(ValueError, match="vl-rethinker, vision-r1, openvlthinker, got 'r1'"):
        answer_format_for("Osilly/Vision-R1-7B", "r1")


def test_names_and_marks_are_unambiguous():
    """Guards against: two formats that fit one model, and a mark that no name can hold."""
    assert len({answer_format.name for answer_format in ANSWER_FORMATS}) == len(ANSWER_FORMATS)
    marks = [mark for answer_format in ANSWER_FORMATS for mark in answer_format.model_marks]
    assert all(mark.isalnum() and mark == mark.lower() for mark in marks)
    assert not [(a, b) for a in marks for b in marks if a != b and a in b]


@pytest.mark.parametrize("answer_format", ANSWER_FORMATS, ids=lambda answer_format: answer_format.name)
def test_instructions_stand_after_the_question(answer_format):
    """Guards against: instructions that lose the question, are the same with and without thinking, or hold what the
    chat's check refuses."""
    thinking, direct = (with_instruction("How many?", thinks, answer_format) for thinks in (True, False))
    assert thinking.startswith("How many?\n") and direct.startswith("How many?\n") and thinking != direct
    for text in filter(None, (thinking, direct, answer_format.system_prompt)):
        check_text(text)


def test_the_default_is_what_the_bundled_model_was_trained_on():
    """Guards against: a format that changes the words in the garden's training prompts."""
    assert with_instruction("How many?") == f"How many?\n{THINKING}"
    assert with_instruction("How many?", enable_thinking=False) == f"How many?\n{DIRECT}"
    assert answer_format_for("models/garden-tiny").system_prompt is None


# What models of each format write, with the answer that the vote has to see.
WRITTEN = {
    "vl-rethinker": [
        ("Let me see. There are two. Wait, does it seem right? One is a bear.\n\nThe answer is \\boxed{1}.", "1"),
        ("We solve \\boxed{x = 3} first. Hence the area is\n\\[\\boxed{\\frac{3}{4}}\\]", "\\frac{3}{4}"),
        ("So the correct option is C.\n\n\\boxed{\\text{C}}", "\\text{C}"),
        ("Thinking again, \\boxed{(B) a rabbit}", "(B) a rabbit"),
    ],
    "vision-r1": [
        ("<think>\nOkay, two rabbits. Wait, \\boxed{3}? No.\n</think>\n<answer>Final Answer: B</answer>", "B"),
        ("<think>r = 1, s = 3</think>\n\n<answer>\n**Final Answer:** 3π\n</answer>", "3π"),
        ("<think>Hmm.</think> <answer>Final Answer:42</answer>", "42"),
        ("<think>Let us count.</think><answer>**Final Answer**\n\n\\boxed{5}</answer>", "5"),
    ],
    "openvlthinker": [
        ("<think> The chart shows 12. </think> <answer> 12 </answer>", "12"),
        ("<think>\nA, then B.\n</think>\n\n<answer>\nD\n</answer>", "D"),
    ],
}


@pytest.mark.parametrize(
    "text, answer", [pair for pairs in WRITTEN.values() for pair in pairs], ids=lambda value: value[-12:]
)
def test_what_each_format_writes_is_read(text, answer):
    """Guards against: a format whose final answer is lost, or mixed up with what the thought tried before."""
    assert extract_answer(text) == answer
    assert extract_answer(text, finished=False) is None


def test_votes_agree_across_forms():
    """Guards against: rollouts that say the same in two spellings of a format and are counted as two answers."""
    texts = ["\\boxed{\\text{C}}", "<think>.</think><answer>Final Answer: c</answer>", "<answer> (C) </answer>"]
    vote = majority_vote([extract_answer(text) for text in texts])
    assert len(vote.counts) == 1 and answers_match(vote.answer, "C")


def test_a_thought_that_is_not_closed_abstains():
    """Guards against: the last box of an unfinished thought, taken for the answer."""
    assert extract_answer("<think>First \\boxed{3}, then") is None
    assert extract_answer("<think>It is B. <answer>B") is None


def test_formats_are_plain_values():
    """Guards against: a format that cannot be recorded with an answer."""
    for answer_format in ANSWER_FORMATS:
        assert json.loads(json.dumps(vars(answer_format)))["name"] == answer_format.name
