"""The difficulty predictor: its interface, its size, and files that are not what they should be."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demo
from avis.provenance import quick_fingerprint, weights_sha256
from policy.binning import BinningRule
from policy.checkpoint import PolicyCheckpoint, recorded_hashes
from policy.networks import CHANNELS, SolvabilityNetwork
from policy.policy_model import PolicyModel, Prediction, read_checkpoint
from policy.training import calibrate, overhead
from policy.training.shapes import published_config

WIDTH, HIDDEN = 12, 10
FORMS = ("visual", "question")


def checkpoint(default: str = "visual", **changes) -> PolicyCheckpoint:
    """Return a policy with random weights, whose rules differ between its two networks and the halves of p's range."""
    torch.manual_seed(0)
    made = PolicyCheckpoint(
        width=WIDTH,
        hidden_width=HIDDEN,
        default=default,
        tau=0.8,
        rho=0.75,
        weights_sha256="b" * 64,
        fingerprint="a" * 64,
        metadata={"n": 3},
        networks={"visual": SolvabilityNetwork(WIDTH), "question": SolvabilityNetwork(WIDTH, HIDDEN)},
        rules={"visual": BinningRule((0.5,), (7, 3)), "question": BinningRule((0.5,), (5, 1))},
    )
    return replace(made, **changes)


@pytest.fixture
def path(tmp_path) -> Path:
    checkpoint().save(tmp_path / "policy.pt")
    return tmp_path / "policy.pt"


@pytest.fixture
def asking(tmp_path) -> PolicyModel:
    """A policy whose default reads the last hidden state."""
    checkpoint("question").save(tmp_path / "asking.pt")
    return PolicyModel(tmp_path / "asking.pt")


def item(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------------------- the interface


def test_what_was_saved_is_what_is_read(path):
    """Guards against: a value that the file loses, p that depends on the moment (dropout left on), leftovers of
    writing."""
    policy = PolicyModel(path)
    assert (policy.tau, policy.rho, policy.width, policy.hidden_width) == (0.8, 0.75, WIDTH, None)
    assert (policy.fingerprint, policy.weights_sha256, policy.metadata) == ("a" * 64, "b" * 64, {"n": 3})
    found = policy.predict([item(9)])
    with torch.no_grad():
        wanted = checkpoint().networks["visual"].eval()([item(9)]).sigmoid().item()
    assert found == policy.predict([item(9)]) == BinningRule((0.5,), (7, 3)).predict(wanted)
    assert isinstance(found, Prediction) and 0 < found.p < 1
    assert os.listdir(path.parent) == [path.name]


def test_items_of_unequal_size_run_one_by_one(path):
    """Guards against: padding that reaches GroupNorm or the pooling, by which an item's K depends on its neighbours."""
    policy = PolicyModel(path)
    items = [item(n, seed) for seed, n in enumerate((1, 7, 30, 7))]
    alone = [policy.predict([one]).num_rollouts for one in items]
    assert policy(items) == alone
    stacked = torch.stack([items[1], items[3]])
    assert policy(stacked) == [alone[1], alone[3]]
    assert policy(stacked[:1]) == alone[1] and type(policy(stacked[:1])) is int


def test_tokens_and_items_all_count(path):
    """Guards against: pooling that reads some tokens only, an item of a query that is ignored or counted by its size,
    and p that depends on the order of items."""
    policy = PolicyModel(path)
    a, b = item(20, 1), item(6, 2)
    changed = a.clone()
    changed[-1] += 3
    assert policy.predict([changed]).p != policy.predict([a]).p
    one, other = policy.predict([a, b]).p, policy.predict([b, a]).p
    assert one == pytest.approx(other, abs=1e-6)
    assert min(abs(one - policy.predict([x]).p) for x in (a, b)) > 1e-4
    assert policy.predict([a, a]).p == pytest.approx(policy.predict([a]).p, abs=1e-6)


def test_half_precision_is_read_in_full(path):
    """Guards against: a predictor that runs in the backbone's half precision, where p moves across edges."""
    policy = PolicyModel(path)
    values = item(20).bfloat16()
    assert policy.predict([values]) == policy.predict([values.float()])


def test_the_question_is_read_by_its_own_network(asking):
    """Guards against: the wrong one of two networks or rules, and a hidden state that is taken and not looked at."""
    assert asking.hidden_width == HIDDEN
    hidden = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(1))
    first, second = (asking.predict([item(9)], hidden[i : i + 1]) for i in (0, 1))
    assert first.p != second.p and {first.num_rollouts, second.num_rollouts} <= {5, 1}
    assert asking(item(9)[None]) in (7, 3)
    for wrong in (None, hidden, hidden[:1, :-1]):
        with pytest.raises(ValueError, match="last hidden state"):
            asking.predict([item(9)], wrong)


def test_the_visual_network_does_not_look_at_the_question(path):
    """Guards against: a visual-only policy that needs what the seed's interface does not give it."""
    policy = PolicyModel(path)
    assert policy.predict([item(9)], torch.zeros(1, 3)) == policy.predict([item(9)])


@pytest.mark.parametrize("items", [[], [item(3)[0]], [item(3)[:0]], [item(3)[:, 1:]], [item(3) * float("nan")]])
def test_embeddings_that_are_none(path, items):
    """Guards against: a p made of nothing, of another model's width, or of NaN, which compares as below every edge."""
    with pytest.raises(ValueError):
        PolicyModel(path).predict(items)


def test_edges_belong_to_the_bin_above():
    """Guards against: calibration and use that put a p on an edge into different bins."""
    rule = BinningRule((0.25, 0.5), (1, 5, 3))
    found = [rule.predict(p) for p in (0.0, 0.2499, 0.25, 0.4999, 0.5, 1.0)]
    assert [(one.bin, one.num_rollouts) for one in found] == [(0, 1), (0, 1), (1, 5), (1, 5), (2, 3), (2, 3)]


@pytest.mark.parametrize(
    "edges, counts",
    [((0.5,), (1,)), ((), ()), ((0.5, 0.5), (1, 3, 1)), ((0.5,), (1, 2)), ((0.0,), (1, 3)), ((float("nan"),), (1, 3))],
)
def test_rules_that_are_none(edges, counts):
    """Guards against: a rule that fails only at the question that meets its bad bin."""
    with pytest.raises(ValueError, match="not a rule"):
        BinningRule(edges, counts)


def test_another_model_is_told(path):
    """Guards against: a crash deep inside for another width, and silence for another backbone of the same."""
    policy = PolicyModel(path)
    assert policy.check(WIDTH, "a" * 64) is None
    for other in ("b" * 64, None):
        warning = policy.check(WIDTH, other)
        assert "other weights" in warning and "\n" not in warning
    with pytest.raises(ValueError) as error:
        policy.check(3584, "a" * 64)
    for step in ("collect", "fit", "calibrate"):
        assert f"python -m policy.training.{step}" in str(error.value)
    assert "3584" in str(error.value) and "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("reads_hidden", [False, True])
def test_the_predictor_is_small_at_7b_width(reads_hidden):
    """Guards against: a predictor that costs what it is there to save; a hundredth is the limit, this is far below."""
    found = overhead.measure_shares(published_config("7b"), 1024, reads_hidden)
    assert 3584 * CHANNELS < found["parameters"] and 2 * 1024 * 3584 * CHANNELS < found["flops"]
    assert found["share_of_parameters"] < 1e-4 and found["share_of_llm_flops"] < 1e-4


def test_the_predictor_beside_the_bundled_model(bundled):
    """Guards against: the same on a model of a few million parameters, where the share is honestly larger."""
    found = overhead.measure_shares(bundled[0].config, 324, reads_hidden=True)
    assert 0 < found["share_of_parameters"] < 0.015 and 0 < found["share_of_total_flops"] < 0.01


def test_the_predictor_takes_little_time(bundled, monkeypatch):
    """Guards against: a time that is measured against more layers than there are, or in other units."""
    monkeypatch.setattr(overhead, "REPEATS", 3)
    config, ticks = bundled[0].config, iter(range(1000))
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(ticks))  # so each takes one second
    found = overhead.measure_times(config, 16)
    assert found["visual_seconds"] == found["layer_seconds"] == 1
    assert found["question_share_of_time_at_most"] == 1 / config.get_text_config().num_hidden_layers


def test_the_report_of_costs(tmp_path, monkeypatch, capsys):
    """Guards against: a report without what its numbers hang on, and a traceback for an image that is no square."""
    monkeypatch.setattr(
        overhead, "measure_times", lambda config, tokens: {f"{x}_share_of_time_at_most": 0.0 for x in FORMS}
    )
    assert overhead.main(["--tokens", "16", "--out", str(tmp_path / "cost.json")]) == 0
    reported = json.loads((tmp_path / "cost.json").read_text())
    assert {"command", "versions", "threads"} <= reported.keys() and reported["visual"]["parameters"] > 0
    capsys.readouterr()
    assert overhead.main(["--tokens", "17", "--out", str(tmp_path / "cost.json")]) == 2
    assert capsys.readouterr().err == "error: --tokens is the square of a whole number, got 17\n"


# ----------------------------------------------------------------------------------------------------- hostile files


class Runs:
    """Unpickled, it would leave a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def changed(path: Path, change) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def _truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path):
    written = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda one: one.file_size)
    written[entry.header_offset + 200] ^= 255
    path.write_bytes(written)


def _bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("policy/data.pkl", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(bytes(2**20))


def _weights(content, name="visual"):
    return content["networks"][name]["weights"]


SPOILED = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("policy"),
    "truncated": _truncated,
    "flipped byte": _flipped,
    "zip bomb": _bomb,
    "pickle": lambda path: path.write_bytes(pickle.dumps(Runs(path.parent / "mark"))),
    "torch, hostile": lambda path: torch.save({"format": "avis-policy", "x": Runs(path.parent / "mark")}, path),
    "torch, old form": lambda path: torch.save(Runs(path.parent / "mark"), path, _use_new_zipfile_serialization=False),
    "whole module": lambda path: torch.save(SolvabilityNetwork(WIDTH), path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "another file of torch": lambda path: torch.save({"weights": torch.zeros(3)}, path),
    "a later version": lambda path: changed(path, lambda c: c.update(version=3)),
    "an earlier version": lambda path: changed(path, lambda c: c.update(version=1)),
    "a tensor for a version": lambda path: changed(path, lambda c: c.update(version=torch.ones(2))),
    "huge width": lambda path: changed(path, lambda c: c.update(width=2**40)),
    "another width": lambda path: changed(path, lambda c: c.update(width=WIDTH + 1)),
    "no networks": lambda path: changed(path, lambda c: c.pop("networks")),
    "one network": lambda path: changed(path, lambda c: c["networks"].pop("question")),
    "weights of another kind": lambda path: changed(path, lambda c: _weights(c).update(mean=[0.0] * WIDTH)),
    "weights of another type": lambda path: changed(path, lambda c: _weights(c).update(mean=torch.zeros(WIDTH).int())),
    "NaN": lambda path: changed(path, lambda c: _weights(c)["mean"].fill_(float("nan"))),
    "a weight too many": lambda path: changed(path, lambda c: _weights(c).update(more=torch.zeros(1))),
    "K of 999": lambda path: changed(path, lambda c: c["networks"]["visual"]["rule"].update(num_rollouts=[999, 1])),
    "K of another kind": lambda path: changed(path, lambda c: c["networks"]["visual"].update(rule=torch.zeros(2))),
    "tau out of range": lambda path: changed(path, lambda c: c.update(tau=4.0)),
    "rho of another kind": lambda path: changed(path, lambda c: c.update(rho="0.75")),
    "a fingerprint of another kind": lambda path: changed(path, lambda c: c.update(fingerprint=None)),
    "an unknown default": lambda path: changed(path, lambda c: c.update(default=["visual"])),
    "tensors in metadata": lambda path: changed(path, lambda c: c.update(metadata={"x": torch.zeros(2)})),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_files_that_are_no_policy(path, spoil):
    """Guards against: code that runs from a file, memory that a file asks for, a traceback, a message of many lines."""
    spoil(path)
    with pytest.raises(ValueError) as error:
        PolicyModel(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (path.parent / "mark").exists()


@pytest.mark.parametrize("name", ["missing.pt", ".", "https://example.org/policy.pt"])
def test_paths_that_are_no_file(tmp_path, name):
    """Guards against: a traceback for a wrong path, and a download that nobody asked for."""
    with pytest.raises(ValueError):
        PolicyModel(name if "://" in name else tmp_path / name)


def test_the_command_line_tells_a_hostile_file_in_one_line(path, capsys):
    """Guards against: a traceback, or another exit status than 2, where a program meets such a file."""
    SPOILED["torch, hostile"](path)
    status = calibrate.main(
        ["--networks", str(path), "--collected", str(path.parent), "--out", str(path.parent / "o.pt")]
    )
    reported = capsys.readouterr()
    assert status == 2 and reported.out == "" and reported.err.startswith("error: ") and reported.err.count("\n") == 1
    assert not (path.parent / "mark").exists()


def test_the_file_holds_tensors_and_plain_values(path):
    """Guards against: a checkpoint that others cannot read without trusting it."""
    content = torch.load(path, weights_only=True)
    tensors = [value for network in content["networks"].values() for value in network.pop("weights").values()]
    assert all(isinstance(value, torch.Tensor) for value in tensors)
    assert json.loads(json.dumps(content))["version"] == 2


def test_an_older_file_says_how_to_fit_it_again(path):
    """Guards against: a policy of version 0.1 that fails without saying what to do."""
    changed(path, lambda content: content.update(version=1) or content.pop("weights_sha256"))
    with pytest.raises(ValueError, match="older format version 1") as error:
        PolicyModel(path)
    for step in ("collect", "fit", "calibrate"):
        assert f"python -m policy.training.{step}" in str(error.value)


def test_the_same_content_gives_the_same_bytes(path, tmp_path):
    """Guards against: a hash of a policy file that depends on the file's name, which torch writes into its archives."""
    loaded = read_checkpoint(path)
    for name in ("one.pt", "another.pt"):
        loaded.save(tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()


def test_results_may_name_a_converted_file_by_its_old_hash(path, tmp_path):
    """Guards against: committed results that name the policy file as it was before its format changed."""
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    assert recorded_hashes(path) == {own}
    checkpoint(metadata={"converted_from_sha256": "c" * 64}).save(path)
    assert recorded_hashes(path) == {hashlib.sha256(path.read_bytes()).hexdigest(), "c" * 64}
    (tmp_path / "text.pt").write_text("policy")
    assert len(recorded_hashes(tmp_path / "text.pt")) == 1


def test_the_bundled_policy_is_the_bundled_models():
    """Guards against: a policy whose two hashes are of other weights, one of which nobody looks at."""
    policy, model = PolicyModel(demo.POLICY), str(demo.BUNDLED)
    assert policy.weights_sha256 == policy.metadata["weights_sha256"] == weights_sha256(model)
    assert policy.check(policy.width, quick_fingerprint(model)) is None


def test_the_policy_needs_nothing_but_torch():
    """Guards against: a policy that others cannot use without the rest of this project."""
    code = (
        "import sys; import policy.policy_model; "
        "print([name for name in sys.modules if name.split('.')[0] in ('avis', 'transformers')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=demo.ROOT)
    assert run.stdout == "[]\n"
