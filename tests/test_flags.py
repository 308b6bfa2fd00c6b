"""The flags of the demo: help, what they set, old names, and wrong or missing ones."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chats import EXAMPLE_IMAGE, EXAMPLE_VIDEO, ROOT
from PIL import Image
from policies import write_policy
from refusals import assert_refused
from transformers.utils import is_flash_attn_2_available

import demo
from avis.config import AvisConfig


@pytest.fixture
def image(tmp_path) -> Path:
    """An image that is not of the bundled model's world."""
    Image.linear_gradient("L").save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


@pytest.fixture
def help_text(run, monkeypatch) -> str:
    """The help, with one line for each flag."""
    monkeypatch.setenv("COLUMNS", "300")
    return re.sub(r"\n {20,}", "  ", run("--help")[1])


# ----------------------------------------------------------------------------------------------------------- help


def test_help_has_groups_and_examples(help_text):
    """Guards against: a wall of flags, and examples of it that are refused."""
    groups = re.findall(r"^(\w[\w ]*):$", help_text, re.MULTILINE)
    assert groups == ["input", "pruning", "rollouts and vote", "generation", "output", "examples"]
    examples = re.findall(r"^  python demo\.py (.*)$", help_text, re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        args = demo.parse(shlex.split(example))
        demo.config_from(args)
        demo.check_flags(args)


def test_every_flag_has_help_and_default(help_text):
    """Guards against: a flag without a word on what it does, and a default in its help that is not its default."""
    lines = re.findall(r"^  (-\S.*?)  +(\S.*)$", help_text, re.MULTILINE)
    assert len(lines) == len(re.findall(r"^  -", help_text, re.MULTILINE)), "a flag without help"
    defaults = vars(demo.parse([]))
    for names, text in lines:
        name = re.match(r"(?:-\w, )?--([\w-]+)", names)[1].replace("-", "_")
        if name in ("help", "output"):  # no default: --output is required where it is allowed
            continue
        said = re.search(r"\(default: ([^)]+)\)$", text)
        assert said, f"{names} has no default"
        value = defaults.get(name)
        if (
            isinstance(value, (int, float, str))
            and not isinstance(value, bool)
            and name not in ("model_path", "prompt")
        ):
            assert said[1].split(",")[0] == str(value), names


def test_examples_of_help_name_files_that_are_there(help_text):
    """Guards against: an example of help that names a bundled file by another name."""
    assert EXAMPLE_VIDEO.name in help_text and EXAMPLE_IMAGE.name in help_text


@pytest.mark.parametrize(("flag", "path"), [("--image-path", EXAMPLE_IMAGE), ("--video-path", EXAMPLE_VIDEO)])
def test_bundled_media_have_a_question(flag, path, tmp_path, monkeypatch):
    """Guards against: a bundled file that is refused without a question, or known by one way of writing its path."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "link").symlink_to(path)
    for written in (path, path.name, f"./models/../{path.name}", tmp_path / "link"):
        args = demo.parse([flag, str(written)])
        assert args.prompt == "How many wooden rabbits are wearing glasses?"
    assert demo.parse([flag, str(path), flag, str(path)]).prompt is None
    other = "--video-path" if flag == "--image-path" else "--image-path"
    assert demo.parse([other, str(path)]).prompt is None


def test_link_loops_without_a_question_are_one_line(run, tmp_path, no_model):
    """Guards against: a traceback from resolving the path, to see whether it is the example's."""
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert_refused(run("--image-path", tmp_path / "loop.png"), "--prompt")
    assert_refused(run("--video-path", tmp_path / "loop.png"), "--prompt")


# ------------------------------------------------------------------------------------------------- what flags set


def test_every_flag_reaches_its_field():
    """Guards against: a flag that is parsed and then dropped, or that sets another one's value."""
    flags = {
        "--kdv-ratio": ("kdv_ratio", 0.4),
        "--num-rollouts": ("num_rollouts", 3),
        "--rollout-batch-size": ("rollout_batch_size", 2),
        "--vote": ("vote", "confidence"),
        "--max-new-tokens": ("max_new_tokens", 17),
        "--temperature": ("temperature", 0.9),
        "--top-p": ("top_p", 0.8),
        "--min-pixels": ("min_pixels", 1000),
        "--max-pixels": ("max_pixels", 2000),
        "--fps": ("fps", 1.5),
        "--seed": ("seed", 11),
    }
    arguments = ["--enable-kdv", "--no-enable-thinking"]
    for flag, (_, value) in flags.items():
        arguments += [flag, str(value)]
    expected = AvisConfig(enable_kdv=True, enable_thinking=False, **dict(flags.values()))
    assert demo.config_from(demo.parse(arguments)) == expected
    arguments = ["--enable-kdv", "--kdv-threshold", "0.7", "--num-frames", "6", "--vote-stop", "off"]
    other = demo.config_from(demo.parse([*arguments, "--answer-format", "vision-r1"]))
    assert other == AvisConfig(
        enable_kdv=True, kdv_threshold=0.7, num_frames=6, vote_stop="off", answer_format="vision-r1"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--nframe 6", "--num-frames 6"),
        ("--rollouts-at-once 2", "--rollout-batch-size 2"),
        ("--no-early-stop", "--vote-stop off"),
        ("--profile vl-rethinker", "--answer-format vl-rethinker"),
    ],
)
def test_old_flags_still_work(help_text, old, new):
    """Guards against: a command of the last release that is refused, or that now means something else."""
    assert demo.config_from(demo.parse(old.split())) == demo.config_from(demo.parse(new.split())) != AvisConfig()
    flag = old.split()[0]
    assert (flag in help_text) == (flag == "--nframe"), "only the seed's own flag stays in the help"


def test_defaults_are_the_designs():
    """Guards against: another default than the one that is documented."""
    args = demo.parse([])
    assert demo.config_from(args) == AvisConfig(
        num_rollouts=1, enable_thinking=True, max_new_tokens=2048, temperature=0.7, top_p=0.9, seed=0
    )
    assert (args.prompt, args.media) == ("How many wooden rabbits are wearing glasses?", [("image", demo.EXAMPLE)])
    assert (args.attn_implementation, args.dtype, args.device) == ("auto", "auto", None)
    assert Path(args.model_path) == ROOT / "models" / "garden-tiny"


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "arguments",
    [["--image-path", "none.jpg", "--prompt", "?"], ["--kdv-ratio", "0.5"], ["--num-rollouts", "two"]],
    ids=str,
)
def test_refusals_need_no_model_library(arguments, tmp_path):
    """Guards against: seconds of imports before a mistyped flag or file name is told, and tracebacks."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['demo.py', *{arguments!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'demo.py')!r}, run_name='__main__')\n"
        "except SystemExit as exit:\n"
        "    assert exit.code == 2, exit.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert_refused((2 if done.returncode == 0 else done.returncode, done.stdout, done.stderr))


def test_help_is_printed(run):
    """Guards against: a `%` in a help text, with which argparse breaks only when help is asked for; and help that
    tells the ratio the wrong way round."""
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert re.search(r"--kdv-ratio RHO\s+fraction of visual tokens PRUNED", out)


@pytest.mark.parametrize(
    "flags",
    [
        "--kdv-ratio 0.5",
        "--kdv-threshold 0.5",
        "--enable-kdv --kdv-ratio 0.5 --kdv-threshold 0.5",
        "--enable-kdv --kdv-ratio 1.5",
        "--enable-kdv --kdv-ratio -0.1",
        "--enable-kdv --kdv-ratio nan",
        "--enable-kdv --kdv-threshold 0",
        "--enable-kdv --kdv-threshold 4",
        "--enable-kdv --kdv-threshold nan",
        "--num-rollouts 0",
        "--num-rollouts -3",
        "--num-rollouts 2.5",
        "--num-rollouts many",
        "--max-new-tokens 0",
        "--temperature 0 --num-rollouts 3",
        "--temperature -1",
        "--temperature nan",
        "--top-p 0",
        "--top-p 1.5",
        "--seed -1",
        "--seed 18446744073709551616 --num-rollouts 2",
        "--min-pixels 100",
        "--max-pixels 100",
        "--min-pixels 20000 --max-pixels 10000",
        "--fps 1 --nframe 4",
        "--fps 0",
        "--nframe 1",
        "--dtype float8",
        "--device nowhere",
        "--attn-implementation fast",
        "--enable-kd",
        "--no-such-flag",
        "--image-path",
        "stray",
    ],
)
def test_wrong_flags_are_refused_in_one_line(run, flags):
    """Guards against: flags that contradict each other and are quietly resolved, values out of range that fail deep
    inside, abbreviations that one day mean another flag, and a screenful of usage or traceback."""
    assert_refused(run(*flags.split()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_reported(run):
    """Guards against: a traceback from the driver's absence."""
    assert_refused(run("--device", "cuda"))


@pytest.mark.skipif(is_flash_attn_2_available(), reason="FlashAttention-2 is usable")
def test_missing_flash_attention_is_reported(run):
    """Guards against: a traceback from the absence of an optional package."""
    assert_refused(run("--attn-implementation", "flash_attention_2"))


@pytest.mark.parametrize("prompt", [None, "", "  \n"])
def test_a_question_is_needed(run, image, prompt):
    """Guards against: the example's question asked about another image."""
    assert_refused(run("--image-path", image, *([] if prompt is None else ["--prompt", prompt])), "--prompt")


def test_unreadable_files_are_reported(run, tmp_path, image):
    """Guards against: tracebacks, several lines, and messages that do not name the file."""
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.jpg").write_bytes(demo.EXAMPLE.read_bytes()[:20_000])
    for name in ("none.jpg", "text.jpg", "cut.jpg", ""):
        assert_refused(run("--image-path", tmp_path / name, "--prompt", "?"), str(tmp_path / name))
    assert_refused(run("--image-path", image, "--video-path", tmp_path / "none.mp4", "--prompt", "?"), "none.mp4")
    for url in ("http://localhost/a.jpg", "https://localhost/a.jpg", "file:///a.jpg", "s3://a/b.jpg"):
        assert_refused(run("--image-path", url, "--prompt", "?"), "a.jpg" if "localhost" in url else "")


def test_policy_without_a_checkpoint_is_reported(run, tmp_path):
    """Guards against: full AVIS asked for and something else run in silence."""
    missing = tmp_path / "none.pt"
    assert_refused(run("--enable-kdv", "--enable-policy", "--policy-path", missing), "--enable-policy", str(missing))
    (tmp_path / "junk.pt").write_text("not a checkpoint")
    junk = tmp_path / "junk.pt"
    assert_refused(run("--enable-kdv", "--enable-policy", "--policy-path", junk), "--enable-policy", str(junk))
    wide = write_policy(tmp_path / "wide.pt", width=10)
    assert_refused(run("--enable-policy", "--policy-path", wide), "width 10", "policy.training")


def test_folders_without_a_model_are_reported(run, tmp_path):
    """Guards against: a traceback, or a search on the network, for a folder that is not a checkpoint."""
    assert_refused(run("--model-path", tmp_path / "none"))
    assert_refused(run("--model-path", tmp_path))
    (tmp_path / "config.json").write_text("{not json")
    assert_refused(run("--model-path", tmp_path))
    (tmp_path / "config.json").write_bytes((demo.BUNDLED / "config.json").read_bytes())
    assert_refused(run("--model-path", tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    assert_refused(run("--model-path", tmp_path))


@pytest.mark.parametrize("prompt", ["What is <|image_pad|>?", "caf\udce9?"], ids=["placeholder", "not text"])
def test_prompts_that_cannot_be_read_are_reported(run, prompt):
    """Guards against: a traceback for a question with a placeholder token in it, or in another encoding than the
    terminal's."""
    assert_refused(run("--prompt", prompt))
