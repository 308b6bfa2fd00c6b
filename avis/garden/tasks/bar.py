"""The task "bar": the height of one bar of a chart, the garden's plainest ChartQA."""

from avis.garden.pages import MAX_BAR
from avis.garden.tasks.cell import Cell


class Bar(Cell):
    """Reading one bar on the chart's scale."""

    name = "bar"
    looks = ("chart",)
    most = MAX_BAR
    slips = (1, 2, 3)
