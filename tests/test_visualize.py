"""The drawing of what was kept: tokens where they are, as the model saw them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import demo
from avis.config import AvisConfig
from avis.pipeline import answer
from avis.session import VisionCache
from avis.visualize import draw_kept

VIDEO = Path(__file__).resolve().parents[1] / "example.mp4"


def shown(bundled, *parts, **config) -> tuple[VisionCache, np.ndarray]:
    cache = VisionCache()
    content = [*parts, {"type": "text", "text": "How many?"}]
    config = AvisConfig(enable_kdv=True, max_new_tokens=1, **config)
    answer(*bundled, [{"role": "user", "content": content}], config, vision_cache=cache)
    return cache, np.asarray(draw_kept(cache, bundled[1])).astype(int)


def test_kept_tokens_are_drawn_where_they_are(bundled):
    """Guards against: a drawing with rows and columns swapped, cells of another token, kept ones dimmed, or another
    image than the one that the model saw; and a heat map of something else than the scores."""
    colours = np.random.default_rng(0).integers(60, 256, (16, 24, 3)).astype(np.uint8)
    colours[..., 0] = 255  # nothing grey, so that dimmed is told from kept
    colours[..., 2] = 0
    image = Image.fromarray(colours).resize((24 * 28, 16 * 28), Image.Resampling.NEAREST)
    cache, drawing = shown(bundled, {"type": "image", "image": image}, kdv_ratio=0.7)
    assert drawing.shape == (16 * 28 + 18, 2 * 24 * 28 + 12, 3)
    left = drawing[18:, : 24 * 28][14::28, 14::28].reshape(-1, 3)
    kept = set(cache.kept[0].tolist())
    assert len(kept) == 115
    wanted = colours.reshape(-1, 3).astype(int)
    for n, colour in enumerate(left):
        if n in kept:
            assert np.abs(colour - wanted[n]).max() <= 3
        else:
            assert np.ptp(colour) == 0 and colour.max() < 140
    heat = drawing[18:, 24 * 28 + 12 :][14::28, 14::28].sum(axis=-1).flatten()
    assert set(np.argsort(-heat, kind="stable")[:100]) <= kept


def test_the_drawing_shows_what_the_model_saw(bundled):
    """Guards against: patches put back in another order, or with other colours, than they were cut."""
    noise = np.random.default_rng(1).integers(0, 256, (17 * 28, 16 * 28, 3)).astype(np.uint8)
    _, drawing = shown(bundled, {"type": "image", "image": Image.fromarray(noise)}, kdv_ratio=0.0)
    assert np.abs(drawing[18 : 18 + 17 * 28, : 16 * 28] - noise).max() <= 1


def test_a_video_is_drawn_as_a_strip(bundled):
    """Guards against: frames of one another's places, more frames than fit, items that overwrite each other, and a
    drawing that fails for the smallest and the slimmest of images."""
    cache, drawing = shown(bundled, {"type": "video", "video": str(VIDEO)}, kdv_ratio=0.5)
    assert drawing.shape[1] == 7 * 224 + 6 * 12
    odd = [{"type": "image", "image": Image.new("RGB", size, "red")} for size in ((1, 1), (1200, 8))]
    cache, whole = shown(bundled, *odd, {"type": "video", "video": str(VIDEO)}, num_frames=4)
    assert len(cache.items) == 3
    assert whole.shape[0] > drawing.shape[0] and whole.shape[1] <= 2 * 1500


def test_images_that_were_not_pruned_are_not_drawn(bundled):
    """Guards against: a drawing in which all is kept, or a crash, for a query without KDV or without images."""
    cache = VisionCache()
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": Image.new("RGB", (196, 140))}, {"type": "text", "text": "?"}],
        }
    ]
    answer(*bundled, messages, AvisConfig(max_new_tokens=1), vision_cache=cache)
    for nothing in (cache, VisionCache()):
        with pytest.raises(ValueError, match="nothing was pruned"):
            draw_kept(nothing, bundled[1])


def test_save_kept_writes_a_png(bundled, tmp_path, monkeypatch, capfd):
    """Guards against: another format than the one promised, by whatever name, and a changed answer."""
    monkeypatch.setattr("avis.pipeline.load_model", lambda *_: bundled)
    out = tmp_path / "kept.anything"
    said = []
    for more in ([], ["--save-kept", str(out)]):
        assert demo.main(["--enable-kdv", "--max-new-tokens", "3", "--json", *more]) == 0
        said.append({k: v for k, v in json.loads(capfd.readouterr().out).items() if k != "seconds"})
    assert said[0] == said[1]
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width > 600
