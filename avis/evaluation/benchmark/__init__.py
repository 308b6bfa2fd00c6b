"""The speed benchmark: seconds by stage, beside upstream's `generate`, the machine's limits and a cost model::

    python -m avis.evaluation.benchmark --geometry tiny --out runs/tiny.json
    python -m avis.evaluation.benchmark.plots runs/tiny.json --folder runs

`docs/speed.md` says what is measured and how to read it. `geometry` builds the models, `measure` runs a sweep and
`latency` the table of question pairs, `rates` measures the machine, `cost_model` predicts from those rates, `summary`
makes the document, and `goals` judges it.
"""
