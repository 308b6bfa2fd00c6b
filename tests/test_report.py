"""The report, the table of votes, and the progress that a terminal sees."""

import contextlib
import io
import os
import pty
import re
import sys
import threading
from types import SimpleNamespace

import pytest
from refusals import assert_refused

import demo
from avis.answers import vote_key
from avis.config import AvisConfig
from avis.outputs import RolloutOutput
from avis.report import TerminalStreamer, mode_name, vote_table


@pytest.mark.parametrize(
    ("config", "has_policy", "name"),
    [
        ({}, False, "vanilla"),
        ({"enable_kdv": True}, False, "KDV"),
        ({"enable_kdv": True, "kdv_threshold": 0.7}, False, "adaptive KDV"),
        ({"num_rollouts": 3}, False, "rollouts"),
        ({"enable_kdv": True, "kdv_ratio": 0.5, "num_rollouts": 3}, False, "KDV + rollouts"),
        ({}, True, "adaptive K"),
        ({"enable_kdv": True}, True, "AVIS (adaptive KDV + adaptive K)"),
        ({"enable_kdv": True, "kdv_ratio": 0.5, "num_rollouts": 3}, True, "KDV + adaptive K"),
    ],
)
def test_modes_have_names(config, has_policy, name):
    assert mode_name(AvisConfig(**config), has_policy) == name


def test_explain_prints_the_votes(run, with_model):
    """Guards against: a table in which votes, answers or rollouts do not belong together, and abstentions are left
    out."""
    rollouts = [
        RolloutOutput("", said, 9, True, vote=vote_key(said)) for said in ("3", None, "two", "Two", "Stopped", "2.")
    ]
    rollouts.append(RolloutOutput("", None, 4, False, stopped=True))
    votes = {"3": 1, "2": 3, "stopped": 1}
    result = SimpleNamespace(p=None, num_rollouts=7, rollouts=rollouts, votes=votes, config=AvisConfig())

    def table() -> tuple[str, list[list[str]]]:
        first, *rows = vote_table(result).splitlines()
        return first, [re.split("  +", row.strip()) for row in rows]

    rows = [["votes", "answer", "rollouts"], ["3", "2", "3, 4, 6"], ["1", "3", "1"], ["1", "stopped", "5"]]
    rows += [["1", "abstained", "2"], ["1", "stopped", "7"]]
    assert table() == ("K = 7", rows)
    weights = {"3": 2.5, "2": 1.25, "stopped": 0.5}
    vars(result).update(p=0.734, bin=2, votes=weights, config=AvisConfig(vote="confidence"))
    rows = [["votes", "weight", "answer", "rollouts"], ["1", "2.500", "3", "1"], ["3", "1.250", "2", "3, 4, 6"]]
    assert table()[0] == "p = 0.73, bin 2, K = 7" and table()[1][:3] == rows
    plain, explained = (run("--num-rollouts", 3, "--max-new-tokens", 2, *more) for more in ([], ["--explain"]))
    assert explained[1].splitlines()[-2:] == ["  votes  answer     rollouts", "  3      abstained  1, 2, 3"]
    assert len(explained[1].splitlines()) == len(plain[1].splitlines()) + 3


# ------------------------------------------------------------------------------------------------------------- --stream


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_rollout_streams_its_text(bundled, monkeypatch):
    """Guards against: special tokens or a terminal's escape sequences on the screen, and text that is lost at the
    end."""
    tokenizer = bundled[1].tokenizer
    monkeypatch.setattr(sys, "stderr", Terminal())
    streamer = TerminalStreamer(tokenizer)
    streamer.start(1)
    tokens = [*tokenizer("<think>two\x1b[31m cats</think><answer>2</answer>").input_ids, tokenizer.eos_token_id]
    for number, token in enumerate(tokens):
        streamer.put([(0, token, number == len(tokens) - 1)])
    streamer.end()
    assert sys.stderr.getvalue() == "<think>two\ufffd[31m cats</think><answer>2</answer>\n"


def test_several_rollouts_stream_a_counter(bundled, monkeypatch):
    """Guards against: the texts of several rollouts mixed on the screen, and a count that is not of what has ended."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    streamer = TerminalStreamer(bundled[1].tokenizer)
    streamer.start(3)
    streamer.put([(0, 5, False), (1, 5, True), (2, 5, False)])
    streamer.put([(0, 5, True), (2, 5, False)])
    said = str(streamer._bar)
    assert "2/3" in said and "5 tokens" in said
    streamer.end()
    assert "\n" not in sys.stderr.getvalue()


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_streams_where_there_is_no_terminal(bundled, monkeypatch, count):
    """Guards against: a log file full of half-written words."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    streamer = TerminalStreamer(bundled[1].tokenizer)
    streamer.start(count)
    streamer.put([(index, 5, True) for index in range(count)])
    streamer.end()
    assert sys.stderr.getvalue() == ""


def run_on_terminal(monkeypatch, *flags: str) -> tuple[int, str]:
    """Runs the demo with a pseudo-terminal in the place of stderr: exit status, and what the terminal was sent."""
    master, slave = pty.openpty()
    sent = []

    def read() -> None:
        with contextlib.suppress(OSError):  # of the end, when the other side is closed
            while block := os.read(master, 4096):
                sent.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        status = demo.main(list(flags))
    reader.join()
    os.close(master)
    return status, b"".join(sent).decode().replace("\r\n", "\n")


def test_the_demo_streams_the_text_on_a_terminal(with_model, monkeypatch, capsys):
    """Guards against: --stream that is parsed and forgotten, and text of the answer between the lines of the report."""
    status, sent = run_on_terminal(monkeypatch, "--stream", "--enable-kdv")
    out = capsys.readouterr().out
    text = re.search(r"^text +(.*)$", out, re.MULTILINE)[1]
    assert status == 0 and out.startswith("model ") and sent == text + "\n"


def test_the_demo_streams_a_counter_on_a_terminal(with_model, monkeypatch, capsys):
    """Guards against: a counter that a terminal of unknown size (0 columns, as this one) never shows, one that leaves
    a line behind, and the texts of several rollouts mixed."""
    status, sent = run_on_terminal(monkeypatch, "--stream", "--num-rollouts", "3", "--max-new-tokens", "40")
    assert status == 0 and capsys.readouterr().out.startswith("model ")
    assert re.search(r"\d/3 .*\d tokens", sent) and "<think>" not in sent and "\n" not in sent
    assert sent.endswith("\r"), "a line is left behind"


def test_streams_need_a_terminal_and_a_reader(run, no_model, tmp_path):
    """Guards against: a stream into a document that a program reads."""
    assert_refused(run("--stream", "--json"), "--stream", "--json")
    (tmp_path / "q.jsonl").write_text("{}")
    assert_refused(run("--stream", "--input", tmp_path / "q.jsonl", "--output", tmp_path / "a.jsonl"), "--stream")


def test_the_demo_streams_nothing_into_a_pipe(run, with_model):
    """Guards against: progress in the log of a batch system."""
    status, _, err = run("--stream", "--max-new-tokens", 3)
    assert (status, err) == (0, "")
