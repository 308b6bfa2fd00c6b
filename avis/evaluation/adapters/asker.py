"""What the adapters to other harnesses share: the check of the fork, the file of answers, and one pipeline to ask::

    asker = Asker("my harness", "models/garden-tiny", config, "out/answers.jsonl")
    record = asker.ask({"dataset": "MMStar", "id": 12}, 12, lambda: (messages, config))

The file's first line says what made the answers; every other line is a question's key with `AvisOutput.to_dict()`, or
with an `"error"`. A question that is answered there is not asked again, so a harness that is stopped loses nothing.
"""

import json
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avis.checkpoint import check_model_folder
from avis.cli import run_command
from avis.config import AvisConfig
from avis.journal import Journal
from avis.prompts import check_text

if TYPE_CHECKING:
    from avis.pipeline import AvisPipeline

_REMEDY = "choose another name"

Record = dict[str, Any]


def require_fork() -> None:
    """Refuse another Transformers than the fork, as the installation of other packages may have replaced it.

    Raises:
        ValueError: with one line that says what was found and what to run.
    """
    found = find_spec("transformers")
    origin = found and found.origin
    if not origin or not (Path(origin).parent / "models" / "qwen2_5_vl" / "shared_prefill.py").is_file():
        raise ValueError(
            f"`import transformers` finds {origin or 'none'}, not AVIS's fork, which another installation has "
            "replaced: run `bash setup.sh --current-env` again, and install other packages with --constraint"
        )


def exit_on_error(command: Callable[[], None]) -> None:
    """Run a command; bad input ends the program with one line and status 2.

    A harness prints an exception with its traceback, and some harnesses then run their next data set without a model.
    """
    status = run_command(command)
    if status:
        sys.exit(status)


def rank_path(path: Path) -> Path:
    """Return the file of this process: each of a run's processes but the first has its rank in the name."""
    rank = int(os.environ.get("RANK", "0"))  # where torchrun and accelerate, which start a harness's processes, put it
    return path.with_name(f"{path.stem}.{rank}{path.suffix}") if rank else path


def check_version(path: Path, config: dict[str, Any]) -> None:
    """Refuse the answers of AVIS 0.1, whose settings had other names.

    Args:
        path: of the file, for the message.
        config: of its first line.

    Raises:
        ValueError: with one line.
    """
    if "early_stop" in config.get("settings", {}):
        raise ValueError(f"{path} was written by AVIS 0.1, which named its settings otherwise: {_REMEDY}")


class AnswerFile:
    """The file of answers, which one process at a time can open.

    Opening it reads what an earlier run has left; failed questions are removed, to be asked again.
    """

    def __init__(self, path: Path, config: dict[str, Any]):
        """Open or create the file and its folder.

        Args:
            path: of the file.
            config: what the answers depend on, JSON-ready; an earlier run's must be the same.

        Raises:
            ValueError: the file belongs to another program, or to a run with another model, version or setting, or
                another process writes to it.
            OSError: it cannot be written.
        """
        _check_first_line(path)
        self._journal = Journal(path, {"config": config}, key=_record_key, line_start='{"key": ', remedy=_REMEDY)
        # A harness that drops its model, and makes another for the next data set, does not close it.
        self._finalizer = weakref.finalize(self, self._journal.close)
        self._journal.remove(lambda record: "error" in record)
        self._answered = {_record_key(record): record for record in self._journal.records()}

    def close(self) -> None:
        """Close the file, which another process may then open."""
        self._finalizer()

    def get(self, key: dict[str, Any]) -> Record | None:
        """Return the record of an answered question; None for any other."""
        return self._answered.get(json.dumps(key))

    def append(self, record: Record) -> None:
        """Write one record, whole and synced, in place of one that failed earlier in this run.

        Raises:
            OSError: it cannot be written.
        """
        key = _record_key(record)
        if key in self._journal.done:
            self._journal.remove(lambda earlier: _record_key(earlier) == key)
        self._journal.append(record)
        if "error" not in record:
            self._answered[key] = record


def _record_key(record: Record) -> str:
    return json.dumps(record["key"])


def _check_first_line(path: Path) -> None:
    """Refuse a file of 0.1; any other file that is not ours is the journal's to refuse."""
    try:
        with path.open("rb") as file:
            check_version(path, json.loads(file.readline())["config"])
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        pass


class Asker:
    """A loaded model that answers a harness's questions one by one, each once.

    Attributes:
        pipeline: the model, its processor, and the policy, which chooses K when there is one.
        answers: the file of answers; None when none is written.
        system_prompt: of every chat that has none.
    """

    pipeline: "AvisPipeline"

    def __init__(
        self,
        harness: str,
        model_path: str,
        config: AvisConfig,
        records: str | Path | None = None,
        system_prompt: str | None = None,
        policy_path: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str = "auto",
    ):
        """Load the model and the policy, and open the file of answers. Bad input ends the program: one line, status 2.

        Args:
            harness: its name.
            model_path: a folder or hub name, see `avis.loading.load_model`.
            config: what is the same for every question.
            records: the file of answers; None writes none.
            system_prompt: of every chat that has none.
            policy_path: a policy checkpoint, which chooses K; None: K is the configuration's.
            device: see `load_model`.
            dtype: see `load_model`.
            attn_implementation: see `load_model`.
        """
        self.answers: AnswerFile | None = None
        self.system_prompt = system_prompt
        exit_on_error(partial(self._load, model_path, policy_path, device, dtype, attn_implementation))
        if records is not None:
            exit_on_error(partial(self._open_answers, Path(records), harness, model_path, config))

    def _load(
        self, model_path: str, policy_path: str | None, device: str | None, dtype: str, attn_implementation: str
    ) -> None:
        check_model_folder(model_path)
        if self.system_prompt:
            check_text(self.system_prompt)
        require_fork()
        from avis.pipeline import AvisPipeline  # which imports the fork

        self.pipeline = AvisPipeline.from_pretrained(
            model_path, policy_path, device=device, dtype=dtype, attn_implementation=attn_implementation
        )
        if self.pipeline.policy_warning:
            print(f"note: {self.pipeline.policy_warning}", file=sys.stderr)

    def _open_answers(self, path: Path, harness: str, model_path: str, config: AvisConfig) -> None:
        from avis.provenance import versions, weights_path, weights_sha256

        policy = self.pipeline.policy
        header = {
            "harness": harness,
            "model_path": model_path,
            "weights_sha256": weights_sha256(weights_path(self.pipeline.model)),
            "policy_sha256": None if policy is None else policy.sha256,
            "system_prompt": self.system_prompt,
            "settings": asdict(config),
            "versions": versions(),
        }
        self.answers = AnswerFile(rank_path(path), header)

    def ask(self, key: dict[str, Any], query_index: int, query: Callable[[], tuple[list[dict], AvisConfig]]) -> Record:
        """Answer one question, or return its recorded answer.

        Args:
            key: names the question in its harness, JSON-ready.
            query_index: as in `avis.pipeline.answer`.
            query: makes the chat and its configuration; called only when the question is not answered yet. The system
                prompt is put in front of a chat that has none.

        Returns:
            The key with `AvisOutput.to_dict()`; without a file of answers, with "answer", "prompt_tokens" and
            "new_tokens" alone. A question that cannot be answered has an "error", which is also printed on stderr: one
            bad question does not end a harness's run.
        """
        recorded = None if self.answers is None else self.answers.get(key)
        if recorded is not None:
            return recorded
        record = {"key": key} | self._answer(key, query_index, query)
        if self.answers is not None:
            self.answers.append(record)
        return record

    def _answer(
        self, key: dict[str, Any], query_index: int, query: Callable[[], tuple[list[dict], AvisConfig]]
    ) -> Record:
        try:
            messages, config = query()
            if self.system_prompt and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": self.system_prompt}, *messages]
            output = self.pipeline(messages, config=config, query_index=query_index)
        except (ValueError, OSError, MemoryError) as error:  # these say it in one line
            print(f"note: {json.dumps(key)} failed: {error}", file=sys.stderr)
            return {"error": str(error)}
        if self.answers is not None:
            return output.to_dict()
        # The whole record has the hash of the weights, which nobody reads here.
        return {"answer": output.answer, "prompt_tokens": output.prompt_tokens, "new_tokens": output.new_tokens}
