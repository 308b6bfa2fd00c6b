"""Print the tables of committed results, put them into documents, or check that documents show them.

    python -m avis.evaluation.tables             # prints every table that the results allow
    python -m avis.evaluation.tables --check     # exit status 1 when a document shows other numbers than the results
    python -m avis.evaluation.tables --write     # puts them into README.md, docs/*.md and the models' cards
    python -m avis.evaluation.tables --of DIR    # prints the tables of another folder of results
    python -m avis.evaluation.tables --from-vlmevalkit DIR     # prints the paper's tables from VLMEvalKit's outputs

A document shows the table KIND of `avis/evaluation/results/RESULT.jsonl.gz` between two lines:

    <!-- table: KIND RESULT -->
    <!-- end -->

The mark `<!-- table: all -->` shows every table; `registry.py` lists the kinds. Percentages are right answers with 95%
intervals (Wilson's, for as many trials as scenes; two seeds are averaged). Differences, and FLOPs relative to vanilla,
have percentile intervals of 10,000 resamples, clustered by scene.
"""

import argparse
import sys
from pathlib import Path

from avis.cli import ArgumentParser, run_command
from avis.evaluation.tables.documents import check_documents, make_all_tables, write_documents
from avis.evaluation.tables.harness import tables_from_vlmevalkit
from avis.evaluation.tables.store import RESULTS, ROOT, Store


def build_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(prog="python -m avis.evaluation.tables", description="Tables from committed results.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="fail when a document shows other numbers")
    action.add_argument("--write", action="store_true", help="renew the tables of README, docs and cards")
    action.add_argument("--from-vlmevalkit", type=Path, metavar="DIR", help="the launcher's --work-dir, after its runs")
    action.add_argument("--of", type=Path, metavar="DIR", help="print the tables of another folder of results")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository's folder (default: this one)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Do what the parsed command line says. Returns 0, or 1 when a check fails. Raises ValueError or OSError."""
    if args.check:
        problems = check_documents(args.root)
        for problem in problems:
            print(problem, file=sys.stderr)
        return 1 if problems else 0
    if args.write:
        for path in write_documents(args.root):
            print(path)
        return 0
    if args.from_vlmevalkit:
        print(tables_from_vlmevalkit(args.from_vlmevalkit))
        return 0
    folder = args.of or args.root / RESULTS
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}")
    print(make_all_tables(Store(folder)), end="")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
