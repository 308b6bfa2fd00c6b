"""The task "taller": by how much some bars of a chart are higher than others."""

from avis.garden.pages import MAX_BAR
from avis.garden.tasks.gap import Gap


class Taller(Gap):
    """Difference of two sums of heights, each of one bar or more."""

    name = "taller"
    looks = ("chart",)
    most = MAX_BAR
