"""Two batteries of answers: pairs that are or are not equal, and texts with the answer that a careful reader takes.

The tables in tests/data were written from what models answer to benchmarks, each line with its reason; ⏎ is a line
break. The verdict of a pair is `same` or `different`, or `split`: it is equal, stays two votes, and counts as a fault.
Texts of the kind `hard` are read wrongly. Counts: `python tests/test_answer_battery.py`.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avis.answers import answers_match, extract_answer, normalise_answer, vote_key

pytestmark = pytest.mark.unit

DATA = Path(__file__).parent / "data"


def rows(name: str) -> list[dict[str, str]]:
    header, *lines = [line.split("\t") for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    return [dict(zip(header, [cell.replace("⏎", "\n") for cell in line + [""] * 9], strict=False)) for line in lines]


PAIRS, TEXTS = rows("answer_pairs.tsv"), rows("answer_texts.tsv")


def is_merged(pair: dict[str, str]) -> bool:
    return answers_match(pair["a"], pair["b"], question=pair["question"] or None)


def is_read(row: dict[str, str]) -> bool:
    answer = extract_answer(row["text"], question=row["question"] or None)
    if row["answer"] == "NONE":
        return answer is None
    return answer == row["answer"] or answers_match(answer, row["answer"], question=row["question"] or None)


def counts() -> dict[str, int]:
    """The battery in numbers."""
    merged = [pair["verdict"] for pair in PAIRS if is_merged(pair)]
    equal = sum(pair["verdict"] != "different" for pair in PAIRS)
    return {
        "equal pairs": equal,
        "split though equal": equal - len(merged) + merged.count("different"),
        "different pairs": len(PAIRS) - equal,
        "merged wrongly": merged.count("different"),
        "texts": len(TEXTS),
        "misread": sum(not is_read(row) for row in TEXTS),
    }


def test_every_line_has_its_reason():
    """Guards against: a table that shrinks, repeats itself, or holds cases that nobody can judge."""
    assert len(PAIRS) >= 300 and len(TEXTS) >= 120
    assert all(row["why"] for row in [*PAIRS, *TEXTS])
    assert {pair["verdict"] for pair in PAIRS} == {"same", "different", "split"}
    keys = [tuple(sorted((pair["a"], pair["b"]))) + (pair["question"],) for pair in PAIRS]
    assert len(set(keys)) == len(keys) and len({(row["text"], row["question"]) for row in TEXTS}) == len(TEXTS)


def test_nothing_is_merged_wrongly():
    """Guards against: two answers that differ and are one vote."""
    assert [
        (pair["a"], pair["b"], pair["why"]) for pair in PAIRS if pair["verdict"] == "different" and is_merged(pair)
    ] == []


def test_what_is_equal_is_one_vote():
    """Guards against: spellings of one answer that split a vote, but for the hard ones that are listed as such."""
    wrong = [
        pair for pair in PAIRS if pair["verdict"] != "different" and is_merged(pair) != (pair["verdict"] == "same")
    ]
    assert [(pair["a"], pair["b"], pair["verdict"], pair["why"]) for pair in wrong] == []
    found = counts()
    assert found["split though equal"] <= 0.05 * found["equal pairs"], found


def test_texts_are_read_as_a_careful_reader_does():
    """Guards against: answers that are lost, cut short, or taken from elsewhere in the text."""
    wrong = [row for row in TEXTS if is_read(row) != (row["kind"] != "hard")]
    assert [(row["text"], extract_answer(row["text"]), row["answer"], row["why"]) for row in wrong] == []
    found = counts()
    assert found["misread"] <= 0.05 * found["texts"], found


# ------------------------------------------------------------------------------------------- the equivalence

SPELLINGS = sorted({pair[side] for pair in PAIRS for side in "ab"} | {row["answer"] for row in TEXTS})
QUESTIONS = sorted({row["question"] for row in [*PAIRS, *TEXTS]})


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question[:20])
def test_forms_are_their_own_forms(question):
    """Guards against: a winner that does not match itself when it is graded, or recorded votes that fall apart when
    they are counted again without the question."""
    for spelling in SPELLINGS:
        form = normalise_answer(spelling, question=question)
        assert normalise_answer(form, question=question) == form


@given(*[st.sampled_from(SPELLINGS) | st.text(max_size=12)] * 3)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_matching_is_an_equivalence(a, b, c):
    """Guards against: a match that is not reflexive, symmetric or transitive, so that a vote depends on its order."""
    assert answers_match(a, a) == (vote_key(a) is not None)
    assert answers_match(a, b) == answers_match(b, a) == (vote_key(a) is not None and vote_key(a) == vote_key(b))
    assert not (answers_match(a, b) and answers_match(b, c)) or answers_match(a, c)


def test_threads_agree():
    """Guards against: forms that depend on the thread, the order or the load (a clock, an alarm, a shared parser)."""
    with ThreadPoolExecutor(8) as pool:
        forms = list(pool.map(normalise_answer, SPELLINGS * 2))
    assert forms == [normalise_answer(spelling) for spelling in SPELLINGS] * 2


if __name__ == "__main__":
    for name, count in counts().items():
        print(f"{name:20}{count:6}")
