"""AVIS as a model of other evaluation harnesses: `vlmevalkit` and `lmms_eval`; see `docs/harnesses.md`.

`asker` is what both share, and `vlmevalkit_results` reads what a run of VLMEvalKit has left.
"""
