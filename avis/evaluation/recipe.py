"""Recipes: which rows a table has, and which ways of pruning and how many rollouts have to be measured for them::

    recipe = read_recipe(Path("avis/evaluation/recipes/dev.yaml"))
    for run in pruning_runs(recipe.rows):
        print(run.name, run.sampled)

Needs no model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from avis.config import AvisConfig
from policy.policy_model import CHOICES, PolicyModel

PRUNERS = ("kdv", "random", "downsample")
# A row's K is a number or one of these: the policy's; the policy's, dealt to other examples; the best for the task on
# dev; the smallest that is right, which nobody can know beforehand.
ALLOCATIONS = ("policy", "permuted", "by_task", "oracle")
# Rows and seeds decide these settings, or rollouts made with them could not be voted on afterwards for every K.
_DECIDED_BY_ROWS = {
    "enable_kdv",
    "kdv_ratio",
    "kdv_threshold",
    "pruner",
    "num_rollouts",
    "seed",
    "vote",
    "vote_stop",
    "rollout_batch_size",
}


@dataclass(frozen=True)
class Row:
    """One row of a table: how much to spend.

    Attributes:
        name: unique in its recipe.
        rho: fraction pruned, or "policy": the mean that the policy was fitted for. Excludes `tau`.
        tau: threshold angle in radians, or "policy". Without rho and tau nothing is pruned.
        pruner: "kdv", "random" (as many tokens, drawn), or "downsample" (a smaller image, of about as many tokens).
        rollouts: K, or one of `ALLOCATIONS`.

    Raises:
        ValueError: values that do not go together, in one line.
    """

    name: str
    rho: float | str | None = None
    tau: float | str | None = None
    pruner: str = "kdv"
    rollouts: int | str = 1

    def __post_init__(self):
        for name, most in (("rho", 1), ("tau", math.pi)):
            value = getattr(self, name)
            if not (value is None or value == "policy" or (type(value) in (int, float) and 0 < value < most)):
                raise ValueError(f"row {self.name}: {name} is between 0 and {most:.4g}, or policy, got {value!r}")
        if self.rho is not None and self.tau is not None:
            raise ValueError(f"row {self.name}: rho and tau exclude each other")
        if self.pruner not in PRUNERS:
            raise ValueError(f"row {self.name}: pruner is one of {', '.join(PRUNERS)}, got {self.pruner!r}")
        if self.pruner != "kdv" and self.rho is None and self.tau is None:
            raise ValueError(f"row {self.name}: {self.pruner} needs rho or tau")
        is_number = type(self.rollouts) is int and 1 <= self.rollouts <= 64
        if self.rollouts not in ALLOCATIONS and not is_number:
            allocations = ", ".join(ALLOCATIONS)
            raise ValueError(f"row {self.name}: rollouts is 1 to 64, or one of {allocations}, got {self.rollouts!r}")

    @property
    def run(self) -> str:
        """Name of its way of pruning; rows with the same one share their rollouts."""
        amount = "rho=0" if self.rho is None else f"rho={self.rho}"
        amount = amount if self.tau is None else f"tau={self.tau}"
        return amount if self.pruner == "kdv" else f"{amount} {self.pruner}"

    @property
    def needs_policy(self) -> bool:
        """Whether it cannot be measured without a policy."""
        return "policy" in (self.rho, self.tau) or self.rollouts in ("policy", "permuted")

    @property
    def sampled(self) -> int:
        """Number of sampled rollouts that it needs."""
        if not isinstance(self.rollouts, int):
            return max(CHOICES)
        return self.rollouts if self.rollouts > 1 else 0


def parse_row(value: Any) -> Row:
    """Return a row from its dictionary. Raises ValueError with one line."""
    known = [field.name for field in fields(Row)]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError(f"a row has a name and any of {', '.join(known[1:])}, got {value!r:.100}")
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ValueError(f"row {value['name']}: no such setting: {unknown[0]}")
    return Row(**value)


@dataclass(frozen=True)
class Recipe:
    """A table to measure.

    Attributes:
        name: of the file.
        rows: of the table, vanilla first.
        seeds: of sampling.
        settings: fields of `AvisConfig`, for all rows.
        split: of the garden.
        limit: examples of each source; None for all.
    """

    name: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    split: str
    limit: int | None


def read_recipe(path: Path) -> Recipe:
    """Return the recipe of a YAML file. Raises ValueError or OSError with one line."""
    try:
        value = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    known = {"rows", "seeds", "settings", "split", "limit"}
    if not isinstance(value, dict) or not isinstance(value.get("rows"), list) or not set(value) <= known:
        raise ValueError(f"{path} is not a recipe: it has rows, and any of seeds, settings, split, limit")
    try:
        rows = tuple(parse_row(row) for row in value["rows"])
        _check_rows(rows)
        seeds, settings, limit = value.get("seeds", [0]), value.get("settings", {}), value.get("limit")
        if not isinstance(seeds, list) or not seeds or len(set(seeds)) < len(seeds):
            raise ValueError("seeds is a list of different whole numbers")
        if not isinstance(settings, dict) or _DECIDED_BY_ROWS & set(settings):
            raise ValueError(f"settings are those of AvisConfig that rows do not decide, got {settings!r:.100}")
        for seed in seeds:
            AvisConfig(**settings, seed=seed)
        if limit is not None and not (type(limit) is int and limit >= 1):
            raise ValueError(f"limit is a whole number from 1, got {limit!r}")
        return Recipe(path.stem, rows, tuple(seeds), settings, str(value.get("split", "dev")), limit)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _check_rows(rows: Sequence[Row]) -> None:
    if len({row.name for row in rows}) < len(rows):
        raise ValueError("two rows have the same name")
    if not rows or rows[0] != Row("vanilla"):
        raise ValueError("the first row is vanilla, which the others are compared with")
    runs_of_kdv = {row.run for row in rows if row.pruner == "kdv"}
    for row in rows:
        is_by_angle = row.pruner == "downsample" and row.tau is not None
        if is_by_angle and row.run.removesuffix(" downsample") not in runs_of_kdv:
            raise ValueError(f"row {row.name}: downsampling to what tau keeps needs a row that prunes by it")


@dataclass(frozen=True)
class PruningRun:
    """One way of pruning, which several rows may share.

    Attributes:
        name: of the run, as in `Row.run`.
        row: any of the rows that share it.
        sampled: number of sampled rollouts, the most that any of these rows needs.
    """

    name: str
    row: Row
    sampled: int

    def configure(self, base: AvisConfig, policy: PolicyModel | None) -> AvisConfig:
        """Return the configuration of any run but a downsampled one, which depends on the image."""
        rho = resolve_amount(self.row.rho, policy.rho if policy else None)
        tau = resolve_amount(self.row.tau, policy.tau if policy else None)
        if rho is None and tau is None:
            return base
        return replace(base, enable_kdv=True, kdv_ratio=rho, kdv_threshold=tau, pruner=self.row.pruner)


def resolve_amount(amount: float | str | None, fitted: float | None) -> float | None:
    """Return a row's rho or tau as a number: the policy's `fitted` one in place of "policy"."""
    if not isinstance(amount, str):
        return amount
    if fitted is None:
        raise ValueError("rho or tau of a policy needs a policy")
    return fitted


def pruning_runs(rows: Sequence[Row]) -> list[PruningRun]:
    """Return the runs that rows need, in an order in which one encoding serves all that show the same image."""
    found: dict[str, PruningRun] = {}
    for row in rows:
        sampled = max(row.sampled, found[row.run].sampled if row.run in found else 0)
        found[row.run] = PruningRun(row.run, row, sampled)
    # Pruning needs the keys, which an encoding without pruning does not have; smaller images come last.
    return sorted(found.values(), key=lambda run: (run.row.pruner == "downsample", run.name == "rho=0"))
