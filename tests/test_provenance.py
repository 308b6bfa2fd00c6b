"""Hashes of weights: computed only when a record asks, once per file, and a fingerprint that reads little of it."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from chats import BUNDLED, chat, draw_image, image_part
from policies import write_policy

from avis import provenance
from avis.pipeline import AvisPipeline
from avis.provenance import quick_fingerprint, weights_sha256

MIB = 2**20


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A cache folder of the test's own, and nothing remembered in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield
    forget()


def forget() -> None:
    provenance._remembered_sha256.cache_clear()
    provenance._read_fingerprint.cache_clear()


@pytest.fixture
def hashed(monkeypatch) -> list[list[Path]]:
    """The files of every call that hashes whole files."""
    calls = []
    original = provenance.sha256

    def watched(files):
        calls.append(list(files))
        return original(calls[-1])

    monkeypatch.setattr(provenance, "sha256", watched)
    return calls


def write_weights(folder: Path, data: bytes = b"weights", header: bytes = b'{"a": 1}', name: str = "model") -> Path:
    """A file that begins as a safetensors file does; it is not loaded."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    return folder


def sha256(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# --------------------------------------------------------------------------------------------------- when it is hashed


@pytest.mark.parametrize("mode", ["vanilla", "full AVIS"])
def test_plain_answers_do_not_hash_the_weights(hashed, tmp_path, monkeypatch, mode):
    """Guards against: 17 seconds of hashing before the first answer of a 16 GB checkpoint."""
    weights = BUNDLED / "model.safetensors"
    policy = write_policy(tmp_path / "p.pt", (1,))  # which hashes them
    hashed.clear()
    forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    read = count_reads(weights)
    with read:
        pipeline = AvisPipeline.from_pretrained(BUNDLED, policy=policy if mode == "full AVIS" else None, device="cpu")
        loaded = read.bytes
        output = pipeline(chat(image_part(draw_image(140, 140))), enable_kdv=True, max_new_tokens=1)
        assert read.bytes - loaded == 0, "a query reads the weights' files"
    assert hashed == [] and loaded <= 3 * MIB
    record = output.to_dict()
    assert record["weights_sha256"] == sha256(weights) and [weights] in hashed
    hashed.clear()
    output.to_dict()
    assert [weights] not in hashed


class count_reads:
    """Counts bytes that Python code reads of a file while it is open in a `with` block (not what safetensors maps)."""

    def __init__(self, path: Path):
        self.path, self.bytes = path, 0

    def __enter__(self):
        counter, self._open = self, Path.open

        def watched(path, *args, **kwargs):
            file = counter._open(path, *args, **kwargs)
            if path.name != counter.path.name:
                return file
            original = file.read

            class Counted:
                def __enter__(self):
                    return self

                def __exit__(self, *exception):
                    file.close()

                def read(self, size=-1):
                    data = original(size)
                    counter.bytes += len(data)
                    return data

            return Counted()

        Path.open = watched
        return self

    def __exit__(self, *exception):
        Path.open = self._open


def test_models_of_no_files_have_no_hash():
    """Guards against: a hash of the working folder for a model made in memory."""
    assert weights_sha256("") is None and quick_fingerprint("") is None


# ------------------------------------------------------------------------------------------------- hashed once per file


def test_files_are_hashed_once(hashed, tmp_path):
    """Guards against: hours of a set's evaluation spent hashing; and a second process that hashes again."""
    folder = write_weights(tmp_path / "m")
    write_weights(folder, b"more", name="second")
    files = [folder / "model.safetensors", folder / "second.safetensors"]
    expected = sha256(*files)
    for _ in range(3):
        assert weights_sha256(str(folder)) == expected
    forget()  # as another process
    assert weights_sha256(str(folder)) == expected
    assert hashed == [files]


@pytest.mark.parametrize("change", ["content and time", "size", "another file"])
def test_changed_files_are_hashed_again(hashed, tmp_path, change):
    """Guards against: the hash of the weights that were there before."""
    folder = write_weights(tmp_path / "m", b"weights 1")
    first = weights_sha256(str(folder))
    path = folder / "model.safetensors"
    if change == "content and time":
        stamp = path.stat().st_mtime_ns
        write_weights(folder, b"weights 2")
        os.utime(path, ns=(stamp + 1, stamp + 1))
    elif change == "size":
        stamp = path.stat().st_mtime_ns
        write_weights(folder, b"weights, more")
        os.utime(path, ns=(stamp, stamp))
    else:
        write_weights(folder, name="second")
    assert weights_sha256(str(folder)) == sha256(*sorted(folder.glob("*.safetensors"))) != first
    assert len(hashed) == 2


@pytest.mark.parametrize(
    "entry",
    [b"", b"{", b"[]", b"3", b'{"files": []}', b"[" * 5000, "wrong files", "wrong hash"],
    ids=["empty", "cut", "list", "number", "no hash", "deep", "wrong files", "wrong hash"],
)
def test_damaged_entries_are_replaced(hashed, tmp_path, entry):
    """Guards against: a traceback, or a wrong hash, from a file that anything may have written."""
    folder = write_weights(tmp_path / "m")
    expected = weights_sha256(str(folder))
    (path,) = (tmp_path / "cache" / "avis").iterdir()
    whole = json.loads(path.read_bytes())
    assert whole["sha256"] == expected
    if entry == "wrong files":
        entry = json.dumps({"files": [["other", 1, 2]], "sha256": "a" * 64}).encode()
    elif entry == "wrong hash":
        entry = json.dumps(whole | {"sha256": "not a hash"}).encode()
    path.write_bytes(entry)
    forget()
    assert weights_sha256(str(folder)) == expected and len(hashed) == 2
    assert json.loads(path.read_bytes()) == whole


@pytest.mark.parametrize("cache", ["a file", "no such folder", "no home"])
def test_the_cache_folder_may_be_missing(hashed, tmp_path, monkeypatch, cache):
    """Guards against: an answer that is lost for a home that cannot be written. (Root writes read-only folders: a file
    in the folder's place stands for one.)"""
    folder = write_weights(tmp_path / "m")
    if cache == "a file":
        (tmp_path / "cache").write_text("in the way")
    elif cache == "no such folder":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/proc/none")
    for _ in range(2):
        forget()
        assert weights_sha256(str(folder)) == sha256(folder / "model.safetensors")
    assert len(hashed) == 2


# ---------------------------------------------------------------------------------------------- the quick fingerprint


def test_the_fingerprint_reads_little(tmp_path):
    """Guards against: a fingerprint that takes as long as the hash: of two files of 2 GB, it reads 2 MiB."""
    folder = tmp_path / "m"
    for name in ("a", "b"):
        path = write_weights(folder, name=name) / f"{name}.safetensors"
        with path.open("r+b") as file:
            file.truncate(2 * 1024 * MIB)
    with count_reads(folder / "a.safetensors") as first, count_reads(folder / "b.safetensors") as second:
        assert len(quick_fingerprint(str(folder))) == 64
    header = 8 + len(b'{"a": 1}')
    assert first.bytes == second.bytes == header + MIB


def test_the_fingerprint_is_read_once(tmp_path):
    """Guards against: a few MiB of every weights file read again for every query."""
    folder = write_weights(tmp_path / "m")
    first = quick_fingerprint(str(folder))
    with count_reads(folder / "model.safetensors") as read:
        assert quick_fingerprint(str(folder)) == first
    assert read.bytes == 0


def test_the_fingerprint_changes_with_the_weights(tmp_path):
    """Guards against: a policy that takes another checkpoint for its own."""
    data = bytearray(3 * MIB)
    write_weights(tmp_path / "m", bytes(data))
    found = {"first": quick_fingerprint(str(tmp_path / "m"))}
    data[MIB - 1] = 1
    found["last byte of the first MiB"] = quick_fingerprint(str(write_weights(tmp_path / "m", bytes(data))))
    found["size"] = quick_fingerprint(str(write_weights(tmp_path / "m", bytes(data) + b"\0")))
    found["header"] = quick_fingerprint(str(write_weights(tmp_path / "m", bytes(data), b'{"a": 2}')))
    found["name"] = quick_fingerprint(str(write_weights(tmp_path / "n", bytes(data), b'{"a": 2}', "other")))
    found["number"] = quick_fingerprint(str(write_weights(tmp_path / "n", bytes(data), name="another")))
    assert len(set(found.values())) == len(found)
    write_weights(tmp_path / "copy", bytes(data), b'{"a": 2}')
    assert quick_fingerprint(str(tmp_path / "copy")) == found["header"]


def test_the_fingerprint_of_a_damaged_header(tmp_path):
    """Guards against: a file that announces a header of 2**64 bytes, and an attempt to read it."""
    path = write_weights(tmp_path / "m") / "model.safetensors"
    path.write_bytes(b"\xff" * 30)
    assert len(quick_fingerprint(str(tmp_path / "m"))) == 64


# ------------------------------------------------------------------------------------------------------------- versions


def test_versions_name_what_decides_a_result():
    """Guards against: a record from which the software cannot be set up again."""
    found = provenance.versions()
    assert found["torch"] == torch.__version__ and len(found["patch_set"]) == 64
    assert set(found) == {"torch", "transformers", "av", "pillow", "patch_set"}
