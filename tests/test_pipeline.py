"""`AvisPipeline`: what it is loaded from, what it may be asked about, and that it answers as `answer()` does."""

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from chats import BUNDLED, EXAMPLE_IMAGE, EXAMPLE_VIDEO, QUESTION, chat, draw_image, image_part, one_line
from clips import write_clip
from policies import write_policy

import avis.pipeline
from avis import AvisConfig, AvisOutput, AvisPipeline, answer
from avis.images import read_image
from avis.outputs import RolloutOutput, VisualItemOutput
from policy.policy_model import PolicyModel

SHORT = AvisConfig(max_new_tokens=4)
OF_POLICY = {"p", "bin", "policy_sha256"}
DOCUMENTED = set(AvisOutput.__dataclass_fields__) - {"state"} | {"versions", "weights_sha256"}


@pytest.fixture
def pipeline(bundled) -> AvisPipeline:
    return AvisPipeline(*bundled)


@pytest.fixture
def loads(bundled, monkeypatch) -> list[tuple]:
    """What `load_model` was called with; it gives the shared model."""
    calls = []

    def load_model(*arguments):
        calls.append(arguments)
        return bundled

    monkeypatch.setattr(avis.pipeline, "load_model", load_model)
    return calls


def timeless(output: AvisOutput) -> dict:
    record = output.to_dict()
    del record["seconds"]
    return record


def test_every_field_is_documented():
    """Guards against: a field of a record, or of a configuration, that its class does not explain."""
    for kind in (AvisConfig, AvisOutput, RolloutOutput, VisualItemOutput):
        described = set(re.findall(r"^        (\w+): ", kind.__doc__, re.MULTILINE))
        assert set(kind.__dataclass_fields__) <= described, kind.__name__


# -------------------------------------------------------------------------------------------------------------- loading


def test_a_folder_is_loaded():
    """Guards against: arguments that do not reach the model."""
    pipeline = AvisPipeline.from_pretrained(BUNDLED, device="cpu", dtype="bfloat16", attn_implementation="eager")
    assert (pipeline.policy, pipeline.policy_warning) == (None, None)
    output = pipeline(draw_image(140, 140), "How many?", max_new_tokens=1)
    assert output.backend == {"dtype": "bfloat16", "device": "cpu", "attention": "eager"}
    assert output.model_path == str(BUNDLED)


def test_a_policy_is_a_path_or_loaded(loads, tmp_path):
    """Guards against: a policy that is given and not asked, and one that is read again although it is loaded."""
    path = write_policy(tmp_path / "p.pt", (3,))
    loaded = PolicyModel(path)
    for policy in (path, str(path), loaded):
        pipeline = AvisPipeline.from_pretrained(BUNDLED, policy=policy)
        output = pipeline(draw_image(140, 140), "How many?", config=SHORT)
        assert output.num_rollouts == 3 and output.policy_sha256 == loaded.sha256
    assert pipeline.policy is loaded and loads[0][0] == BUNDLED


def test_wrong_policies_are_refused_before_loading(loads, tmp_path):
    """Guards against: minutes of waiting for the model before a policy file is refused."""
    (tmp_path / "junk.pt").write_text("junk")
    for path in (tmp_path / "junk.pt", tmp_path / "none.pt"):
        with pytest.raises(ValueError) as error:
            AvisPipeline.from_pretrained(BUNDLED, policy=path)
        assert path.name in one_line(error)
    assert loads == []
    with pytest.raises(ValueError, match="width 10"):
        AvisPipeline.from_pretrained(BUNDLED, policy=write_policy(tmp_path / "wide.pt", width=10))


def test_unknown_engines_are_refused(loads):
    """Guards against: an engine that is asked for and silently another one."""
    with pytest.raises(ValueError, match="engine must be transformers, got 'vllm'") as error:
        AvisPipeline.from_pretrained(BUNDLED, engine="vllm")
    one_line(error)
    assert loads == []


def test_another_backbone_is_warned_of_once(loads, tmp_path):
    """Guards against: a warning for every query, which hides others, and none at all."""
    path = write_policy(tmp_path / "p.pt", (1,), fingerprint="a" * 64)
    with pytest.warns(UserWarning, match="other weights") as caught:
        warnings.simplefilter("always")
        pipeline = AvisPipeline.from_pretrained(BUNDLED, policy=path)
        for _ in range(2):
            pipeline(draw_image(140, 140), "How many?", config=SHORT)
    assert [str(one.message) for one in caught] == [pipeline.policy_warning]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AvisPipeline.from_pretrained(BUNDLED, policy=write_policy(tmp_path / "own.pt", (1,)))


# ------------------------------------------------------------------------------------------------- images and videos


def test_an_image_is_shown_in_any_form(pipeline):
    """Guards against: an image that is another one as a path, a text, an image, an array or a part of a chat."""
    image = read_image(EXAMPLE_IMAGE)
    forms = [EXAMPLE_IMAGE, str(EXAMPLE_IMAGE), image, np.asarray(image), np.asarray(image) / 255]
    outputs = [pipeline(form, QUESTION, config=SHORT, enable_kdv=True) for form in forms]
    outputs.append(pipeline(chat(image_part()), config=SHORT, enable_kdv=True))
    records = [timeless(output) for output in outputs]
    assert all(record == records[0] for record in records)
    assert [(item.kind, item.kept, item.total) for item in outputs[0].items] == [("image", 63, 252)]


def test_a_video_is_a_file_or_a_list_of_frames(pipeline, tmp_path):
    """Guards against: a video taken for an image, by its name or without one, and a list that is several images."""
    write_clip(tmp_path / "a.mp4", count=8, rate=4, size=(112, 112))
    (tmp_path / "a.mp4").rename(tmp_path / "video")
    for source in (EXAMPLE_VIDEO, str(EXAMPLE_VIDEO), tmp_path / "video"):
        (item,) = pipeline(source, QUESTION, config=SHORT, num_frames=4).items
        assert item.kind == "video"
    frames = [draw_image(140, 140, seed) for seed in range(4)]
    for source in (frames, tuple(frames), [np.asarray(frame) for frame in frames]):
        (item,) = pipeline(source, QUESTION, config=SHORT).items
        assert (item.kind, item.total) == ("video", 2 * 25)


def test_images_are_known_by_what_they_hold(pipeline, tmp_path):
    """Guards against: an image refused for its name."""
    draw_image(140, 140).save(tmp_path / "image", "PNG")
    assert pipeline(tmp_path / "image", QUESTION, config=SHORT).items[0].kind == "image"


def test_other_files_are_refused(pipeline, tmp_path):
    """Guards against: a message about videos for a file that was meant for an image, and a traceback."""
    (tmp_path / "notes").write_text("neither")
    (tmp_path / "empty").touch()
    (tmp_path / "notes.png").write_text("not an image")
    for path, words in {
        tmp_path / "notes": "neither an image nor a video",
        tmp_path / "empty": "is empty",
        tmp_path / "none": "no such file",
        tmp_path / "notes.png": "as an image",
        tmp_path: "is a folder",
        "http://localhost/a": "not URLs",
        "http://localhost/a.mp4": "not URLs",
    }.items():
        with pytest.raises(ValueError, match=words) as error:
            pipeline(path, QUESTION)
        one_line(error)


@pytest.mark.parametrize(
    ("inputs", "question", "words"),
    [
        (chat(image_part()), "How many?", "a chat has its question"),
        (EXAMPLE_IMAGE, None, "a question"),
        (EXAMPLE_IMAGE, " \n", "a question"),
        (EXAMPLE_IMAGE, 3, "a question"),
        ([], "How many?", "without frames"),
        ([], None, "a question"),
        (3, "How many?", "an image is a path"),
        (None, "How many?", "a part of type image has no image"),
        (EXAMPLE_IMAGE, "What is <|image_pad|>?", "special token"),
        ([chat(image_part()), chat(image_part())], None, "one chat is answered at a time"),
        ([chat(image_part())], None, "one chat is answered at a time"),
        ([chat(image_part())[0], chat(image_part())], None, "one chat is answered at a time"),
        ([[EXAMPLE_IMAGE]], "How many?", "an image is a path"),
        ({"role": "user", "content": "How many?"}, None, "a question"),
        (image_part(), "How many?", "an image is a path"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(pipeline, inputs, question, words):
    """Guards against: a question beside a chat's own that is dropped, and tracebacks."""
    with pytest.raises(ValueError, match=words) as error:
        pipeline(inputs, question)
    one_line(error)


# ----------------------------------------------------------------------------------------------------- configurations


def test_fields_replace_those_of_the_configuration(pipeline):
    """Guards against: a configuration that is dropped for one field beside it, or changed for the next query."""
    config = AvisConfig(enable_kdv=True, kdv_ratio=0.5, max_new_tokens=3)
    output = pipeline(EXAMPLE_IMAGE, QUESTION, config=config, kdv_ratio=0.9, seed=3)
    assert output.config == replace(config, kdv_ratio=0.9, seed=3)
    assert config.kdv_ratio == 0.5
    assert pipeline(EXAMPLE_IMAGE, QUESTION, max_new_tokens=3).config == AvisConfig(max_new_tokens=3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nframes": 3}, "no field 'nframes'"),
        ({"kdv_ratio": 0.5}, "need enable_kdv"),
        ({"fps": -1.0}, "fps"),
        ({"enable_kdv": True, "kdv_ratio": "0.5"}, "kdv_ratio must be a number, got '0.5'"),
        ({"config": {"num_rollouts": 3}}, "config must be an AvisConfig, got dict"),
        ({"config": AvisConfig}, "config must be an AvisConfig"),
        ({"query_index": "1"}, "query_index must be a whole number"),
        ({"query_index": -1}, "query_index must be between"),
        ({"query_index": 1.0}, "query_index must be a whole number"),
        ({"previous": "2"}, "previous: that is no AvisOutput"),
    ],
    ids=str,
)
def test_wrong_fields_are_refused(pipeline, fields, words):
    """Guards against: a TypeError about `__init__` for a slip in a name."""
    with pytest.raises(ValueError, match=words) as error:
        pipeline(EXAMPLE_IMAGE, QUESTION, **fields)
    one_line(error)


# ------------------------------------------------------------------------------------------------------ as `answer()`


@pytest.mark.parametrize(
    "fields",
    [{}, {"enable_kdv": True}, {"num_rollouts": 3}, {"enable_kdv": True, "kdv_threshold": 0.8, "num_rollouts": 3}],
    ids=["vanilla", "KDV", "rollouts", "adaptive KDV + rollouts"],
)
@pytest.mark.parametrize("has_policy", [False, True], ids=["no policy", "policy"])
def test_pipelines_answer_as_the_function_does(bundled, tmp_path, fields, has_policy):
    """Guards against: an argument that gets lost between the two, and a record without one of its documented keys."""
    policy = PolicyModel(write_policy(tmp_path / "p.pt", (3,))) if has_policy else None
    pipeline = AvisPipeline(*bundled, policy)
    config = AvisConfig(max_new_tokens=12, temperature=2.0, seed=4)
    got = pipeline(EXAMPLE_IMAGE, QUESTION, config=config, query_index=7, **fields)
    want = answer(*bundled, chat(image_part()), replace(config, **fields), query_index=7, policy=policy)
    assert timeless(got) == timeless(want)
    record = json.loads(json.dumps(got.to_dict()))
    assert set(record) == DOCUMENTED
    assert [record[name] is not None for name in sorted(OF_POLICY)] == [has_policy] * len(OF_POLICY)
    assert record["query_index"] == 7 and record["num_rollouts"] == (3 if has_policy else config_k(fields))


def config_k(fields: dict) -> int:
    return fields.get("num_rollouts", 1)


def test_items_are_encoded_once_for_several_questions(pipeline):
    """Guards against: a cache that is never asked, or that is asked about another image."""
    calls = []
    hook = pipeline.model.visual.register_forward_hook(lambda *_: calls.append(1))
    try:
        for image in (draw_image(140, 140), draw_image(140, 140), draw_image(140, 140, seed=1)):
            pipeline(image, "How many?", config=SHORT)
        pipeline(image, "How many cats?", config=SHORT)
    finally:
        hook.remove()
    assert len(calls) == 2


def test_pipelines_continue_a_chat(pipeline):
    """Guards against: a follow-up that reads the whole chat again."""
    messages = chat(image_part(draw_image(140, 140)))
    first = pipeline(messages, config=SHORT, return_state=True)
    messages += [{"role": "assistant", "content": first.text.strip()}, {"role": "user", "content": "And dogs?"}]
    second = pipeline(messages, config=SHORT, previous=first)
    assert first.state is not None and second.state is None
    assert second.reused_tokens == first.kept_tokens and second.flops["vision"] == 0


# -------------------------------------------------------------------------------------------------------- the streamer


class Recorder:
    """A streamer that keeps what it was told."""

    def __init__(self):
        self.calls = []

    def start(self, num_rollouts: int) -> None:
        self.calls.append(("start", num_rollouts))

    def put(self, steps) -> None:
        self.calls.append(("put", list(steps)))

    def end(self) -> None:
        self.calls.append(("end",))

    def tokens(self, index: int) -> list[int]:
        return [token for name, *rest in self.calls if name == "put" for i, token, _ in rest[0] if i == index]

    def ended(self) -> list[int]:
        return [i for name, *rest in self.calls if name == "put" for i, _, has_ended in rest[0] if has_ended]


@pytest.mark.parametrize("fields", [{}, {"num_rollouts": 5, "temperature": 2.0, "vote_stop": "off"}], ids=["1", "5"])
def test_streamers_see_every_token(pipeline, fields):
    """Guards against: tokens that are not told, told twice, or told of another rollout."""
    seen = Recorder()
    output = pipeline(EXAMPLE_IMAGE, QUESTION, max_new_tokens=15, streamer=seen, **fields)
    assert seen.calls[0] == ("start", output.num_rollouts) and seen.calls[-1] == ("end",)
    assert [name for name, *_ in seen.calls[1:-1]] == ["put"] * max(rollout.tokens for rollout in output.rollouts)
    for index, rollout in enumerate(output.rollouts):
        tokens = seen.tokens(index)
        assert len(tokens) == rollout.tokens
        assert pipeline.processor.tokenizer.decode(tokens, skip_special_tokens=True) == rollout.text
    assert sorted(seen.ended()) == list(range(output.num_rollouts))
    assert timeless(output) == timeless(pipeline(EXAMPLE_IMAGE, QUESTION, max_new_tokens=15, **fields))


def test_streamers_end_when_rollouts_are_stopped(pipeline, monkeypatch):
    """Guards against: a progress bar that stays on the screen when the vote was decided."""
    monkeypatch.setattr(avis.pipeline.steps, "is_decided", lambda *_: True)
    seen = Recorder()
    fields = {"num_rollouts": 5, "rollout_batch_size": 1, "max_new_tokens": 3}
    output = pipeline(EXAMPLE_IMAGE, QUESTION, streamer=seen, **fields)
    assert output.stopped_rollouts == 4
    assert seen.calls[-1] == ("end",) and seen.ended() == [0] and seen.tokens(1) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_streamers_end_when_decoding_fails(pipeline, monkeypatch, error):
    """Guards against: an error message in the middle of a progress bar."""
    seen = Recorder()

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(pipeline.model, "rollout", fails)
    with pytest.raises(error):
        pipeline(EXAMPLE_IMAGE, QUESTION, streamer=seen)
    assert seen.calls == [("start", 1), ("end",)]
