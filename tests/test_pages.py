"""What the pages promise: a short README, links, words, Python that runs, a complete table of flags, the citation."""

import argparse
import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
import yaml
from pages import PAGES, ROOT, code_blocks, prose, read_page

import demo

# STYLE's words that others replace. A page may use one for what it names itself.
REPLACED = re.compile(r"\b(towers?|pictures?|clips?|goes on|whoever|tells|told)\b", re.IGNORECASE)
ALLOWED = {"docs/garden.md": {"clip", "clips"}}
RUN = ("README.md", "docs/python.md")  # pages whose Python runs, block after block


def test_pages_are_found():
    """Guards against: a page that no test below reads."""
    wanted = {"docs/cli.md", "docs/python.md", "docs/faq.md", "docs/lab-notebook/README.md"}
    assert wanted | {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/garden-tiny/MODEL_CARD.md"} <= set(PAGES)


def test_readme_is_short():
    """Guards against: a README that grows back into a manual."""
    text = read_page("README.md")
    assert len(text.splitlines()) <= 150
    assert len(re.findall(r"!\[", text)) <= 3


@pytest.mark.parametrize("name", PAGES)
def test_links_point_to_what_is_there(name):
    """Guards against: a page that points to a file or a heading that was moved."""
    for target in re.findall(r"\]\(([^)]+)\)", prose(read_page(name))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / name).parent / path if path else ROOT / name
        assert linked.exists(), f"{name}: {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{name}: {target}"


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_words_are_the_fields_own(name):
    """Guards against: a page that calls things by names that STYLE has replaced. Tables that are made from committed
    records may have the records' words."""
    own = re.sub(r"<!-- table: .*?<!-- end -->", " ", prose(read_page(name)), flags=re.DOTALL)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", " ", own, flags=re.DOTALL)
    found = {match.lower() for match in REPLACED.findall(text)} - ALLOWED.get(name, set())
    assert not found, f"{name}: {sorted(found)}"


def test_replaced_words_are_noticed():
    """Guards against: a list of words that matches none."""
    assert REPLACED.findall("The Towers and a clip; he told us. A clipped towering one.") == ["Towers", "clip", "told"]


@pytest.mark.parametrize("name", [name for name in PAGES if code_blocks(read_page(name), "python")])
def test_python_compiles_and_its_imports_exist(name):
    """Guards against: an example with a name that was renamed."""
    for code in code_blocks(read_page(name), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}"), alias.name


@pytest.mark.parametrize("name", RUN)
def test_python_runs(name):
    """Guards against: an example that a user copies and that fails. Each page takes some ten seconds."""
    code = "\n".join(code_blocks(read_page(name), "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def test_cli_page_lists_every_flag(monkeypatch):
    """Guards against: a flag that the page does not explain, and one that is gone."""
    seen: dict[str, argparse.Action] = {}

    class Parsed(Exception):
        pass

    def parse_args(parser, args=None, namespace=None):
        for action in parser._actions:
            if action.help != argparse.SUPPRESS:
                seen.update(dict.fromkeys(action.option_strings, action))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Parsed):
        demo.parse([])
    rows = [line for line in read_page("docs/cli.md").splitlines() if line.startswith("| `-")]
    listed = {flag for row in rows for flag in re.findall(r"`(--?[\w-]+)", row.split(" | ")[0])}
    assert listed == set(seen)
    for flag, action in seen.items():
        row = next(row for row in rows if re.search(rf"`{flag}\b", row.split(" | ")[0]))
        if isinstance(action.default, (int, float)) and not isinstance(action.default, bool):
            assert row.split(" | ")[1].strip("` ") == str(action.default), row
        for choice in action.choices or ():
            assert str(choice) in row, f"{flag}: {choice}"


def test_the_citation_is_the_papers():
    """Guards against: a CITATION.cff that citation programs refuse, and authors who are not those of the paper."""
    held = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert held["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(held)
    paper = held["preferred-citation"]
    assert paper["title"] == "AVIS: Adaptive Test-Time Scaling for Vision-Language Models" and paper["year"] == 2026
    assert "2606.11576" in paper["url"]
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert names[0] == "Ahmadreza Jeddi" and names[-1] == "Radek Grzeszczuk" and len(set(names)) == 11
    version = re.search(r'^version = "(.+?)(\.dev\d+)?"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert held["version"] == version and f"## {version}" in read_page("CHANGELOG.md")
