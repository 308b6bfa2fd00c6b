"""Answer many questions from a file into another file, which is resumed after a kill at any moment::

source = open_questions(Path("questions.jsonl"), prompt=None, system_prompt=None)
with AnswerJournal(Path("answers.jsonl"), source, config) as answers:
    totals = run_batch(source, answers, lambda question, messages: answer_turns(pipeline, question, messages, config))

`avis.questions` describes the input. A line of the output begins with `{"query_index": 0, "input": <the line>, ..`;
then come the prompt, the system prompt, the config, and the answer's record (`AvisOutput.to_dict()`) or `"error"`. A
question with follow-ups has the last answer's record, and those of the turns before it in `"earlier"`. Needs no torch.
"""

from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from avis.config import AvisConfig
from avis.journal import Journal, first_difference
from avis.questions import ImageFolder, Question, QuestionFile

_LINE_START = '{"query_index": '  # of every line of the output; other programs' files begin otherwise
_LINE_START_0_1 = b'{"item": '
_REMEDY = "choose another --output"

Ask = Callable[[Question, list[dict]], dict[str, Any]]


class QuestionSource(Protocol):
    """A set of questions: `QuestionFile`, `ImageFolder`, or anything else that has these four."""

    def __len__(self) -> int: ...

    def question(self, index: int) -> Question:
        """Return a question. Raises ValueError when it cannot be asked."""

    def media(self, index: int) -> list[dict]:
        """Return what a question shows, as parts of a turn."""

    def input(self, index: int) -> Any:
        """Return the line that the question came from, JSON-ready; also when it cannot be asked."""


def open_questions(
    path: Path, prompt: str | None = None, system_prompt: str | None = None
) -> QuestionFile | ImageFolder:
    """Return the questions of a file, or one about each image of a folder.

    Args:
        path: of a JSONL file, a VLMEvalKit table (.tsv) or a folder.
        prompt: of lines that have none, and of a folder's images.
        system_prompt: of all.

    Raises:
        ValueError: there is nothing to ask. A single line that cannot be asked is no error: its question raises one.
    """
    if path.is_dir():
        return ImageFolder(path, prompt, system_prompt)
    return QuestionFile(path, prompt, system_prompt, needs_answers=False)


@dataclass
class Totals:
    """Running totals over an output, the lines of earlier runs included.

    Attributes:
        answered: lines with an answer.
        failed: lines with an error.
        turns: answers, those before follow-ups included. The sums below are over turns.
        kept_tokens: visual tokens that the language model read.
        visual_tokens: visual tokens in all.
        rollouts: K.
        relative_llm: LLM-only FLOPs relative to vanilla's.
        relative_total: total FLOPs relative to vanilla's.
    """

    answered: int = 0
    failed: int = 0
    turns: int = 0
    kept_tokens: int = 0
    visual_tokens: int = 0
    rollouts: int = 0
    relative_llm: float = 0.0
    relative_total: float = 0.0

    def add(self, record: dict[str, Any]) -> None:
        """Count one line of the output."""
        if "error" in record:
            self.failed += 1
            return
        self.answered += 1
        for turn in (*record.get("earlier", ()), record):
            self.turns += 1
            self.kept_tokens += sum(item["kept"] for item in turn["items"])
            self.visual_tokens += sum(item["total"] for item in turn["items"])
            self.rollouts += turn["num_rollouts"]
            self.relative_llm += turn["flops"]["relative_llm"]
            self.relative_total += turn["flops"]["relative_total"]

    def __str__(self) -> str:
        if not self.answered:
            return f"failed {self.failed}"
        parts = [
            f"kept {self.kept_tokens / max(self.visual_tokens, 1):.0%}",
            f"mean K {self.rollouts / self.turns:.2f}",
            f"FLOPs LLM-only {self.relative_llm / self.turns:.2f}",
            f"total {self.relative_total / self.turns:.2f}",
        ]
        return ", ".join([*parts, f"failed {self.failed}"] if self.failed else parts)


class AnswerJournal:
    """The output: one line per answered or failed question, synced before the next question is asked.

    Opening it resumes an earlier run's: a last line that a kill has torn is cut off, and questions that have a line are
    done. One process at a time can have it open. A context manager.

    Attributes:
        totals: over all lines.
    """

    def __init__(self, path: Path, source: QuestionSource, config: AvisConfig, retry_failed: bool = False):
        """Open or create the file.

        Args:
            path: of the output.
            source: the questions. There may be more of them than when the file was begun.
            config: of this run; an earlier run's must be the same.
            retry_failed: take the lines of failed questions out, so that they are asked again.

        Raises:
            ValueError: the file belongs to another program, to AVIS 0.1, to other questions or to another config, or
                another process has it. It is left as it is.
            OSError: it cannot be written.
        """
        self.totals = Totals()
        self._path, self._source, self._config, self._retry_failed = path, source, asdict(config), retry_failed
        self._made_with: tuple[str | None, str | None] | None = None  # hashes of the model and of the policy
        _refuse_version_0_1(path)
        self._journal = Journal(
            path,
            key=lambda record: record["query_index"],
            line_start=_LINE_START,
            remedy=_REMEDY,
            on_found=self._resume,
        )
        if retry_failed:
            try:
                self._journal.remove(lambda record: "error" in record)
            except BaseException:
                self._journal.close()
                raise

    def __enter__(self) -> "AnswerJournal":
        return self

    def __exit__(self, *_) -> None:
        self._journal.close()

    @property
    def done(self) -> set[Hashable]:
        """Return the indices of the questions that have a line."""
        return self._journal.done

    def append(self, index: int, outcome: dict[str, Any]) -> None:
        """Write a question's line, whole and synced, or nothing of it.

        Args:
            index: of the question.
            outcome: an answer's record, or its `error`.

        Raises:
            ValueError: the answer was made with another model or policy than those in the file.
            OSError: it cannot be written.
        """
        if self._made_with is not None and "error" not in outcome and _made_with(outcome) != self._made_with:
            raise ValueError(f"{self._path} was made with another model or policy: {_REMEDY}")
        record = _asked(self._source, index) | {"config": self._config} | outcome
        self._journal.append(record)
        self._count(record)

    def _resume(self, record: dict[str, Any]) -> None:
        """Count a line of an earlier run. Raises ValueError when it does not belong to this one."""
        index = record["query_index"]
        if index not in range(len(self._source)) or any(
            record[name] != value for name, value in _asked(self._source, index).items()
        ):
            raise ValueError(f"{self._path} answers another input (question {index}): {_REMEDY}")
        differing = first_difference(record["config"], self._config, "config")
        if differing:
            raise ValueError(f"{self._path} was made with another {differing}: {_REMEDY}")
        if not (self._retry_failed and "error" in record):
            self._count(record)

    def _count(self, record: dict[str, Any]) -> None:
        self.totals.add(record)
        if "error" not in record and self._made_with is None:
            self._made_with = _made_with(record)


def run_batch(source: QuestionSource, answers: AnswerJournal, ask: Ask) -> Totals:
    """Ask every question that has no line yet. One that fails is recorded with its error, and the next is asked.

    Args:
        source: all questions.
        answers: the opened output.
        ask: called with a question and its chat, returns the answer's record; see `answer_turns`.

    Returns:
        The totals over the whole output.

    Raises:
        ValueError, OSError: as `AnswerJournal.append`.
    """
    with tqdm(total=len(source), initial=len(answers.done), unit="question", disable=None) as bar:
        bar.set_postfix_str(str(answers.totals))
        for index in range(len(source)):
            if index not in answers.done:
                answers.append(index, _outcome(source, index, ask))
                bar.set_postfix_str(str(answers.totals), refresh=False)
                bar.update()
    return answers.totals


def answer_turns(
    pipeline: Callable[..., Any], question: Question, messages: list[dict], config: AvisConfig
) -> dict[str, Any]:
    """Ask a question and its follow-ups, each as the continuation of the chat before it.

    Args:
        pipeline: an `AvisPipeline`.
        question: to be asked.
        messages: its chat.
        config: how much to spend on each turn.

    Returns:
        The record of the last answer; with follow-ups also `earlier`, the records of the answers before it.

    Raises:
        ValueError, OSError, MemoryError: as the pipeline.
    """
    has_more = bool(question.follow_ups)
    output = pipeline(messages, config=config, query_index=question.index, return_state=has_more)
    earlier = []
    for text in question.follow_ups:
        earlier.append(output.to_dict())
        # The template ends a turn in a line break, which the tokenizer would join to a reply's own.
        reply = {"role": "assistant", "content": output.text.strip()}
        messages = [*messages, reply, {"role": "user", "content": text}]
        output = pipeline(messages, config=config, query_index=question.index, previous=output, return_state=True)
    record = output.to_dict()
    return record | {"earlier": earlier} if has_more else record


def _refuse_version_0_1(path: Path) -> None:
    start = b""
    if path.is_file():
        with suppress(OSError), path.open("rb") as file:  # the journal reports it better
            start = file.read(len(_LINE_START_0_1))
    if start == _LINE_START_0_1:
        raise ValueError(f"{path} was written by AVIS 0.1: finish it with that version, or {_REMEDY}")


def _asked(source: QuestionSource, index: int) -> dict[str, Any]:
    """Return the part of a line that says what was asked: an answer to anything else is not this question's."""
    try:
        question = source.question(index)
    except ValueError:
        return {"query_index": index, "input": source.input(index), "prompt": None, "system_prompt": None}
    prompt = [question.text, *question.follow_ups] if question.follow_ups else question.text
    return {
        "query_index": index,
        "input": question.input,
        "prompt": prompt,
        "system_prompt": question.system_prompt,
    }


def _made_with(record: dict[str, Any]) -> tuple[str | None, str | None]:
    return record.get("weights_sha256"), record.get("policy_sha256")


def _outcome(source: QuestionSource, index: int, ask: Ask) -> dict[str, Any]:
    """Return an answer's record, or the error that stands in its place."""
    try:
        question = source.question(index)
        return ask(question, question.messages(source.media(index)))
    except (ValueError, OSError, MemoryError) as error:  # their message is one line
        return {"error": str(error).strip().split("\n")[0] or type(error).__name__}
    except Exception as error:  # hours of other questions are not lost to one
        return {"error": f"{type(error).__name__}: {error}"}
