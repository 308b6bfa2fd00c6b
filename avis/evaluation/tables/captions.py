"""The line below each table: what its numbers depend on, and the command that measured them.

Recorded commands have the names of their day. Captions show them with today's names, so that they run; the record
itself stays.
"""

from typing import Any

from avis.evaluation.benchmark.goals import current_words
from avis.evaluation.score import Results

# What recorded commands begin their words with, and today's name of it. The first that fits is taken.
_MODULES = {
    "evaluation.speed_plots": "avis.evaluation.benchmark.plots",
    "evaluation.speed": "avis.evaluation.benchmark",
    "evaluation.": "avis.evaluation.",
    "garden.train": "avis.garden.training",
    "garden.": "avis.garden.",
    "policy.training.cost": "policy.training.overhead",
}
_FOLDERS = {"evaluation/": "avis/evaluation/"}
_FLAGS = {
    "--profile": "--answer-format",
    "--nframe": "--num-frames",
    "--rollouts-at-once": "--rollout-batch-size",
    "--no-early-stop": "--vote-stop off",
}


def current_command(command: str) -> str:
    """Return a recorded command with today's names of modules, folders and flags.

    >>> current_command("python -m evaluation.run --recipe evaluation/recipes/dev.yaml --profile boxed")
    'python -m avis.evaluation.run --recipe avis/evaluation/recipes/dev.yaml --answer-format boxed'
    """
    words = command.split(" ")
    for place, word in enumerate(words):
        renamed = _MODULES if place and words[place - 1] == "-m" else _FOLDERS
        start = next((old for old in renamed if word.startswith(old)), "")
        words[place] = _FLAGS.get(word, renamed.get(start, "") + word.removeprefix(start))
    return " ".join(words)


def describe_results(results: Results) -> str:
    """Return what the numbers of results depend on, in one line."""
    config, seeds = results.config, [str(seed) for seed in results.config["seeds"]]
    backend, weights = config["backend"], config["weights_sha256"]
    fitted_on = config["policy"] and config["policy"].get("fitted_on", weights)
    model = f"model {config['model']} ({weights[:8]})"
    if results.answer_format:
        model += f", answer format {results.answer_format}"
    if fitted_on and fitted_on != weights:
        model += f", policy fitted on other weights ({fitted_on[:8]})"
    return (
        f"{len(results.records)} examples of {', '.join(config['sources'])}; seed{'s' * (len(seeds) > 1)} "
        f"{' and '.join(seeds)}; {backend['device']}, {backend['dtype']}, {backend['attention']}; "
        f"{model}; `{current_command(results.environment['command'])}`"
    )


def describe_fitting(report: dict[str, Any]) -> str:
    """Return what a report of the policy's fitting depends on, in one line."""
    judged = report.get("default_chosen_on") or report["chosen_on"]
    read = f"{report['n']} questions read, judged on {judged}"
    return f"{read}; weights {report['weights_sha256'][:8]}; `{current_command(report['command'])}`"


def describe_speed(report: dict[str, Any]) -> str:
    """Return what a report of speed depends on, in one line."""
    rounds = report["points"][0]["whole"]["n"] if report["points"] else 0
    return (
        f"{_describe_machine(report['config'])}; "
        f"{report['config']['new_tokens']} new tokens a rollout; medians (least to most) of {rounds} rounds; "
        f"{_describe_run(report)}"
    )


def describe_latency(report: dict[str, Any]) -> str:
    """Return what the table of latency depends on, in one line."""
    config = report["config"]
    mix = ", ".join(f"{k} ({100 * share:.0f}%)" for k, share in report["latency"]["k_mix"].items())
    tokens = " and ".join(map(str, config["visual_tokens"]))
    return (
        f"{_describe_machine(config)}; {tokens} visual tokens an image in turn, {config['new_tokens']} new tokens a "
        f"rollout, shared prefill; AVIS-like is rho = 0.75 with K dealt as {mix}; {_describe_run(report)}"
    )


def describe_scale(report: dict[str, Any]) -> str:
    """Return what the estimate assumes, in one line."""
    estimate = report["internet_scale"]
    assumed = current_words("; ".join(estimate["assumptions"]))
    return f"Geometry {estimate['geometry']}. Assumed: {assumed}. `{current_command(report['command'])}`"


def _describe_machine(config: dict[str, Any]) -> str:
    return (
        f"Geometry {config['geometry']} ({config['parameters'] / 1e9:.3g}B random weights); {config['hardware']}, "
        f"{config['threads']} threads, {config['device']}, {config['dtype']}, {config['attention']}"
    )


def _describe_run(report: dict[str, Any]) -> str:
    config = report["config"]
    return f"torch {config['versions']['torch']}, seed {config['seed']}; `{current_command(report['command'])}`"
