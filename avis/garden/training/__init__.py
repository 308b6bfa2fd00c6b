"""Trains the garden's models: `python -m avis.garden.training --preset cpu --out models/next/garden-tiny`.

`stages` says what is trained on in which order, `data` draws it, `losses` judges it, `trainer` does it.
"""
