"""Ask Qwen2.5-VL about images and videos, with AVIS's two savings: fewer visual tokens, and only as many rollouts.

Alone it asks the bundled model about the bundled picture::

    python demo.py --enable-kdv --kdv-ratio 0.75 --num-rollouts 5
    python demo.py --enable-kdv --enable-policy
    python demo.py --image-path photo.jpg --prompt "What is on the table?" --model-path Qwen/Qwen2.5-VL-7B-Instruct
    python demo.py --input questions.jsonl --output answers.jsonl --enable-kdv
"""

import argparse
import io
import json
import os
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from avis.config import VOTES, AvisConfig
from avis.prompts import ANSWER_FORMATS

ROOT = Path(__file__).resolve().parent
BUNDLED = ROOT / "models" / "garden-tiny"
POLICY = ROOT / "policy_checkpoint.pt"
EXAMPLE = ROOT / "example.jpg"
QUESTION = "How many wooden rabbits are wearing glasses?"


class Parser(argparse.ArgumentParser):
    """An argument parser that tells a mistake in one line, without the list of all flags."""

    def error(self, message: str):
        self.exit(2, f"error: {message} (see --help)\n")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; `args.media` holds (kind, path) in the order in which they were given."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument

    def medium(kind: str):
        return lambda path: (kind, Path(path))

    add("--model-path", default=str(BUNDLED), help="Qwen2.5-VL folder or hub name (default: the bundled model)")
    add("--image-path", dest="media", action="append", type=medium("image"), metavar="FILE", help="repeatable")
    add("--video-path", dest="media", action="append", type=medium("video"), metavar="FILE", help="repeatable")
    add("--prompt", help="the question (default: the bundled example's)")
    add("--system-prompt")
    add("--enable-kdv", action="store_true", help="prune visual tokens before the language model")
    add("--kdv-ratio", type=float, metavar="RHO", help="fraction of visual tokens PRUNED (default 0.75)")
    add("--kdv-threshold", type=float, metavar="TAU", help="adaptive instead: angle in radians")
    add("--num-rollouts", type=int, metavar="K", help="1 (default): greedy; more: sampled, then a vote")
    add("--enable-policy", action="store_true", help="choose K by predicted difficulty; with KDV, prune adaptively")
    add("--policy-path", type=Path, metavar="FILE", help=f"default: {POLICY.name} beside this program")
    add("--no-early-stop", action="store_true", help="end all rollouts, even when the vote is decided")
    add("--rollouts-at-once", type=int, metavar="N", help="the next N only while undecided (default: all K)")
    add("--vote", default="majority", choices=VOTES, help="confidence: votes weigh as their tokens are probable")
    names = [profile.name for profile in ANSWER_FORMATS]
    add("--profile", choices=names, help="form of the answer that is asked for (default: by the model's name)")
    add("--no-enable-thinking", action="store_true", help="ask for the answer without reasoning")
    add("--max-new-tokens", type=int, default=2048, help="per rollout (default 2048)")
    add("--min-pixels", type=int)
    add("--max-pixels", type=int)
    add("--fps", type=float, help="frames per second taken from videos")
    add("--nframe", type=int, help="number of frames taken from each video")
    add("--temperature", type=float, default=0.7)
    add("--top-p", type=float, default=0.9)
    add("--seed", type=int, default=0)
    add("--attn-implementation", default="auto", choices=("auto", "flash_attention_2", "sdpa", "eager"))
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--device", help="default: cuda when there is one, else cpu; auto: spread over all GPUs")
    add("--json", action="store_true", help="print the whole record as one JSON document")
    add("--explain", action="store_true", help="print p, its bin, K and the votes as a table")
    add("--save-kept", type=Path, metavar="OUT.png", help="draw the kept tokens over the picture, and their scores")
    add("--input", type=Path, metavar="IN", help="many questions: a JSONL file, or a folder of pictures and --prompt")
    add("--output", type=Path, metavar="OUT.jsonl", help="their answers; the same command goes on where it was stopped")
    add("--retry-failed", action="store_true", help="ask the questions again whose answers are errors")
    args = parser.parse_args(arguments)
    args.media = args.media or []
    if not args.media and args.input is None:
        args.media = [("image", EXAMPLE)]
    if args.prompt is None and is_example(args):
        args.prompt = QUESTION
    return args


def is_example(args: argparse.Namespace) -> bool:
    """Whether the bundled picture alone is asked about."""
    return [(kind, path.resolve()) for kind, path in args.media] == [("image", EXAMPLE)]


def check(args: argparse.Namespace, settings: AvisConfig) -> list[dict]:
    """Refuse what can be refused without torch, which takes seconds to import. Raises ValueError.

    Returns:
        The media as parts of a chat's turn, in the order given: pictures as they were read, clips opened.
    """
    # Pillow, NumPy and PyAV: a fraction of a second, which `--help` need not take.
    from zipfile import is_zipfile

    from avis.checkpoint import check_model_folder
    from avis.files import check_file
    from avis.images import read_image
    from avis.prompts import check_text
    from avis.video import decode_frames, open_video, sample_frame_indices

    if args.enable_policy:
        path = policy_path(args)
        if not path.exists():
            raise ValueError(f"--enable-policy: no policy checkpoint at {path}; choose K by --num-rollouts")
        if not is_zipfile(check_file(path)):
            raise ValueError(f"--enable-policy: {path} is not a policy checkpoint, or is cut off")
    elif args.policy_path is not None:
        raise ValueError("--policy-path needs --enable-policy")
    if args.device and not re.fullmatch(r"(auto|cpu|mps|(cuda|xpu|npu)(:\d{1,3})?)", args.device):
        raise ValueError(f"unknown device {args.device}: cpu, cuda or cuda:1, for instance")
    if args.attn_implementation == "flash_attention_2":
        if find_spec("flash_attn") is None:
            raise ValueError("flash_attention_2 is not installed: leave --attn-implementation at auto")
        if args.device == "cpu" or args.dtype == "float32":
            raise ValueError("flash_attention_2 needs a CUDA device and half precision")
    if args.input is not None:
        single = {"--image-path and --video-path": args.media, "--json": args.json, "--explain": args.explain}
        for flag in (flag for flag, given in {**single, "--save-kept": args.save_kept}.items() if given):
            raise ValueError(f"{flag} is for one question, not for --input")
        if args.output is None:
            raise ValueError("--input needs --output: where do the answers go?")
        if args.output.resolve() == args.input.resolve():
            raise ValueError("--input and --output are the same file")
    elif args.output is not None or args.retry_failed:
        raise ValueError("--output and --retry-failed need --input")
    elif args.prompt is None or not args.prompt.strip():
        raise ValueError("--prompt is needed: what is asked about the picture?")
    if args.save_kept is not None and not args.enable_kdv:
        raise ValueError("--save-kept needs --enable-kdv: without it every token is kept")
    for path in filter(None, (args.save_kept, args.output)):
        if path.is_dir():
            raise ValueError(f"{path} is a folder, not a file")
        if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
            raise ValueError(f"cannot write {path}: no such folder, or not writable")
    for text in filter(None, (args.prompt, args.system_prompt)):
        check_text(text)
    check_model_folder(args.model_path)
    seen = []
    for kind, path in args.media:
        if kind == "image":
            seen.append({"type": kind, kind: read_image(path)})
        else:
            clip = open_video(path)
            next(decode_frames(clip, sample_frame_indices(clip, settings.fps, settings.num_frames)[0]))
            seen.append({"type": kind, kind: clip})
    return seen


def settings_of(args: argparse.Namespace) -> AvisConfig:
    """The flags as `AvisConfig`. Raises ValueError for values out of range and flags that need another."""
    if not args.enable_kdv and (args.kdv_ratio is not None or args.kdv_threshold is not None):
        raise ValueError("--kdv-ratio and --kdv-threshold need --enable-kdv")
    return AvisConfig(
        enable_kdv=args.enable_kdv,
        kdv_ratio=args.kdv_ratio,
        kdv_threshold=args.kdv_threshold,
        num_rollouts=1 if args.num_rollouts is None else args.num_rollouts,
        early_stop=not args.no_early_stop,
        rollout_batch_size=args.rollout_batch_size,
        vote=args.vote,
        answer_format=args.profile,
        enable_thinking=not args.no_enable_thinking,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        fps=args.fps,
        num_frames=args.nframe,
        seed=args.seed,
    )


def policy_path(args: argparse.Namespace) -> Path:
    return args.policy_path or POLICY


def messages_of(args: argparse.Namespace, seen: list[dict]) -> list[dict]:
    """The chat: media in the order given, then the question."""
    system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    return [*system, {"role": "user", "content": [*seen, {"type": "text", "text": args.prompt}]}]


def mode_of(settings, has_policy: bool = False) -> str:
    """The mode's name, as the README has it."""
    is_fixed = settings.kdv_ratio is not None or settings.kdv_threshold is None and not has_policy
    pruned = "" if not settings.enable_kdv else "KDV" if is_fixed else "adaptive KDV"
    sampled = "adaptive K" if has_policy else "rollouts" if settings.num_rollouts > 1 else ""
    name = " + ".join(filter(None, (pruned, sampled))) or "vanilla"
    return f"AVIS ({name})" if name == "adaptive KDV + adaptive K" else name


def report(args: argparse.Namespace, settings, result) -> str:
    """The answer and how it came about, for a person."""
    lines = [f"model     {args.model_path}", f"mode      {mode_of(settings, args.enable_policy)}"]
    for number, item in enumerate(result.items, start=1):
        lines.append(f"{item.kind} {number}   kept {item.kept} of {item.total} visual tokens (rho = {item.rho:.2f})")
    if result.p is not None:
        lines.append(f"policy    p = {result.p:.2f}, bin {result.bin}")
    stopped = f", {result.stopped_rollouts} stopped: the vote was decided" if result.stopped_rollouts else ""
    lines.append(f"rollouts  K = {result.num_rollouts}{stopped}")
    for number, rollout in enumerate(result.rollouts, start=1):
        said = "abstains" if rollout.answer is None else shown(rollout.answer)
        cut = "" if rollout.finished else ", cut off"
        if rollout.stopped:
            said, cut = "stopped", ""
        lines.append(f"  {number}       {said}   ({rollout.tokens} tokens{cut})")
    votes = ", ".join(f"{shown(answer)}: {count:.3g}" for answer, count in result.votes.items())
    flops, seconds = result.flops, result.seconds
    total = flops["vision"] + flops["prefill"] + flops["decode"]
    lines += [
        f"votes     {votes or 'none: every rollout abstained'}",
        f"tokens    prompt {result.prompt_tokens}, kept {result.kept_tokens}, new {result.new_tokens}",
        f"FLOPs     {total / 1e9:.3g} G; relative to vanilla (rho = 0, K = 1): "
        f"LLM-only {flops['relative_llm']:.2f}, total {flops['relative_total']:.2f}",
        "seconds   " + ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items()),
        f"cache     {result.cache_bytes / 2**20:.2f} MiB",
        f"text      {shown(result.text)}",
        f"answer    {'none' if result.answer is None else shown(result.answer)}",
    ]
    return "\n".join(lines)


def shown(text: str) -> str:
    """A text without what would move the cursor or change the colours of a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text.strip())


def explanation(result) -> str:
    """p, its bin and K, and the votes as a table: how many, their weight, the normalised answer, whose they are."""
    from avis.voting import majority_vote

    forms = majority_vote([rollout.answer for rollout in result.rollouts]).normalised
    groups: dict[tuple[bool, str], list[str]] = {}
    for number, (rollout, form) in enumerate(zip(result.rollouts, forms, strict=True), start=1):
        without = "stopped" if rollout.stopped else "abstained"
        groups.setdefault((form is not None, without if form is None else form), []).append(str(number))
    rows: list[tuple[str, ...]] = [("votes", "weight", "answer", "rollouts")]
    weight = {group: result.votes[group[1]] if group[0] else 0 for group in groups}
    for group in sorted(groups, key=lambda group: (not group[0], -weight[group])):
        numbers = groups[group]
        rows.append((str(len(numbers)), f"{weight[group]:.3f}", shown(group[1]), ", ".join(numbers)))
    if result.settings.vote == "majority":
        rows = [(row[0], *row[2:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    chosen = "" if result.p is None else f"p = {result.p:.2f}, bin {result.bin}, "
    return "\n".join([f"{chosen}K = {result.num_rollouts}", *table])


def say(text: str) -> None:
    """Print a result at once, so that what cannot be written is told as such. Raises OSError."""
    try:
        print(text, flush=True)
    except OSError as error:
        raise OSError(f"cannot print the result: {error.strerror}") from None


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    seen = check(args, settings)
    if args.input is not None:
        return run_many(args, settings)
    # Only now the slow imports: a wrong flag or file is told at once.
    model, processor = loaded(args)
    policy, notes = loaded_policy(args, model)
    from avis.pipeline import answer
    from avis.session import VisionCache

    memory = VisionCache() if args.save_kept else None
    result = answer(model, processor, messages_of(args, seen), settings, vision_cache=memory, policy=policy)
    table = explanation(result) if args.explain else ""
    if args.json:
        say(json.dumps(result.to_dict(), ensure_ascii=False))
        print(table, end="\n" if table else "", file=sys.stderr)
    else:
        say("\n".join(filter(None, (report(args, settings, result), table))))
    if memory is not None:
        from avis.visualize import draw_kept

        png = io.BytesIO()
        draw_kept(memory, processor).save(png, "PNG")
        args.save_kept.write_bytes(png.getvalue())
    tell([*notes, *([] if is_example(args) else limits(model))])
    return 0


def run_many(args: argparse.Namespace, settings: AvisConfig) -> int:
    """Answer the questions of `--input` into `--output`; 1 when some of them failed."""
    from avis.batch import Answers, read_questions, run

    questions = read_questions(args.input, args.prompt, args.system_prompt)
    with Answers(args.output, questions, settings, args.retry_failed) as answers:
        try:
            if len(answers.done) < len(questions):
                model, processor = loaded(args)
                policy, notes = loaded_policy(args, model)
                from avis.pipeline import answer
                from avis.session import VisionCache

                memory = VisionCache()

                def ask(question) -> dict:
                    messages, last, turns = question.messages, None, []
                    for text in (None, *question.follow_ups):
                        if last is not None:
                            # The template ends in a line break, which the tokenizer would join to a reply's own.
                            reply = {"role": "assistant", "content": last.text.strip()}
                            messages = [*messages, reply, {"role": "user", "content": text}]
                        asked = (messages, settings, question.item, memory, policy, last, bool(question.follow_ups))
                        last = answer(model, processor, *asked)
                        turns.append(last.to_dict())
                    return turns[-1] | ({"earlier": turns[:-1]} if question.follow_ups else {})

                run(questions, answers, ask)
                tell([*notes, *limits(model)])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{len(answers.done)} of {len(questions)} questions are in {args.output}; "
                "the same command goes on from there"
            ) from None
    failed = answers.totals.failed
    say(f"{args.output}: {answers.totals.answered} of {len(questions)} answered; {answers.totals}")
    if failed:
        print(f'note: {failed} failed, see their "error"; --retry-failed asks them again', file=sys.stderr)
    return 1 if failed else 0


def loaded(args: argparse.Namespace):
    """(model, processor), without the notes of the libraries that load them."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    enable_progress_bars()  # of the hub: what is fetched may take an hour
    from avis.loading import load_model

    if args.enable_policy:
        from policy.policy_model import read_checkpoint

        read_checkpoint(policy_path(args))  # what is wrong with it is told before the wait for the model
    return load_model(args.model_path, args.device, args.dtype, args.attn_implementation)


def loaded_policy(args: argparse.Namespace, model):
    """(policy, notes about it); None and none without `--enable-policy`. Raises ValueError for another width."""
    if not args.enable_policy:
        return None, []
    from avis.provenance import weights_sha256
    from policy.policy_model import PolicyModel

    policy = PolicyModel(policy_path(args), model.device)
    other = policy.check(model.config.vision_config.out_hidden_size, weights_sha256(model.config._name_or_path))
    ignored = "--num-rollouts is ignored: the policy chooses K" if args.num_rollouts is not None else None
    return policy, list(filter(None, (ignored, other)))


def limits(model) -> list[str]:
    """What the bundled model says of itself."""
    return list(filter(None, [getattr(model.config, "knows", None)]))


def tell(notes: list[str]) -> None:
    """On stderr, after the answer, because a refusal is one line."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    warnings.simplefilter("ignore")  # of libraries, about what is handled here
    try:
        return run(args)
    except KeyboardInterrupt as stop:
        print(": ".join(["interrupted", *map(str, stop.args)]), file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"error: {shown(lines[0])}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
