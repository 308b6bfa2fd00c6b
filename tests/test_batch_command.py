"""Many questions through demo.py and the bundled model: answers as one by one, and one encoding of each image."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from policies import write_policy

import demo
from avis.batch import AnswerJournal, answer_turns, open_questions, run_batch
from avis.config import AvisConfig
from avis.pipeline import AvisPipeline, answer
from avis.session import VisionCache
from policy.policy_model import PolicyModel

ROOT = Path(__file__).resolve().parents[1]
IMAGE, VIDEO = ROOT / "example.jpg", ROOT / "example.mp4"


@pytest.fixture
def loaded(bundled, monkeypatch):
    """The bundled model is what the program loads."""
    monkeypatch.setattr("avis.pipeline.load_model", lambda *_: bundled)
    return bundled


def questions_file(folder: Path, *lines) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_bytes().splitlines()]


def chats(source) -> list[list[dict]]:
    return [source.question(index).messages(source.media(index)) for index in range(len(source))]


def drawn(seed: int, size: tuple[int, int] = (196, 140)) -> Image.Image:
    dice = np.random.default_rng(seed)
    image = Image.new("RGB", size, (120, 160, 90))
    for _ in range(9):
        x, y = (int(v) for v in dice.integers(0, 130, 2))
        ImageDraw.Draw(image).ellipse([x, y, x + 30, y + 20], fill=tuple(int(v) for v in dice.integers(0, 256, 3)))
    return image


def encodings(model, run) -> int:
    """How many times the vision encoder is called while `run()` runs."""
    calls = []
    hook = model.visual.register_forward_hook(lambda *_: calls.append(1))
    try:
        run()
    finally:
        hook.remove()
    return len(calls)


def test_ctrl_c_keeps_what_is_answered(tmp_path, monkeypatch, capfd, loaded):
    """Guards against: answers lost at Ctrl-C, another exit status than 130, no word on how to resume."""
    asked, call = [], AvisPipeline.__call__

    def interrupted(self, *inputs, query_index, **options):
        asked.append(query_index)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return call(self, *inputs, query_index=query_index, **options)

    monkeypatch.setattr(AvisPipeline, "__call__", interrupted)
    line = {"image": str(IMAGE), "prompt": "How many?"}
    source = questions_file(tmp_path, line, line, line)
    command = ["--input", str(source), "--output", str(tmp_path / "answers.jsonl"), "--max-new-tokens", "2"]
    assert demo.main(command) == 130
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("interrupted: 1 of 3"), err
    assert [record["query_index"] for record in lines(tmp_path)] == [0]
    assert demo.main(command) == 0
    assert asked == [0, 1, 1, 2] and [record["query_index"] for record in lines(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("kdv", [{"enable_kdv": True, "kdv_ratio": 0.6}, {}], ids=["kdv", "full"])
def test_questions_about_one_image_share_its_encoding(tmp_path, bundled, kdv):
    """Guards against: a vision encoder that runs for every question; and answers that differ from one-by-one answering
    because another image's encoding, or another order of items, was reused."""
    model, processor = bundled
    drawn(1).save(tmp_path / "a.png")
    drawn(2).save(tmp_path / "b.png")
    a, b, video = {"image": "a.png"}, {"image": "b.png"}, {"video": str(VIDEO)}
    both, swapped = {"image": ["a.png", "b.png"]}, {"image": ["b.png", "a.png"]}
    shows = [a, a, b, a, a, both, both, swapped, video, video, video | a]
    path = questions_file(tmp_path, *({**media, "prompt": f"Question {n}?"} for n, media in enumerate(shows)))
    config = AvisConfig(num_rollouts=3, max_new_tokens=6, temperature=9.0, num_frames=4, **kdv)
    source = open_questions(path)
    alone = [answer(model, processor, chat, config, index).to_dict() for index, chat in enumerate(chats(source))]
    pipeline = AvisPipeline(model, processor)

    def run():
        with AnswerJournal(tmp_path / "answers.jsonl", source, config) as answers:
            run_batch(source, answers, lambda question, chat: answer_turns(pipeline, question, chat, config))

    # a, b, a, both, swapped, video, and the video and the image together: two kinds, two calls.
    assert encodings(model, run) == 8
    for record, expected in zip(lines(tmp_path), alone, strict=True):
        got = {name: record[name] for name in expected}
        assert got.pop("seconds").keys() == expected.pop("seconds").keys()
        assert got == expected


def test_cached_encodings_are_not_reused_where_they_do_not_fit(bundled):
    """Guards against: items encoded without keys pruned later, or those of another model shown to this one."""
    model, processor = bundled
    messages = [{"role": "user", "content": [{"type": "image", "image": drawn(1)}, {"type": "text", "text": "?"}]}]
    cache = VisionCache()
    answer(model, processor, messages, AvisConfig(max_new_tokens=1), vision_cache=cache)
    kdv = AvisConfig(enable_kdv=True, max_new_tokens=1)
    assert answer(model, processor, messages, kdv, vision_cache=cache).items[0].kept == 35 // 4
    assert cache.has(model, cache.pixels, needs_keys=True)
    assert not cache.has(object(), cache.pixels, needs_keys=True)
    assert not cache.has(model, {}, needs_keys=True)
    changed = dict(cache.pixels, pixel_values=cache.pixels["pixel_values"] + 1e-3)
    assert not cache.has(model, changed, needs_keys=True)


def test_the_command_line_answers_a_file(tmp_path, capfd, loaded):
    """Guards against: flags that do not reach a batch's questions, a summary of something else than the file, and exit
    status 0 although a question failed."""
    path = questions_file(tmp_path, {"image": str(IMAGE)}, {"image": "none.png", "prompt": "How many?"})
    output = tmp_path / "answers.jsonl"
    flags = ["--enable-kdv", "--kdv-ratio", "0.5", "--num-rollouts", "2", "--max-new-tokens", "3", "--seed", "5"]
    command = ["--input", str(path), "--output", str(output), *flags, "--prompt", "What?"]
    assert demo.main(command) == 1
    out, err = capfd.readouterr()
    good, bad = lines(tmp_path)
    messages = chats(open_questions(path, "What?"))[0]
    config = AvisConfig(enable_kdv=True, kdv_ratio=0.5, num_rollouts=2, max_new_tokens=3, seed=5)
    expected = answer(*loaded, messages, config).to_dict()
    assert {name: good[name] for name in expected if name != "seconds"} == {
        name: value for name, value in expected.items() if name != "seconds"
    }
    assert str(tmp_path / "none.png") in bad["error"] and bad["config"] == asdict(config)
    assert out.startswith(f"{output}: 1 of 2 answered; kept 50%, mean K 2.00") and "--retry-failed" in err
    drawn(1).save(tmp_path / "none.png")
    assert demo.main([*command, "--retry-failed"]) == 0
    assert [("error" in record) for record in lines(tmp_path)] == [False, False]


def test_follow_ups_answer_a_file(tmp_path, capfd, loaded):
    """Guards against: follow-ups asked without the turns before them, or of another line's; the image encoded anew for
    them; records of earlier turns lost, or left out of the totals; and a line resumed by half."""
    model, processor = loaded
    drawn(1).save(tmp_path / "a.png")
    three = ["How many cats?", "And dogs?", "Why?"]
    wrong = [[], ["How many?", ""], ["How many?", 3], ["How many?", "<|im_end|>"]]
    shown = [{"image": "a.png", "prompt": prompt} for prompt in (three, "And owls?", *wrong)]
    path, output = questions_file(tmp_path, *shown), tmp_path / "answers.jsonl"
    command = ["--input", str(path), "--output", str(output), "--enable-kdv", "--num-rollouts", "3"]
    command += ["--max-new-tokens", "5", "--temperature", "9"]
    status = []
    assert encodings(model, lambda: status.append(demo.main(command))) == 1 and status == [1]
    out, _ = capfd.readouterr()
    assert out.startswith(f"{output}: 2 of 6 answered; kept 23%, mean K 3.00")
    first, second, *errors = lines(tmp_path)
    assert all("error" in record for record in errors) and "earlier" not in second
    source = open_questions(path)
    messages = source.question(0).messages(source.media(0))
    config = AvisConfig(enable_kdv=True, num_rollouts=3, max_new_tokens=5, temperature=9.0)
    assert (first["prompt"], len(first["earlier"])) == (three, 2)
    for number, record in enumerate([*first["earlier"], first]):
        expected = answer(model, processor, messages, config).to_dict()
        assert [rollout["text"] for rollout in record["rollouts"]] == [r["text"] for r in expected["rollouts"]]
        assert bool(record["reused_tokens"]) == (number > 0)
        reply = {"role": "assistant", "content": record["text"].strip()}
        messages = [*messages, reply, {"role": "user", "content": [*three, ""][number + 1]}]
    before = output.read_bytes()
    assert demo.main(command) == 1 and output.read_bytes() == before
    totals = [record["flops"]["relative_llm"] for record in (*first["earlier"], first, second)]
    assert f"LLM-only {sum(totals) / 4:.2f}" in out


def test_a_policy_answers_a_file(tmp_path, capfd, loaded):
    """Guards against: a policy that is read and not asked, K of the flag, totals of something else than what was used,
    and a note for every question."""
    policy = write_policy(tmp_path / "p.pt", (3,))
    path = questions_file(tmp_path, *[{"image": str(IMAGE), "prompt": f"Number {n}?"} for n in range(2)])
    flags = ["--enable-kdv", "--enable-policy", "--policy-path", str(policy), "--num-rollouts", "5"]
    command = ["--input", str(path), "--output", str(tmp_path / "answers.jsonl"), *flags, "--max-new-tokens", "3"]
    assert demo.main([*command, "--rollout-batch-size", "2"]) == 0
    out, err = capfd.readouterr()
    model = PolicyModel(policy)
    config = AvisConfig(enable_kdv=True, num_rollouts=5, rollout_batch_size=2, max_new_tokens=3)
    for index, (chat, record) in enumerate(zip(chats(open_questions(path)), lines(tmp_path), strict=True)):
        expected = answer(*loaded, chat, config, index, policy=model).to_dict()
        assert [record[name] for name in ("p", "bin", "num_rollouts", "items", "rho", "policy_sha256")] == [
            expected[name] for name in ("p", "bin", "num_rollouts", "items", "rho", "policy_sha256")
        ]
        assert record["num_rollouts"] == 3 and record["p"] is not None
    assert "mean K 3.00" in out
    notes = [line for line in err.splitlines() if line.startswith("note: --num-rollouts is ignored")]
    assert len(notes) == 1
