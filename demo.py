"""Ask Qwen2.5-VL about images and videos, with AVIS's two savings: fewer visual tokens, and only as many rollouts.

Alone it asks the bundled model about the bundled picture::

    python demo.py --enable-kdv --kdv-ratio 0.75 --num-rollouts 5
    python demo.py --image-path photo.jpg --prompt "What is on the table?" --model-path Qwen/Qwen2.5-VL-7B-Instruct
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BUNDLED = ROOT / "models" / "garden-tiny"
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
    add("--num-rollouts", type=int, default=1, metavar="K", help="1: greedy; more: sampled, majority vote")
    add("--enable-policy", action="store_true", help="choose K by predicted difficulty")
    add("--policy-path", type=Path, default=ROOT / "policy_checkpoint.pt")
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
    add("--device", help="default: cuda when there is one, else cpu")
    add("--json", action="store_true", help="print the whole record as one JSON document")
    args = parser.parse_args(arguments)
    if not args.media:
        args.media = [("image", EXAMPLE)]
    if args.prompt is None and is_example(args):
        args.prompt = QUESTION
    return args


def is_example(args: argparse.Namespace) -> bool:
    """Whether the bundled picture alone is asked about."""
    return [(kind, path.resolve()) for kind, path in args.media] == [("image", EXAMPLE)]


def check(args: argparse.Namespace) -> None:
    """Refuse what can be refused before a model is loaded. Raises ValueError."""
    if args.prompt is None or not args.prompt.strip():
        raise ValueError("--prompt is needed: what is asked about the picture?")
    if not args.enable_kdv and (args.kdv_ratio is not None or args.kdv_threshold is not None):
        raise ValueError("--kdv-ratio and --kdv-threshold need --enable-kdv")
    for _, path in args.media:
        if "://" in str(path) or str(path).startswith(("http:", "https:")):
            raise ValueError(f"only files are read, not URLs: {path}")
        if not path.is_file():
            raise ValueError(f"no such file: {path}")
    if args.enable_policy:
        if not args.policy_path.is_file():
            raise ValueError(f"--enable-policy: no policy checkpoint at {args.policy_path}; choose K by --num-rollouts")
        raise ValueError(f"--enable-policy: {args.policy_path} is not a policy checkpoint that this version can read")
    if args.model_path == str(BUNDLED) and not (BUNDLED / "config.json").is_file():
        raise ValueError(f"the bundled model is missing: {BUNDLED}")


def settings_of(args: argparse.Namespace):
    """The flags as `AvisSettings`. Raises ValueError for values out of range."""
    from policy import AvisSettings

    return AvisSettings(
        enable_kdv=args.enable_kdv,
        kdv_ratio=args.kdv_ratio,
        kdv_threshold=args.kdv_threshold,
        num_rollouts=args.num_rollouts,
        thinking=not args.no_enable_thinking,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        fps=args.fps,
        nframes=args.nframe,
        seed=args.seed,
    )


def messages_of(args: argparse.Namespace) -> list[dict]:
    """The chat: media in the order given, then the question."""
    content = [{"type": kind, kind: str(path)} for kind, path in args.media]
    content.append({"type": "text", "text": args.prompt})
    system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    return [*system, {"role": "user", "content": content}]


def mode_of(settings) -> str:
    """The mode's name, as the README has it."""
    pruned = ""
    if settings.enable_kdv:
        pruned = "adaptive KDV" if settings.kdv_threshold is not None else "KDV"
    sampled = "rollouts" if settings.num_rollouts > 1 else ""
    return " + ".join(filter(None, (pruned, sampled))) or "vanilla"


def report(args: argparse.Namespace, settings, result) -> str:
    """The answer and how it came about, for a person."""
    lines = [f"model     {args.model_path}", f"mode      {mode_of(settings)}"]
    for number, item in enumerate(result.items, start=1):
        lines.append(f"{item.kind} {number}   kept {item.kept} of {item.total} visual tokens (rho = {item.rho:.2f})")
    lines.append(f"rollouts  K = {result.num_rollouts}")
    for number, rollout in enumerate(result.rollouts, start=1):
        said = "abstains" if rollout.answer is None else rollout.answer
        cut = "" if rollout.finished else ", cut off"
        lines.append(f"  {number}       {said}   ({rollout.tokens} tokens{cut})")
    votes = ", ".join(f"{answer}: {count}" for answer, count in result.votes.items())
    flops, seconds = result.flops, result.seconds
    total = flops["vision"] + flops["prefill"] + flops["decode"]
    lines += [
        f"votes     {votes or 'none: every rollout abstained'}",
        f"tokens    prompt {result.prompt_tokens}, kept {result.kept_tokens}, "
        f"new {sum(rollout.tokens for rollout in result.rollouts)}",
        f"FLOPs     {total / 1e9:.3g} G; relative to vanilla (rho = 0, K = 1): "
        f"LLM-only {flops['relative_llm']:.2f}, total {flops['relative_total']:.2f}",
        "seconds   " + ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items()),
        f"cache     {result.cache_bytes / 2**20:.2f} MiB",
        f"text      {result.text.strip()}",
        f"answer    {'none' if result.answer is None else result.answer}",
    ]
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    check(args)
    # Only now the slow imports: a wrong flag or file is told at once.
    settings = settings_of(args)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from policy.answer import answer, load

    model, processor = load(args.model_path, args.device, args.dtype, args.attn_implementation)
    result = answer(model, processor, messages_of(args), settings)
    note = getattr(model.config, "knows", None)
    if note and not is_example(args):  # after the answer: a refusal is one line
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(result.to_dict(), ensure_ascii=False) if args.json else report(args, settings, result))


def main() -> int:
    args = parse()
    try:
        run(args)
    except (ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"error: {lines[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
