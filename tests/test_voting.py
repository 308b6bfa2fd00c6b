"""Tests of avis/voting.py: the vote, its weights, and the stop when it is decided."""

import doctest
import gzip
import json
import random
from collections import Counter
from fractions import Fraction
from itertools import product
from math import exp
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avis import voting
from avis.answers import vote_key
from avis.voting import confidence_weight, is_decided, majority_vote

pytestmark = pytest.mark.unit

OPTIONS = {"A": "two rabbits", "B": "three", "C": "1,234 cm", "D": "the cat"}
fuzz = settings(max_examples=300, deadline=None, derandomize=True)
forms = st.sampled_from(["a", "b", "c", None])


def test_module_example_runs():
    """Guards against an example in a module docstring that no longer says what the code does."""
    results = doctest.testmod(voting)
    assert results.attempted > 0 and results.failed == 0


# ------------------------------------------------------------------------------------------------ the vote


def reference_winner(answers):
    """The tie rule from its definition: among the most frequent, the one whose first index is lowest."""
    given_answers = [answer for answer in answers if answer is not None]
    most = max(map(given_answers.count, given_answers), default=0)
    return next((answer for answer in given_answers if given_answers.count(answer) == most), None)


@given(st.lists(forms, max_size=9))
@fuzz
def test_vote_against_its_definition(answers):
    """Guards against ties broken by anything else than the lowest rollout index, and lost abstentions."""
    vote = majority_vote(answers)
    assert vote.winner == reference_winner(answers)
    assert vote.index == (None if vote.winner is None else answers.index(vote.winner))
    assert vote.counts == Counter(answer for answer in answers if answer is not None)
    assert list(vote.counts) == list(dict.fromkeys(answer for answer in answers if answer is not None))
    assert vote.abstained == answers.count(None)
    assert vote.normalised == tuple(answers)


@given(st.lists(forms, max_size=9), st.randoms(use_true_random=False))
@fuzz
def test_order_never_changes_a_strict_winner(answers, random):
    """Guards against finishing order leaking into the vote: a strict winner stands in any order, and a tie is
    not touched by the order of the rollouts after the last first mention of an answer."""
    vote = majority_vote(answers)
    votes = sorted(vote.counts.values(), reverse=True)
    if votes and votes.count(votes[0]) == 1:
        assert majority_vote(random.sample(answers, len(answers))).winner == vote.winner
    settled = 1 + max(map(answers.index, vote.counts), default=-1)
    later = answers[settled:]
    assert majority_vote(answers[:settled] + random.sample(later, len(later))).winner == vote.winner


def test_tie_goes_to_the_lowest_index():
    """Guards against a random or last-come tie rule."""
    assert majority_vote([None, "b", "a", "a", "b"]).winner == "b"
    assert majority_vote(["c", "a", "b", "b", "a"]).winner == "a"


def test_vote_counts_normal_forms_and_quotes_the_first():
    """Guards against spellings splitting a vote, and against showing the reader a normal form."""
    vote = majority_vote(["The cat", "Three.", "B", "\u200b", None, "(b) three"], OPTIONS)
    assert (vote.winner, vote.answer, vote.index) == ("B", "Three.", 1)
    assert vote.counts == {"D": 1, "B": 3} and vote.abstained == 2
    assert vote.normalised == ("D", "B", "B", None, None, "B")


@pytest.mark.parametrize("answers", [[], [None], [None, "", " \u200b"]])
def test_all_abstain(answers):
    """Guards against a crash, or an empty answer that wins, when nobody votes."""
    vote = majority_vote(answers)
    assert (vote.winner, vote.answer, vote.index, vote.counts) == (None, None, None, {})
    assert vote.abstained == len(answers)


# --------------------------------------------------------------------------------- weights, and the early stop


def weighted_winner(votes):
    """From its definition, in exact arithmetic; `votes` holds None or (answer, weight)."""
    totals: dict[str, Fraction] = {}
    for answer, weight in filter(None, votes):
        totals[answer] = totals.get(answer, 0) + Fraction(weight)
    return next((answer for answer, total in totals.items() if total == max(totals.values())), None)


# Three of them are 1 together, so that ties of unequal numbers of votes occur.
WEIGHTS = (0.125, 0.25, 0.625, 1.0)


def test_weighted_vote_against_its_definition():
    """Guards against: weights counted for another rollout, abstentions that weigh, ties not the lowest index's."""
    ballots = [None, *product("ab", WEIGHTS)]
    for votes in product(ballots, repeat=4):
        answers = [vote and vote[0] for vote in votes]
        weights = [vote[1] if vote else 0.5 for vote in votes]
        vote = majority_vote(answers, weights=weights)
        assert vote.winner == weighted_winner(votes), votes
        assert vote.index == (None if vote.winner is None else answers.index(vote.winner))
        assert sum(vote.counts.values()) == sum(vote[1] for vote in votes if vote)


def check_all_cases(num_rollouts: int, there: list, missing: list, winner, is_decided) -> int:
    """Every subset of rollouts that are there, with every vote, against every completion; how many are decided."""
    decided = 0
    for state in product(["missing", *there], repeat=num_rollouts):
        known = {index: vote for index, vote in enumerate(state) if vote != "missing"}
        choices = [missing if vote == "missing" else [vote] for vote in state]
        winners = {winner(votes) for votes in product(*choices)}
        assert is_decided(known) == (len(winners) == 1), (state, winners)
        decided += len(winners) == 1 and len(known) < num_rollouts
    return decided


@pytest.mark.parametrize("num_rollouts", [1, 2, 3, 4, 5])
def test_stop_is_sound_and_as_early_as_can_be(num_rollouts):
    """Guards against: a stop that changes a winner, by a tie, a new answer or an abstention; and one that comes late.
    Every case of up to five rollouts and three answers."""
    there, missing = [None, *"abc"], [None, *"abcde"]
    decided = check_all_cases(
        num_rollouts, there, missing, reference_winner, lambda known: is_decided(known, num_rollouts)
    )
    assert (decided > 0) == (num_rollouts >= 2), "two rollouts: the first one wins the tie"


@pytest.mark.parametrize("num_rollouts", [1, 2, 3, 4])
def test_weighted_stop_is_sound_and_as_early_as_can_be(num_rollouts):
    """Guards against: the same with weights, where a late vote may weigh anything up to 1."""
    there = [None, *product("ab", WEIGHTS)]
    missing = [None, *product("abc", (0.0, 0.5, 1.0))]

    def decided(known):
        forms = {index: vote and vote[0] for index, vote in known.items()}
        return is_decided(forms, num_rollouts, {index: vote[1] if vote else 0.5 for index, vote in known.items()})

    assert (check_all_cases(num_rollouts, there, missing, weighted_winner, decided) > 0) == (num_rollouts >= 2)


def test_weighted_stop_survives_rounding():
    """Guards against: sums whose rounding depends on the order of votes, so that a winner by a hair's breadth is
    stopped for and then loses. Weights as a model gives them; completions at the edge of what is possible."""
    dice = random.Random(0)
    decided = 0
    for _ in range(4000):
        count = dice.randrange(3, 9)
        near = dice.choice((1e-16, 1e-3, 1.0))
        votes = [(dice.choice("aaab"), confidence_weight(-near * dice.random())) for _ in range(count)]
        votes = [None if dice.random() < 0.1 else vote for vote in votes]
        there = [index for index in range(count) if dice.random() < 0.7]
        known = {index: votes[index] and votes[index][0] for index in there}
        weights = {index: votes[index][1] if votes[index] else 1.0 for index in there}
        if not is_decided(known, count, weights) or len(there) == count:
            continue
        decided += 1
        winners = set()
        for late in [None, *product("abc", (0.0, 1.0))]:
            whole = [votes[index] if index in known else late for index in range(count)]
            answers = [vote and vote[0] for vote in whole]
            winners.add(majority_vote(answers, weights=[vote[1] if vote else 1.0 for vote in whole]).winner)
        assert len(winners) == 1, (votes, there)
    assert decided > 200


RECORDED = Path(__file__).resolve().parents[1] / "avis" / "evaluation" / "results" / "dev.jsonl.gz"


def spent(forms: list[str | None], lengths: list[int], rollout_batch_size: int) -> tuple[dict[int, str | None], int]:
    """Recorded rollouts again, one token of each running one a step: who has ended when all is decided, and the tokens
    that were written by then."""
    ended: dict[int, str | None] = {}
    tokens = 0
    for first in range(0, len(forms), rollout_batch_size):
        wave = range(first, min(first + rollout_batch_size, len(forms)))
        for step in sorted({lengths[i] for i in wave}):
            ended |= {i: forms[i] for i in wave if lengths[i] <= step}
            if is_decided(ended, len(forms)):
                return ended, tokens + sum(min(lengths[i], step) for i in wave)
        tokens += sum(lengths[i] for i in wave)
    raise AssertionError("not decided although all have ended")


@pytest.mark.parametrize("rollout_batch_size", [7, 3, 2, 1])
def test_stop_changes_no_winner_of_recorded_rollouts(rollout_batch_size):
    """Guards against: answers of a real model (spellings, abstentions) whose winner the stop changes, and a stop that
    never comes."""
    _, *lines = map(json.loads, gzip.decompress(RECORDED.read_bytes()).splitlines())
    shares = []
    for line in lines:
        sampled = line["runs"]["rho=0"][0]  # the first is greedy
        answers, lengths = sampled["answers"][1:8], sampled["tokens"][1:8]
        ended, tokens = spent(list(map(vote_key, answers)), lengths, rollout_batch_size)
        there = [answer if index in ended else None for index, answer in enumerate(answers)]
        assert len(answers) == 7 and majority_vote(there).winner == majority_vote(answers).winner
        shares.append(tokens / sum(lengths))
    assert shares and min(shares) < 1 == max(shares)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_weights_out_of_range_are_refused(wrong):
    """Guards against: weights above 1, with which the stop would change winners."""
    for call in (
        lambda: majority_vote(["a", "b"], weights=[0.5, wrong]),
        lambda: is_decided({0: "a", 2: "b"}, 3, {0: 0.5, 2: wrong}),
    ):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            call()


def test_confidence_is_a_weight():
    """Guards against: a weight above 1 by rounding, and other functions of the mean than the documented one."""
    assert confidence_weight(1e-9) == confidence_weight(0.0) == 1.0
    assert confidence_weight(-0.5) == exp(-0.5) and confidence_weight(-1e9) == 0.0
