"""Figures: drawn from results, left out without them."""

import numpy as np
from PIL import Image
from policies import write_policy
from recorded import repository

from avis.evaluation import diagrams, figures


def test_figures_are_drawn_from_results(tmp_path, monkeypatch, capsys):
    """Guards against: a figure that fails on committed results, or comes out empty."""
    root = repository(tmp_path)
    policy = write_policy(tmp_path / "policy.pt", tau=0.8, rho=0.6)
    monkeypatch.setattr(diagrams, "POLICY_PATH", policy)
    arguments = ["--results", str(root / "avis/evaluation/results"), "--out", str(tmp_path / "assets")]
    assert figures.main(arguments) == 0 and capsys.readouterr().err == ""
    for name in figures.FIGURES:
        pixels = np.asarray(Image.open(tmp_path / "assets" / f"{name}.png").convert("L"))
        assert min(pixels.shape) > 300 and 0.005 < (pixels < 200).mean() < 0.95, name
    assert sorted(path.stem for path in (tmp_path / "assets").iterdir()) == sorted(figures.FIGURES)
    first = (tmp_path / "assets" / "teaser.png").read_bytes()
    assert figures.main(["teaser", *arguments]) == 0
    assert (tmp_path / "assets" / "teaser.png").read_bytes() == first


def test_figures_without_data_are_left_out(tmp_path, monkeypatch, capsys):
    """Guards against: an old figure that is drawn from nothing, or one missing result that stops all figures."""
    monkeypatch.setattr(diagrams, "POLICY_PATH", tmp_path / "none.pt")
    (tmp_path / "results").mkdir()
    assert figures.main(["--results", str(tmp_path / "results"), "--out", str(tmp_path / "assets")]) == 0
    assert [path.name for path in (tmp_path / "assets").iterdir()] == ["architecture.png"]
    assert capsys.readouterr().err.count(": left out, ") == len(figures.FIGURES) - 1
    assert figures.main(["nonsense"]) == 2
