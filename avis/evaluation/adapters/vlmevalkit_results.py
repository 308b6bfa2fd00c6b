"""What a work folder of VLMEvalKit holds: the harness's own scores, and from our records what each answer cost::

    settings = read_settings(Path("out/vlmevalkit"))
    settings[0].scores["MMStar"], settings[0].cost("MMStar", vanilla=settings[0])["llm"]

Each folder in it is one setting (`--name` of the launcher) with `answers.jsonl` (see `avis.evaluation.adapters.asker`)
and a folder `T<time>` of each run, in which VLMEvalKit writes `status.json` and the score files
`<name>_<data>[_<judge>]_{acc,score,rating}.{csv,json}`. Where the overall score stands in them differs from data set to
data set; see `overall_score`. They hold no question's result, so a score has no interval. Read in VLMEvalKit's `run.py`
(commit e8e78f05) and `scripts/summarize.py` (0983adaf).
"""

import csv
import glob
import json
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avis.evaluation.adapters.asker import check_version
from avis.statistics import Interval, ratio_interval

_SCORE_FILE = re.compile(r"(?:_.+)?_(?:acc|score|rating)\.(?:csv|json)")
# Of why VLMEvalKit skips a data set. Its other reasons are sets that are scored elsewhere, and `--mode infer`.
_SKIPPED_BY_MISTAKE = ("invalid_dataset", "No infer result found", "Incomplete infer result")
_PREFERRED = ("overall", "acc", "accuracy", "score")

Records = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Setting:
    """One folder.

    Attributes:
        name: the folder's.
        model: path or hub name.
        spent: what was spent, in words; "vanilla" when nothing is pruned and K is 1.
        config: of the first line of its answers.
        records: by data set and question, of answered ones.
        failed: how many questions have an error and no answer.
        scores: by data set, as the harness gives them (shares in percent); None where no overall score was found.
        notes: by data set, why there is no score.
    """

    name: str
    model: str
    spent: str
    config: dict[str, Any]
    records: Records
    failed: int
    scores: dict[str, float | None]
    notes: dict[str, str]

    def is_video(self, data: str) -> bool:
        """Return whether a data set shows videos."""
        return any(item["kind"] == "video" for record in self.records[data].values() for item in record["items"])

    def cost(self, data: str, vanilla: "Setting") -> dict[str, Interval] | None:
        """Return FLOPs on a data set as a fraction of vanilla's on the same questions, "llm" and "total".

        The intervals resample questions one by one: the records do not say which of them share an image.

        Args:
            data: the data set.
            vanilla: the setting that is compared with.

        Returns:
            None when no question is answered in both.
        """
        own, base = self.records.get(data, {}), vanilla.records.get(data, {})
        both = sorted(own.keys() & base.keys())
        if not both:
            return None
        found = {}
        for name in ("llm", "total"):
            spent = np.array([_flops(own[key]["flops"])[name] for key in both], dtype=np.float64)
            least = np.array([_flops(base[key]["flops"])[name] for key in both], dtype=np.float64)
            low, high = ratio_interval(spent, least, both)
            found[name] = Interval(float(spent.sum() / least.sum()), low, high, len(both))
        return found

    def mean(self, name: str, data: list[str]) -> float:
        """Return the mean over data sets of a field's mean over their records (`num_rollouts`, `rho`)."""
        means = [np.mean([record[name] for record in self.records[part].values()]) for part in data]
        return float(np.mean(means))


def _flops(flops: dict[str, float]) -> dict[str, float]:
    llm = flops["prefill"] + flops["decode"]
    return {"llm": llm, "total": llm + flops["vision"]}


def read_settings(folder: Path) -> list[Setting]:
    """Return every setting in a work folder, vanilla first.

    Raises:
        ValueError: there is none, or one that cannot be read, in one line.
    """
    settings = [_read_setting(path) for path in sorted({found.parent for found in folder.glob("*/answers*.jsonl")})]
    if not settings:
        raise ValueError(
            f"{folder} has no */answers.jsonl: it is no work folder of avis.evaluation.adapters.vlmevalkit"
        )
    return sorted(settings, key=lambda one: (one.model, one.spent != "vanilla", one.name))


def _read_setting(folder: Path) -> Setting:
    config: dict[str, Any] = {}
    records: Records = {}
    failed = set()
    for path in sorted(folder.glob("answers*.jsonl")):
        header, *lines = _read_lines(path)
        check_version(path, header)
        if config and config != header:
            raise ValueError(f"{path} is not a file of answers: its processes had different settings")
        config = header
        for record in lines:
            data, key = record["key"]["dataset"], record["key"]["id"]
            if "error" in record:
                failed.add((data, key))
            else:
                records.setdefault(data, {})[key] = record
    unanswered = [key for data, key in failed if key not in records.get(data, {})]
    statuses = read_statuses(folder)
    known = records.keys() | statuses.keys()
    found = {data: _read_score(folder, data, known, statuses.get(data)) for data in sorted(known)}
    scores = {data: score for data, (score, _) in found.items()}
    notes = {data: note for data, (_, note) in found.items() if note}
    return Setting(folder.name, config["model_path"], _spent(config), config, records, len(unanswered), scores, notes)


def read_statuses(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what VLMEvalKit says of each data set of a setting, that of its newest run.

    Args:
        folder: of the setting.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("T*/status.json")):
        try:
            statuses = json.loads(path.read_text())["datasets"]
            found |= {str(data): dict(status) for data, status in statuses.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # half written, or another program's
    return found


def why_no_score(status: dict[str, Any] | None) -> tuple[str, bool]:
    """Return why VLMEvalKit has scored no answers of a data set, and whether it should have.

    Args:
        status: of `read_statuses`; None: it says nothing of the data set.

    Returns:
        ("", False) when it has.
    """
    if status is None:
        return "VLMEvalKit did not begin it", True
    if "error_message" in status:
        lines = str(status["error_message"]).strip().splitlines() or ["it gives no reason"]
        return f"VLMEvalKit failed: {lines[0]}; its log has the whole", True
    if "skip_reason" in status:
        reason = str(status["skip_reason"])
        return f"VLMEvalKit skipped it: {reason.replace('_', ' ')}", reason in _SKIPPED_BY_MISTAKE
    if status.get("status") != "done":
        return f"VLMEvalKit stopped at: {status.get('status')}", True
    return "", False


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the configuration and the records of a file of answers.

    Raises:
        ValueError: it is another file, in one line.
    """
    try:
        whole = path.read_bytes().split(b"\n")[:-1]  # a last line without an end is torn
        if not whole:
            raise ValueError("it has no lines")
        header, *records = [json.loads(line) for line in whole]
        config = header["config"]
        _ = config["model_path"], config["policy_sha256"], dict(config["settings"])
        for record in records:
            _ = record["key"]["dataset"], record["key"]["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of answers: {error}") from None
    return [config, *records]


def _spent(config: dict[str, Any]) -> str:
    """Return what a setting spends, in words."""
    values, parts = config["settings"], []
    if values["enable_kdv"]:
        if values["kdv_threshold"] is not None:
            parts.append(f"tau = {values['kdv_threshold']:g}")
        elif values["kdv_ratio"] is None and config["policy_sha256"]:
            parts.append("tau of the policy")
        else:
            parts.append(f"rho = {0.75 if values['kdv_ratio'] is None else values['kdv_ratio']:g}")
        if values["pruner"] != "kdv":
            parts[-1] += f" ({values['pruner']})"
    if config["policy_sha256"]:
        parts.append("K of the policy")
    elif values["num_rollouts"] > 1 or parts:
        parts.append(f"K = {values['num_rollouts']}")
    return ", ".join(parts) or "vanilla"


def _read_score(
    folder: Path, data: str, known: Collection[str], status: dict[str, Any] | None
) -> tuple[float | None, str]:
    """Return the overall score of a data set, of the newest run that has one, and why there is none.

    Args:
        folder: of the setting.
        data: name of the data set.
        known: names of all.
        status: of `read_statuses`.
    """
    start = f"{folder.name}_{data}"
    # Of two names of which one begins with the other, a file is the longer one's.
    longer = tuple(f"{folder.name}_{other}" for other in known if other != data and other.startswith(data))
    newest_first = sorted((path for path in folder.glob("T*") if path.is_dir()), reverse=True)
    unclear = ""
    for place in (*newest_first, folder):
        found = {}
        for path in sorted(place.glob(f"{glob.escape(start)}*")):
            is_score = _SCORE_FILE.fullmatch(path.name.removeprefix(start))
            if not is_score or (longer and path.name.startswith(longer)):
                continue
            metrics = _read_metrics(path)
            score = overall_score(metrics)
            if score is not None:
                found[path.name.removeprefix(f"{folder.name}_")] = score
            elif not unclear:
                unclear = f"no one overall score in {path.name}: it has {', '.join(list(metrics)[:4]) or 'no number'}"
        if len({round(score, 6) for score in found.values()}) > 1:
            return None, "several: " + ", ".join(f"{name} {score:.1f}" for name, score in found.items())
        if found:
            return next(iter(found.values())), ""
    reason = why_no_score(status)[0] if status else ""
    return None, unclear or reason or "VLMEvalKit wrote no file with it"


def _read_metrics(path: Path) -> dict[str, float]:
    """Return the numbers of a score file, by where they stand, as `split=dev|Overall`.

    Raises:
        ValueError: the file cannot be read, in one line.
    """
    try:
        if path.suffix == ".json":
            return dict(_numbers(json.loads(path.read_text()), ()))
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    # An unnamed column numbers the lines; a column of words names them.
    columns = [name for name in (rows[0] if rows else ()) if name]
    counts = {name for name in columns if any(_number(row[name]) is not None for row in rows)}
    found = {}
    for row in rows:
        named = [f"{name}={row[name]}" for name in columns if name not in counts]
        for name in columns:
            if name in counts and (value := _number(row[name])) is not None:
                found["|".join([*named, name])] = value
    return found


def _numbers(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Yield (place, number) of everything in nested JSON objects that is a number."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, (*path, str(key)))
    else:
        # Some ratings are [right, of, "51.3%"].
        number = _number(value[-1] if isinstance(value, list) and value else value)
        if number is not None:
            yield "|".join(path), number


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        text = str(value).strip()
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def overall_score(metrics: dict[str, float]) -> float | None:
    """Return the overall score among the numbers of a score file, shares in percent; None when it is not clear.

    MME has no overall score: perception and reasoning are added, in percent of their 2,800. In other files it is the
    number whose place says "overall" most often, a share before a count.

    Args:
        metrics: by place, its parts divided by `|`, such as `Task&Skill=Overall|acc` or `overall|overall`.
    """
    if {"perception", "reasoning"} <= metrics.keys():
        return (metrics["perception"] + metrics["reasoning"]) / 28  # percent of 2,000 and 800

    def order(place: str) -> tuple[int, int]:
        parts = [part.rpartition("=")[2] for part in place.lower().split("|")]
        preference = _PREFERRED.index(parts[-1]) if parts[-1] in _PREFERRED else len(_PREFERRED)
        return -parts.count("overall"), preference

    best = min(map(order, metrics), default=(0, 0))
    places = [place for place in metrics if order(place) == best]
    if best[0] == 0 or len({metrics[place] for place in places}) > 1:
        return None
    # Beside numbers of right answers and of all, it stands in percent already.
    is_percent = any(place.rpartition("|")[2] in ("tot", "hit") for place in metrics)
    value = metrics[places[0]]
    if math.isnan(value):
        return None
    return value if is_percent or value > 1 else 100 * value
