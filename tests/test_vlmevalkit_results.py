"""The paper's tables from a work folder of VLMEvalKit: its scores, and from our records what each answer cost."""

import json
from pathlib import Path

import pytest

from avis.evaluation.adapters.vlmevalkit_results import overall_score, read_settings, why_no_score
from avis.evaluation.tables.__main__ import main as print_tables

pytestmark = pytest.mark.unit

SETTINGS = {"kdv_threshold": None, "kdv_ratio": None, "pruner": "kdv", "num_rollouts": 1, "vote_stop": "decided"}


def work_folder(root: Path, name: str, spent: dict, costs: dict[str, list[int]], **config) -> Path:
    """A setting's folder with a record a question; `costs` are by data set the FLOPs of the language model."""
    folder = root / name
    folder.mkdir(parents=True)
    settings = SETTINGS | {"enable_kdv": False} | spent
    head = {
        "model_path": "some/model",
        "weights_sha256": "0" * 64,
        "policy_sha256": None,
        "settings": settings,
    } | config
    records = []
    for data, values in costs.items():
        kind = "video" if data.endswith("frame") else "image"
        for id, llm in enumerate(values):
            record = {
                "key": {"dataset": data, "id": str(id)},
                "flops": {"vision": 100, "prefill": llm - 10, "decode": 10},
            }
            records.append(record | {"items": [{"kind": kind}], "num_rollouts": settings["num_rollouts"], "rho": 0.5})
    lines = [{"config": head}, *records, {"key": {"dataset": "MMStar", "id": "9"}, "error": "no such file"}]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"key": {"da')
    return folder


def test_the_papers_tables_from_a_work_folder(tmp_path, capsys):
    """Guards against: scores of another setting, data set or day, and FLOPs relative to those of other questions."""
    plain = {"MMStar": [1000, 3000], "MathVista_MINI": [500], "MME": [800], "MVBench_64frame": [4000]}
    pruned = {"MMStar": [600, 1000, 77], "MathVista_MINI": [250], "MME": [800], "MVBench_64frame": [1000]}
    kdv = {"enable_kdv": True, "kdv_ratio": 0.75, "num_rollouts": 5}
    for name, spent, costs, shift in (("a", {}, plain, 0), ("b", kdv, pruned, 0.02)):
        folder = work_folder(tmp_path / "out", name, spent, costs)
        (folder / f"{name}_MMStar_acc.csv").write_text(f'"split","Overall","math"\n"none","{0.5 + shift}","0.1"\n')
        old, new = folder / "T20260101_G12345678", folder / "T20260201-103000"
        for day, score in ((old, 11), (new, 60 + 100 * shift)):
            day.mkdir()
            lines = [f"Overall,9,{score}", "geometry,4,3.5"]
            (day / f"{name}_MathVista_MINI_gpt-4o-mini_score.csv").write_text("\n".join(["Task&Skill,tot,acc", *lines]))
        (folder / f"{name}_MME_score.csv").write_text("perception,reasoning,OCR\n1500.5,600,140\n")
        (folder / f"{name}_MMErr_acc.csv").write_text('"split","Overall"\n"none","0.9"\n')
        rating = {"action": [1, 2, "50.0%"], "overall": [3, 5, f"{40 + 100 * shift}%"]}
        (folder / f"{name}_MVBench_64frame_rating.json").write_text(json.dumps(rating))
    assert print_tables(["--from-vlmevalkit", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|") and "---" not in line]
    by_name = {row[0]: row[1:] for row in rows}
    assert rows[0][1] == "a (vanilla)" and rows[0][3] == "b (rho = 0.75, K = 5)"
    # #F: 1600 of 4000, and with the vision encoder's 100 a question 1800 of 4200; the third question has no vanilla.
    assert by_name["MMStar"][0:3] == ["50.0", "1.00; 1.00", "52.0"]
    assert by_name["MMStar"][3].startswith("0.40 (") and "; 0.43 (" in by_name["MMStar"][3]
    assert by_name["MathVista"][0] == "60.0" and by_name["MathVista"][2] == "62.0"  # of the newest day
    assert by_name["MME"][0] == "75.0" and by_name["MVBench"][0] == "40.0" and by_name["MVBench"][2] == "42.0"
    assert [row[0] for row in rows[1:5]] == ["MathVista", "MME", "MMStar", "MVBench"]  # the paper's order
    images, videos, gain, llm, _, k, rho = by_name["b (rho = 0.75, K = 5)"]
    assert (images, videos, gain) == (f"{(52 + 62 + 2100.5 / 28) / 3:.1f}", "42.0", "+1.5")
    assert float(llm) == pytest.approx((0.4 + 0.5 + 1 + 0.25) / 4, abs=0.006) and (k, rho) == ("5.00", "0.50")
    assert "Failed questions, scored as wrong: a 1, b 1." in text and "with early stop of the vote" in text


@pytest.mark.parametrize(
    "metrics, score",
    [
        ({"split=dev|Overall": 0.8, "split=dev|AR": 0.7}, 80),
        ({"split=Overall|Overall": 86.1, "split=Overall|acc": 87.0, "split=random|Overall": 90.0}, 86.1),
        ({"overall|overall": 0.61, "overall|domain|Knowledge": 0.5, "short|overall": 0.7}, 61),
        ({"Task&Skill=Overall|tot": 1000.0, "Task&Skill=Overall|hit": 681.0, "Task&Skill=Overall|acc": 68.1}, 68.1),
        ({"split=dev|Overall": 0.8, "split=test|Overall": 0.7}, None),
        ({"Subject=algebra|acc": 40.0}, None),
        ({}, None),
    ],
)
def test_the_overall_score_or_none(metrics, score):
    """Guards against: a part's score that is reported as the whole's, and a guess where it is not clear."""
    found = overall_score(metrics)
    assert found is None if score is None else found == pytest.approx(score)


def test_work_folders_that_cannot_be_read_are_one_line(tmp_path, capsys):
    """Guards against: a traceback, or #F relative to a run that is not vanilla's."""
    (tmp_path / "none").mkdir()
    work_folder(tmp_path / "pruned", "b", {"enable_kdv": True}, {"MMStar": [10]})
    junk = tmp_path / "junk" / "a"
    junk.mkdir(parents=True)
    (junk / "answers.jsonl").write_text('{"a": 1}\n')
    work_folder(tmp_path / "old", "a", {"early_stop": True}, {"MMStar": [10]})
    for name, words in (
        ("none", "no */answers.jsonl"),
        ("pruned", "no vanilla run of some/model"),
        ("junk", "not a file"),
        ("old", "was written by AVIS 0.1"),
    ):
        assert print_tables(["--from-vlmevalkit", str(tmp_path / name)]) == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.startswith("error: ") and printed.count("\n") == 1


@pytest.mark.parametrize(
    "status, reason, is_due",
    [
        ({"status": "done", "metrics": {"Overall": 1.0}}, "", False),
        ({"status": "done", "error_message": ""}, "VLMEvalKit failed: it gives no reason; its log has the whole", True),
        ({"status": "done", "error_message": "a\nb"}, "VLMEvalKit failed: a; its log has the whole", True),
        ({"status": "done", "skip_reason": "mode_infer"}, "VLMEvalKit skipped it: mode infer", False),
        ({"status": "done", "skip_reason": "invalid_dataset"}, "VLMEvalKit skipped it: invalid dataset", True),
        ({"status": "infer"}, "VLMEvalKit stopped at: infer", True),
        (None, "VLMEvalKit did not begin it", True),
    ],
)
def test_why_a_set_has_no_score(status, reason, is_due):
    """Guards against: an empty cell that nobody explains."""
    assert why_no_score(status) == (reason, is_due)


def test_no_score_is_dropped_without_a_note(tmp_path, capsys):
    """Guards against: the first of two scores, a part's score, or a set that vanilla has not answered, in silence."""
    costs = {"Twice": [10], "MMMU_DEV_VAL": [10], "Broken": [10], "None": [10], "Sub": [10], "Sub_[x]": [10]}
    plain = work_folder(tmp_path, "a", {}, costs | {"Other": [10]})
    pruned = work_folder(tmp_path, "b", {"enable_kdv": True}, {"Twice": [5], "Extra": [5]})
    run = plain / "T20260801-120000"
    run.mkdir()
    for judge, score in (("exact_matching", "0.5"), ("gpt", "0.6")):
        (run / f"a_Twice_{judge}_acc.csv").write_text(f"split,Overall\nnone,{score}\n")
        (pruned / f"b_Twice_{judge}_acc.csv").write_text("split,Overall\nnone,0.7\n")  # both agree
    (run / "a_MMMU_DEV_VAL_acc.csv").write_text("split,Overall\ndev,0.5\nvalidation,0.6\n")
    (run / "a_Sub_[x]_acc.csv").write_text("split,Overall\nnone,0.4\n")
    (run / "a_Unasked_acc.csv").write_text("split,Overall\nnone,0.3\n")
    statuses = {"Broken": {"status": "done", "error_message": "no key"}, "Unasked": {"status": "done"}}
    (run / "status.json").write_text(json.dumps({"datasets": statuses}))
    for day, text in (("T20260701-120000", '{"datasets": {"Broken": {"status": "eval"}}}'), ("T20260901-120000", "{")):
        (plain / day).mkdir()
        (plain / day / "status.json").write_text(text)
    vanilla, kdv = read_settings(tmp_path)
    assert kdv.scores == {"Twice": 70, "Extra": None}
    assert vanilla.scores == dict.fromkeys(vanilla.scores, None) | {"Sub_[x]": 40, "Unasked": 30}
    assert print_tables(["--from-vlmevalkit", str(tmp_path)]) == 0
    notes = {line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")}
    assert notes == {
        "- Twice of a has no score: several: Twice_exact_matching_acc.csv 50.0, Twice_gpt_acc.csv 60.0.",
        "- MMMU_DEV_VAL of a has no score: no one overall score in a_MMMU_DEV_VAL_acc.csv: it has split=dev|Overall, "
        "split=validation|Overall.",
        "- Broken of a has no score: VLMEvalKit failed: no key; its log has the whole.",
        *(f"- {name} of a has no score: VLMEvalKit wrote no file with it." for name in ("None", "Other", "Sub")),
        "- Unasked of a has the score 30.0 and no line: a has no record of it.",
        *(f"- {name} of b has no score: it was not run." for name in costs.keys() - {"Twice"} | {"Other"}),
        "- Extra of b has no score and no line: a has no record of it.",
    }
