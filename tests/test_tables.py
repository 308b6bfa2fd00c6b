"""Tables: written into documents, checked against results, corrected for several comparisons."""

import json
from pathlib import Path

import pytest
from recorded import AVIS, MARKS, VANILLA, made_up, repository

from avis.evaluation.score import difference, read_results
from avis.evaluation.tables.__main__ import main
from avis.evaluation.tables.captions import current_command
from avis.evaluation.tables.cells import format_percent
from avis.evaluation.tables.comparisons import paper2
from avis.statistics import holm


def tables_main(root: Path, *flags: str) -> int:
    return main([*flags, "--root", str(root)])


def test_tables_are_written_and_then_pass(tmp_path, capsys):
    """Guards against: a check that never passes, or text around a table that is lost."""
    root = repository(tmp_path)
    assert tables_main(root, "--check") == 1
    assert tables_main(root, "--write") == 0
    capsys.readouterr()
    assert tables_main(root, "--check") == 0 and capsys.readouterr().err == ""
    text = (root / "README.md").read_text()
    assert text.startswith("# A title\n") and text.endswith("\nthe end\n")
    share = read_results(root / "avis/evaluation/results/test.jsonl.gz").outcome("VRS K=5").accuracy()
    assert f"| VRS K=5 | {format_percent(share)} |" in text
    assert "| best K by task (dev) |" in text  # chosen on the result dev
    assert "| (0, 1) | 9.0 | 1.25 | 1.00 |" in text and "| (0.75, 5) | 9.0 | 1.25 (1.10 to 1.40) | 1.00 |" in text
    assert "Geometry mid (0.2B random weights); a CPU, 2 threads" in text and "of 3 rounds; torch 2.15" in text
    whole = "2.00 (1.50 to 2.25)"
    point, step = f"| 1024 | 0.75 | 5 | {whole} | 1.75 | 0.50", "20.00 (15.00 to 25.00) | 16.00 | 8.00 | 1.90"
    assert f"{point} | 7.00 (1.50 to 2.25) | 3.50 (1.50 to 2.25) | {whole} | {step} |" in text
    assert f"{point} |  |  | {whole} | {step} |" in text  # upstream was left out
    stage = f"| 300 | {whole} | 1.75 | 0.25 | {whole} | 2.0000 (1.5000 to 2.2500) | 0.52% |"
    assert f"{stage} {whole} | 1.75 | 0.12 | {whole} |" in text
    assert "| K = 5 | at least 3.5 | 3.46 | no |" in text and "| vanilla | 1.00 | 9 | 30.00 | 8.3 |" in text
    assert tables_main(root) == 0
    printed = capsys.readouterr().out
    for mark in (*MARKS, "tasks dev", "goals dev", "predictors policy-fit", "rules policy-calibrate"):
        assert f"## {mark}\n" in printed
    assert "## latency speed/mid" not in printed and "## speed speed/pairs" not in printed and "None" not in printed
    assert (root / "docs" / "results.md").read_text() == f"# Results\n\n<!-- table: all -->\n{printed}<!-- end -->\n"
    mine = tmp_path / "mine"
    mine.mkdir()
    (root / "avis/evaluation/results" / "test.jsonl.gz").rename(mine / "quick.jsonl.gz")
    assert tables_main(root, "--of", str(mine)) == 0
    assert "## settings quick\n" in capsys.readouterr().out
    assert tables_main(root, "--of", str(tmp_path / "none")) == 2
    assert capsys.readouterr().err == f"error: no such folder: {tmp_path / 'none'}\n"


def test_check_catches_a_changed_digit(tmp_path, capsys):
    """Guards against: a number in the README that nobody measured."""
    root = repository(tmp_path)
    tables_main(root, "--write")
    card = root / "models" / "garden-tiny" / "MODEL_CARD.md"
    for path in (root / "README.md", card, root / "docs" / "results.md"):
        text = path.read_text()
        place = text.index(" (", text.index("| a |" if path == card else "| vanilla |")) - 1
        path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        assert tables_main(root, "--check") == 1
        assert f"{path.relative_to(root)} shows other numbers" in capsys.readouterr().err
        path.write_text(text)
    assert tables_main(root, "--check") == 0


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("models/garden-tiny/model.safetensors", "other weights"),
        ("models/second/model.safetensors", "backbone-second was measured with other weights"),
        ("policy_checkpoint.pt", "another policy"),
        ("avis/evaluation/results/policy-fit.json", "other weights"),
    ],
)
def test_check_catches_what_is_not_shipped(tmp_path, capsys, file, words):
    """Guards against: a retrained model or policy, with the old one's numbers."""
    root = repository(tmp_path)
    tables_main(root, "--write")
    path = root / file
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "0" * 64}))
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"new")
    capsys.readouterr()
    assert tables_main(root, "--check") == 1
    assert words in capsys.readouterr().err


def test_check_needs_something_to_check(tmp_path, capsys):
    """Guards against: marks or results that go away, and a check that passes on nothing."""
    root = repository(tmp_path)
    for path in ("README.md", "models/garden-tiny/MODEL_CARD.md", "docs/results.md"):
        (root / path).write_text("no marks")
    assert tables_main(root, "--check") == 1 and "no document shows a table" in capsys.readouterr().err
    (root / "README.md").write_text("<!-- table: settings test -->\n")
    assert tables_main(root, "--check") == 1 and "no end" in capsys.readouterr().err
    (root / "README.md").write_text("<!-- table: settings nothing -->\n<!-- end -->")
    assert tables_main(root, "--check") == 1 and "nothing" in capsys.readouterr().err
    (root / "README.md").write_text("<!-- table: nonsense test -->\n<!-- end -->")
    assert tables_main(root, "--write") == 2 and capsys.readouterr().err.count("\n") == 1


def test_differences_of_a_family_are_corrected_together():
    """Guards against: a table of comparisons whose p-values are those of one comparison each."""
    results = made_up([VANILLA, AVIS, {"name": "KDV rho=0.75", "rho": 0.75}, {"name": "KDV rho=0.6", "rho": 0.6}])
    avis = results.outcome("AVIS")
    others = ["vanilla", "KDV rho=0.6", "KDV rho=0.75"]
    p_values = holm([difference(avis, results.outcome(name)).p for name in others])
    lines = paper2(results)[2:]
    assert [line[0] for line in lines] == others
    assert [line[-1] for line in lines] == [f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in p_values]


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        (
            "python -m evaluation.run --recipe evaluation/recipes/dev.yaml --profile boxed "
            "--out evaluation/results/a.gz",
            "python -m avis.evaluation.run --recipe avis/evaluation/recipes/dev.yaml --answer-format boxed "
            "--out avis/evaluation/results/a.gz",
        ),
        ("python -m garden.train --preset cpu", "python -m avis.garden.training --preset cpu"),
        ("python -m garden.make --split dev", "python -m avis.garden.make --split dev"),
        ("python demo.py --nframe 8 --no-early-stop", "python demo.py --num-frames 8 --vote-stop off"),
        ("python -m policy.training.fit --dev runs/policy/dev", "python -m policy.training.fit --dev runs/policy/dev"),
        ("python -m policy.training.cost", "python -m policy.training.overhead"),
    ],
)
def test_captions_name_commands_as_they_are_today(recorded, shown):
    """Guards against: a command below a table that cannot be run."""
    assert current_command(recorded) == shown and current_command(shown) == shown


def test_a_documents_headline_is_a_part_of_the_summary(tmp_path):
    """Guards against: README's table that shows other numbers than the page with all tables."""
    root = repository(tmp_path)
    assert tables_main(root, "--write") == 0
    short, *_ = (root / "README.md").read_text().split("<!-- end -->")
    summary = (root / "docs" / "results.md").read_text().partition("## summary test\n")[2].partition("\n## ")[0]
    rows = [line for line in short.splitlines() if line.startswith("|")]
    assert 4 <= len(rows) <= 8 and set(rows) < set(summary.splitlines())
