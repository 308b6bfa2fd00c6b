"""Models to and from folders: warm starts, exports, the command, and the bundled folders.

Nothing here asks how well a model answers: the evaluation measures that.
"""

import json
import logging
from pathlib import Path

import pytest
import torch
from garden_training import digest, garden_processor, shrink_videos, text, trainer_factory, user
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from avis.config import AvisConfig
from avis.garden.model import new_config
from avis.garden.render import render
from avis.garden.scenes import rng_for
from avis.garden.tasks import TASKS, make_item
from avis.garden.training.__main__ import main
from avis.inputs import prepare_inputs
from avis.loading import load_model

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "models" / "garden-tiny"
FOLDERS = sorted((ROOT / "models").iterdir())
MIB = 2**20


@pytest.fixture(scope="module")
def processor():
    """The processor made anew (seconds); the shipped one is compared with it."""
    return garden_processor()


@pytest.fixture
def trainer_of(monkeypatch, tmp_path):
    """Makes trainers of a preset of two stages of five tiny batches, on a clock of 50 seconds a tick."""
    shrink_videos(monkeypatch)
    return trainer_factory(monkeypatch, tmp_path)


def other_words(folder: Path) -> tuple[str, tuple[str, str]]:
    """Make a folder's tokenizer another one: a word less, and two words that have changed their places.

    Returns the word that is gone and the two that were swapped.
    """
    file = folder / "tokenizer.json"
    made = json.loads(file.read_text())
    words, merges = made["model"]["vocab"], made["model"]["merges"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    parts = {part for pair in pairs for part in pair}
    gone = next(word for word in sorted(words, key=words.get, reverse=True) if word not in parts)
    made["model"]["merges"] = [merge for merge, pair in zip(merges, pairs, strict=True) if "".join(pair) != gone]
    one, two = ("rabbit" if "rabbit" in words else "\u0120rabbit"), "\u0120duck"
    words[one], words[two] = words[two], words[one]
    freed = words.pop(gone)
    # Ids stay without a gap: the word with the last id of all takes the free one.
    last = max(words, key=words.get)
    if words[last] > freed:
        words[last] = freed
    for extra in ("vocab.json", "merges.txt", "added_tokens.json"):
        (folder / extra).unlink(missing_ok=True)
    file.write_text(json.dumps(made))
    return gone, (one, two)


def test_warm_start_keeps_what_it_can(trainer_of, tmp_path):
    """Guards against: weights that are silently not taken over, embeddings that go by number and not by word (a new
    tokenizer numbers its words anew), and a word that was not there with the embedding of another one."""
    folder = tmp_path / "old"
    old = trainer_of("old", seed=7)
    old.export(folder)
    gone, (one, two) = other_words(folder)
    fresh, begun = trainer_of("fresh"), trainer_of("begun", start_from=folder)
    assert begun.started_from == str(folder)
    numbers = begun.tokenizer.get_vocab()
    known = AutoProcessor.from_pretrained(folder).tokenizer.get_vocab()
    assert gone not in known and known[one] == numbers[two] and known[two] == numbers[one]
    ours, theirs, new = (trainer.model.state_dict() for trainer in (begun, old, fresh))
    for name, value in ours.items():
        if "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(value, theirs[name]), name
            continue
        assert torch.equal(value[numbers[gone]], new[name][numbers[gone]])
        assert torch.equal(value[numbers[one]], theirs[name][known[one]])
        assert not torch.equal(value[numbers[one]], theirs[name][numbers[one]])
        assert all(torch.equal(value[numbers[word]], theirs[name][known[word]]) for word in known)


def test_warm_start_from_another_shape_is_refused(trainer_of, tmp_path):
    """Guards against: half a model taken over from a checkpoint of another size."""
    folder = tmp_path / "other"
    trainer_of("old").export(folder)
    shard = next(folder.glob("*.safetensors"))
    tensors = load_file(shard)
    name = next(name for name in tensors if name.endswith("mlp.gate_proj.weight"))
    tensors[name] = tensors[name][:, 1:].contiguous()
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=name):
        trainer_of("begun", start_from=folder)


def test_export_is_an_ordinary_checkpoint(trainer_of, tmp_path):
    """Guards against: weights that change on the way to the folder, a folder that Auto classes cannot load, shards
    too large for a host, and a model that answers otherwise outside the trainer's own attention."""
    trainer = trainer_of("export")
    trainer.export(tmp_path / "model")
    assert_ordinary_folder(tmp_path / "model")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "model")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in trainer.model.state_dict().items())
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    image = render(make_item(rng_for("dev", 902), "count", 1, size=(5, 6)).scenes[0])
    inputs = prepare_inputs(processor, [user({"type": "image", "image": image}, text("?"))], AvisConfig())
    with torch.no_grad():
        theirs, ours = model(**inputs).logits, trainer.model.eval()(**inputs).logits
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert (record["preset"], record["seed"], len(record["stages"])) == ("mini", 0, 2)


def test_one_command_trains_and_exports(trainer_of, tmp_path, capsys):
    """Guards against: a command line that does not reach the trainer; a pause that writes half a training over what
    ships; and a call that trains on after the end of the schedule."""
    arguments = ["--preset", "mini", "--seed", "0", "--device", "cpu", "--processes", "1", "--workers", "0"]
    arguments += ["--run", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]

    def run(*more: str) -> str:
        assert main([*arguments, *more]) == 0
        return capsys.readouterr().out

    assert "paused" in run("--minutes", "1")
    assert not (tmp_path / "out").exists()
    digests = []
    for _ in range(2):
        assert "finished" in run()
        digests.append(digest(*(path.read_bytes() for path in sorted((tmp_path / "out").glob("*.safetensors")))))
    assert digests[0] == digests[1]
    assert json.loads((tmp_path / "out" / "training.json").read_text())["finished"] is True


def assert_ordinary_folder(folder: Path):
    """A checkpoint folder as any host takes it: only safetensors, small shards, no code, nothing missing."""
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json"} <= names
    assert {"tokenizer.json", "video_preprocessor_config.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))]
    shards = list(folder.glob("*.safetensors"))
    assert shards and max(path.stat().st_size for path in shards) <= 15 * MIB
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 30_000_000
    for path in folder.glob("*.json"):
        assert "auto_map" not in path.read_text(), f"{path.name} points to code of its own"


def test_bundled_folder_is_ordinary():
    """Guards against: a bundled model that only this project could load, or that is too large for its host."""
    assert_ordinary_folder(BUNDLED)
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(BUNDLED, output_loading_info=True)
    assert not any(report.values()), report
    assert type(AutoModelForImageTextToText.from_pretrained(BUNDLED)) is Qwen2_5_VLForConditionalGeneration
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    knows = model.config.knows
    assert knows.strip() == knows and "\n" not in knows and len(knows) > 20


def test_bundled_processor_fits_the_bundled_model():
    """Guards against: placeholder or end ids of another tokenizer, and patches of another size than the encoder's."""
    processor = AutoProcessor.from_pretrained(BUNDLED)
    assert type(processor) is Qwen2_5_VLProcessor
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(BUNDLED)
    config, tokenizer = model.config, processor.tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    assert (config.image_token_id, config.video_token_id) == (ids["image_pad"], ids["video_pad"])
    assert config.vision_start_token_id == ids["vision_start"]
    assert len(tokenizer) <= config.text_config.vocab_size == model.lm_head.weight.shape[0]
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert model.generation_config.eos_token_id == ends and model.generation_config.pad_token_id == ends[1]
    vision = config.vision_config
    for part in (processor.image_processor, processor.video_processor):
        assert (part.patch_size, part.merge_size) == (vision.patch_size, vision.spatial_merge_size)
        assert part.temporal_patch_size == vision.temporal_patch_size


def test_bundled_folder_is_what_the_garden_makes(processor):
    """Guards against: a shipped folder of an older tokenizer, template or architecture than the code's, which
    training again would quietly replace."""
    shipped = AutoProcessor.from_pretrained(BUNDLED)
    assert shipped.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert shipped.chat_template == processor.chat_template
    assert shipped.tokenizer.chat_template == processor.chat_template
    for index, task in enumerate(TASKS):
        item = make_item(rng_for("dev", 903, index), task, 3, ("free", "choice")[index % 2])
        words = item.question + item.response()
        assert shipped.tokenizer(words).input_ids == processor.tokenizer(words).input_ids
    for part in ("image_processor", "video_processor"):
        ours, theirs = getattr(processor, part).to_dict(), getattr(shipped, part).to_dict()
        for key in ("size", "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std"):
            assert theirs[key] == ours[key], key
    ours, theirs = new_config(processor.tokenizer), Qwen2_5_VLForConditionalGeneration.from_pretrained(BUNDLED).config
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rope_theta", "rope_scaling"):
        assert getattr(theirs.text_config, key) == getattr(ours.text_config, key), key
    for key in ("depth", "hidden_size", "num_heads", "window_size", "fullatt_block_indexes", "tokens_per_second"):
        assert getattr(theirs.vision_config, key) == getattr(ours.vision_config, key), key
    assert theirs.knows == ours.knows


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_bundled_files_are_read_alike_by_other_releases(folder, processor):
    """Guards against: a config without `architectures` at its top, which vLLM and Transformers 5 look for; and a
    tokenizer class whose pre-tokenizer Transformers 5 replaces, so that " 0" becomes two tokens."""
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"] == config["text_config"]["architectures"]
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    loaded = AutoProcessor.from_pretrained(folder)
    assert (loaded.image_token, loaded.video_token) == ("<|image_pad|>", "<|video_pad|>")
    assert (loaded.image_token_id, loaded.video_token_id) == (config["image_token_id"], config["video_token_id"])
    plain = AutoTokenizer.from_pretrained(folder)
    assert type(plain) is PreTrainedTokenizerFast
    for words in (
        " 0",
        "12 345  6",
        " A7 K X",
        "<|im_start|>user\n 7<|im_end|>",
        "<think>1 up 0; 1</think>",
        "don't \n\n x",
    ):
        ids = processor.tokenizer(words).input_ids
        assert loaded.tokenizer(words).input_ids == plain(words).input_ids == ids
    assert len(plain(" 0").input_ids) == 1


def test_bundled_models_load_without_a_word(monkeypatch):
    """Guards against: a warning about "unexpected tokenization" at every start, for a tokenizer that is as trained."""
    said = []
    logger = logging.getLogger("transformers.tokenization_utils_base")
    monkeypatch.setattr(logger, "handlers", [Recorder(said)])
    AutoProcessor.from_pretrained(BUNDLED)
    assert len(said) == 1, "Transformers does not warn any more: _load_processor can go"
    load_model(BUNDLED, device="cpu")
    assert len(said) == 1


class Recorder(logging.Handler):
    """Keeps messages."""

    def __init__(self, said: list[str]):
        super().__init__()
        self.said = said

    def emit(self, record):
        self.said.append(record.getMessage())


def test_the_trainer_writes_the_bundled_files(trainer_of, tmp_path):
    """Guards against: files that are right in the bundled folders, and made wrong by the next training."""
    trainer_of("export").export(tmp_path / "model")
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (BUNDLED / name).read_bytes(), name


def test_bad_arguments_are_refused_in_one_line(tmp_path, capsys):
    """Guards against: a traceback, or training that begins with weights that are not there."""
    for flags, said in (
        (("--processes", "0"), "--processes must be at least 1"),
        (("--workers", "-1"), "--workers must be at least 0"),
        (("--minutes", "0"), "--minutes must be above 0"),
        (("--start-from", str(tmp_path / "none")), "no such folder"),
    ):
        assert main(["--out", str(tmp_path / "out"), "--run", str(tmp_path / "runs"), *flags]) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1 and error.startswith("error: ") and said in error
    assert not list(tmp_path.iterdir())
