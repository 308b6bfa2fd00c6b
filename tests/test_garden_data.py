"""Training data: patches, batches, packed rows, and the loss over them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from garden_training import MINI, enlarge, garden_processor, row_of, shrink_videos, text, trainer_factory, user
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
)

from avis.answers import extract_answer
from avis.config import AvisConfig
from avis.garden.labels import LABEL_NAMES, dense_labels
from avis.garden.model import VOCABULARY, new_model
from avis.garden.render import render
from avis.garden.scenes import TOKEN, rng_for
from avis.garden.tasks import make_item
from avis.garden.training.data import PackedRow, StageDataset, draw_row, patchify
from avis.garden.training.losses import conclusion_mask
from avis.garden.training.stages import PRESETS
from avis.garden.training.trainer import Trainer
from avis.inputs import prepare_inputs
from avis.prompts import DIRECT, THINKING, answer_format_for


@pytest.fixture(scope="module")
def processor():
    """The processor made anew (seconds); the shipped one is compared with it."""
    return garden_processor()


@pytest.fixture(autouse=True)
def small_videos(monkeypatch):
    shrink_videos(monkeypatch)


@pytest.fixture
def trainer_of(monkeypatch, tmp_path):
    """Makes trainers of a preset of two stages of five tiny batches, on a clock of 50 seconds a tick."""
    return trainer_factory(monkeypatch, tmp_path)


def random_pixels(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(140, 140), (84, 196), (252, 56)])
def test_patchify_equals_the_image_processor(processor, height, width):
    """Guards against: patches in another order, colour order or scale than inference feeds the vision encoder."""
    shown = random_pixels(1, height, width)
    image = processor.image_processor
    expected = image(images=[Image.fromarray(shown[0])], return_tensors="pt")
    assert expected.image_grid_thw.tolist() == [[1, height // 14, width // 14]]
    got = patchify(torch.from_numpy(shown), image.image_mean, image.image_std)
    torch.testing.assert_close(got, expected.pixel_values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("count", "height", "width"), [(2, 140, 112), (4, 84, 196)])
def test_patchify_equals_the_video_processor(processor, count, height, width):
    """Guards against: frames of a pair swapped, or time inside a patch and time of the grid mixed up."""
    shown = random_pixels(count, height, width)
    video = processor.video_processor
    frames = torch.from_numpy(shown).permute(0, 3, 1, 2)
    expected = video(videos=[frames], do_sample_frames=False, return_tensors="pt")
    assert expected.video_grid_thw.tolist() == [[count // 2, height // 14, width // 14]]
    got = patchify(torch.from_numpy(shown), video.image_mean, video.image_std)
    torch.testing.assert_close(got, expected.pixel_values_videos, atol=1e-5, rtol=0)


GRIDS = {
    "cut windows": [(1, 10, 14)],
    "whole windows": [(1, 16, 8)],
    "smaller than a window": [(1, 2, 6)],
    "several sizes and a video": [(1, 10, 14), (2, 6, 10), (1, 18, 4), (1, 10, 14)],
}


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_batched_attention_equals_upstream(processor, grids):
    """Guards against: training with an attention that inference does not have: windows of one length joined across
    items, rows put back in another order, or another scale. Gradients are compared too."""
    encoder = new_model(processor.tokenizer, seed=1).visual
    patches = torch.randn(sum(t * h * w for t, h, w in grids), 1176, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(128, 1, generator=torch.Generator().manual_seed(1))
    results = []
    for batch_windows in (False, True):
        encoder.zero_grad()
        out = encoder(patches, grid_thw=torch.tensor(grids), batch_windows=batch_windows)
        (out @ weights.repeat(2, 1)[: out.shape[1]]).sum().backward()
        results.append((out.detach(), encoder.blocks[0].attn.qkv.weight.grad.clone()))
    (upstream, gradient), (ours, our_gradient) = results
    torch.testing.assert_close(ours, upstream, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(our_gradient, gradient, atol=1e-3 * gradient.abs().max().item(), rtol=0)


def assert_same_row(got: PackedRow, want: PackedRow):
    assert (got.medium, got.questions) == (want.medium, want.questions)
    for ours, theirs in ((got.pixels, want.pixels), (got.labels, want.labels)):
        assert len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_same_batch(got: list[PackedRow], want: list[PackedRow]):
    for ours, theirs in zip(got, want, strict=True):
        assert_same_row(ours, theirs)


def test_batches_depend_on_seed_stage_and_number_alone():
    """Guards against: data that changes with the number of processes or workers, or with where a run was resumed; and
    rows of a batch that two processes train on both, or neither."""
    whole = [StageDataset(MINI, 1, seed=3, start=0).draw_batch(number) for number in range(3)]
    assert all(len(batch) == MINI.batch_size for batch in whole)
    for start in (0, 2):
        made = list(StageDataset(MINI, 1, seed=3, start=start))
        assert len(made) == 3 - start
        for got, want in zip(made, whole[start:], strict=True):
            assert_same_batch(got, want)
    parts = [
        StageDataset(MINI, 1, seed=3, start=0, process_index=rank, num_processes=2).draw_batch(1) for rank in range(2)
    ]
    assert [len(part) for part in parts] == [2, 1]
    for rank, part in enumerate(parts):
        assert_same_batch(part, whole[1][rank::2])
    with_workers = list(DataLoader(StageDataset(MINI, 1, seed=3, start=0), batch_size=None, num_workers=2))
    for got, want in zip(with_workers, whole, strict=True):
        assert_same_batch(got, want)


def test_batches_of_other_seeds_stages_and_numbers_differ():
    """Guards against: a part of the key that is left out, so that every stage or seed sees the same images."""
    stage = replace(MINI, media=(1.0, 0.0, 0.0))
    variants = [(1, 3, 0), (1, 3, 1), (2, 3, 0), (1, 4, 0)]
    packs = [
        pack for number, seed, batch in variants for pack in StageDataset(stage, number, seed, 0).draw_batch(batch)
    ]
    assert len({pack.pixels[0].tobytes() for pack in packs}) == len(packs)


def test_rows_hold_what_is_asked_about_them():
    """Guards against: labels of another size than the image, questions of one task only, traces taught under the
    instruction for direct answers or the other way round, and only one form of question."""
    asked = []
    for number in range(6):
        for medium, count in (("image", 1), ("images", 2), ("video", 1)):
            pack = row_of(medium, number, num_questions=6)
            assert len(pack.pixels) == len(pack.labels) == count and len(pack.questions) == 6
            for shown, dense in zip(pack.pixels, pack.labels, strict=True):
                frames, height, width, _ = shown.shape
                assert (height, width) == (5 * TOKEN, 6 * TOKEN)
                assert frames == 1 if medium != "video" else frames % 2 == 0
                assert dense.shape == (max(1, frames // 2), 5, 6, len(LABEL_NAMES))
            asked += pack.questions
            if medium == "image":
                assert len({prompt.split("\n")[0] for prompt, _ in pack.questions}) > 3
    forms = {(prompt.split("\n")[-1], response.startswith("<think>")) for prompt, response in asked}
    assert forms == {(THINKING, True), (DIRECT, False)}
    assert {"\nA. " in prompt for prompt, _ in asked} == {False, True}
    assert all(response.endswith("</answer>") for _, response in asked)


def as_asked_alone(trainer: Trainer, pack: PackedRow, number: int) -> tuple[torch.Tensor, int]:
    """The ordinary model's logits for one question of a row with its response, and the length of the response.

    Through the processor and the model's own positions, attention and mask, with images instead of patches.
    """
    model = Qwen2_5_VLForConditionalGeneration(trainer.model.config).eval()
    model.load_state_dict(trainer.model.state_dict())
    prompt, response = pack.questions[number]
    kind = "video" if pack.medium == "video" else "image"
    chat = [user(*({"type": kind} for _ in pack.pixels), text(prompt))]
    words = trainer.processor.apply_chat_template(chat, add_generation_prompt=True)
    if kind == "image":
        visuals = dict(images=[Image.fromarray(shown[0]) for shown in pack.pixels])
    else:
        videos = [torch.from_numpy(shown).permute(0, 3, 1, 2) for shown in pack.pixels]
        visuals = dict(videos=videos, videos_kwargs=dict(fps=[2.0], do_resize=False, do_sample_frames=False))
    inputs = trainer.processor(text=[words + response + "<|im_end|>"], return_tensors="pt", **visuals)
    length = len(trainer.tokenizer(response).input_ids) + 1
    with torch.no_grad():
        return model(**inputs).logits[0], length


def row_logits(trainer: Trainer, packs: list[PackedRow]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The language model's logits for packed rows, and the rows."""
    image, model = trainer.processor.image_processor, trainer.model.eval()
    rows = trainer.encoder.encode_text(packs)
    shown = [torch.from_numpy(images) for pack in packs for images in pack.pixels]
    patches = [patchify(images, image.image_mean, image.image_std) for images in shown]
    grid = torch.tensor([[d.shape[0], 2 * d.shape[1], 2 * d.shape[2]] for pack in packs for d in pack.labels])
    with torch.no_grad():
        embeds = model.get_input_embeddings()(rows["ids"])
        visual = (rows["ids"] == model.config.image_token_id) | (rows["ids"] == model.config.video_token_id)
        embeds[visual] = model.visual(torch.cat(patches), grid_thw=grid)
        hidden = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask={"full_attention": rows["mask"]},
            position_ids=rows["positions"],
            use_cache=False,
        ).last_hidden_state
        return model.lm_head(hidden), rows


@pytest.mark.parametrize("medium", ["image", "images", "video"])
def test_questions_in_one_row_are_answered_as_if_alone(trainer_of, medium):
    """Guards against: a question that sees another one or its response, positions other than it has at inference (after
    an image, a pair, a video), and rows that see their padding. Each response's logits are those of the ordinary model
    that is asked this question alone."""
    trainer = trainer_of("rows")
    enlarge(trainer.model)
    # Two rows of unequal length: the shorter one is padded.
    packs = [row_of(medium, 1, num_questions=3), row_of(medium, 2, num_questions=1, size=(5, 5))]
    logits, rows = row_logits(trainer, packs)
    assert not rows["is_target"][1, -1] and rows["is_target"][0, -1]
    for row, pack in enumerate(packs):
        where = rows["is_target"][row].nonzero()[:, 0]
        at = 0
        for number, (_, response) in enumerate(pack.questions):
            alone, length = as_asked_alone(trainer, pack, number)
            own = where[at : at + length]
            expected = trainer.tokenizer(response).input_ids + [trainer.tokenizer.eos_token_id]
            assert rows["ids"][row, own].tolist() == expected
            # The token before each of them predicts it.
            torch.testing.assert_close(logits[row, own - 1], alone[-length - 1 : -1], atol=1e-4, rtol=1e-4)
            at += length
        assert at == len(where)


def test_loss_is_the_models_own_over_all_responses(trainer_of):
    """Guards against: a loss over the prompt, over padding or over another shift of the targets, features given to the
    placeholders of another image, and dense targets that do not count as much as the stage says."""
    trainer = trainer_of("loss")
    enlarge(trainer.model)
    trainer.model.eval()
    packs = [row_of("images", 3, num_questions=2), row_of("images", 4, num_questions=1, size=(5, 5))]
    losses, lengths = [], []
    for pack in packs:
        for number, (_, response) in enumerate(pack.questions):
            alone, length = as_asked_alone(trainer, pack, number)
            targets = torch.tensor(trainer.tokenizer(response).input_ids + [trainer.tokenizer.eos_token_id])
            losses.append(F.cross_entropy(alone[-length - 1 : -1], targets, reduction="sum"))
            lengths.append(length)
    batch = trainer.encoder.encode_batch(packs)
    with torch.no_grad():
        text_only, seen = trainer.loss(replace(MINI, dense_loss_weight=0.0), batch)
        dense_only, _ = trainer.loss(replace(MINI, text_lr=0.0), batch)
        both, _ = trainer.loss(replace(MINI, dense_loss_weight=0.3), batch)
    torch.testing.assert_close(text_only, sum(losses) / sum(lengths), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both, text_only + 0.3 * dense_only, atol=1e-4, rtol=1e-4)
    assert 0 <= float(seen["exact"]) <= 1
    longer = [packs[0], row_of("images", 5, num_questions=6)]  # more padding after the first row's questions
    first, _ = row_logits(trainer, packs[:1])
    padded, _ = row_logits(trainer, longer)
    torch.testing.assert_close(padded[0, : first.shape[1]], first[0], atol=1e-4, rtol=1e-4)


def test_exact_answers_are_counted_by_response(trainer_of):
    """Guards against: a share of right answers that counts tokens, or joins neighbouring responses."""
    trainer = trainer_of("exact")
    pack = row_of("image", 6, num_questions=3)
    stage = replace(MINI, dense_loss_weight=0.0)
    rows = trainer.encoder.encode_text([pack])
    ids = rows["ids"][:, 1:][rows["is_target"][:, 1:]]
    ends = (ids == trainer.tokenizer.eos_token_id).nonzero()[:, 0]
    assert len(ends) == 3

    class Says(torch.nn.Module):
        """A head that says what it is told to, whatever it sees."""

        def __init__(self, words):
            super().__init__()
            self.words = words

        def forward(self, hidden):
            return F.one_hot(self.words, VOCABULARY).float() + 0 * hidden.sum()

    for wrong, share in (((), 1.0), ((0,), 2 / 3), ((0, 1), 2 / 3), ((int(ends[0]), int(ends[0]) + 1), 1 / 3)):
        words = ids.clone()
        words[list(wrong)] = 0
        trainer.model.lm_head = Says(words)
        with torch.no_grad():
            _, seen = trainer.loss(stage, trainer.encoder.encode_batch([pack]))
        assert float(seen["exact"]) == pytest.approx(share)


def test_conclusions_count_as_much_as_the_stage_says(trainer_of, monkeypatch):
    """Guards against: weight on the trace instead of what follows its last semicolon, on a neighbouring response's,
    none on answers without a trace, and a weight that changes the loss where all tokens are conclusions."""
    trainer = trainer_of("conclusions")
    responses = (
        "<think>left: 1 cat hat 1; check: 1; 1 C</think><answer>C</answer>",
        "<answer>B</answer>",
        "<think>1 duck; 1</think><answer>1</answer>",
    )
    ends = (
        " 1 C</think><answer>C</answer><|im_end|>",
        "<answer>B</answer><|im_end|>",
        " 1</think><answer>1</answer><|im_end|>",
    )
    ids = [trainer.tokenizer(response).input_ids + [trainer.tokenizer.eos_token_id] for response in responses]
    number = torch.tensor([n for n, part in enumerate(ids) for _ in part])
    found = conclusion_mask(torch.tensor(sum(ids, [])), number, trainer.tokenizer.convert_tokens_to_ids(";"))
    kept = [[word for word, yes in zip(part, found[number == n], strict=True) if yes] for n, part in enumerate(ids)]
    assert [trainer.tokenizer.decode(part) for part in kept] == list(ends)

    enlarge(trainer.model)
    trainer.model.eval()
    stage = replace(MINI, dense_loss_weight=0.0)
    pack = row_of("image", 9, num_questions=2)
    direct = replace(pack, questions=[(question, "<answer>B</answer>") for question, _ in pack.questions])
    for shown, alike in ((direct, True), (pack, False)):
        batch = trainer.encoder.encode_batch([shown])
        with torch.no_grad():
            plain, seen = trainer.loss(stage, batch)
            weighted, same = trainer.loss(replace(stage, conclusion_weight=3.0), batch)
        assert torch.equal(seen["loss"], same["loss"])
        assert torch.isclose(plain, weighted) == alike


def test_a_stage_may_ask_for_answers_in_a_box():
    """Guards against: another backbone that is trained on the first one's form of answers, or asked in other words than
    its answer format's at inference; and a box that the vote does not read."""
    answer_format = answer_format_for("", "vl-rethinker")
    stage = replace(PRESETS["boxed"][0], num_questions=12)
    pack = draw_row(np.random.default_rng(1), stage, "image", (6, 6))
    assert {prompt.rpartition("\n")[2] for prompt, _ in pack.questions} == {
        answer_format.thinking,
        answer_format.direct,
    }
    plain = draw_row(np.random.default_rng(1), replace(stage, answer_format="avis"), "image", (6, 6))
    for (_, boxed), (_, tagged) in zip(pack.questions, plain.questions, strict=True):
        assert boxed.endswith("}") and "<answer>" not in boxed
        assert extract_answer(boxed) == extract_answer(tagged)
        assert boxed.partition("</think>")[0] == tagged.partition("</think>")[0] or "<think>" not in boxed


def test_stages_ask_as_many_choices_as_they_say():
    """Guards against: a share of multiple choice that a stage does not follow."""
    for share in (0.0, 1.0):
        stage = replace(MINI, choice_share=share, num_questions=4)
        packs = [draw_row(np.random.default_rng(seed), stage, "image", (6, 6)) for seed in range(4)]
        assert {"\nA. " in question for pack in packs for question, _ in pack.questions} == {bool(share)}


def test_training_prompts_are_those_of_inference(trainer_of):
    """Guards against: a model that is trained on another prompt than `answer` gives it, and targets that miss the
    end token or reach into the prompt."""
    trainer = trainer_of("prompts")
    for index, task in enumerate(("count", "more", "price")):
        item = make_item(rng_for("dev", 901, index), task, 1, ("free", "choice")[index % 2], (5, 6))
        thinking = index != 1
        prompt = f"{item.question}\n{THINKING if thinking else DIRECT}"
        images = [np.asarray(render(scene))[None] for scene in item.scenes]
        dense = [dense_labels(scene) for scene in item.scenes]
        rows = trainer.encoder.encode_text([PackedRow(images, dense, item.medium, [(prompt, item.response(thinking))])])
        shown = [{"type": "image", "image": Image.fromarray(image[0])} for image in images]
        inputs = prepare_inputs(
            trainer.processor, [user(*shown, text(item.question))], AvisConfig(enable_thinking=thinking)
        )
        ids, learn = rows["ids"][0], rows["is_target"][0]
        assert ids[~learn].tolist() == inputs.input_ids[0].tolist()
        assert trainer.tokenizer.decode(ids[learn]) == item.response(thinking) + "<|im_end|>"
