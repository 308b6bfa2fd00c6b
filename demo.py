"""Ask Qwen2.5-VL about images and videos, with fewer visual tokens and as many rollouts as the question needs."""

import argparse
import io
import json
import os
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from avis.cli import ArgumentParser, run_command
from avis.config import VOTE_STOPS, VOTES, AvisConfig
from avis.prompts import ANSWER_FORMATS

if TYPE_CHECKING:
    from avis.pipeline import AvisPipeline

ROOT = Path(__file__).resolve().parent
BUNDLED = ROOT / "models" / "garden-tiny"
POLICY = ROOT / "policy_checkpoint.pt"
EXAMPLE = ROOT / "example.jpg"
QUESTION = "How many wooden rabbits are wearing glasses?"
# The bundled image and video, and what is asked about them when --prompt is missing.
EXAMPLES = {("image", EXAMPLE): QUESTION, ("video", ROOT / "example.mp4"): QUESTION}
USAGE = """\
examples:
  python demo.py --enable-kdv --kdv-ratio 0.75 --num-rollouts 5
  python demo.py --enable-kdv --enable-policy --video-path example.mp4
  python demo.py --input questions.jsonl --output answers.jsonl --model-path Qwen/Qwen2.5-VL-7B-Instruct --enable-kdv
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line.

    Args:
        arguments: of the command line; None: this program's.

    Returns:
        The flags; `media` holds (kind, path) of images and videos in the order in which they were given, and `prompt`
        the example's question where none was given.
    """
    parser = ArgumentParser(
        description=__doc__, epilog=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    add_input(parser.add_argument_group("input"))
    add_pruning(parser.add_argument_group("pruning"))
    add_rollouts(parser.add_argument_group("rollouts and vote"))
    add_generation(parser.add_argument_group("generation"))
    add_output(parser.add_argument_group("output"))
    args = parser.parse_args(arguments)
    args.media = args.media or []
    if not args.media and args.input is None:
        args.media = [("image", EXAMPLE)]
    if args.prompt is None:
        args.prompt = example_question(args)
    return args


def add_input(group) -> None:
    """Add the flags of the model and of what is asked."""
    add = group.add_argument
    add("--model-path", default=str(BUNDLED), help="Qwen2.5-VL folder or hub name (default: the bundled model)")
    for kind in ("image", "video"):
        add(
            f"--{kind}-path",
            dest="media",
            action="append",
            type=lambda path, kind=kind: (kind, Path(path)),
            metavar="FILE",
            help=f"{kind} to ask about; repeatable, mixes with the other kind (default: example.jpg)",
        )
    add("--prompt", help="the question (default: the bundled example's)")
    add("--system-prompt", help="system prompt of the chat (default: the answer format's, else the model's own)")
    add("--min-pixels", type=int, metavar="N", help="least pixels of an image or frame (default: the model's)")
    add("--max-pixels", type=int, metavar="N", help="most pixels of an image or frame (default: the model's)")
    add("--fps", type=float, help="frames per second taken from videos (default: 2)")
    help_ = "number of frames taken from each video (default: by --fps)"
    add("--num-frames", "--nframe", type=int, metavar="N", help=help_)
    help_ = "many questions: a JSONL file, or a folder of images with --prompt (default: one question)"
    add("--input", type=Path, metavar="IN", help=help_)


def add_pruning(group) -> None:
    """Add the flags that prune visual tokens."""
    add = group.add_argument
    add("--enable-kdv", action="store_true", help="prune visual tokens before the language model (default: off)")
    add("--kdv-ratio", type=float, metavar="RHO", help="fraction of visual tokens PRUNED (default: 0.75)")
    add(
        "--kdv-threshold",
        type=float,
        metavar="TAU",
        help="prune adaptively instead: an angle in radians (default: none)",
    )
    add("--save-kept", type=Path, metavar="OUT.png", help="draw the kept tokens and their scores (default: no)")


def add_rollouts(group) -> None:
    """Add the flags of K and of the vote."""
    add = group.add_argument
    add("--num-rollouts", type=int, metavar="K", help="1 is greedy; more are sampled, then voted on (default: 1)")
    add("--enable-policy", action="store_true", help="choose K by difficulty; prune adaptively with KDV (default: off)")
    add("--policy-path", type=Path, metavar="FILE", help=f"the policy's checkpoint (default: {POLICY.name})")
    help_ = "what a vote weighs: 1, or the mean probability of the rollout's tokens (default: majority)"
    add("--vote", default="majority", choices=VOTES, help=help_)
    help_ = "decided: stop when no rollout can change the winner; off: finish all (default: decided)"
    add("--vote-stop", default="decided", choices=VOTE_STOPS, help=help_)
    add("--rollout-batch-size", type=int, metavar="N", help="decode N at a time while undecided (default: all K)")
    add("--rollouts-at-once", dest="rollout_batch_size", type=int, help=argparse.SUPPRESS)
    add("--no-early-stop", dest="vote_stop", action="store_const", const="off", help=argparse.SUPPRESS)


def add_generation(group) -> None:
    """Add the flags of prompting, sampling and the device."""
    add = group.add_argument
    names = [answer_format.name for answer_format in ANSWER_FORMATS]
    add("--answer-format", choices=names, help="form of the answer that is asked for (default: by the model's name)")
    add("--profile", dest="answer_format", choices=names, help=argparse.SUPPRESS)
    add("--no-enable-thinking", action="store_true", help="ask for the answer without reasoning (default: with)")
    add("--max-new-tokens", type=int, default=2048, metavar="N", help="most new tokens of a rollout (default: 2048)")
    add("--temperature", type=float, default=0.7, help="temperature of sampling, for K > 1 (default: 0.7)")
    add("--top-p", type=float, default=0.9, help="nucleus of sampling, for K > 1 (default: 0.9)")
    add("--seed", type=int, default=0, help="seed of sampling (default: 0)")
    kinds = ("auto", "flash_attention_2", "sdpa", "eager")
    add(
        "--attn-implementation",
        default="auto",
        choices=kinds,
        help="attention kernels (default: auto, the fastest that is there)",
    )
    kinds = ("auto", "float32", "bfloat16", "float16")
    add(
        "--dtype",
        default="auto",
        choices=kinds,
        help="of the weights (default: auto, float32 on the CPU, else the checkpoint's)",
    )
    add("--device", help="cpu, cuda, cuda:1, or auto: spread over all GPUs (default: cuda, else cpu)")


def add_output(group) -> None:
    """Add the flags of what is printed and written."""
    add = group.add_argument
    add("-h", "--help", action="help", help="show this help message and exit")
    add("--json", action="store_true", help="print the whole record as one JSON document (default: a report)")
    add("--explain", action="store_true", help="print p, its bin, K and the votes as a table, too (default: off)")
    add(
        "--stream",
        action="store_true",
        help="show the text on a terminal as it is decoded, or a count for K > 1 (default: off)",
    )
    add(
        "--output",
        type=Path,
        metavar="OUT.jsonl",
        help="answers to --input (required with it); the same command resumes",
    )
    add("--retry-failed", action="store_true", help="ask again the questions that failed (default: off)")


def example_question(args: argparse.Namespace) -> str | None:
    """Return the question about the bundled image or video; None when something else is asked about."""
    if len(args.media) != 1:
        return None
    kind, path = args.media[0]
    return EXAMPLES.get((kind, Path(os.path.realpath(path))))  # unlike resolve(), it takes a loop of links


def config_from(args: argparse.Namespace) -> AvisConfig:
    """Return the flags as an `AvisConfig`. Raises ValueError for values out of range and flags that lack another."""
    if not args.enable_kdv and (args.kdv_ratio is not None or args.kdv_threshold is not None):
        raise ValueError("--kdv-ratio and --kdv-threshold need --enable-kdv")
    return AvisConfig(
        enable_kdv=args.enable_kdv,
        kdv_ratio=args.kdv_ratio,
        kdv_threshold=args.kdv_threshold,
        num_rollouts=1 if args.num_rollouts is None else args.num_rollouts,
        rollout_batch_size=args.rollout_batch_size,
        vote=args.vote,
        vote_stop=args.vote_stop,
        answer_format=args.answer_format,
        enable_thinking=not args.no_enable_thinking,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        fps=args.fps,
        num_frames=args.num_frames,
        seed=args.seed,
    )


def policy_path(args: argparse.Namespace) -> Path:
    """Return the path of the policy's checkpoint."""
    return args.policy_path or POLICY


def check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together. Raises ValueError."""
    if args.policy_path is not None and not args.enable_policy:
        raise ValueError("--policy-path needs --enable-policy")
    if args.device and not re.fullmatch(r"(auto|cpu|mps|(cuda|xpu|npu)(:\d{1,3})?)", args.device):
        raise ValueError(f"unknown device {args.device}: use cpu, cuda or cuda:1, for instance")
    if args.attn_implementation == "flash_attention_2":
        if find_spec("flash_attn") is None:
            raise ValueError("flash_attention_2 is not installed: leave --attn-implementation at auto")
        if args.device == "cpu" or args.dtype == "float32":
            raise ValueError("flash_attention_2 needs a CUDA device and half precision")
    if args.stream and args.json:
        raise ValueError("--stream and --json exclude each other")
    if args.save_kept is not None and not args.enable_kdv:
        raise ValueError("--save-kept needs --enable-kdv: without it every token is kept")
    if args.input is None:
        if args.output is not None or args.retry_failed:
            raise ValueError("--output and --retry-failed need --input")
        if args.prompt is None:
            raise ValueError("--prompt is required for an image or video of your own")
        if not args.prompt.strip():
            raise ValueError("--prompt is empty")
        return
    for_one_question = {
        "--image-path and --video-path": args.media,
        "--json": args.json,
        "--explain": args.explain,
        "--stream": args.stream,
        "--save-kept": args.save_kept,
    }
    given = [flag for flag, value in for_one_question.items() if value]
    if given:
        raise ValueError(f"{given[0]} is for one question, not for --input")
    if args.output is None:
        raise ValueError("--input requires --output FILE")
    if os.path.realpath(args.output) == os.path.realpath(args.input):
        raise ValueError("--input and --output are the same file")


def check_files(args: argparse.Namespace, config: AvisConfig) -> list[dict]:
    """Refuse files that cannot be read or written, without torch, which takes seconds to import.

    Returns:
        The media as parts of a turn, in the order given: images as they were read, videos opened.

    Raises:
        ValueError: with one line.
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
    for path in filter(None, (args.save_kept, args.output)):
        if path.is_dir():
            raise ValueError(f"{path} is a folder, not a file")
        if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
            raise ValueError(f"cannot write {path}: no such folder, or not writable")
    for text in filter(None, (args.prompt, args.system_prompt)):
        check_text(text)
    check_model_folder(args.model_path)
    parts = []
    for kind, path in args.media:
        if kind == "image":
            parts.append({"type": kind, kind: read_image(path)})
        else:
            video = open_video(path)
            next(decode_frames(video, [0]))
            parts.append({"type": kind, kind: video})
    for video in (part["video"] for part in parts if part["type"] == "video"):
        sample_frame_indices(video, config.fps, config.num_frames)  # imports torch; loading the model takes longer
    return parts


def messages_from(args: argparse.Namespace, parts: list[dict]) -> list[dict]:
    """Return the chat: media in the order given, then the question."""
    system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    return [*system, {"role": "user", "content": [*parts, {"type": "text", "text": args.prompt}]}]


def load_pipeline(args: argparse.Namespace) -> "tuple[AvisPipeline, list[str]]":
    """Return the `AvisPipeline` and notes about its policy, without the messages of the libraries that load it."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    enable_progress_bars()  # of the hub: a download may take an hour
    from avis.pipeline import AvisPipeline

    pipeline = AvisPipeline.from_pretrained(
        args.model_path,
        policy=policy_path(args) if args.enable_policy else None,
        device=args.device,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
    )
    notes = []
    if args.enable_policy and args.num_rollouts is not None:
        notes.append("--num-rollouts is ignored: the policy chooses K")
    if pipeline.policy_warning:
        notes.append(pipeline.policy_warning)
    return pipeline, notes


def run(args: argparse.Namespace) -> int:
    """Answer what the command line asks; returns the exit status."""
    config = config_from(args)
    check_flags(args)
    parts = check_files(args, config)
    if args.input is not None:
        return run_many(args, config)
    return run_one(args, config, parts)


def run_one(args: argparse.Namespace, config: AvisConfig, parts: list[dict]) -> int:
    """Answer one question."""
    pipeline, notes = load_pipeline(args)  # the slow imports: a wrong flag or file is reported before
    from avis.report import TerminalStreamer, report, vote_table

    streamer = TerminalStreamer(pipeline.processor.tokenizer) if args.stream else None
    output = pipeline(messages_from(args, parts), config=config, streamer=streamer)
    table = vote_table(output) if args.explain else ""
    if args.json:
        say(json.dumps(output.to_dict(), ensure_ascii=False))
        print(table, end="\n" if table else "", file=sys.stderr)
    else:
        say("\n".join(filter(None, (report(output, args.model_path, args.enable_policy), table))))
    if args.save_kept is not None:
        from avis.visualize import draw_kept

        png = io.BytesIO()
        draw_kept(pipeline.vision_cache, pipeline.processor).save(png, "PNG")
        args.save_kept.write_bytes(png.getvalue())
    print_notes([*notes, *([] if example_question(args) else model_notes(pipeline.model))])
    return 0


def run_many(args: argparse.Namespace, config: AvisConfig) -> int:
    """Answer the questions of `--input` into `--output`; returns 1 when some of them failed."""
    from avis.batch import AnswerJournal, answer_turns, open_questions, run_batch

    source = open_questions(args.input, args.prompt, args.system_prompt)
    with AnswerJournal(args.output, source, config, args.retry_failed) as answers:
        try:
            if len(answers.done) < len(source):
                pipeline, notes = load_pipeline(args)
                run_batch(
                    source, answers, lambda question, messages: answer_turns(pipeline, question, messages, config)
                )
                print_notes([*notes, *model_notes(pipeline.model)])
        except KeyboardInterrupt:
            done = f"{len(answers.done)} of {len(source)} questions are in {args.output}"
            raise KeyboardInterrupt(f"{done}; the same command resumes") from None
    totals = answers.totals
    say(f"{args.output}: {totals.answered} of {len(source)} answered; {totals}")
    if totals.failed:
        print(f'note: {totals.failed} failed, see their "error"; --retry-failed asks them again', file=sys.stderr)
    return 1 if totals.failed else 0


def say(text: str) -> None:
    """Print a result at once, so that a failure to write it is an error. Raises OSError."""
    try:
        print(text, flush=True)
    except OSError as error:
        raise OSError(f"cannot print the result: {error.strerror}") from None


def model_notes(model) -> list[str]:
    """Return what the bundled models' configuration says about their limits."""
    return list(filter(None, [getattr(model.config, "knows", None)]))


def print_notes(notes: list[str]) -> None:
    """Print notes on stderr, after the answer, because a refusal is one line."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse(arguments)
    warnings.simplefilter("ignore")  # of libraries, about cases that are handled here
    return run_command(lambda: run(args), interrupted="")


if __name__ == "__main__":
    sys.exit(main())
