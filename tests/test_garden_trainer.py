"""Training: resuming, what stages train, label embeddings, and learning rates."""

from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from garden_training import EASY, MINI, TINY, enlarge, garden_processor, row_of, shrink_videos, trainer_factory, weights

from avis.garden.labels import LABEL_CLASSES
from avis.garden.scenes import rng_for
from avis.garden.training import trainer as trainer_module
from avis.garden.training.data import StageDataset, draw_row
from avis.garden.training.losses import dense_label_loss, one_hot_labels
from avis.garden.training.stages import FULL, PRESETS, SECOND_FULL, SMALL, Stage
from avis.garden.training.trainer import Trainer


@pytest.fixture
def trainer_of(monkeypatch, tmp_path):
    """Makes trainers of a preset of two stages of five tiny batches, on a clock of 50 seconds a tick."""
    shrink_videos(monkeypatch)
    return trainer_factory(monkeypatch, tmp_path)


def assert_same_weights(got: Trainer, want: Trainer):
    ours, theirs = weights(got), weights(want)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), "a resumed run went another way"


def test_training_resumes_where_it_was(trainer_of):
    """Guards against: a resumed run that repeats or skips batches, forgets the optimiser's moments or the place in
    the schedule, starts a stage anew, or ends without saving."""
    whole = trainer_of("whole")
    start = {name: value.clone() for name, value in weights(whole).items()}
    assert whole.train(minutes=float("inf"), num_workers=0)
    assert any(not torch.equal(start[name], value) for name, value in weights(whole).items())

    # Saved after every third batch: killed once in each stage, between two savings.
    for killed_at in (5, 6):
        with pytest.raises(KeyboardInterrupt):
            trainer_of("killed", killed_at=killed_at).train(minutes=float("inf"), num_workers=0)
    resumed = trainer_of("killed")
    assert (resumed.stage_index, resumed.batch_index) != (0, 0), "nothing had been saved: the test proves nothing"
    assert resumed.train(minutes=float("inf"), num_workers=0)
    assert_same_weights(resumed, whole)

    legs = 1
    while not trainer_of("paused").train(minutes=2, num_workers=0):
        legs += 1
    assert legs > 2
    assert_same_weights(trainer_of("paused"), whole)


def test_text_pretraining_resumes_where_it_was(trainer_of, monkeypatch):
    """Guards against: label embeddings that a resumed run forgets, or fits anew to an encoder that has moved on."""
    vision, finetune = PRESETS["mini"]
    text = replace(finetune, name="text", vision_lr=0.0, has_images=False)
    monkeypatch.setitem(PRESETS, "mini", (replace(vision, num_rows=4), text, replace(text, name="more text")))
    monkeypatch.setattr(Trainer, "fit_label_embeddings", partialmethod(Trainer.fit_label_embeddings, num_rows=8))
    whole = trainer_of("whole")
    assert whole.train(minutes=float("inf"), num_workers=0)
    assert whole.label_embeddings.abs().sum() > 0 and whole.residual_std.abs().sum() > 0
    legs = 1
    while not trainer_of("paused").train(minutes=2, num_workers=0):
        legs += 1
    assert legs > 2
    assert_same_weights(trainer_of("paused"), whole)


def test_training_stays_with_its_seed_and_preset(trainer_of):
    """Guards against: a run's state mixed into another run's."""
    trainer_of("run").save_state()
    with pytest.raises(ValueError, match="belongs to preset mini, seed 0"):
        trainer_of("run", seed=1)


@pytest.mark.parametrize("change", ["past", "future"])
def test_a_schedule_may_change_only_where_it_has_not_been(trainer_of, monkeypatch, change):
    """Guards against: a run that was begun with other stages and resumes silently, while its record lists what never
    ran."""
    begun = trainer_of("begun")
    begun.batch_index = 1
    begun.save_state()
    first, second = PRESETS["mini"]
    changed = (replace(first, num_rows=16), second) if change == "past" else (first, replace(second, num_rows=16))
    monkeypatch.setitem(PRESETS, "mini", changed)
    if change == "past":
        with pytest.raises(ValueError, match="other stages"):
            trainer_of("begun")
    else:
        assert trainer_of("begun").stage_index == 0


def test_stages_train_what_they_say(trainer_of):
    """Guards against: a first stage that moves the language model, or one that leaves the vision encoder alone."""
    trainer = trainer_of("stages")
    trainer.optimisers.set_learning_rates(trainer.stages[0], trainer.batch_index)
    before = {name: value.clone() for name, value in weights(trainer).items()}
    rows = StageDataset(trainer.stages[0], 0, 0, 0).draw_batch(0)
    loss, _ = trainer.loss(trainer.stages[0], trainer.encoder.encode_batch(rows))
    loss.backward()
    trainer.optimisers.step()
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert any("visual" in name for name in moved) and any("heads" in name for name in moved)
    assert all("visual" in name or "heads" in name for name in moved)


def test_a_stage_without_images_trains_language_and_label_embeddings_alone(trainer_of):
    """Guards against: images drawn for nothing, an encoder that moves without images, label embeddings that stay."""
    trainer = trainer_of("blind")
    blind = replace(trainer.stages[1], has_images=False)
    rows = StageDataset(blind, 1, 0, 0).draw_batch(0)
    assert all(not row.pixels and row.labels for row in rows)
    seeing = StageDataset(replace(blind, has_images=True), 1, 0, 0).draw_batch(0)
    assert [row.questions for row in rows] == [row.questions for row in seeing], "other questions than with images"
    trainer.label_embeddings.data.normal_()
    trainer.optimisers.set_learning_rates(blind, trainer.batch_index)
    before = {name: value.clone() for name, value in weights(trainer).items()}
    trainer.loss(blind, trainer.encoder.encode_batch(rows))[0].backward()
    trainer.optimisers.step()
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert "label_embeddings" in moved and "lm_head.weight" in moved
    assert not [name for name in moved if "visual" in name or "heads" in name]


def test_label_embeddings_and_encoder_are_fitted_to_each_other(trainer_of, monkeypatch):
    """Guards against: label embeddings given to other labels, tokens in the order of windows beside labels in the order
    of the image, a residual that is not the features' distance from the label embeddings, and an encoder that a stage
    without images leaves with features of its own."""
    trainer = trainer_of("fits")
    enlarge(trainer.model)
    stage, last = trainer.stages[0], trainer.model.visual.merger.mlp[-1]
    trainer.fit_label_embeddings(stage, num_rows=80)
    inputs, labels = trainer.collect_merger_inputs(stage, 8)
    rows = trainer.encoder.encode_batch(
        StageDataset(replace(stage, batch_size=8), 90, 0, 0).draw_batch(0), has_text=False
    )
    assert torch.equal(rows["labels"], labels)
    with torch.no_grad():
        features = trainer.encode_images(rows)
    torch.testing.assert_close(F.linear(inputs[:, :-1], last.weight, last.bias), features, atol=1e-4, rtol=1e-4)
    assert (inputs[:, -1] == 1).all()

    # Labels that the inputs determine: the last layer finds them again, and so do the heads.
    generator = torch.Generator().manual_seed(1)
    labels = torch.stack([torch.randint(n, (4000,), generator=generator) for n in LABEL_CLASSES], dim=1)
    which = F.pad(one_hot_labels(labels), (0, inputs.shape[1] - 1 - sum(LABEL_CLASSES)))
    mixed = which @ torch.randn(which.shape[1], which.shape[1], generator=generator)
    monkeypatch.setattr(
        trainer, "collect_merger_inputs", lambda stage, num_rows: (F.pad(mixed, (0, 1), value=1.0), labels)
    )
    trainer.label_embeddings.data.normal_()
    trainer.fit_vision_encoder(stage)
    with torch.no_grad():
        features = last(mixed)
        assert (features - trainer.embed_labels(labels)).square().mean() < 0.02 * trainer.embed_labels(labels).var()
        _, right = dense_label_loss(trainer.heads(features), labels)
    assert min(right.values()) > 0.95
    last.bias.data += 0.5
    trainer.fit_label_embeddings(stage)
    torch.testing.assert_close(trainer.embed_labels(labels), last(mixed).detach(), atol=0.3, rtol=0)
    assert 0 < float(trainer.residual_std.mean()) < 0.2


def test_fits_are_made_only_where_stages_change(trainer_of, monkeypatch):
    """Guards against: a fit left out, or made again where training would undo it or has gone on."""
    called = []
    monkeypatch.setattr(
        Trainer,
        "fit_label_embeddings",
        lambda self, stage: called.append("label embeddings") or self.residual_std.fill_(1),
    )
    monkeypatch.setattr(Trainer, "fit_vision_encoder", lambda self, stage: called.append("encoder"))
    vision, finetune = PRESETS["mini"]
    text = replace(finetune, name="text", vision_lr=0.0, has_images=False)
    monkeypatch.setitem(PRESETS, "mini", (vision, text, replace(text, name="more text"), vision, finetune))
    trainer = trainer_of("changes")
    for trainer.stage_index, stage in enumerate(trainer.stages):
        trainer.prepare_stage(stage)
    assert called == ["label embeddings", "encoder"]


def test_features_are_drawn_towards_the_label_embeddings(trainer_of, monkeypatch):
    """Guards against: a loss that is not 0 for features equal to the label embeddings, or that the stage's weight does
    not scale; and label embeddings that follow the encoder, where the language model reads them."""
    trainer = trainer_of("alignment")
    trainer.label_embeddings.data.normal_()
    batch = trainer.encoder.encode_batch([row_of("image", 8)])
    stage = replace(MINI, text_lr=0.0, alignment_weight=2.0)
    without, _ = trainer.loss(replace(stage, alignment_weight=0.0), batch)
    with_alignment, seen = trainer.loss(stage, batch)
    torch.testing.assert_close(with_alignment, without + 2.0 * seen["alignment"])
    with_alignment.backward()
    assert trainer.label_embeddings.grad is None
    assert float(seen["alignment"]) > 0.1
    monkeypatch.setattr(trainer, "encode_images", lambda rows: trainer.embed_labels(rows["labels"]))
    assert float(trainer.loss(stage, batch)[1]["alignment"]) == pytest.approx(0, abs=1e-6)


def test_every_parameter_has_one_optimiser(trainer_of):
    """Guards against: a parameter that no optimiser moves, or two do; Muon on embeddings, norms or the output layer."""
    trainer = trainer_of("parameters")
    muon, adamw = (
        [parameter for group in optimiser.param_groups for parameter in group["params"]]
        for optimiser in (trainer.optimisers.muon, trainer.optimisers.adamw)
    )
    every = [*trainer.model.parameters(), *trainer.heads.parameters(), trainer.label_embeddings]
    assert sorted(map(id, muon + adamw)) == sorted(map(id, every))
    names = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in set(map(id, muon))}
    assert names and all(".blocks." in name or ".layers." in name for name in names)
    assert all(parameter.ndim == 2 for parameter in muon)


def test_a_state_of_an_older_version_is_refused(trainer_of):
    """Guards against: a traceback where a run was begun with AdamW alone."""
    trainer = trainer_of("older")
    trainer.save_state()
    state = torch.load(trainer.run / "state.pt", weights_only=True)
    del state["optimisers"]
    torch.save(state, trainer.run / "state.pt")
    with pytest.raises(ValueError, match="choose another folder"):
        trainer.load_state()


def test_rates_follow_the_schedule(trainer_of):
    """Guards against: a rate that jumps where it should fall, falls below its floor, or rises after its warm-up."""
    trainer = trainer_of("rates")
    stage = Stage(
        "finetune", 4000, 4, TINY, (1.0, 0.0, 0.0), EASY, 1, 4e-4, 1e-3, 0.3, decay_fraction=0.5, min_lr_ratio=0.1
    )
    rates = []
    for trainer.batch_index in range(1000):
        trainer.optimisers.set_learning_rates(stage, trainer.batch_index)
        rates.append([group["lr"] for group in trainer.optimisers.adamw.param_groups[:2]])
    vision, language = np.array(rates).T
    assert np.allclose(language / vision, 2.5)
    peak = language.argmax()
    assert language[0] < 0.1 * 1e-3 and language[peak] == pytest.approx(1e-3)
    assert (np.diff(language[: peak + 1]) >= 0).all() and (np.diff(language[peak:]) <= 1e-12).all()
    assert language[490] == pytest.approx(1e-3) and language[-1] == pytest.approx(1e-4, rel=0.01)


@pytest.mark.parametrize("medium", ["image", "images", "video"])
def test_a_step_of_the_gpu_preset_runs_in_bfloat16(monkeypatch, tmp_path, medium):
    """Guards against: under autocast the vision encoder gives bfloat16 and the embeddings are float32; putting the one
    into the other failed at the first batch of the language stage."""
    monkeypatch.setattr(trainer_module, "new_processor", garden_processor)
    shrink_videos(monkeypatch)
    trainer = Trainer("gpu", 0, "cpu", tmp_path)
    trainer.label_embeddings.data.normal_()  # an earlier stage has fitted it
    stage = replace(PRESETS["gpu"][-2], num_questions=2, levels=EASY)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = trainer.loss(stage, trainer.encoder.encode_batch([row_of(medium, 7, num_questions=2)]))
    loss.backward()
    gradients = [p.grad for p in trainer.model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_a_step_of_each_stage_of_the_second_garden(monkeypatch, tmp_path):
    """Guards against: labels, pages or videos of the second garden that a stage cannot be trained on, a tokenizer of
    the first garden, and rows that are all animals, or all in the garden's own layout."""
    asked_for = []

    def processor(is_second=False):
        asked_for.append(is_second)
        return garden_processor()  # any tokenizer encodes any text, and this one is made already

    monkeypatch.setattr(trainer_module, "new_processor", processor)
    trainer = Trainer("thinking", 0, "cpu", tmp_path)
    assert asked_for == [True]
    trainer.label_embeddings.data.normal_()
    prompts = []
    for number, stage in enumerate(PRESETS["thinking"]):
        small, medium = replace(stage, num_questions=3), ("image", "video", "images")[number % 3]
        rows = [draw_row(rng_for(stage.split, 910, number, row), small, medium, (8, 7)) for row in range(2)]
        trainer.optimisers.zero_grad()
        loss, _ = trainer.loss(stage, trainer.encoder.encode_batch(rows, has_text=stage.text_lr > 0))
        loss.backward()
        gradients = [parameter.grad for parameter in trainer.optimisers.parameters_with_gradients()]
        assert loss.isfinite() and gradients and all(gradient.isfinite().all() for gradient in gradients)
    for row in range(30):
        pack = draw_row(rng_for("garden2:train", 911, row), PRESETS["thinking"][1], "image", (8, 8))
        prompts += [prompt for prompt, _ in pack.questions]
    assert any("column" in prompt or "item" in prompt for prompt in prompts)
    assert any("Please select the correct answer" in prompt or "word or phrase" in prompt for prompt in prompts)
    assert any("rabbit" in prompt for prompt in prompts) and len(prompts) == 180


def test_presets_can_be_drawn():
    """Guards against: shares that do not add up to one, a schedule that ends before its first batch, sizes that
    an image's tokens do not divide, and language training on images that the vision encoder has not learned to see."""
    for stages in PRESETS.values():
        seeing = [stage for stage in stages if stage.has_images]
        begins_trained = seeing[0].answer_format != "avis"  # another backbone is made of the bundled model
        assert seeing[0].vision_lr > 0 and (begins_trained or seeing[0].text_lr == 0) and seeing[-1].text_lr > 0
        assert all(stage.text_lr > 0 and not stage.vision_lr for stage in stages if not stage.has_images)
        for stage in stages:
            shares = (stage.see, stage.think) if stage.see else (stage.levels,)
            assert all(sum(part) == pytest.approx(1) and len(part) == 5 for part in shares)
            assert 0 <= stage.page_share < 1
            assert sum(stage.media) == pytest.approx(1) and bool(stage.see) == bool(stage.think) != bool(stage.levels)
            assert stage.num_rows >= 100 * stage.batch_size and stage.num_questions >= 1
            assert all(4 <= side <= 28 for size in stage.sizes for side in size)
        assert len({stage.split for stage in stages}) == 1, "a preset draws from one garden"
    # The last stage is made of what is asked for in the end: full size, every level.
    for name, stages in PRESETS.items():
        last = stages[-1]
        assert last.sizes == (SECOND_FULL if name == "thinking" else FULL)
        assert min(last.see + last.think + last.levels) > 0
    assert [stage.split for stage in PRESETS["thinking"]] == ["garden2:train"] * 5
    assert len(SMALL) > 3
