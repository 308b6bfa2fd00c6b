"""An `AvisOutput` as text for a person: the report, the table of votes, and tokens as they are decoded. No torch."""

import shutil
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from avis.cli import printable, replace_unprintable
from avis.config import AvisConfig
from avis.outputs import AvisOutput, RolloutOutput


def mode_name(config: AvisConfig, has_policy: bool = False) -> str:
    """Return the name of the mode, such as "KDV + rollouts" or "AVIS (adaptive KDV + adaptive K)".

    Args:
        config: of the query.
        has_policy: whether a policy chose K.
    """
    is_fixed = config.kdv_ratio is not None or (config.kdv_threshold is None and not has_policy)
    pruning = "" if not config.enable_kdv else "KDV" if is_fixed else "adaptive KDV"
    sampling = "adaptive K" if has_policy else "rollouts" if config.num_rollouts > 1 else ""
    name = " + ".join(filter(None, (pruning, sampling))) or "vanilla"
    return f"AVIS ({name})" if name == "adaptive KDV + adaptive K" else name


def report(output: AvisOutput, model_path: str, has_policy: bool = False) -> str:
    """Return the answer and how it was found, one fact a line; the answer last.

    Args:
        output: of the query.
        model_path: as the user named it.
        has_policy: whether a policy chose K.
    """
    lines = [f"model     {model_path}", f"mode      {mode_name(output.config, has_policy)}"]
    for number, item in enumerate(output.items, start=1):
        lines.append(f"{item.kind} {number}   kept {item.kept} of {item.total} visual tokens (rho = {item.rho:.2f})")
    if output.p is not None:
        lines.append(f"policy    p = {output.p:.2f}, bin {output.bin}")
    stopped = f", {output.stopped_rollouts} stopped: the vote was decided" if output.stopped_rollouts else ""
    lines.append(f"rollouts  K = {output.num_rollouts}{stopped}")
    lines += [f"  {number}       {_rollout_line(one)}" for number, one in enumerate(output.rollouts, start=1)]
    votes = ", ".join(f"{printable(answer)}: {count:.3g}" for answer, count in output.votes.items())
    flops = output.flops
    total = flops["vision"] + flops["prefill"] + flops["decode"]
    lines += [
        f"votes     {votes or 'none: every rollout abstained'}",
        f"tokens    prompt {output.prompt_tokens}, kept {output.kept_tokens}, new {output.new_tokens}",
        f"FLOPs     {total / 1e9:.3g} G; relative to vanilla (rho = 0, K = 1): "
        f"LLM-only {flops['relative_llm']:.2f}, total {flops['relative_total']:.2f}",
        "seconds   " + ", ".join(f"{stage} {value:.2f}" for stage, value in output.seconds.items()),
        f"cache     {output.cache_bytes / 2**20:.2f} MiB",
        f"text      {printable(output.text)}",
        f"answer    {'none' if output.answer is None else printable(output.answer)}",
    ]
    return "\n".join(lines)


def _rollout_line(rollout: RolloutOutput) -> str:
    if rollout.stopped:
        return f"stopped   ({rollout.tokens} tokens)"
    answer = "abstains" if rollout.answer is None else printable(rollout.answer)
    return f"{answer}   ({rollout.tokens} tokens{'' if rollout.finished else ', cut off'})"


def vote_table(output: AvisOutput) -> str:
    """Return p, its bin and K, and the votes as a table: number, weight, canonical answer, rollouts."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for number, rollout in enumerate(output.rollouts, start=1):
        without = "stopped" if rollout.stopped else "abstained"
        groups.setdefault((rollout.vote is not None, rollout.vote or without), []).append(str(number))
    weights = {group: output.votes[group[1]] if group[0] else 0.0 for group in groups}
    rows: list[Sequence[str]] = [("votes", "weight", "answer", "rollouts")]
    for group in sorted(groups, key=lambda group: (not group[0], -weights[group])):
        numbers = groups[group]
        rows.append((str(len(numbers)), f"{weights[group]:.3f}", printable(group[1]), ", ".join(numbers)))
    if output.config.vote == "majority":  # every weight is the number of votes
        rows = [[row[0], row[2], row[3]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    chosen = "" if output.p is None else f"p = {output.p:.2f}, bin {output.bin}, "
    return "\n".join([f"{chosen}K = {output.num_rollouts}", *table])


class TerminalStreamer:
    """Show progress on stderr while rollouts are decoded: the text for K = 1, a line that counts for K > 1.

    It is the `streamer` of `avis.pipeline.answer`. It prints nothing when stderr is no terminal.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._text: Any = None
        self._bar: tqdm | None = None
        self._tokens = 0

    def start(self, num_rollouts: int) -> None:
        """Begin the rollouts of one query."""
        if not sys.stderr.isatty():
            return
        if num_rollouts == 1:
            self._text = _stderr_text_streamer(self._tokenizer)
        else:
            self._tokens = 0
            columns, lines = shutil.get_terminal_size()  # tqdm prints nothing on a terminal that says 0 of both
            self._bar = tqdm(
                total=num_rollouts,
                unit="rollout",
                leave=False,
                miniters=0,  # the tokens change between ends of rollouts
                ncols=columns,
                nrows=lines,
                file=sys.stderr,
            )

    def put(self, steps: Sequence[tuple[int, int, bool]]) -> None:
        """Take one step of decoding: (rollout, new token, whether it ended) of each running rollout."""
        if self._text is not None:
            import torch  # loaded long since: a model is decoding

            self._text.put(torch.tensor([token for _, token, _ in steps]))
        elif self._bar is not None:
            self._tokens += len(steps)
            self._bar.set_postfix_str(f"{self._tokens} tokens", refresh=False)
            self._bar.update(sum(ended for _, _, ended in steps))

    def end(self) -> None:
        """End the output of the query."""
        if self._text is not None:
            self._text.end()
        if self._bar is not None:
            self._bar.close()
        self._text = self._bar = None


def _stderr_text_streamer(tokenizer) -> Any:
    from transformers import TextStreamer  # loaded long since

    class StderrTextStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(replace_unprintable(text), end="\n" if stream_end else "", flush=True, file=sys.stderr)

    return StderrTextStreamer(tokenizer, skip_special_tokens=True)
