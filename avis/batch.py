"""Many questions, answered one by one into a JSONL file that survives a kill at any moment.

    questions = read_questions(Path("questions.jsonl"))
    with Answers(Path("answers.jsonl"), questions, settings) as answers:
        totals = run(questions, answers, ask=lambda question: answer(.., question.messages, settings).to_dict())

A line of the input is `{"image": "a.jpg", "prompt": "How many?"}`. `image` and `video` are a path or a list of paths,
relative to the file's folder, shown in the order in which the line has them; other keys are kept for the reader. A
`prompt` that is a list is a question and its follow-ups, each asked when the one before is answered.
A line of the output is `{"item": 0, "input": <the line>, ..}` and an answer's record, or `"error"`; of a list of
prompts the last answer's, with those before it in `"earlier"`. Needs no torch.
"""

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from avis.config import AvisConfig
from avis.files import check_file
from avis.prompts import check_text

PICTURES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_START = b'{"item": '  # of every line of the output, which tells it from a file that is not ours


@dataclass(frozen=True)
class Question:
    """One line of the input. `messages` is the chat to be answered; None when `error` says why there is none.

    item: its number, from 0. input: the line's object, or its text when it is none. prompt: as asked. follow_ups: what
    is asked after that chat's answer, one by one.
    """

    item: int
    input: Any
    prompt: str | list[str] | None = None
    system_prompt: str | None = None
    messages: list[dict] | None = field(default=None, repr=False)
    follow_ups: tuple[str, ...] = ()
    error: str | None = None

    def asked(self) -> dict[str, Any]:
        """What an answer has to agree with to be this question's."""
        return {"input": self.input, "prompt": self.prompt, "system_prompt": self.system_prompt}


def read_questions(source: Path, prompt: str | None = None, system_prompt: str | None = None) -> list[Question]:
    """The questions of a JSONL file, or one about each picture of a folder, by name.

    Args:
        source: a file or a folder.
        prompt: of the lines that have none, and of a folder's pictures.
        system_prompt: of all.

    Returns:
        One `Question` per line that is not blank; a line that cannot be asked has its error. Raises ValueError when
        there is nothing to ask.
    """
    if source.is_dir():
        names = sorted(path.name for path in source.iterdir() if path.suffix.lower() in PICTURES)
        if not names:
            raise ValueError(f"no pictures in {source}")
        if prompt is None:
            raise ValueError("a folder of pictures needs --prompt")
        return [_question(item, {"image": name}, source, prompt, system_prompt) for item, name in enumerate(names)]
    lines = check_file(source).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"no questions in {source}")
    return [parse_question(item, line, source.parent, prompt, system_prompt) for item, line in enumerate(lines)]


def parse_question(
    item: int, line: bytes, folder: Path, prompt: str | None = None, system_prompt: str | None = None
) -> Question:
    """One line of a JSONL file. Never raises: what is wrong with the line is in the question.

    Args:
        item: the question's number.
        line: without its end.
        folder: that relative paths start from.
        prompt, system_prompt: see `read_questions`.
    """
    try:
        value = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, too
        return Question(item, line.decode(errors="replace"), error=f"not a line of JSON: {error}")
    return _question(item, value, folder, prompt, system_prompt)


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no JSON")


def _question(item: int, value: Any, folder: Path, prompt: str | None, system_prompt: str | None) -> Question:
    asked = prompt
    try:
        if not isinstance(value, dict):
            raise ValueError("a question is a JSON object")
        asked = value.get("prompt", prompt)
        texts: list[Any] = asked if isinstance(asked, list) else [asked]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError('no question: "prompt" is a text, or a list of texts')
        for text in texts:
            check_text(text)
        content: list[dict[str, Any]] = []
        for kind in (key for key in value if key in ("image", "video")):
            paths = value[kind] if isinstance(value[kind], list) else [value[kind]]
            if not all(isinstance(path, str) and path for path in paths):
                raise ValueError(f'"{kind}" is a path or a list of paths')
            content += [{"type": kind, kind: path if "://" in path else str(folder / path)} for path in paths]
        if not content:
            raise ValueError('nothing to see: "image" or "video" is missing')
    except ValueError as error:
        return Question(item, value, asked, system_prompt, error=str(error))
    content.append({"type": "text", "text": texts[0]})
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages: list[dict] = [*system, {"role": "user", "content": content}]
    return Question(item, value, asked, system_prompt, messages, tuple(texts[1:]))


@dataclass
class Totals:
    """Running totals over what an output holds, earlier runs included. answered, failed: lines; turns: answers."""

    answered: int = 0
    failed: int = 0
    turns: int = 0
    kept: int = 0
    visual: int = 0
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
            self.kept += sum(item["kept"] for item in turn["items"])
            self.visual += sum(item["total"] for item in turn["items"])
            self.rollouts += turn["num_rollouts"]
            self.relative_llm += turn["flops"]["relative_llm"]
            self.relative_total += turn["flops"]["relative_total"]

    def __str__(self) -> str:
        if not self.answered:
            return f"failed {self.failed}"
        return (
            f"kept {self.kept / max(self.visual, 1):.0%}, mean K {self.rollouts / self.turns:.2f}, "
            f"FLOPs LLM-only {self.relative_llm / self.turns:.2f}, "
            f"total {self.relative_total / self.turns:.2f}" + (f", failed {self.failed}" if self.failed else "")
        )


class Answers:
    """The output file, one line per answered or failed question, each synced to the disk before the next is asked.

    Opening it takes up what an earlier run has left: a last line that was torn by a kill is cut off, and questions
    that have a line count as done. A context manager; only one process at a time can have a file open.
    """

    def __init__(self, path: Path, questions: list[Question], settings: AvisConfig, retry_failed: bool = False):
        """Open or create the file.

        Args:
            path: of the output.
            questions: all of the input's.
            settings: of this run; an earlier run's must be the same.
            retry_failed: take failed questions' lines out, so that they are asked again.

        Raises:
            ValueError: the file is another program's, another input's, or was made with other settings, or another
                process writes to it. OSError: it cannot be written.
        """
        self.path, self.settings = path, asdict(settings)
        self.done: set[int] = set()
        self.totals = Totals()
        self.made_with: tuple[str | None, str | None] | None = None  # hashes of the model and of the policy
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a regular file")
        self._fd = self._locked(path)
        try:
            self._end, failed = self._take_up(questions, retry_failed)
            os.ftruncate(self._fd, self._end)
            if failed:
                self._take_out(failed)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_) -> None:
        os.close(self._fd)

    def append(self, record: dict[str, Any]) -> None:
        """Write one line, whole and synced, or nothing of it.

        Raises:
            ValueError: the record was made with another model or policy than the file's. OSError: it cannot be
                written.
        """
        if self.made_with and "error" not in record and _made_with(record) != self.made_with:
            raise ValueError(f"{self.path} was made with another model or policy: choose another --output")
        line = json.dumps(record).encode() + b"\n"  # ASCII: a question may hold what UTF-8 has no form for
        try:
            written = 0
            while written < len(line):
                written += os.write(self._fd, line[written:])
            os.fsync(self._fd)
        except BaseException as error:
            os.ftruncate(self._fd, self._end)
            if isinstance(error, OSError):
                reason = f"cannot write {self.path}: {error.strerror}; {len(self.done)} lines are kept"
                raise OSError(f"{reason}, the same command goes on from there") from None
            raise
        self._end += len(line)
        self._count(record)

    def _count(self, record: dict[str, Any]) -> None:
        self.done.add(record["item"])
        self.totals.add(record)
        if "error" not in record:
            self.made_with = self.made_with or _made_with(record)

    def _locked(self, path: Path) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise ValueError(f"another run is writing to {path}") from None
        return fd

    def _take_up(self, questions: list[Question], retry_failed: bool) -> tuple[int, list[tuple[int, int]]]:
        """Where the whole lines end, and the spans of bytes of the failed questions' lines that are to be retried."""
        by_item = {question.item: question for question in questions}
        end, failed = 0, []
        with open(self._fd, "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                head = min(len(line), len(_START))
                if line[:head] != _START[:head]:
                    raise ValueError(f"{self.path} is not a file of answers (line {number}): choose another --output")
                if not line.endswith(b"\n"):
                    break  # torn by a kill: this question is asked again
                try:
                    record = json.loads(line)
                    question = by_item.get(record["item"])
                    same = question is not None and all(record[k] == v for k, v in question.asked().items())
                    if not same or record["item"] in self.done:
                        raise ValueError(f"{self.path} line {number} answers another input: choose another --output")
                    if record["settings"] != self.settings:
                        raise ValueError(f"{self.path} was made with other settings: choose another --output")
                    if retry_failed and "error" in record:
                        failed.append((end, end + len(line)))
                    else:
                        self._count(record)
                except (KeyError, TypeError, json.JSONDecodeError):
                    raise ValueError(f"{self.path} line {number} is damaged: choose another --output") from None
                end += len(line)
        return end, failed

    def _take_out(self, spans: list[tuple[int, int]]) -> None:
        """Replace the file, in one step, by one without these spans of bytes."""
        beside = self.path.with_name(self.path.name + ".tmp")
        beside.unlink(missing_ok=True)
        fd = self._locked(beside)
        try:
            kept = 0
            for start, end in [*spans, (self._end, self._end)]:
                while kept < start:
                    block = os.pread(self._fd, min(start - kept, 2**20), kept)
                    kept += os.write(fd, block)
                kept = end
            os.fsync(fd)
            os.replace(beside, self.path)
        except BaseException:
            os.close(fd)
            beside.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd, self._end = fd, self._end - sum(end - start for start, end in spans)


def _made_with(record: dict[str, Any]) -> tuple[str | None, str | None]:
    return record.get("weights_sha256"), record.get("policy_sha256")


def run(questions: list[Question], answers: Answers, ask: Callable[[Question], dict[str, Any]]) -> Totals:
    """Ask what has no line yet. A question that fails is recorded with its error, and the rest goes on.

    Args:
        questions: all; answered ones are skipped.
        answers: the opened output.
        ask: a question to an answer's record (`Answer.to_dict()`); what it raises is the question's error.

    Returns:
        The totals over the whole output. Raises what `Answers.append` does, and KeyboardInterrupt.
    """
    left = [question for question in questions if question.item not in answers.done]
    with tqdm(total=len(questions), initial=len(answers.done), unit="question", disable=None) as bar:
        bar.set_postfix_str(str(answers.totals))
        for question in left:
            record = {"item": question.item, **question.asked()}
            answers.append(record | {"settings": answers.settings} | _outcome(question, ask))
            bar.update()
            bar.set_postfix_str(str(answers.totals))
    return answers.totals


def _outcome(question: Question, ask: Callable[[Question], dict[str, Any]]) -> dict[str, Any]:
    if question.error is not None:
        return {"error": question.error}
    try:
        return ask(question)
    except (ValueError, OSError, MemoryError) as error:  # these tell it in one line
        return {"error": str(error).strip().split("\n")[0] or type(error).__name__}
    except Exception as error:  # hours of other questions are not lost to one
        return {"error": f"{type(error).__name__}: {error}"}
