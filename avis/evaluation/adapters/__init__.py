"""What the adapters to other harnesses share: the guard of the fork, the file of answers, and one model to ask.

    asker = Asker("my harness", "models/garden-tiny", settings, "out/answers.jsonl")
    record = asker.ask({"dataset": "MMStar", "id": 12}, 12, lambda: (messages, settings))

The file's first line says what made the answers; every other line is the question's key and `Answer.to_dict()`, or an
`"error"`. What is answered there is not computed again, so a harness that is stopped loses nothing.
"""

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from avis.checkpoint import check_model_folder
from avis.config import AvisConfig
from avis.prompts import check_text


def require_fork() -> None:
    """Refuse to go on with another Transformers than the fork: other packages' installation may have replaced it.

    Raises:
        ValueError: with one line that says what was found and what mends it.
    """
    found = find_spec("transformers")
    origin = found and found.origin
    if not origin or not (Path(origin).parent / "models" / "qwen2_5_vl" / "shared_prefill.py").is_file():
        raise ValueError(
            f"`import transformers` finds {origin or 'none'}, not AVIS's fork, which another installation has "
            "replaced: run `bash setup.sh --current-env` again, and install other packages with --constraint"
        )


@contextmanager
def one_line() -> Iterator[None]:
    """Ends the program with one line and 2. Harnesses tell an exception by its traceback, and some go on after it."""
    try:
        yield
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def rank_path(path: Path) -> Path:
    """The file of this process: each of a run's processes but the first has its rank in the name."""
    rank = int(os.environ.get("RANK", "0"))  # where torchrun and accelerate, which start a harness's processes, put it
    return path.with_name(f"{path.stem}.{rank}{path.suffix}") if rank else path


class Records:
    """The file of answers, one synced line each; only one process at a time can have it open.

    Opening it takes up what an earlier run has left. A line that was torn by a kill, and questions that failed, are
    taken out and asked again.
    """

    def __init__(self, path: Path, config: dict[str, Any]):
        """Open or create the file and its folder.

        Args:
            path: of the file.
            config: what the answers depend on, JSON-ready; an earlier run's must be the same.

        Raises:
            ValueError: the file holds something else, or another process writes to it. OSError: it cannot be written.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = path.with_name(f".{path.name}.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another run is writing to {path}") from None
        first = json.dumps({"config": config}).encode()
        held = path.read_bytes() if path.exists() else b""
        if held and not held.startswith(first + b"\n"):
            raise ValueError(f"{path} holds answers of another model, version or setting: choose another name")
        kept = [first]
        self._held: dict[str, dict] = {}
        for line in held.split(b"\n")[1:-1]:  # what follows the last end of a line is torn
            try:
                record = json.loads(line)
                if "error" not in record:
                    self._held[json.dumps(record["key"])] = record
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} is damaged: choose another name") from None
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(b"".join(line + b"\n" for line in kept))
        os.replace(part, path)
        self._file = path.open("ab")

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The record of an answered question."""
        return self._held.get(json.dumps(key))

    def append(self, record: dict[str, Any]) -> None:
        """Write one line, synced. Raises OSError when it cannot be written."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        if "error" not in record:
            self._held[json.dumps(record["key"])] = record


class Asker:
    """A loaded model that answers a harness's questions one by one, each once."""

    def __init__(
        self,
        harness: str,
        model_path: str,
        settings: AvisConfig,
        records: str | Path | None = None,
        system_prompt: str | None = None,
        policy_path: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str = "auto",
    ):
        """Load the model and the policy, and open the file of answers. What is wrong ends the program: one line, 2.

        Args:
            harness: its name. settings: what is the same for every question.
            model_path, device, dtype, attn_implementation: see `policy.answer.load`.
            records: the file of answers; None keeps none.
            system_prompt: of every chat that has none.
            policy_path: of the checkpoint of a policy, which chooses K; None: K is the settings'.
        """
        self.system_prompt, self.policy, self.records = system_prompt, None, None
        with one_line():
            check_model_folder(model_path)
            if system_prompt:
                check_text(system_prompt)
            require_fork()
            from avis.loading import load_model
            from avis.provenance import versions, weights_sha256
            from avis.session import VisionCache
            from policy.policy_model import PolicyModel

            self.model, self.processor = load_model(model_path, device, dtype, attn_implementation)
            self._memory = VisionCache()
            weights, policy = weights_sha256(self.model.config._name_or_path), None
            if policy_path is not None:
                self.policy = PolicyModel(policy_path, self.model.device)
                policy = sha256(Path(policy_path).read_bytes()).hexdigest()
                if note := self.policy.check(self.model.config.vision_config.out_hidden_size, weights):
                    print(f"note: {note}", file=sys.stderr)
            if records is not None:
                config = {
                    "harness": harness,
                    "model_path": model_path,
                    "weights_sha256": weights,
                    "policy_sha256": policy,
                    "system_prompt": system_prompt,
                    "settings": asdict(settings),
                    "versions": versions(),
                }
                self.records = Records(rank_path(Path(records)), config)

    def ask(self, key: dict[str, Any], item: int, query: Callable[[], tuple[list[dict], AvisConfig]]) -> dict[str, Any]:
        """Answer one question, or find that it was answered.

        Args:
            key: what names the question in its harness, JSON-ready.
            item: see `policy.answer.answer`.
            query: makes the chat and its settings; called only when the question is not answered yet. The system
                prompt is put in front.

        Returns:
            `{"key": key}` with `Answer.to_dict()`, or with the `"error"` of a question that cannot be answered, which
            is also told on stderr: one bad question does not end a harness's run.
        """
        from avis.pipeline import answer

        held = self.records.get(key) if self.records else None
        if held is not None:
            return held
        try:
            messages, settings = query()
            if self.system_prompt and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": self.system_prompt}, *messages]
            asked = (messages, settings, item, self._memory, self.policy)
            result = answer(self.model, self.processor, *asked).to_dict()
        except (ValueError, OSError, MemoryError) as error:  # these tell it in one line
            result = {"error": str(error)}
            print(f"note: {json.dumps(key)} failed: {error}", file=sys.stderr)
        record = {"key": key} | result
        if self.records:
            self.records.append(record)
        return record
