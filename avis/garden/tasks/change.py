"""The task "change": what is left of a sum of money when a group of animals has been bought."""

from avis.garden.scenes import KINDS, WEARS
from avis.garden.tasks.steps import OrderedTask, describe_group, draw_group, near_totals, tagged_group, totals_at
from avis.garden.tasks.total import place_group

SUMS = (70, 80, 90, 100)  # more than any group costs, so that the sum does not tell how large the group is


class Change(OrderedTask):
    """Taking tags from a sum, one by one in any order."""

    name = "change"
    values = tuple(map(str, range(6, 97)))

    def draw_subject(self, rng):
        return (int(rng.choice(SUMS)), *draw_group(rng, KINDS, WEARS))

    def answers(self, level, about):
        return [str(about[0] - total) for total in totals_at(*level.terms)]

    def compose(self, rng, level, width, height, about, answer, extras):
        return (place_group(rng, level, width, height, about[1:], about[0] - int(answer), extras),)

    def solve(self, scenes, about):
        tags = [animal.price for _, animal in tagged_group(scenes[0], *about[1:])]
        left = str(about[0] - sum(tags))
        return left if tags and left in self.values else None

    def wordings(self, about):
        paid, who = about[0], describe_group(*about[1:])
        return [
            f"You pay for {who} with {paid}. How much change do you get?",
            f"You have {paid} and buy {who}. How much is left?",
            f"What remains of {paid} when {who} are paid for?",
        ]

    def near_answers(self, scenes, about):
        tags = [animal.price for _, animal in tagged_group(scenes[0], *about[1:])]
        return [str(about[0] - total) for total in near_totals(sum(tags), tags)]

    def steps(self, scenes, about):
        return tagged_group(scenes[0], *about[1:])

    def write(self, scenes, about, order):
        left, found = about[0], []
        for rank, animal in order:
            left -= animal.price
            found.append(f"{rank} {animal.price} {left}")
        return f"{about[0]}; {', '.join(found)}"
