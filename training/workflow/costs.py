"""How long steps will take, estimated from measured steps of the same kind."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean

from training.recipe_schema.schema import MemberRecipe
from training.runs import DONE, PRETRAINING, SECOND, read_object
from training.workflow.grid import TRAININGS, Grid, Step
from training.workflow.staleness import history_of
from training.workflow.step_journal import read_entry


class Costs:
    """Seconds of steps; None where nothing like them was measured.

    `anew`: names of those that are begun again, as what they have is of other inputs.
    """

    def __init__(self, grid: Grid, anew: Collection[str] = ()) -> None:
        self.grid, self.anew = grid, anew

    def of(self, step: Step) -> float | None:
        """What is left of a step that is to be done."""
        if step.kind not in TRAININGS:
            same = [one for one in self.grid.steps.values() if one.kind == step.kind]
            measured = {one.name: entry.longest_s for one in same if (entry := read_entry(self.grid, one))}
            finished = [seconds for seconds in measured.values() if seconds]
            return measured.get(step.name) or (fmean(finished) if finished else None)
        folder, epochs = self.grid.network_folder(step), epochs_of(self.grid.member(step))
        done, spent_s = _epochs_and_seconds(folder)
        if done:
            is_whole = step.name in self.anew or (folder / DONE).is_file()
            left = epochs if is_whole else max(epochs - done, 0)
            return left * spent_s / done
        same_network = [rate for one, rate in self._rates if (one.recipe, one.member) == (step.recipe, step.member)]
        same_kind = [rate for one, rate in self._rates if one.kind == step.kind]
        rates = same_network or same_kind or [rate for _, rate in self._rates]
        return epochs * fmean(rates) if rates else None

    @cached_property
    def _rates(self) -> list[tuple[Step, float]]:
        """Seconds an epoch of all trainings with at least one, finished or not."""
        trainings = [step for step in self.grid.steps.values() if step.kind in TRAININGS]
        measured = [(step, *_epochs_and_seconds(self.grid.network_folder(step))) for step in trainings]
        return [(step, spent_s / epochs) for step, epochs, spent_s in measured if epochs]

    def time_left_s(self, todo: Mapping[str, Sequence[str]], slots: int) -> tuple[float, int]:
        """Seconds until all these steps are done, `slots` at a time, and how many of them count 0 as nothing like them
        was measured.  `todo`: step → its needs among them, each after all that it needs."""
        costs = {name: self.of(self.grid.steps[name]) for name in todo}
        ends: dict[str, float] = {}
        free = [0.0] * max(slots, 1)
        for name in todo:
            began = max([heapq.heappop(free), *(ends[one] for one in todo[name])])
            ends[name] = began + (costs[name] or 0.0)
            heapq.heappush(free, ends[name])
        return max(ends.values(), default=0.0), sum(cost is None for cost in costs.values())


def epochs_of(member: MemberRecipe) -> int:
    """The epochs of all fits of a network."""
    fitting = member.fitting
    further = [fitting.second_step.optimisation.epochs] if fitting.second_step else []
    return fitting.optimisation.epochs + sum(further)


def _epochs_and_seconds(folder: Path) -> tuple[int, float]:
    """Finished epochs of a training, without those of its pretraining, and the seconds of all."""
    epochs, spent_s = 0, 0.0
    for table in (folder, folder / SECOND, folder / PRETRAINING):
        seconds = [float(line["seconds"]) for line in history_of(table)]
        spent_s += sum(seconds)
        epochs += len(seconds) if table.name != PRETRAINING else 0
    return epochs, max(spent_s, float(read_object(folder / DONE).get("seconds", 0.0)))
