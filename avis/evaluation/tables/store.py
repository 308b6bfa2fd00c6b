"""Committed results and reports, each read once."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from avis.evaluation.score import Results, read_results

ROOT = Path(__file__).resolve().parents[3]
RESULTS = Path("avis/evaluation/results")  # from the root
SHIPPED = Path("models/garden-tiny")
POLICY = Path("policy_checkpoint.pt")

Table = list[list[str]]  # the head, then the lines


class Store:
    """The results of a folder, each read once.

    Attributes:
        folder: of the results.
    """

    def __init__(self, folder: Path):
        """Take the folder; nothing is read yet."""
        self.folder = folder
        self._results: dict[str, Results] = {}
        self._reports: dict[str, dict[str, Any]] = {}

    @cached_property
    def names(self) -> list[str]:
        """Names of all results, sorted."""
        return sorted(path.name.removesuffix(".jsonl.gz") for path in self.folder.glob("*.jsonl.gz"))

    def result(self, name: str) -> Results:
        """Return results by name. K by task, where a row needs it, is the one chosen on the results `dev`.

        Raises:
            ValueError, OSError: no such file, or no file of results.
        """
        if name not in self._results:
            results = read_results(self.folder / f"{name}.jsonl.gz")
            if name != "dev" and (self.folder / "dev.jsonl.gz").exists():
                dev = self.result("dev")
                tasks = {record["task"] for record in dev.records}
                if {record["task"] for record in results.records} <= tasks and "VRS K=7" in dev.rows:
                    # Where dev was pruned as AVIS prunes, the best there, else the best without pruning.
                    row = dev.rows["AVIS" if "AVIS" in dev.rows else "VRS K=7"]
                    results.by_task = dev.best_by_task(row.run)
            self._results[name] = results
        return self._results[name]

    def has_report(self, name: str) -> bool:
        """Return whether there is a report of this name."""
        return (self.folder / f"{name}.json").exists()

    def report(self, name: str) -> dict[str, Any]:
        """Return a JSON report: of the policy's fitting, or, as `speed/NAME`, of `avis.evaluation.benchmark`.

        Raises:
            ValueError: it cannot be read.
        """
        if name not in self._reports:
            path = self.folder / f"{name}.json"
            try:
                self._reports[name] = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from None
        return self._reports[name]
