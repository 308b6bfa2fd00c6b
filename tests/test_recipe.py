"""Recipes name what can be measured, and sources ask what the files and the garden have."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avis.config import AvisConfig
from avis.evaluation.measure import Evaluator, downsampled_pixels
from avis.evaluation.recipe import pruning_runs, read_recipe
from avis.garden.make import make
from avis.garden.source import open_source

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "avis/evaluation/recipes"
# Those with `data` are of VLMEvalKit's sets, for its launcher.
RECIPES = [path for path in sorted(FOLDER.glob("*.yaml")) if "\ndata:" not in path.read_text()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_known_settings(path):
    """Guards against: a shipped recipe that fails after it has loaded a model, or whose rows the tables do not know."""
    recipe = read_recipe(path)
    policy = type("Policy", (), {"rho": 0.5, "tau": 0.8})()
    for one in pruning_runs(recipe.rows):
        if one.row.pruner != "downsample":
            one.configure(AvisConfig(**recipe.settings), policy)
    asked = "vanilla|VRS K=3|VRS K=5|VRS K=7|KDV rho=0.75|KDV rho=0.75, K=5|AVIS|AVIS, K permuted"
    shown = {"dev": set(asked.split("|")), "garden": {"AVIS", "VRS K=5", "KDV rho=0.75", "AVIS, K permuted"}}
    assert shown.get(recipe.name, set()) <= {row.name for row in recipe.rows}


def test_recipes_are_there():
    """Guards against: recipes that move, and a test above that passes on nothing."""
    assert {path.stem for path in RECIPES} >= {"dev", "garden", "grid", "backbones", "quick"}


def test_every_kdv_row_has_its_baselines():
    """Guards against: a row that prunes without random pruning and smaller images beside it."""
    rows = read_recipe(FOLDER / "garden.yaml").rows
    told = {(row.rho, row.tau, row.rollouts, row.pruner) for row in rows}
    for row in rows:
        is_control = row.rollouts in ("permuted", "by_task", "oracle") or row.rho == "policy"
        if row.pruner == "kdv" and (row.rho or row.tau) and not is_control:
            for pruner in ("random", "downsample"):
                assert (row.rho, row.tau, row.rollouts, pruner) in told, row.name


def test_smaller_images_come_closest_to_the_number_of_tokens():
    """Guards against: a baseline that is given more tokens than it needs be, or fewer."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for grids, wanted in (([(1, 18, 14)], 63), ([(1, 16, 16)], 64), ([(6, 8, 9)], 108), ([(1, 12, 12)] * 2, 70)):

        def tokens(pixels: int) -> int:
            sides = [smart_resize(28 * h, 28 * w, 28, 784, pixels) for _, h, w in grids]
            return sum(t * h * w // 784 for (t, _, _), (h, w) in zip(grids, sides, strict=True))

        found = tokens(downsampled_pixels(grids, wanted))
        assert abs(found - wanted) == min(abs(tokens(784 * area) - wanted) for area in range(1, 600))
        assert abs(found - wanted) <= 0.15 * wanted


def test_smaller_images_are_smaller_whatever_size_a_line_gives(bundled, tmp_path, monkeypatch):
    """Guards against: a baseline shown in full, because the size in its line wins over the one of the baseline."""
    recipe = tmp_path / "few.yaml"
    recipe.write_text(
        "seeds: [0]\nsettings: {max_new_tokens: 1}\nrows:\n"
        "  - {name: vanilla}\n  - {name: KDV, rho: 0.75}\n  - {name: smaller, rho: 0.75, pruner: downsample}\n"
    )
    Image.new("RGB", (560, 560)).save(tmp_path / "a.png")
    line = {"image": "a.png", "resized_height": 336, "resized_width": 336, "prompt": "How many?", "answer": "1"}
    (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr("avis.evaluation.measure.load_model", lambda *_: bundled)
    evaluator = Evaluator("models/garden-tiny", None, read_recipe(recipe), [str(tmp_path / "q.jsonl")], "cpu")
    runs = evaluator.measure(0, 0)["runs"]
    kept = {name: records[0]["kept"] for name, records in runs.items()}
    assert sorted(kept.values()) == [[36], [36], [144]] and runs.keys() == kept.keys()


def test_a_table_of_the_garden_asks_what_the_split_asks(tmp_path):
    """Guards against: options, images or answers that are lost between a table of VLMEvalKit and the model."""
    make("dev", tmp_path / "dev", limit=8, processes=1)
    garden, seen = open_source("garden", "dev"), 0
    for name in ("mcq", "vqa"):
        path = tmp_path / "dev" / f"garden_dev_{name}.tsv"
        table, rows = open_source(str(path), "dev"), path.read_text().splitlines()[1:]
        for place, row in enumerate(rows):
            index = int(row.split("\t")[0])
            found, wanted = table.question(place), garden.question(index)
            (shown,), (drawn,) = table.media(place, tmp_path), garden.media(index, tmp_path)
            assert found.text == wanted.text and found.label.options == wanted.label.options
            assert np.array_equal(np.asarray(shown["image"]), np.asarray(drawn["image"].convert("RGB")))
            for fact in ("task", "form", "truth", "medium"):
                assert getattr(found.label, fact) == getattr(wanted.label, fact)
            seen += 1
    assert seen >= 5


def test_lines_of_questions_with_answers(tmp_path):
    """Guards against: paths that start from the wrong folder, and a line without an answer that counts as wrong."""
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    path = tmp_path / "mine.jsonl"
    lines = [
        {"image": "a.png", "prompt": "How many?", "answer": "3", "task": "count"},
        {"image": "a.png", "prompt": "?"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_source(str(path), "dev")
    question = source.question(0)
    messages = question.messages(source.media(0, tmp_path))
    assert messages[-1]["content"][0] == {"type": "image", "image": str(tmp_path / "a.png")}
    assert question.label.truth == "3" and question.label.task == "count" and len(source) == 2
    with pytest.raises(ValueError, match="line 2"):
        source.question(1)
