"""Measure whether votes pay: small language models that reason on labels, their steps in a random order or in one.

python docs/lab-notebook/votes.py --order random --seed 0 --run runs/votes/random-0
python docs/lab-notebook/votes.py --table docs/lab-notebook/votes.jsonl

No image is drawn: each cell of a grid is a visual token whose feature is the sum of its labels' embeddings. A run that
was interrupted resumes when the same command is given again. Its results are lines of RUN/results.jsonl.
"""

import argparse
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import trange
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLTextModel
from votes_problems import (
    COLUMNS,
    IDS,
    LABEL_WORDS,
    PROMPT_LENGTH,
    ROWS,
    THINK,
    WORDS,
    Scene,
    Settings,
    draw_batch,
    draw_problem,
    first_slip,
)

from avis.garden.scenes import KINDS
from avis.statistics import paired_difference
from avis.voting import majority_vote

MAX_NEW_TOKENS, NUM_ROLLOUTS = 110, 7
LEVELS = range(len(THINK))
MUON_FACTOR = 2.5  # Muon's learning rate over AdamW's


class Reader(torch.nn.Module):
    """The language model of a Qwen2.5-VL, which reads label embeddings."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        text_config = dict(
            vocab_size=len(WORDS),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_theta=10000.0,
            rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]},
        )
        config = Qwen2_5_VLConfig(text_config=text_config, attn_implementation="sdpa").text_config
        self.text = Qwen2_5_VLTextModel(config)
        self.label_embeddings = torch.nn.Embedding(len(LABEL_WORDS), config.hidden_size)
        self.head = torch.nn.Linear(config.hidden_size, len(WORDS), bias=False)
        with torch.no_grad():
            # What a cell shows begins as the word for it, and so does what is written.
            words = self.text.embed_tokens.weight.normal_(std=0.2)
            self.label_embeddings.weight.copy_(words[[IDS[word] for word in LABEL_WORDS]])
            self.head.weight.copy_(0.1 * words)

    def read(self, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states of a training batch, with matrix products in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            found = self.text(
                inputs_embeds=embeds,
                attention_mask={"full_attention": mask},
                position_ids=positions,
                use_cache=False,
            )
        return found.last_hidden_state

    def embed(self, labels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the features of cells, then the embeddings of words: (B, cells + S, D)."""
        return torch.cat((self.label_embeddings(labels).sum(2), self.text.embed_tokens(ids)), dim=1)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the cross-entropy of all responses of a batch; each question sees the scene and itself."""
        labels, ids, owners, places = batch["labels"], batch["ids"], batch["owners"], batch["places"]
        cells = labels.shape[1]
        owner = F.pad(owners, (cells, 0))
        is_seen = (owner[:, None, :] == owner[:, :, None]) | (torch.arange(owner.shape[1]) < cells)
        is_seen &= torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
        mask = torch.zeros(is_seen.shape).masked_fill_(~is_seen, -torch.inf)[:, None]
        positions = torch.cat((cell_positions(len(ids)), (COLUMNS + places).expand(3, -1, -1)), dim=2)
        hidden = self.read(self.embed(labels, ids), mask, positions)[:, cells:].float()
        is_target = (places[:, 1:] >= PROMPT_LENGTH) & (owners[:, 1:] > 0)
        return F.cross_entropy(self.head(hidden[:, :-1][is_target]), ids[:, 1:][is_target])

    @torch.no_grad()
    def write(self, labels: torch.Tensor, ids: torch.Tensor, num_samples: int, seed: int) -> torch.Tensor:
        """Return a greedy response and samples to each prompt: (B, 1 + num_samples, at most MAX_NEW_TOKENS)."""
        generator = torch.Generator().manual_seed(seed)
        cache, rows = DynamicCache(), 1 + num_samples
        inputs, written = self.embed(labels, ids), []
        positions = torch.arange(COLUMNS, COLUMNS + ids.shape[1]).expand(3, len(ids), -1)
        positions = torch.cat((cell_positions(len(ids)), positions), dim=2)
        is_done = torch.zeros(len(ids) * rows, dtype=torch.bool)
        while len(written) < MAX_NEW_TOKENS and not is_done.all():
            hidden = self.text(
                inputs_embeds=inputs,
                attention_mask={"full_attention": None},
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            if not written:  # one prefill for all responses to a prompt
                cache.batch_repeat_interleave(rows)
                hidden, positions = hidden.repeat_interleave(rows, 0), positions.repeat_interleave(rows, 1)
            logits = self.head(hidden)
            words = sample(logits, generator)
            words[::rows] = logits[::rows].argmax(-1)
            written.append(words)
            is_done |= words == IDS["<end>"]
            inputs, positions = self.text.embed_tokens(words[:, None]), positions[:, :, -1:] + 1
        return torch.stack(written, dim=1).view(len(ids), rows, -1)


def cell_positions(count: int) -> torch.Tensor:
    """Return the positions of cells in time, row and column, as Qwen2.5-VL has them: (3, count, cells)."""
    cells = torch.arange(ROWS * COLUMNS)
    return torch.stack((0 * cells, cells // COLUMNS, cells % COLUMNS))[:, None].expand(3, count, -1)


def sample(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a word for each row at temperature 0.7 from the most likely words that have 0.9 together."""
    probabilities, words = (logits / 0.7).softmax(-1).sort(descending=True)
    probabilities[probabilities.cumsum(-1) - probabilities > 0.9] = 0
    return words.gather(1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]


# ------------------------------------------------------------------------------------------ training and measuring


def answer_of(words: list[int]) -> str | None:
    """Return what follows a response's last semicolon; None for a response without an end."""
    return text_of(words).rpartition(";")[2].strip() if IDS["<end>"] in words else None


def text_of(words: list[int]) -> str:
    """Return a response as text, without its end."""
    return "".join(WORDS[word] for word in words).partition("<end>")[0]


def count_slips(drawn: list[tuple[Scene, list[str], str]], written: list[list[list[int]]]) -> dict[str, int]:
    """Return how often each slip comes first in samples of totals and change, see `first_slip`."""
    return dict(
        Counter(
            first_slip(scene, prompt, text_of(words).rpartition(";")[0])
            for (scene, prompt, _), rows in zip(drawn, written, strict=True)
            for words in rows[1:]
            if prompt[0] in ("total", "change")
        )
    )


def measure(
    model: Reader, settings: Settings, problems: int, num_rollouts: int, levels: Iterable[int]
) -> Iterator[dict]:
    """Yield for each level of thinking which greedy answers and votes are right, and how many samples are."""
    for think in levels:
        drawn = [draw_problem(settings, think, number) for number in range(problems)]
        labels = torch.from_numpy(np.stack([scene.labels() for scene, _, _ in drawn]))
        ids = torch.tensor([[IDS[word] for word in prompt] for _, prompt, _ in drawn])
        rights = [answer for _, _, answer in drawn]
        written = model.write(labels, ids, num_rollouts, think).tolist()
        answers = [[answer_of(words) for words in rows] for rows in written]
        is_greedy_right = [rows[0] == right for rows, right in zip(answers, rights, strict=True)]
        line = {"think": think + 1, "greedy": ones(is_greedy_right)}
        if num_rollouts:
            votes = [majority_vote(rows[1:]).answer for rows in answers]
            line["vote"] = ones(vote == right for vote, right in zip(votes, rights, strict=True))
            line["samples"] = "".join(str(rows[1:].count(right)) for rows, right in zip(answers, rights, strict=True))
            line["slips"] = count_slips(drawn, written) if settings.trace == "plain" else {}
        yield line


def ones(are_right: Iterable[bool]) -> str:
    """Return a 1 for everything that is right, a 0 for all else."""
    return "".join(str(int(is_right)) for is_right in are_right)


def rate_at(settings: Settings, batch: int) -> float:
    """Return the learning rate: 50 batches of warm-up, then the peak, at the end a cosine down to 0."""
    left = (settings.batches - batch) / max(1.0, settings.decay * settings.batches)
    return settings.rate * min(1.0, (batch + 1) / 50) * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))


def make_optimisers(model: Reader) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for all else."""
    matrices = [parameter for parameter in model.text.layers.parameters() if parameter.ndim == 2]
    seen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in seen]
    return [
        torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.02, fused=True),
    ]


def train(settings: Settings, run: Path, problems: int) -> None:
    """Train to the end, saving every two minutes; then append the results of the averaged weights."""
    model = Reader(settings.seed)
    averaged = Reader(settings.seed)
    if settings.batches > 100:  # compiling takes as long as some hundred batches
        model.read = torch.compile(model.read, dynamic=False)
    optimisers = make_optimisers(model)
    parts = (model, averaged, *optimisers)
    batch, seconds, file = 0, 0.0, run / "state.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        if state["settings"] != asdict(settings):
            raise ValueError(f"{file} was begun with other settings: {state['settings']}")
        for part, saved_part in zip(parts, state["parts"], strict=True):
            part.load_state_dict(saved_part)
        batch, seconds = state["batch"], state["seconds"]
    before, saved, mean = time.process_time(), time.monotonic(), 0.0
    for batch in trange(batch, settings.batches, initial=batch, total=settings.batches, mininterval=10):
        for optimiser, factor in zip(optimisers, (MUON_FACTOR, 1.0), strict=True):
            optimiser.param_groups[0]["lr"] = factor * rate_at(settings, batch)
        loss = model.loss(draw_batch(settings, batch))
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        with torch.no_grad():
            keep = min(0.998, (1 + batch) / (10 + batch))
            torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - keep)
        mean = 0.98 * mean + 0.02 * loss.item() if mean else loss.item()
        is_last = batch + 1 == settings.batches
        if (batch + 1) % 500 == 0:
            found = [line["greedy"] for line in measure(averaged, settings, 20, 0, LEVELS)]
            line = {"batch": batch + 1, "minutes": round((seconds + time.process_time() - before) / 60, 2)}
            line |= {"loss": round(mean, 4), "greedy": [one.count("1") / len(one) for one in found]}
            append(run / "log.jsonl", line)
        if is_last or time.monotonic() - saved > 120:
            seconds, before, saved = seconds + time.process_time() - before, time.process_time(), time.monotonic()
            state = {"settings": asdict(settings), "batch": batch + 1, "seconds": seconds}
            state["parts"] = [part.state_dict() for part in parts]
            torch.save(state, file.with_suffix(".part"))
            os.replace(file.with_suffix(".part"), file)
    levels = read_lines(run / "levels.jsonl")
    for line in measure(averaged, settings, problems, NUM_ROLLOUTS, LEVELS[len(levels) :]):
        append(run / "levels.jsonl", line)
        levels.append(line)
    line = {**asdict(settings), "minutes": round(seconds / 60, 1), "torch": torch.__version__}
    append(run / "results.jsonl", line | {"levels": levels})


def append(file: Path, line: dict) -> None:
    """Append a line to a file of JSON lines."""
    with file.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read_lines(file: Path) -> list[dict]:
    """Return the lines of a file of JSON lines; none of one that does not exist."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# ------------------------------------------------------------------------------------------------------ the report


# The rows of a table: which levels of thinking, and which kind of problem alone.
SCOPES: dict[str, tuple[Iterable[int], str | None]] = {f"think {level + 1}": ([level], None) for level in LEVELS}
SCOPES |= {"think 3 to 5": ([2, 3, 4], None), "all": (LEVELS, None)}
SCOPES |= {name: (LEVELS, name) for name in ("sum of all", "sum by kind", "sum by wear", "two totals", "count")}


@cache
def name_problem(settings: Settings, think: int, number: int) -> str:
    """Return a problem's task; totals and change are told apart by whose tags they are about."""
    _, prompt, _ = draw_problem(settings, think, number)
    if prompt[0] not in ("total", "change"):
        return prompt[0]
    return "sum of all" if prompt[1] == "all" else f"sum by {'kind' if prompt[1] in KINDS else 'wear'}"


def right_shares(lines: list[dict], levels: Iterable[int], only: str | None) -> dict[str, np.ndarray]:
    """Return each problem's right greedy answers, votes and samples as shares, averaged over training seeds."""
    settings = Settings(**{field.name: lines[0][field.name] for field in fields(Settings)})
    chosen = [
        (level, number)
        for level in levels
        for number in range(len(lines[0]["levels"][level]["greedy"]))
        if only is None or name_problem(settings, level, number) == only
    ]
    shares = {}
    for name, most in (("greedy", 1), ("vote", 1), ("samples", NUM_ROLLOUTS)):
        found = [[int(line["levels"][level][name][number]) for level, number in chosen] for line in lines]
        shares[name] = np.mean(found, axis=0) / most
    return shares


def show_table(lines: list[dict]) -> None:
    """Print a table for each group of runs that differ in order and seed alone, and compare the orders."""
    groups: dict[tuple, list[dict]] = {}
    for line in lines:
        groups.setdefault((line["trace"], line["largest"], line["batches"]), []).append(line)
    for (trace, largest, batches), group in groups.items():
        orders = {order: [line for line in group if line["order"] == order] for order in ("random", "fixed")}
        print(f"\ntrace {trace}, tags to {largest}, {batches} batches\n")
        print("| problems | order | n | greedy | sample | vote of 7 | vote - greedy | sample - greedy |")
        print("|---|---|---|---|---|---|---|---|")
        for scope, (levels, only) in SCOPES.items():
            for order, own in orders.items():
                if own:
                    print("|", " | ".join((scope, order, *cells_of(right_shares(own, levels, only)))), "|")
        print("\n| problems | vote of random - greedy of fixed | vote of random - vote of fixed |\n|---|---|---|")
        for scope, (levels, only) in SCOPES.items() if all(orders.values()) else ():
            random, fixed = (right_shares(own, levels, only) for own in orders.values())
            against = [difference(random["vote"] - fixed[name]) for name in ("greedy", "vote")]
            print("|", " | ".join((scope, *against)), "|")
    for line in lines:
        slips = sum((Counter(level["slips"]) for level in line["levels"]), Counter())
        total = ", ".join(f"{name} {count}" for name, count in slips.most_common())
        print(f"\n{line['order']}, seed {line['seed']}, {line['minutes']} CPU minutes; first slip of samples: {total}")


def cells_of(shares: dict[str, np.ndarray]) -> list[str]:
    """Return a row's cells: n, three accuracies, and two paired differences, in points."""
    greedy = shares["greedy"]
    means = [f"{100 * shares[name].mean():.1f}" for name in ("greedy", "samples", "vote")]
    return [str(len(greedy)), *means, difference(shares["vote"] - greedy), difference(shares["samples"] - greedy)]


def difference(values: np.ndarray) -> str:
    """Return a mean paired difference in points with its 95% interval over problems."""
    found = paired_difference(values, range(len(values)))
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def main() -> None:
    """Train and measure one model, or print the tables of those that were measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="print the tables of these results, and train nothing")
    parser.add_argument("--run", type=Path, default=Path("runs/votes"), help="folder of the state, log and results")
    parser.add_argument("--order", choices=("random", "fixed"), default="random", help="of the steps")
    parser.add_argument("--seed", type=int, default=0, help="of weights and training data")
    parser.add_argument(
        "--trace",
        choices=("plain", "listed", "silent"),
        default="plain",
        help="steps alone; a list of who is to be gone through before them; or steps without running results",
    )
    parser.add_argument("--largest", type=int, default=9, help="number on a tag")
    parser.add_argument("--batches", type=int, default=1600)
    parser.add_argument("--scenes", type=int, default=16, help="in a batch; 200 tokens of questions each")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.4, help="share of the batches over which the rate falls")
    parser.add_argument("--problems", type=int, default=200, help="fresh problems at each level of thinking")
    args = parser.parse_args()
    if args.table:
        lines = read_lines(args.table)
        if not lines:
            parser.error(f"no results in {args.table}")
        show_table(lines)
        return
    torch.set_num_threads(1)
    args.run.mkdir(parents=True, exist_ok=True)
    try:
        train(
            Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)}), args.run, args.problems
        )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
