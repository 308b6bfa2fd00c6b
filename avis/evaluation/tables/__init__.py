"""Tables made from committed results, and checked against them: `python -m avis.evaluation.tables --help`.

`store` reads results; `accuracy`, `comparisons`, `policy_reports` and `speed_reports` make the tables; `registry` names
them; `captions` writes the line below each; `documents` puts them into pages and checks the pages; `harness` makes the
paper's tables from VLMEvalKit's outputs.
"""
