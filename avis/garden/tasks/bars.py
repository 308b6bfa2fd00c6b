"""The task "bars": what some bars of a chart add up to."""

from avis.garden.pages import MAX_BAR
from avis.garden.tasks.sum import Sum


class Bars(Sum):
    """Adding up the heights of all bars, or of those that are named."""

    name = "bars"
    looks = ("chart",)
    most = MAX_BAR
