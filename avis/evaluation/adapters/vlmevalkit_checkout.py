"""Import VLMEvalKit's run.py from its checkout, and say in one line why that fails: every missing module at once."""

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

_PACKAGE = "vlmeval"
_INSTALL = "install it with the command in docs/harnesses.md"
# What the launcher takes from run.py.
_NEEDED = ("load_env", "main", "build_dataset_from_cli")


def import_harness() -> ModuleType:
    """Import VLMEvalKit's run.py, which chooses the process's GPU: call this before torch is used.

    Raises:
        ValueError: VLMEvalKit is not installed, lacks a requirement, fails, or is another version, in one line.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise ValueError(f"{_PACKAGE} cannot be imported: {_INSTALL}, or put VLMEvalKit's checkout on PYTHONPATH")
    path = Path(found.origin).parents[1] / "run.py"
    spec = importlib.util.spec_from_file_location("vlmeval_run", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"no {path}: VLMEvalKit is used from its checkout (pip install -e)")
    module = sys.modules["vlmeval_run"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # A requirement of another version raises anything; some modules end the program.
    except (Exception, SystemExit) as error:
        raise ValueError(f"VLMEvalKit cannot be imported: {_reason(error, path)}; {_INSTALL}") from None
    lacking = [name for name in _NEEDED if not hasattr(module, name)]
    if lacking:
        raise ValueError(
            f"{path} has no {', '.join(lacking)}: the adapter was written for VLMEvalKit's commit e8e78f05"
        )
    return module


def _reason(error: BaseException, path: Path) -> str:
    if isinstance(error, ModuleNotFoundError):
        missing = missing_modules(path)
        if missing:
            return f"{'these modules are' if len(missing) > 1 else 'this module is'} missing: {', '.join(missing)}"
    lines = str(error).strip().splitlines() or ["without a message"]
    return f"{type(error).__name__}: {lines[0]}"


def missing_modules(run: Path) -> list[str]:
    """Return the modules of other packages that run.py imports, it or its own modules, and that are not installed.

    The files are read, not run. Imports in functions, and imports whose failure is caught, count for nothing.

    Args:
        run: of the file; the package `vlmeval` is beside it.
    """
    missing, queue, seen = set(), [run], set[Path]()
    while queue:
        path = queue.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        package = path.relative_to(run.parent).parent.parts  # of its relative imports
        for node in _imports(ast.parse(path.read_bytes()).body):
            for name, is_own in _imported(node, package):
                if is_own:
                    queue += _files(run.parent, name)
                elif importlib.util.find_spec(name.partition(".")[0]) is None:
                    missing.add(name.partition(".")[0])
    return sorted(missing, key=str.lower)


def _imports(body: Sequence[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that importing a file needs."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.Try):
            if not any(_catches_import_errors(handler) for handler in node.handlers):
                yield from _imports(node.body)
            yield from _imports([*node.orelse, *node.finalbody])
        elif isinstance(node, ast.If):
            if not {"TYPE_CHECKING", "__name__"} & {one.id for one in ast.walk(node.test) if isinstance(one, ast.Name)}:
                yield from _imports([*node.body, *node.orelse])
        elif isinstance(node, (ast.ClassDef, ast.With)):
            yield from _imports(node.body)


def _catches_import_errors(handler: ast.ExceptHandler) -> bool:
    names = {one.id for one in ast.walk(handler.type) if isinstance(one, ast.Name)} if handler.type else set()
    return handler.type is None or bool(names & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def _imported(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """Yield (module, whether it is the harness's own); of `from a import b` both `a` and `a.b`, if that is a module."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        above = package[: len(package) + 1 - node.level] if node.level else ()
        base = ".".join([*above, *filter(None, [node.module])])
        names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
    for name in names:
        yield name, bool(isinstance(node, ast.ImportFrom) and node.level) or name.split(".")[0] == _PACKAGE


def _files(root: Path, name: str) -> list[Path]:
    """Return the files that importing a module of the harness runs: its own, and those of the packages it is in."""
    parts = name.split(".")
    packages = [root.joinpath(*parts[:count], "__init__.py") for count in range(1, len(parts) + 1)]
    return [*packages, root.joinpath(*parts).with_suffix(".py")]
