"""Every kind of table, by the name that marks in documents have for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avis.evaluation.score import Results
from avis.evaluation.tables import accuracy, captions, comparisons, policy_reports, speed_reports
from avis.evaluation.tables.cells import distinct_values
from avis.evaluation.tables.store import Store, Table


@dataclass(frozen=True)
class ResultTable:
    """A table of results.

    Attributes:
        make: the table.
        description: of what it shows, for the page.
    """

    make: Callable[[Results], Table]
    description: str


@dataclass(frozen=True)
class ReportTable:
    """A table of a JSON report.

    Attributes:
        make: the table.
        describe: what its numbers depend on, in one line.
        description: of what it shows, for the page.
    """

    make: Callable[[dict[str, Any]], Table]
    describe: Callable[[dict[str, Any]], str]
    description: str


RESULT_TABLES = {
    "headline": ResultTable(accuracy.headline, "The summary with six settings."),
    "summary": ResultTable(
        accuracy.summary, "The settings that matter most: accuracy, its difference from vanilla, and cost."
    ),
    "settings": ResultTable(
        accuracy.settings,
        "Every row of the recipe: accuracy over all, by medium and difficulty, K, rho, and cost in both accountings.",
    ),
    "forms": ResultTable(
        comparisons.forms,
        "Multiple choice and free answers apart: accuracy, and its difference from vanilla.",
    ),
    "votes": ResultTable(
        comparisons.votes, "The vote that weighs rollouts by confidence against plain majority, on the same rollouts."
    ),
    "axes": ResultTable(
        accuracy.axes,
        "Accuracy over how hard it is to see and how many steps it takes: greedy, the vote, and the vote minus greedy.",
    ),
    "tasks": ResultTable(
        accuracy.tasks, "By task: vanilla over all and by difficulty, votes, and the best constant guess."
    ),
    "goals": ResultTable(accuracy.goals, "The bundled model's goals and what was measured."),
    "paper1": ResultTable(
        accuracy.paper1,
        "The paper's table 1: score and #F (LLM-only; total) by task, for vanilla, VRS-only, KDV, AVIS.",
    ),
    "paper2": ResultTable(
        comparisons.paper2, "The paper's table 2: AVIS against fixed settings of similar FLOPs, and against vanilla."
    ),
    "controls": ResultTable(
        comparisons.controls,
        "AVIS against controls: K dealt to other examples, one rho for all, K by task, and simple pruners.",
    ),
    "pruners": ResultTable(
        comparisons.pruners,
        "Every row that prunes by keys, against random pruning and smaller images with as many tokens.",
    ),
    "backbones": ResultTable(
        accuracy.backbones,
        "The paper's table 4, one model: score and cost of vanilla, VRS-only, KDV and AVIS, and AVIS minus vanilla.",
    ),
    "grid": ResultTable(accuracy.grid, "The heat map's numbers: accuracy by rho and K."),
}
REPORT_TABLES = {
    "predictors": ReportTable(
        policy_reports.predictors,
        captions.describe_fitting,
        "How well difficulty is predicted: each predictor's measures on the split that judges it.",
    ),
    "rules": ReportTable(
        policy_reports.rules,
        captions.describe_fitting,
        "The shipped rule from p to K, and the two it is compared with.",
    ),
    "speed": ReportTable(
        speed_reports.speed,
        captions.describe_speed,
        "Seconds of a whole query and of a decoding step; what the cost model (without captures of graphs) predicts, "
        "and the least that the machine's limits allow; upstream's `generate` (empty where it was left out, on a CPU "
        "beyond 7,168 visual tokens times K) and vanilla beside it; and the most memory that the process (on CUDA: its "
        "tensors) took in decoding.",
    ),
    "stages": ReportTable(
        speed_reports.stages,
        captions.describe_speed,
        "Seconds of the stages before decoding, what the cost model predicts and what the machine's limits allow. "
        "Prefill over its FLOPs is its time, relative to rho = 0, over its FLOPs, relative to rho = 0.",
    ),
    "targets": ReportTable(
        speed_reports.targets, captions.describe_speed, "Goals of speed and what was measured, medians of the rounds."
    ),
    "latency": ReportTable(
        speed_reports.latency,
        captions.describe_latency,
        "The paper's table 3: seconds for pairs of image and question.",
    ),
    "scale": ReportTable(
        speed_reports.scale,
        captions.describe_scale,
        "An estimate on paper, never measured: GPUs for a million image questions an hour.",
    ),
}


def list_tables(store: Store) -> list[tuple[str, str]]:
    """Return (kind, name of the results or report) of every table that a folder's files allow."""
    listed = [(kind, name) for name in store.names for kind in RESULT_TABLES if _fits(kind, store.result(name))]
    for kind, name in (("predictors", "policy-fit"), ("rules", "policy-calibrate")):
        if store.has_report(name):
            listed.append((kind, name))
    for name in [f"speed/{path.stem}" for path in sorted(store.folder.glob("speed/*.json"))]:
        report = store.report(name)
        if report["points"] and report["points"][0]["whole"]["n"] > 1:  # one round has no spread, and is no sweep
            listed += [(kind, name) for kind in ("speed", "stages", "targets", "scale")]
        if "latency" in report:
            listed.append(("latency", name))
    return listed


def _fits(kind: str, results: Results) -> bool:
    """Return whether results have what a table shows, and it is listed for them."""
    recipe = results.config["recipe"]
    if kind == "headline":
        return False  # README's; every line of it is in the summary
    if kind in ("paper2", "controls"):
        return "AVIS" in results.rows
    if kind in ("tasks", "goals"):
        return recipe == "dev"
    if kind == "axes":
        return recipe not in ("grid", "backbones") and len(distinct_values(results, "see")) > 1
    if kind == "grid" or recipe == "grid":
        return kind == "grid" and recipe == "grid"
    if kind == "backbones" or recipe == "backbones":
        return kind == "backbones" and recipe == "backbones"
    if kind == "votes":
        recorded = [record for seeds in results.records[0]["runs"].values() for record in seeds]
        has_confidence = all("confidence" in record for record in recorded)
        return has_confidence and max(row.sampled for row in results.rows.values()) > 1
    if kind == "pruners":
        return any(row.pruner != "kdv" for row in results.rows.values())
    return True
