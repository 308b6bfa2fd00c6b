"""Tables in documents: put there, and checked against the committed results.

A document shows a table between two lines, and all tables that the results allow between two others:

    <!-- table: KIND RESULT -->
    <!-- end -->

    <!-- table: all -->
    <!-- end -->
"""

import re
from pathlib import Path

from avis.evaluation.score import Results
from avis.evaluation.tables.captions import describe_results
from avis.evaluation.tables.registry import REPORT_TABLES, RESULT_TABLES, list_tables
from avis.evaluation.tables.store import POLICY, RESULTS, SHIPPED, Store, Table
from avis.files import write_atomically
from avis.provenance import weights_sha256
from policy.checkpoint import recorded_hashes

_BLOCK = re.compile(r"<!-- table: ([^\n]*?) -->\n(.*?)<!-- end -->", re.DOTALL)
_ALL = "all"
_BACKBONE = "backbone-"  # results of other models begin like this
_WRITE = "run python -m avis.evaluation.tables --write"


def format_table(lines: Table) -> str:
    """Return a table in Markdown."""
    body = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in body)


def make_block(kind: str, name: str, store: Store) -> str:
    """Return a table as a document shows it, with the line that says what it depends on.

    Raises:
        ValueError: no such table, or the results do not have what it shows, in one line.
    """
    if kind in REPORT_TABLES:
        report, table = store.report(name), REPORT_TABLES[kind]
        try:
            lines, caption = table.make(report), table.describe(report)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{name}.json has no {error}") from None
    elif kind in RESULT_TABLES:
        results = store.result(name)
        try:
            lines = RESULT_TABLES[kind].make(results)
        except (KeyError, AttributeError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{name} does not have what table {kind} shows ({reason})") from None
        caption = describe_results(results)
    else:
        raise ValueError(f"no table {kind!r}; there are {', '.join([*RESULT_TABLES, *REPORT_TABLES])}")
    return f"{format_table(lines)}\n\n{caption}\n"


def make_all_tables(store: Store) -> str:
    """Return every table that the results allow, each with a heading. Raises ValueError with one line."""
    parts = []
    for kind, name in list_tables(store):
        description = (REPORT_TABLES if kind in REPORT_TABLES else RESULT_TABLES)[kind].description
        parts.append(f"## {kind} {name}\n\n{description}\n\n{make_block(kind, name, store)}")
    return "\n".join(parts)


def list_documents(root: Path) -> list[Path]:
    """Return the files whose tables are checked: README, the pages in docs, and the models' cards."""
    pages = [root / "README.md", *sorted(root.glob("docs/*.md")), *sorted(root.glob("models/*/*.md"))]
    return [path for path in pages if path.exists()]


def renew_tables(text: str, store: Store) -> str:
    """Return a text with every marked table made anew. Raises ValueError with one line."""

    def make(found: re.Match) -> str:
        words = found[1].split()
        if words == [_ALL]:
            content = make_all_tables(store)
        elif len(words) == 2:
            content = make_block(words[0], words[1], store)
        else:
            raise ValueError(f"a table's mark is KIND RESULT or {_ALL}, not {found[1]!r}")
        return f"<!-- table: {found[1]} -->\n{content}<!-- end -->"

    if text.count("<!-- table:") != len(_BLOCK.findall(text)):
        raise ValueError("a table's mark has no end")
    return _BLOCK.sub(make, text)


def write_documents(root: Path) -> list[Path]:
    """Renew the tables of all documents. Returns the files that changed. Raises ValueError as `renew_tables`."""
    store = Store(root / RESULTS)
    renewed = {path: renew_tables(path.read_text(), store) for path in list_documents(root)}
    changed = [path for path, text in renewed.items() if text != path.read_text()]
    for path in changed:
        write_atomically(path, renewed[path].encode())
    return changed


def check_documents(root: Path) -> list[str]:
    """Return a line for everything that documents show and committed results do not say; none when all is well."""
    store = Store(root / RESULTS)
    problems = _check_results(root, store)
    marks = []
    for path in list_documents(root):
        text = path.read_text()
        marks += [mark for mark, _ in _BLOCK.findall(text)]
        try:
            if renew_tables(text, store) != text:
                problems.append(f"{path.relative_to(root)} shows other numbers: {_WRITE}")
        except (ValueError, OSError) as error:
            problems.append(f"{path.relative_to(root)}: {error}")
    if not marks:
        problems.append("no document shows a table")
    elif _ALL not in marks:
        problems.append("no document shows all tables")
    return problems


def _check_results(root: Path, store: Store) -> list[str]:
    """Return a line for every result that was not measured with the shipped weights and policy."""
    if not store.names:
        return [f"{RESULTS} has no results"]
    problems = []
    shipped = weights_sha256(str(root / SHIPPED))
    policies = recorded_hashes(root / POLICY) if (root / POLICY).exists() else set()
    for name in store.names:
        try:
            results = store.result(name)
        except ValueError as error:
            problems.append(str(error))
            continue
        model = Path("models") / results.config["model"] if name.startswith(_BACKBONE) else SHIPPED
        # Another model need not be here; where it is, it is the one that was measured.
        if (root / model).is_dir() and results.config["weights_sha256"] != weights_sha256(str(root / model)):
            problems.append(f"{name} was measured with other weights than {model} has")
        if results.config["policy"] and results.config["policy"]["sha256"] not in policies:
            problems.append(f"{name} was measured with another policy than {POLICY}")
        problems += [f"{name}: {line}" for line in find_disagreements(results)]
    for path in sorted(store.folder.glob("policy-*.json")):
        if store.report(path.stem).get("weights_sha256") != shipped:
            problems.append(f"{path.name} was made with other weights than {SHIPPED} has")
    return problems


def find_disagreements(results: Results) -> list[str]:
    """Return a line when full AVIS, run as a user runs it with early stop, differs from its vote made offline."""
    if "AVIS" not in results.rows:
        return []
    offline = results.outcome_of(results.rows["AVIS"]).right[0]
    live = [record["policy"]["right"] for record in results.records]
    differing = sum(bool(a != b) for a, b in zip(offline, live, strict=True))
    # On the CPU tokens are the same but for rounding that follows the number of rollouts, which is rare.
    return [f"AVIS with early stop differs on {differing} examples"] if differing > 0.01 * len(live) else []
