"""The house stays as DESIGN has it: which module may import which, how long files and functions are, what is installed.

A bound that has to be broken has its reason in the file's first lines, where a line begins with `Longer than`.
"""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("demo.py", "avis/**/*.py", "policy/**/*.py", "docs/**/*.py", "transformers/fork/**/*.py")
    for path in ROOT.glob(pattern)
)
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/*.py"))
MAX_SOURCE, MAX_TEST, MAX_FUNCTION = 400, 500, 60


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


def module(name: str) -> str:
    """`avis.garden.make` of `avis/garden/make.py`."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module(name): name for name in SOURCES if name.startswith(("avis/", "policy/"))}


def imports(name: str, of: ast.AST | None = None) -> set[str]:
    """The modules of this project that a file imports, in functions too, by their full names."""
    found = set()
    for node in ast.walk(of or tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {one for one in found if one in MODULES or one in ("avis", "policy")}


def type_checking_only(name: str) -> set[str]:
    """What a file imports for annotations alone."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            found |= imports(name, ast.Module(node.body, []))
    return found


def room(name: str) -> str:
    """The room of a module: the core of the library, or one of those that use it."""
    for prefix in ("avis.garden", "avis.evaluation", "avis.vllm", "policy.training"):
        if name == prefix or name.startswith(prefix + "."):
            return prefix
    return "policy" if name.split(".")[0] == "policy" else "avis"


# Who may import whom, besides itself. The fork and demo.py are looked at apart.
ARROWS = {
    "policy": set(),
    "avis": {"policy"},
    "avis.garden": {"avis"},
    "policy.training": {"avis", "policy", "avis.garden"},
    "avis.evaluation": {"avis", "policy", "avis.garden", "policy.training"},
    "avis.vllm": {"avis", "policy"},
}


@pytest.mark.parametrize("name", MODULES)
def test_arrows_run_one_way(name):
    """Guards against: the pipeline importing what is built on it, and a policy that needs the pipeline."""
    wrong = [one for one in imports(MODULES[name]) if room(one) not in ARROWS[room(name)] | {room(name)}]
    assert not wrong, f"{name} imports {', '.join(wrong)}"


def test_core_has_no_cycles():
    """Guards against: two modules of the core that need each other, so that neither can be read first."""
    core = {name: file for name, file in MODULES.items() if room(name) in ("avis", "policy") and name != "avis"}
    needs = {name: (imports(file) - type_checking_only(file)) & core.keys() - {name} for name, file in core.items()}
    while needs:
        free = [name for name, needed in needs.items() if not needed & needs.keys()]
        assert free, f"a cycle among {', '.join(sorted(needs))}"
        for name in free:
            del needs[name]


def test_policy_model_needs_torch_and_its_own_room_alone():
    """Guards against: a seed's interface that cannot be copied into another project."""
    for name in ("policy/__init__.py", "policy/policy_model.py"):
        assert all(one.split(".")[0] == "policy" for one in imports(name)), name
        assert all(room(one) == "policy" for one in imports(name)), name


def test_fork_imports_nothing_of_ours():
    for name in (name for name in SOURCES if name.startswith("transformers/fork/")):
        found = {node.module for node in ast.walk(tree(name)) if isinstance(node, ast.ImportFrom) and not node.level}
        assert not {one for one in found if one and one.split(".")[0] in ("avis", "policy", "demo")}, name


@pytest.mark.parametrize("name", SOURCES)
def test_no_private_names_across_modules(name):
    """Guards against: a name that its module calls private, and that another one depends on."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] in ("avis", "policy")):
            private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__main__"]
            assert not private, f"{name} imports {private} of {node.module}"


@pytest.mark.parametrize("package", [name for name in MODULES if MODULES[name].endswith("__init__.py")])
def test_no_package_exports_the_name_of_a_submodule(package):
    """Guards against: `avis.answer` that is a function or a module, by what was imported before."""
    inside = {one.rpartition(".")[2] for one in MODULES if one.rpartition(".")[0] == package}
    exported = set()
    for node in tree(MODULES[package]).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            exported.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            exported |= {alias.asname or alias.name for alias in node.names if node.module != package}
        elif isinstance(node, ast.Assign):
            exported |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert not exported & inside, f"{package} exports {exported & inside}"


def reason(name: str) -> bool:
    first = "\n".join((ROOT / name).read_text().splitlines()[:12])
    return re.search(r"^(# )?Longer than", first, re.MULTILINE) is not None


@pytest.mark.parametrize("name", [*SOURCES, *TESTS])
def test_files_are_short(name):
    most = MAX_TEST if name in TESTS else MAX_SOURCE
    lines = len((ROOT / name).read_text().splitlines())
    assert lines <= most or reason(name), f"{name} has {lines} lines, {most} are the most"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without decorators and docstring."""
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("name", SOURCES)
def test_functions_are_short(name):
    for node in ast.walk(tree(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert body_lines(node) <= MAX_FUNCTION, f"{name}: {node.name} has {body_lines(node)} lines"


def test_steps_of_answer_are_short():
    """`answer()` is six named steps of `avis.steps`, each of at most 30 lines below its signature."""
    names = ["resolve", "prefill", "choose_k", "rollout", "vote", "build_output"]
    (answer,) = [node for node in tree("avis/pipeline.py").body if getattr(node, "name", None) == "_answer"]
    assert [name for name in map(step_called, ast.walk(answer)) if name] == names
    functions = {node.name: node for node in tree("avis/steps.py").body if isinstance(node, ast.FunctionDef)}
    for name in names:
        signature = functions[name].body[0].lineno - functions[name].lineno
        lines = body_lines(functions[name]) - signature
        assert lines <= 30, f"{name} has {lines} lines"


def step_called(node: ast.AST) -> str | None:
    """The name of the step that is called here, as `steps.prefill(..)`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return node.func.attr if node.func.value.id == "steps" else None
    return None


PUBLIC = [name for name in SOURCES if not name.startswith("docs/")]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_docstrings(name):
    """A module, and each public class and function at its top level, says in a sentence what it is for."""
    has_path_of_package = name.endswith("__init__.py") and not (ROOT / name).read_text().strip()
    assert has_path_of_package or ast.get_docstring(tree(name)), f"{name} has no docstring"
    for node in tree(name).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            text = ast.get_docstring(node)
            assert text, f"{name}: {node.name} has no docstring"
            assert text.splitlines()[0].rstrip().endswith((".", ":", "::")) or "\n" in text, f"{name}: {node.name}"


# ----------------------------------------------------------------------------------------------------- installation


def test_distribution_has_avis_and_policy_alone(tmp_path):
    """Guards against: top-level packages called garden, evaluation or tests in everybody's environment."""
    source = tmp_path / "source"  # a build leaves files beside what it builds
    for name in ("avis", "policy"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    roots = {name.partition("/")[0] for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert roots == {"avis", "policy"}
    missing = [file for file in MODULES.values() if file not in names]
    assert not missing, f"not in the wheel: {missing[:3]}"
    assert any(name.startswith("avis/evaluation/recipes/") for name in names), "recipes are not in the wheel"


def test_import_avis_is_quick_and_lazy():
    """Guards against: `import avis` that takes seconds, since it imports torch."""
    code = "import sys, avis; assert 'torch' not in sys.modules; avis.answer; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
