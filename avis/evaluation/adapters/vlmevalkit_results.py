"""What a work folder of VLMEvalKit holds: the harness's own scores, and from our records what each answer cost.

    settings = read_settings(Path("out/vlmevalkit"))
    settings[0].scores["MMStar"], settings[0].cost("MMStar", vanilla=settings[0])["llm"]

Each folder in it is one setting (`--name` of the launcher) with `answers.jsonl` of `avis.evaluation.adapters` and the score
files that VLMEvalKit writes there, or links there from its newest folder `T<day>_G<commit>`:
`<name>_<data>[_<judge>]_{acc,score,rating}.{csv,json}`. What is the overall score in them differs from data set to data
set; see `overall`. They hold no question's result, so a score has no interval. Read in VLMEvalKit's `run.py` (commit
002f7b78) and `scripts/summarize.py` (0983adaf).
"""

import csv
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avis.statistics import Interval as Share
from avis.statistics import ratio_interval

_SCORES = re.compile(r"(?:_.+)?_(?:acc|score|rating)\.(?:csv|json)")
_PREFERRED = ("overall", "acc", "accuracy", "score")


@dataclass(frozen=True)
class Setting:
    """One folder.

    Attributes:
        name: the folder's. model: path or name. spent: what was spent, in words; "vanilla" when nothing is adaptive.
        config: the first line of its records.
        records: by data set and question, of answered ones. failed: how many questions have an error and no answer.
        scores: by data set, as the harness gives them (shares in percent); None where no overall score was found.
    """

    name: str
    model: str
    spent: str
    config: dict[str, Any]
    records: dict[str, dict[str, dict]]
    failed: int
    scores: dict[str, float | None]

    def is_video(self, data: str) -> bool:
        """Whether a data set shows videos."""
        return any(item["kind"] == "video" for record in self.records[data].values() for item in record["items"])

    def cost(self, data: str, vanilla: "Setting") -> dict[str, Share] | None:
        """FLOPs on a data set as a fraction of vanilla's on the same questions: "llm" and "total".

        The intervals resample questions one by one: the records do not tell which of them share a picture. None when no
        question is answered in both.
        """
        mine, base = self.records.get(data, {}), vanilla.records.get(data, {})
        both = sorted(mine.keys() & base.keys())
        if not both:
            return None
        spent, least = ([_flops(records[key]["flops"]) for key in both] for records in (mine, base))
        found = {}
        for name in ("llm", "total"):
            a, b = (np.array([one[name] for one in values], dtype=np.float64) for values in (spent, least))
            found[name] = Share(float(a.sum() / b.sum()), *ratio_interval(a, b, both), len(both))
        return found

    def mean(self, name: str, data: list[str]) -> float:
        """The mean over data sets of a field's mean over their records (`num_rollouts`, `rho`)."""
        return float(np.mean([np.mean([one[name] for one in self.records[part].values()]) for part in data]))


def _flops(flops: dict[str, float]) -> dict[str, float]:
    llm = flops["prefill"] + flops["decode"]
    return {"llm": llm, "total": llm + flops["vision"]}


def read_settings(folder: Path) -> list[Setting]:
    """Every setting in a work folder, vanilla first. Raises ValueError with one line for none, or a bad one."""
    settings = [_setting(path) for path in sorted({found.parent for found in folder.glob("*/answers*.jsonl")})]
    if not settings:
        raise ValueError(
            f"{folder} has no */answers.jsonl: it is no work folder of avis.evaluation.adapters.vlmevalkit"
        )
    return sorted(settings, key=lambda one: (one.model, one.spent != "vanilla", one.name))


def _setting(folder: Path) -> Setting:
    config, records, failed = None, {}, set()
    for path in sorted(folder.glob("answers*.jsonl")):
        try:
            lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]  # what follows is torn
            if config not in (None, lines[0]["config"]):
                raise ValueError("its processes had different settings")
            config = lines[0]["config"]
            for record in lines[1:]:
                data, key = record["key"]["dataset"], record["key"]["id"]
                if "error" in record:
                    failed.add((data, key))
                else:
                    records.setdefault(data, {})[key] = record
            spent = _spent(config)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is not a file of answers: {error}") from None
    failed = {(data, key) for data, key in failed if key not in records.get(data, {})}
    scores = {data: _score(folder, data, list(records)) for data in records}
    return Setting(folder.name, config["model_path"], spent, config, records, len(failed), scores)


def _spent(config: dict[str, Any]) -> str:
    """What a setting spends, in words."""
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


def _score(folder: Path, data: str, all_data: list[str]) -> float | None:
    """The overall score of a data set; None when no file tells it."""
    start = f"{folder.name}_{data}"
    # Of two names of which one begins with the other, a file is the longer one's.
    longer = tuple(f"{folder.name}_{other}" for other in all_data if other != data and other.startswith(data))
    newest_first = sorted((path for path in folder.glob("T*_G*") if path.is_dir()), reverse=True)
    for place in (folder, *newest_first):
        for path in sorted(place.glob(f"{start}*")):
            is_score = _SCORES.fullmatch(path.name.removeprefix(start))
            if is_score and not (longer and path.name.startswith(longer)):
                found = overall(_metrics(path))
                if found is not None:
                    return found
    return None


def _metrics(path: Path) -> dict[str, float]:
    """The numbers of a score file, by where they stand, as `split=dev|Overall`. Raises ValueError for another file."""
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


def _numbers(value: Any, path: tuple[str, ...]):
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


def overall(metrics: dict[str, float]) -> float | None:
    """The overall score among the numbers of a score file: shares in percent; None when that is not clear.

    MME has none: it is perception and reasoning together, in percent of their 2,800. Else the number whose place says
    "overall" most often, then a share before a count.

    Args:
        metrics: by place, parts of it divided by `|`, such as `Task&Skill=Overall|acc` or `overall|overall`.
    """
    if {"perception", "reasoning"} <= metrics.keys():
        return (metrics["perception"] + metrics["reasoning"]) / 28  # percent of 2,000 and 800

    def order(place: str) -> tuple[int, int]:
        parts = [part.rpartition("=")[2] for part in place.lower().split("|")]
        told = _PREFERRED.index(parts[-1]) if parts[-1] in _PREFERRED else len(_PREFERRED)
        return -parts.count("overall"), told

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
