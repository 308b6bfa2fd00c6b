"""The demo, as a user meets it: what is printed where, the exit status, and what is refused in one line.

A process takes seconds to import what it needs, so only what a process alone can show is run in one; the rest calls
`demo.main` here.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from policies import write_policy
from transformers.utils import is_flash_attn_2_available

import demo
from avis.config import AvisConfig
from avis.images import read_image
from avis.inputs import prepare_inputs
from avis.outputs import RolloutOutput
from avis.pipeline import answer
from avis.prompts import DIRECT, THINKING
from policy.policy_model import PolicyModel

ROOT = Path(__file__).resolve().parents[1]
KNOWS = "knows one world only"


@pytest.fixture
def image(tmp_path) -> Path:
    """A image that is not of the bundled model's world."""
    Image.linear_gradient("L").save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


def process(*arguments, cwd: Path) -> tuple[int, str, str]:
    """Runs the command line in a process of its own; on one thread, as this one does, so that results are equal."""
    command = [sys.executable, str(ROOT / "demo.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def fields(report: str) -> dict[str, str]:
    """The report's lines by their first word."""
    lines = [line.split(maxsplit=1) for line in report.splitlines() if not line.startswith(" ")]
    return {name: rest for name, rest in lines}


def record(out: str) -> dict:
    """The one document on stdout."""
    assert out.count("\n") == 1 and out.endswith("\n"), "not alone on stdout"
    return json.loads(out)


def assert_refused(outcome: tuple[int, str, str], *words: str):
    """Exit status 2, nothing on stdout, one line on stderr that says these words."""
    status, out, err = outcome
    assert (status, out) == (2, ""), outcome
    assert err.count("\n") == 1 and err.startswith("error: "), f"not one line: {err!r}"
    assert all(word in err for word in words), err


# ----------------------------------------------------------------------------------- the example, in its own process


def test_the_example_in_its_own_process(bundled, tmp_path):
    """Guards against: the README's command needing the repository as its working folder, warnings on the screen, and
    a report that says something else than what was run."""
    flags = ("--enable-kdv", "--kdv-ratio", "0.75", "--num-rollouts", "5", "--device", "cpu")
    status, out, err = process(*flags, cwd=tmp_path)
    assert (status, err) == (0, "")
    said = fields(out)
    expected = answer(*bundled, example_chat(), AvisConfig(enable_kdv=True, kdv_ratio=0.75, num_rollouts=5))
    assert said["answer"] == str(expected.answer) and out.splitlines()[-1].startswith("answer ")
    assert said["model"] == str(demo.BUNDLED) and said["mode"] == "KDV + rollouts"
    assert "kept 63 of 252" in said["image"] and "rho = 0.75" in said["image"]
    stopped = f", {expected.stopped_rollouts} stopped: the vote was decided" if expected.stopped_rollouts else ""
    assert said["rollouts"] == f"K = 5{stopped}"
    each = re.findall(r"^  (\d) +(\S+) +\((\d+) tokens\)$", out, re.MULTILINE)
    assert [number for number, _, _ in each] == list("12345")
    assert [int(tokens) for _, _, tokens in each] == [rollout.tokens for rollout in expected.rollouts]
    assert [text == "stopped" for _, text, _ in each] == [rollout.stopped for rollout in expected.rollouts]
    assert said["votes"] == ", ".join(f"{name}: {count}" for name, count in expected.votes.items())
    assert {"tokens", "FLOPs", "seconds", "cache", "text"} <= set(said)
    for stage in ("vision", "prefill", "decode"):
        assert re.search(rf"{stage} \d", said["seconds"])
    relative = re.search(r"LLM-only (\S+), total (\S+)", said["FLOPs"])
    assert [float(x) for x in relative.groups()] == [
        pytest.approx(expected.flops[name], abs=0.006) for name in ("relative_llm", "relative_total")
    ]


def test_json_is_repeatable_byte_by_byte(run, image, tmp_path):
    """Guards against: notes, progress bars or a video reader's greeting between the lines of a document that another
    program is to read; and a document that depends on what ran before in the process, on the process, or on the order
    in which a set happens to be in memory."""
    media = ("--image-path", image, "--video-path", ROOT / "example.mp4", "--nframe", 4, "--seed", 3)
    others = ("--prompt", "Wie viele B\u00e4ren?", "--num-rollouts", 3, "--temperature", 5, "--max-new-tokens", 30)
    flags = (*media, *others, "--device", "cpu", "--enable-kdv", "--json")
    status, out, err = process(*flags, cwd=tmp_path)
    assert status == 0 and err.count("\n") == 1 and KNOWS in err
    assert [item["kind"] for item in record(out)["items"]] == ["image", "video"]
    run("--max-new-tokens", 3, "--seed", 9, "--num-rollouts", 2)
    torch.manual_seed(99)
    _, here, _ = run(*flags)
    timeless = [re.sub(r'"seconds": \{[^}]*\}', "", text) for text in (out, here)]
    assert timeless[0] == timeless[1] and len(timeless[0]) < len(out)


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


# ------------------------------------------------------------------- the example is answered rightly, in every mode


def example_chat() -> list[dict]:
    part = {"type": "image", "image": str(demo.EXAMPLE)}
    return [{"role": "user", "content": [part, {"type": "text", "text": demo.QUESTION}]}]


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"enable_kdv": True, "kdv_ratio": 0.75},
        {"enable_kdv": True, "kdv_threshold": 0.785398},
        {"num_rollouts": 5},
        {"enable_kdv": True, "kdv_ratio": 0.75, "num_rollouts": 5},
        {"enable_kdv": True, "kdv_threshold": 0.785398, "num_rollouts": 5},
    ],
    ids=["vanilla", "KDV", "adaptive KDV", "rollouts", "KDV + rollouts", "adaptive KDV + rollouts"],
)
def test_the_example_is_answered_rightly(bundled, mode):
    """Guards against: shipped weights, or a change anywhere on the way, with which the first thing a user sees is
    wrong. Of the shipped weights alone: two rabbits wear glasses, found with at least 4 of 5 sampling seeds."""
    seeds = range(5) if mode.get("num_rollouts", 1) > 1 else range(1)
    said = [answer(*bundled, example_chat(), AvisConfig(**mode, seed=seed)).answer for seed in seeds]
    assert said.count("2") >= 0.8 * len(said), said


# ---------------------------------------------------------------------------------------------- what reaches the model


@pytest.fixture
def asked(monkeypatch):
    """What `answer` was called with, and the text of the prompt made of it."""
    seen = {}

    def watched(model, processor, messages, config, **rest):
        seen.update(messages=messages, config=config)
        inputs = prepare_inputs(processor, messages, config)
        seen["prompt"] = processor.tokenizer.decode(inputs.input_ids[0])
        return answer(model, processor, messages, config, **rest)

    # Not `avis.pipeline`: the package has a function of that name.
    monkeypatch.setattr(sys.modules["avis.pipeline"], "answer", watched)
    return seen


def test_every_flag_reaches_its_setting():
    """Guards against: a flag that is parsed and then dropped, or that sets another one's value."""
    flags = {
        "--kdv-ratio": ("kdv_ratio", 0.4),
        "--num-rollouts": ("num_rollouts", 3),
        "--rollouts-at-once": ("rollout_batch_size", 2),
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
    assert demo.settings_of(demo.parse(arguments)) == expected
    other = demo.settings_of(demo.parse(["--enable-kdv", "--kdv-threshold", "0.7", "--nframe", "6", "--no-early-stop"]))
    assert other == AvisConfig(enable_kdv=True, kdv_threshold=0.7, num_frames=6, vote_stop="off")


def test_defaults_are_the_designs(bundled):
    """Guards against: another default than the one that is documented."""
    args = demo.parse([])
    assert demo.settings_of(args) == AvisConfig(
        num_rollouts=1, enable_thinking=True, max_new_tokens=2048, temperature=0.7, top_p=0.9, seed=0
    )
    assert (args.prompt, args.media) == ("How many wooden rabbits are wearing glasses?", [("image", demo.EXAMPLE)])
    assert (args.attn_implementation, args.dtype, args.device) == ("auto", "auto", None)
    assert Path(args.model_path) == ROOT / "models" / "garden-tiny"


def test_media_keep_their_order(run, asked, image):
    """Guards against: images moved before videos, so that "the first" in the question is another one."""
    clip = ROOT / "example.mp4"
    flags = ["--video-path", clip, "--image-path", image, "--video-path", clip, "--image-path", demo.EXAMPLE]
    status, *_ = run(*flags, "--prompt", "Which is first?", "--nframe", 2, "--max-new-tokens", 2)
    assert status == 0
    runs = re.sub(r"(<\|(image|video)_pad\|>)+", r"\2 ", asked["prompt"])
    assert re.findall(r"image|video", runs.split("user\n")[1]) == ["video", "image", "video", "image"]
    assert runs.index("Which is first?") > runs.rindex("image")
    shown = [part.get("image", part.get("video")) for part in asked["messages"][0]["content"][:4]]
    assert [one.path for one in shown[::2]] == [clip, clip]
    for one, path in zip(shown[1::2], (image, demo.EXAMPLE), strict=True):
        assert one.tobytes() == read_image(path).tobytes()


def test_thinking_can_be_turned_off(run, asked):
    """Guards against: the flag that changes the title of the report and not the prompt."""
    run("--max-new-tokens", 2)
    assert THINKING in asked["prompt"] and DIRECT not in asked["prompt"]
    run("--no-enable-thinking", "--max-new-tokens", 2)
    assert DIRECT in asked["prompt"] and THINKING not in asked["prompt"]


def test_system_prompt_stands_first(run, asked):
    """Guards against: a system prompt that is added to the default one, or lands in the question."""
    run("--system-prompt", "Be brief.", "--max-new-tokens", 2)
    assert asked["prompt"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert asked["prompt"].count("system") == 1


# ------------------------------------------------------------------------------------------------------- the policy


def test_full_avis(run, bundled, tmp_path, monkeypatch):
    """Guards against: full AVIS named and something else run: K of a flag, the fixed ratio, a policy that is not asked;
    and a report without p, K and the angle's share."""
    path = write_policy(tmp_path / "p.pt", (3, 5), (1e-9,))
    monkeypatch.setattr(demo, "POLICY", path)
    expected = answer(*bundled, example_chat(), AvisConfig(enable_kdv=True, max_new_tokens=6), policy=PolicyModel(path))
    flags = ("--enable-kdv", "--enable-policy", "--max-new-tokens", 6)
    for more in ([], ["--policy-path", path]):
        status, out, err = run(*flags, *more, "--explain")
        assert (status, err) == (0, "")
        said = fields(out)
        assert said["mode"] == "AVIS (adaptive KDV + adaptive K)" and said["rollouts"].startswith("K = 5")
        assert said["policy"] == f"p = {expected.p:.2f}, bin 1"
        assert f"kept {expected.items[0].kept} of 252" in said["image"]
        assert re.search(r"policy \d", said["seconds"])
        assert f"p = {expected.p:.2f}, bin 1, K = 5" in out.splitlines()
    status, out, err = run(*flags, "--num-rollouts", 7)
    assert status == 0 and fields(out)["rollouts"].startswith("K = 5")
    assert err.count("\n") == 1 and "--num-rollouts is ignored" in err
    status, out, _ = run(*flags, "--kdv-ratio", 0.5, "--json")
    assert (record(out)["rho"], record(out)["num_rollouts"], record(out)["p"]) == (0.5, 5, pytest.approx(expected.p))
    assert fields(run(*flags, "--kdv-ratio", 0.5)[1])["mode"] == "KDV + adaptive K"
    assert fields(run(*flags[1:])[1])["mode"] == "adaptive K"


def test_policies_of_other_weights_are_noted(run, tmp_path):
    """Guards against: a policy of another backbone used without a word, or with several."""
    path = write_policy(tmp_path / "p.pt", (1,), fingerprint="a" * 64)
    status, out, err = run("--enable-policy", "--policy-path", path, "--max-new-tokens", 2)
    assert status == 0 and err.count("\n") == 1 and err.startswith("note: ") and "other weights" in err


# ------------------------------------------------------------------------------------------------------- the report


@pytest.mark.parametrize(
    ("flags", "mode", "kept"),
    [
        ([], "vanilla", "kept 252 of 252"),
        (["--enable-kdv"], "KDV", "kept 63 of 252"),
        (["--enable-kdv", "--kdv-threshold", "3.1"], "adaptive KDV", "kept 1 of 252"),
        (["--num-rollouts", "3"], "rollouts", "kept 252 of 252"),
        (["--enable-kdv", "--kdv-ratio", "0.5", "--num-rollouts", "2"], "KDV + rollouts", "kept 126 of 252"),
    ],
)
def test_modes_are_named_as_they_are_run(run, flags, mode, kept):
    """Guards against: the mode or the ratio of another run in the report (the published demo's help text has the
    ratio the wrong way round)."""
    status, out, err = run(*flags, "--max-new-tokens", 6)
    assert (status, err) == (0, "")
    said = fields(out)
    assert said["mode"] == mode and kept in said["image"]
    assert said["rollouts"] == f"K = {flags[-1] if '--num-rollouts' in flags else 1}"


def test_cut_off_rollouts_are_shown_as_such(run):
    """Guards against: an answer read from a thought that was cut off, shown as if the model had given it."""
    status, out, _ = run("--max-new-tokens", 2, "--num-rollouts", 2)
    assert status == 0
    assert re.findall(r"^  \d +abstains +\(2 tokens, cut off\)$", out, re.MULTILINE) != []
    assert fields(out)["answer"] == "none" and "abstained" in fields(out)["votes"]


def test_json_is_the_whole_record(run, bundled):
    """Guards against: a document that leaves out what the report says, or a run with other config than the flags'."""
    flags = ("--enable-kdv", "--kdv-ratio", "0.6", "--num-rollouts", "3", "--seed", "4", "--max-new-tokens", "20")
    status, out, err = run(*flags, "--device", "cpu", "--json")
    assert (status, err) == (0, "")
    got = record(out)
    config = AvisConfig(enable_kdv=True, kdv_ratio=0.6, num_rollouts=3, seed=4, max_new_tokens=20)
    expected = json.loads(json.dumps(answer(*bundled, example_chat(), config).to_dict()))
    assert got.pop("seconds").keys() == expected.pop("seconds").keys()
    assert got == expected


def test_media_are_decoded_once(run, bundled, image, monkeypatch):
    """Guards against: a image decoded, or a clip read through to find its frames, once to look whether it can be and
    again to be answered."""
    import policy.media as media

    monkeypatch.setattr(demo, "loaded", lambda args: bundled)
    opened = []
    whole, checked = media._opened, media.check_file
    monkeypatch.setattr(media, "_opened", lambda source: opened.append("image") or whole(source))
    monkeypatch.setattr(media, "check_file", lambda path: opened.append(str(path)) or checked(path))
    clip = demo.ROOT / "example.mp4"
    flags = ("--image-path", image, "--video-path", clip, "--nframe", 4, "--prompt", "How many?")
    assert run(*flags, "--max-new-tokens", 1)[0] == 0
    assert opened == ["image", str(image), str(clip)]


def test_the_note_is_for_other_pictures(run, image, tmp_path, monkeypatch):
    """Guards against: an answer about somebody's photograph without a word on what this model knows, and the word
    where it is not needed. `example.jpg` is the example however its path is written."""
    status, out, err = run("--image-path", image, "--prompt", "Who is this?", "--max-new-tokens", 3)
    assert status == 0 and out and err.count("\n") == 1 and KNOWS in err
    monkeypatch.chdir(ROOT)
    for flags in ([], ["--prompt", "How many cats are there?"], ["--image-path", "example.jpg"]):
        assert run(*flags, "--max-new-tokens", 3)[::2] == (0, ""), flags


def test_explain_prints_the_votes(run, monkeypatch):
    """Guards against: a table in which votes, answers or rollouts do not belong together, and abstentions are left
    out."""
    rollouts = [RolloutOutput("", said, 9, True) for said in ("3", None, "two", "Two", "Stopped", "2.")]
    rollouts.append(RolloutOutput("", None, 4, False, stopped=True))
    votes = {"3": 1, "2": 3, "stopped": 1}
    result = SimpleNamespace(p=None, num_rollouts=7, rollouts=rollouts, votes=votes, config=AvisConfig())

    def table() -> tuple[str, list[list[str]]]:
        first, *rows = demo.explanation(result).splitlines()
        return first, [re.split("  +", row.strip()) for row in rows]

    rows = [["votes", "answer", "rollouts"], ["3", "2", "3, 4, 6"], ["1", "3", "1"], ["1", "stopped", "5"]]
    rows += [["1", "abstained", "2"], ["1", "stopped", "7"]]
    assert table() == ("K = 7", rows)
    weights = {"3": 2.5, "2": 1.25, "stopped": 0.5}
    vars(result).update(p=0.734, bin=2, votes=weights, config=AvisConfig(vote="confidence"))
    rows = [["votes", "weight", "answer", "rollouts"], ["1", "2.500", "3", "1"], ["3", "1.250", "2", "3, 4, 6"]]
    assert table()[0] == "p = 0.73, bin 2, K = 7" and table()[1][:3] == rows
    plain, explained = (run("--num-rollouts", 3, "--max-new-tokens", 2, *more) for more in ([], ["--explain"]))
    assert explained[1].splitlines()[-2:] == ["  votes  answer     rollouts", "  3      abstained  1, 2, 3"]
    assert len(explained[1].splitlines()) == len(plain[1].splitlines()) + 3


def test_terminals_are_not_written_to_by_the_model(run, bundled, monkeypatch):
    """Guards against: escape sequences that a model writes and a terminal obeys."""
    monkeypatch.setattr(demo, "loaded", lambda args: bundled)
    monkeypatch.setattr(bundled[1].tokenizer, "batch_decode", lambda *a, **k: ["<answer>\x1b[31m\r3\x07</answer>"])
    monkeypatch.setattr(bundled[0].generation_config, "eos_token_id", list(range(400)))
    status, out, err = run("--max-new-tokens", 1, "--explain")
    assert status == 0 and not set("\x1b\r\x07") & set(out) and "[31m" in out


def test_help_is_printed(run):
    """Guards against: a `%` in a help text, with which argparse breaks only when help is asked for; and help that
    tells the ratio the wrong way round."""
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert re.search(r"--kdv-ratio RHO\s+fraction of visual tokens PRUNED", out)


# --------------------------------------------------------------------------------------------------------- refusals


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
def test_missing_device_is_told(run):
    """Guards against: a traceback from the driver's absence."""
    assert_refused(run("--device", "cuda"))


@pytest.mark.skipif(is_flash_attn_2_available(), reason="FlashAttention-2 is usable")
def test_missing_flash_attention_is_told(run):
    """Guards against: a traceback from the absence of an optional package."""
    assert_refused(run("--attn-implementation", "flash_attention_2"))


@pytest.mark.parametrize("prompt", [None, "", "  \n"])
def test_a_question_is_needed(run, image, prompt):
    """Guards against: the example's question asked about another image."""
    assert_refused(run("--image-path", image, *([] if prompt is None else ["--prompt", prompt])), "--prompt")


def test_unreadable_files_are_told(run, tmp_path, image):
    """Guards against: tracebacks, several lines, and messages that do not name the file."""
    (tmp_path / "text.jpg").write_text("not a image")
    (tmp_path / "cut.jpg").write_bytes(demo.EXAMPLE.read_bytes()[:20_000])
    for name in ("none.jpg", "text.jpg", "cut.jpg", ""):
        assert_refused(run("--image-path", tmp_path / name, "--prompt", "?"), str(tmp_path / name))
    assert_refused(run("--image-path", image, "--video-path", tmp_path / "none.mp4", "--prompt", "?"), "none.mp4")
    for url in ("http://localhost/a.jpg", "https://localhost/a.jpg", "file:///a.jpg", "s3://a/b.jpg"):
        assert_refused(run("--image-path", url, "--prompt", "?"), "a.jpg" if "localhost" in url else "")


def test_policy_without_a_checkpoint_is_told(run, tmp_path):
    """Guards against: full AVIS asked for and something else run in silence."""
    missing = tmp_path / "none.pt"
    assert_refused(run("--enable-kdv", "--enable-policy", "--policy-path", missing), "--enable-policy", str(missing))
    (tmp_path / "junk.pt").write_text("not a checkpoint")
    junk = tmp_path / "junk.pt"
    assert_refused(run("--enable-kdv", "--enable-policy", "--policy-path", junk), "--enable-policy", str(junk))
    wide = write_policy(tmp_path / "wide.pt", width=10)
    assert_refused(run("--enable-policy", "--policy-path", wide), "width 10", "policy.training")


def test_folders_without_a_model_are_told(run, tmp_path):
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
def test_prompts_that_cannot_be_read_are_told(run, prompt):
    """Guards against: a traceback for a question with a placeholder token in it, or in another encoding than the
    terminal's."""
    assert_refused(run("--prompt", prompt))
