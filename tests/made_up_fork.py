"""A made-up repository for tests of `transformers/fork/materialise.py`: a release of three files, no network."""

import importlib
import io
import shutil
import tarfile
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[1] / "transformers/fork"
MODEL = "src/pkg/model.py"
MODEL_TEXT = "".join(f"line_{n} = {n}\n" for n in range(1, 21))
OVERLAY = "src/pkg/ours.py"
MESSAGE = "{}\n\nWhy-not-outside: inside upstream's function\nFails-without: tests/test_x.py::test_it\n"


class Fork:
    """A made-up repository.

    Attributes:
        program: the module `materialise`.
        history: the module `history`.
        folder: the folder around the repository.
        root: the repository's `transformers/`.
        downloads: how often the release was downloaded.
    """

    def __init__(self, folder: Path, monkeypatch):
        monkeypatch.syspath_prepend(PROGRAMS)
        self.program, self.history = importlib.import_module("materialise"), importlib.import_module("history")
        self.folder, self.root = folder, folder / "repo/transformers"
        (self.root / "fork").mkdir(parents=True)
        (folder / "repo/tests").mkdir()
        (folder / "repo/tests/test_x.py").write_text("def test_it():\n    pass\n")
        self.sdist = fake_sdist(folder)
        self.pin(self.program.sha256(self.sdist))
        (self.root / "fork/series").write_text(importlib.import_module("patch_queue").SERIES_HEAD)
        self.downloads = 0
        monkeypatch.setattr(self.program, "download", self.download)
        self.write(f"overlay/{OVERLAY}", "ours = 1\n")

    def pin(self, sha256: str) -> None:
        self.write("upstream.toml", f'# the pin\nname = "fake"\nversion = "1.0"\nsha256 = "{sha256}"\n')

    def download(self, upstream, folder):
        self.downloads += 1
        return Path(shutil.copy(self.sdist, folder))

    def write(self, name: str, text: str) -> None:
        path = self.root / "fork" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, command: str, capsys=None) -> tuple[int, list[str]]:
        """Run one command and return its exit code and the lines on stderr."""
        code = self.program.main([command], self.root)
        return code, capsys.readouterr().err.splitlines() if capsys else []

    def apply(self) -> None:
        assert self.run("apply")[0] == 0

    def git(self, *args: str) -> str:
        return self.history.git(self.root, *args).decode()

    def commit(self, message: str, **texts: str) -> None:
        """Commit texts in the tree, by path with __ for / and _py for .py."""
        for name, text in texts.items():
            path = self.root / (name.replace("__", "/").removesuffix("_py") + ".py")
            path.write_text(text)
        self.history.commit(self.root, message)

    def edit_model(self, subject: str, old: str, new: str) -> None:
        """Commit one change of upstream's model file."""
        text = (self.root / MODEL).read_text()
        assert old in text
        (self.root / MODEL).write_text(text.replace(old, new))
        self.history.commit(self.root, MESSAGE.format(subject))

    def with_two_patches(self) -> None:
        """Apply, commit two patches (the second one only inserts), export, and remove the tree."""
        self.apply()
        self.edit_model("Change line 3", "line_3 = 3\n", "line_3 = 33\nline_3b = 0\n")
        self.edit_model("Insert after line 9", "line_9 = 9\n", "line_9 = 9\nline_9b = 0\n")
        assert self.run("export")[0] == 0
        self.wipe()

    def wipe(self) -> None:
        """Remove the tree, as in a fresh clone."""
        for path in self.root.iterdir():
            if path.name != "fork":
                self.program.remove(path)

    def save(self) -> None:
        shutil.copytree(self.root, self.folder / "saved")

    def restore(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.folder / "saved", self.root)

    def queue_files(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files("fork").items() if "/.cache/" not in name}

    def tree_files(self) -> dict[str, bytes]:
        return {n: data for n, data in self.files(".").items() if not n.startswith(("fork/", ".git/"))}

    def files(self, folder: str) -> dict[str, bytes]:
        files = (path for path in (self.root / folder).rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in files}


def fake_sdist(folder: Path) -> Path:
    """Make a source distribution with a model file, and with tests and egg-info that are not unpacked."""
    path = folder / "fake-1.0.tar.gz"
    members = {
        "setup.py": "print()\n",
        MODEL: MODEL_TEXT,
        "src/pkg/__init__.py": "",
        "src/fake.egg-info/PKG-INFO": "x\n",
        "tests/test_upstream.py": "x\n",
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(f"fake-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path
