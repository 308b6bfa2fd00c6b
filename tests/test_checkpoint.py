"""Tests of avis/checkpoint.py: damaged weights are refused before anything slow is imported."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avis.checkpoint import check_model_folder

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
HEADER = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
WHOLE = struct.pack("<Q", len(HEADER)) + HEADER + b"abcd"


def folder_with(path: Path, **files: bytes) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    for name, content in files.items():
        (path / f"{name}.safetensors").write_bytes(content)
    return path


def test_a_file_cut_anywhere_is_refused_in_one_line(tmp_path):
    """Guards against: a download that stopped, which fails minutes later inside the loader, or loads noise."""
    check_model_folder(folder_with(tmp_path, model=WHOLE))
    for content in [*(WHOLE[:end] for end in range(len(WHOLE))), WHOLE + b"e"]:
        with pytest.raises(ValueError, match="model.safetensors") as caught:
            check_model_folder(folder_with(tmp_path, model=content))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"\xff\xff",
        b'{"a": 3}',
        b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, -4]}}',
        b"[" * 9**5,
    ],
    ids=lambda header: repr(header[:12]),
)
def test_a_header_that_is_none_is_refused(tmp_path, header):
    """Guards against: a traceback from the reader, whatever a damaged header holds."""
    content = struct.pack("<Q", len(header)) + header
    with pytest.raises(ValueError, match="damaged or cut off") as caught:
        check_model_folder(folder_with(tmp_path, model=content))
    assert "\n" not in str(caught.value)


def test_every_shard_is_looked_at(tmp_path):
    """Guards against: a second shard that is missing or cut off, found after the first was loaded."""
    folder = folder_with(tmp_path, one=WHOLE, two=WHOLE)
    shards = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    check_model_folder(folder)
    (folder / "two.safetensors").write_bytes(WHOLE[:-1])
    with pytest.raises(ValueError, match="two.safetensors are damaged or cut off"):
        check_model_folder(folder)
    (folder / "two.safetensors").unlink()
    with pytest.raises(ValueError, match="no such file: .*two.safetensors"):
        check_model_folder(folder)


def test_large_weights_take_no_time_and_no_torch(tmp_path):
    """Guards against: 16 GB that are read to be checked, and seconds of imports before a wrong flag is reported."""
    size = 16 * 2**30
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    file = folder_with(tmp_path, model=struct.pack("<Q", len(header)) + header) / "model.safetensors"
    os.truncate(file, 8 + len(header) + size)  # a file with a hole takes no room
    start = time.monotonic()
    check_model_folder(tmp_path)
    assert time.monotonic() - start < 2
    code = "import sys; from avis.checkpoint import check_model_folder as check; check(sys.argv[1])\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, ROOT / "models" / "garden-tiny"], cwd=ROOT).returncode == 0
