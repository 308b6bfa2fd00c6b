"""Many questions from a file: nothing doubled or lost whatever stops a run. No model: a stand-in gives the answers."""

import json
import os
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import pytest

from avis.batch import AnswerJournal, Totals, answer_turns, open_questions, run_batch
from avis.config import AvisConfig
from avis.questions import Question

pytestmark = pytest.mark.unit

CONFIG = AvisConfig(enable_kdv=True, num_rollouts=3)


def questions_file(folder: Path, *lines) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def asks(*numbers: int) -> list[dict]:
    return [{"id": f"q{number}", "image": "a.png", "prompt": f"Number {number}?"} for number in numbers]


def stand_in(question, messages) -> dict:
    """A record as `AvisOutput.to_dict()` has it, with the fields that are read again."""
    if "fail" in messages[-1]["content"][-1]["text"]:
        raise ValueError("cannot read it\nand more lines")
    return {
        "answer": question.text,
        "items": [{"kept": 25, "total": 100}],
        "num_rollouts": 3,
        "flops": {"relative_llm": 0.5, "relative_total": 0.8},
        "weights_sha256": "abc",
        "config": asdict(CONFIG),
        "query_index": question.index,
    }


def go(folder: Path, path: Path, ask=stand_in, config=CONFIG, prompt=None, **options) -> Totals:
    source = open_questions(path, prompt)
    with AnswerJournal(folder / "answers.jsonl", source, config, **options) as answers:
        return run_batch(source, answers, ask)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_bytes().splitlines()]


def counting(asked: list):
    """`stand_in` that leaves the indices of what it was asked."""

    def ask(question, messages) -> dict:
        asked.append(question.index)
        return stand_in(question, messages)

    return ask


# --------------------------------------------------------------------------------------------- nothing doubled or lost


def test_every_line_is_answered_or_has_its_error(tmp_path):
    """Guards against: one bad line that ends the run, is skipped in silence, or shifts the numbers of the others."""
    wrong = ["not json", "[]", {"image": "a.png"}, {"prompt": "Why?"}, {"image": 3, "prompt": "Why?"}]
    special = {"image": "a.png", "prompt": "What is <|image_pad|>?"}
    source = questions_file(tmp_path, *asks(0), "", *wrong, special, {"image": "a.png", "prompt": "fail"}, *asks(8))
    totals = go(tmp_path, source)
    records = lines(tmp_path)
    assert [record["query_index"] for record in records] == list(range(9))
    assert ["error" in record for record in records] == [False, *[True] * 7, False]
    assert records[1]["input"] == "not json" and records[0]["input"] == asks(0)[0]
    assert records[1]["error"].startswith(f"{source} line 3: not a line of JSON")
    assert records[7]["error"] == "cannot read it"
    assert (totals.answered, totals.failed) == (2, 7)
    assert str(totals) == "kept 25%, mean K 3.00, FLOPs LLM-only 0.50, total 0.80, failed 7"


def test_a_line_says_what_was_asked_first(tmp_path):
    """Guards against: an output whose lines cannot be joined with their questions, and keys that readers look for."""
    line = {"image": "a.png", "question": "Which?", "options": ["one", "two"], "answer": "A", "id": 7}
    go(tmp_path, questions_file(tmp_path, line, {"image": "a.png", "prompt": ["Why?", "And?"]}, "x"))
    first, second, third = lines(tmp_path)
    assert (tmp_path / "answers.jsonl").read_bytes().startswith(b'{"query_index": 0, "input": {"image": "a.png", ')
    assert list(first)[:5] == ["query_index", "input", "prompt", "system_prompt", "config"]
    assert first["input"] == line and first["prompt"] == "Which?\nA. one B. two" and first["config"] == asdict(CONFIG)
    assert second["prompt"] == ["Why?", "And?"]
    assert third == {
        "query_index": 2, "input": "x", "prompt": None, "system_prompt": None, "config": asdict(CONFIG),
        "error": third["error"],
    }  # fmt: skip


def test_unexpected_errors_are_recorded_with_their_kind(tmp_path):
    """Guards against: hours of answers followed by a crash at one question that hits a bug."""

    def ask(question, messages):
        raise KeyError("a bug")

    go(tmp_path, questions_file(tmp_path, *asks(0, 1)), ask)
    assert [record["error"] for record in lines(tmp_path)] == ["KeyError: 'a bug'"] * 2


def test_a_kill_at_any_byte_loses_and_doubles_nothing(tmp_path, monkeypatch):
    """Guards against: a torn last line that is kept, or that glues itself to the next one; a whole line taken for a
    torn one; questions asked twice."""
    source = questions_file(tmp_path, *asks(0, 1), {"image": "a.png", "prompt": "fail \u00fc"})
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # which takes most of a minute, two thousand times
    go(tmp_path, source)
    whole = (tmp_path / "answers.jsonl").read_bytes()
    boundaries = {
        at + near for at, byte in enumerate(whole) if byte == 10 for near in (-1, 0, 1) if at + near < len(whole)
    }
    for end in sorted({*range(20), *range(20, len(whole), 11), *boundaries}):
        (tmp_path / "answers.jsonl").write_bytes(whole[:end])
        asked = []
        go(tmp_path, source, counting(asked))
        assert (tmp_path / "answers.jsonl").read_bytes() == whole, f"killed after {end} bytes"
        assert asked == list(range(whole[:end].count(b"\n"), 3))
    assert go(tmp_path, source, ask=None).answered == 2, "a finished run asks nothing"


def test_lines_are_on_the_disk_before_the_next_question(tmp_path, monkeypatch):
    """Guards against: lines in a buffer, which a kill takes along, or in the system's, which a power cut does."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))

    def ask(question, messages):
        if not question.index:
            synced.clear()  # the new file's entry in its folder
        assert len(lines(tmp_path)) == len(synced) == question.index
        return stand_in(question, messages)

    go(tmp_path, questions_file(tmp_path, *asks(0, 1, 2)), ask)
    assert synced[-1] == (tmp_path / "answers.jsonl").stat().st_size


def test_ctrl_c_ends_the_run_and_not_the_question_alone(tmp_path):
    """Guards against: Ctrl-C recorded as a question's error, and answers before it lost."""

    def interrupted(question, messages):
        if question.index == 1:
            raise KeyboardInterrupt
        return stand_in(question, messages)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, questions_file(tmp_path, *asks(0, 1, 2)), interrupted)
    assert [record["query_index"] for record in lines(tmp_path)] == [0]


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    """Guards against: half a line left behind by a full disk, and answers before it that are lost or asked again."""
    source = questions_file(tmp_path, *asks(0, 1, 2))
    write, room = os.write, [1100]

    def full(fd, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = write(fd, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device; its 1 records are complete"):
        go(tmp_path, source)
    assert [record["query_index"] for record in lines(tmp_path)] == [0]
    room[0] = 10**6
    go(tmp_path, source)
    assert [record["query_index"] for record in lines(tmp_path)] == [0, 1, 2]


def test_failed_questions_are_asked_again(tmp_path):
    """Guards against: failures asked again unasked, their old lines beside the new ones, answers asked again."""
    source = questions_file(tmp_path, *asks(0), {"image": "a.png", "prompt": "fail"}, *asks(2), "not json")
    go(tmp_path, source)
    whole = (tmp_path / "answers.jsonl").read_bytes()
    assert go(tmp_path, source, ask=None).failed == 2
    assert (tmp_path / "answers.jsonl").read_bytes() == whole
    asked = []

    def mended(question, messages):
        asked.append(question.index)
        return stand_in(question, [{"content": [{"text": "mended"}]}])

    totals = go(tmp_path, source, mended, retry_failed=True)
    assert asked == [1] and (totals.answered, totals.failed) == (3, 1)
    records = {record["query_index"]: record for record in lines(tmp_path)}
    assert sorted(records) == [0, 1, 2, 3] and len(lines(tmp_path)) == 4
    assert [records[index] for index in (0, 2)] == [json.loads(whole.splitlines()[index]) for index in (0, 2)]
    assert len(list(tmp_path.iterdir())) == 2, "something was left beside the file"


REFUSED = ["input", "order", "prompt", "shorter", "config", "weights", "policy"]
REFUSED += ["damaged", "doubled", "another's", "0.1"]


@pytest.mark.parametrize("change", REFUSED)
def test_answers_to_something_else_are_left_alone(tmp_path, change):
    """Guards against: answers to other questions, or made with another config or model, mixed into one file; and
    somebody's own file cut short because its last line looked torn."""
    first = [{"image": "a.png"}, *asks(1)]
    go(tmp_path, questions_file(tmp_path, *first), prompt="How many?")
    output = tmp_path / "answers.jsonl"
    config, ask, prompt, now = CONFIG, stand_in, "How many?", [*first, *asks(2)]
    match = "choose another --output$"
    if change == "input":
        now = [first[0], *asks(5, 2)]
    if change == "order":
        now = [first[1], first[0], *asks(2)]
    if change == "shorter":
        now = first[:1]
    if change == "prompt":
        prompt = "How many more?"
    if change == "config":
        config, match = AvisConfig(**asdict(CONFIG) | {"seed": 7}), r"made with another config\.seed: choose"
    if change in ("weights", "policy"):

        def ask(question, messages):
            return stand_in(question, messages) | {f"{change}_sha256": "def"}

        match = "made with another model or policy: choose"
    if change == "damaged":
        output.write_bytes(output.read_bytes().replace(b'"answer"', b'answer"', 1))
    if change == "doubled":
        output.write_bytes(output.read_bytes().splitlines(keepends=True)[0] * 2)
    if change == "another's":
        output.write_bytes(b"Dear diary")
    if change == "0.1":
        output.write_bytes(b'{"item": 0, "input": {"image": "a.png"}, "settings": {}}\n{"item": 1, "inp')
        match = "was written by AVIS 0.1: finish it with that version, or choose another --output$"
    before = output.read_bytes()
    with pytest.raises(ValueError, match=match) as caught:
        go(tmp_path, questions_file(tmp_path, *now), ask, config, prompt)
    assert "\n" not in str(caught.value)
    assert output.read_bytes() == before


def test_a_refused_file_keeps_its_torn_line(tmp_path):
    """Guards against: a file cut first and refused then."""
    source, output = questions_file(tmp_path, *asks(0, 1)), tmp_path / "answers.jsonl"
    go(tmp_path, source)
    output.write_bytes(output.read_bytes()[:-3])
    before = output.read_bytes()
    for config, path in ((AvisConfig(), source), (CONFIG, questions_file(tmp_path, *asks(3, 4)))):
        with pytest.raises(ValueError, match="choose another --output"):
            go(tmp_path, path, config=config)
        assert output.read_bytes() == before


def test_one_run_at_a_time(tmp_path):
    """Guards against: two runs that write to one file."""
    source = open_questions(questions_file(tmp_path, *asks(0)))
    with AnswerJournal(tmp_path / "answers.jsonl", source, CONFIG):
        with pytest.raises(ValueError, match="another run is writing"):
            AnswerJournal(tmp_path / "answers.jsonl", source, CONFIG)


def test_more_questions_at_the_end_are_answered(tmp_path):
    """Guards against: a file of questions that has grown, all asked again or refused."""
    go(tmp_path, questions_file(tmp_path, *asks(0, 1)))
    asked = []
    go(tmp_path, questions_file(tmp_path, *asks(0, 1, 2)), counting(asked))
    assert asked == [2] and len(lines(tmp_path)) == 3


def test_answers_are_not_kept_in_memory(tmp_path, monkeypatch):
    """Guards against: a million answers' texts in memory, when they are written or resumed."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    source = questions_file(tmp_path, *asks(*range(200)))

    def long(question, messages):
        return stand_in(question, messages) | {"text": "x" * 100_000}

    for ask in (long, None):
        tracemalloc.start()
        go(tmp_path, source, ask)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 6e6, "of 20 MB"


# ----------------------------------------------------------------------------------------------------- follow-ups


class Output:
    def __init__(self, number: int):
        self.text = f" reply {number}\n"

    def to_dict(self) -> dict:
        return {"text": self.text}


def test_follow_ups_continue_the_chat_before_them():
    """Guards against: follow-ups without the turns before them, a state that is not handed on or is asked for in vain,
    and a reply that is not put back as the chat template wants it."""
    calls = []

    def pipeline(messages, **options):
        calls.append((messages, options))
        return Output(len(calls))

    start = [{"role": "user", "content": [{"type": "text", "text": "One?"}]}]
    question = Question(4, "One?", ("Two?", "Three?"))
    record = answer_turns(pipeline, question, start, CONFIG)
    assert record == {"text": " reply 3\n", "earlier": [{"text": " reply 1\n"}, {"text": " reply 2\n"}]}
    chat = [
        *start,
        {"role": "assistant", "content": "reply 1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "reply 2"},
        {"role": "user", "content": "Three?"},
    ]
    assert [messages for messages, _ in calls] == [chat[:1], chat[:3], chat]
    assert [options.pop("previous", None) is None for _, options in calls] == [True, False, False]
    assert all(options == {"config": CONFIG, "query_index": 4, "return_state": True} for _, options in calls)
    calls.clear()
    assert answer_turns(pipeline, Question(5, "One?"), start, CONFIG) == {"text": " reply 1\n"}
    assert calls[0][1] == {"config": CONFIG, "query_index": 5, "return_state": False}


def test_totals_count_every_turn():
    totals = Totals()
    turn = stand_in(Question(0, "?"), [{"content": [{"text": "?"}]}])
    totals.add(turn | {"num_rollouts": 5, "earlier": [turn | {"num_rollouts": 1}]})
    totals.add({"error": "none"})
    assert (totals.answered, totals.failed, totals.turns, totals.rollouts) == (1, 1, 2, 6)
    assert str(totals).startswith("kept 25%, mean K 3.00") and str(Totals(failed=2)) == "failed 2"
