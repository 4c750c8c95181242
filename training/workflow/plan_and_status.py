"""What `plan` and `status` print: nothing is done, and a run in progress is not disturbed."""

from __future__ import annotations

import time
from collections.abc import Mapping

from kernels.locks import is_busy
from kernels.text import aligned, duration_text
from training.runs import SECOND
from training.workflow.costs import Costs, epochs_of
from training.workflow.grid import TRAININGS, Grid, Step
from training.workflow.staleness import Staleness, Verdict, history_of
from training.workflow.step_journal import is_running, read_entry

# Digits of a validation loss and of a localiser's error in px.
DIGITS = 4


def todo_of(grid: Grid, verdicts: Mapping[str, Verdict]) -> dict[str, tuple[str, ...]]:
    """The steps that are to be done, each with those of its needs that are to be done as well."""
    names = {name for name, verdict in verdicts.items() if not verdict.done}
    return {
        name: tuple(one for one in step.needs if one in names) for name, step in grid.steps.items() if name in names
    }


def plan_of(grid: Grid, slots: int) -> str:
    """What would run, why, and how long it would take."""
    verdicts = Staleness(grid).verdicts()
    anew = {name for name, verdict in verdicts.items() if verdict.begun}
    todo, costs = todo_of(grid, verdicts), Costs(grid, anew)
    if not todo:
        return f"nothing is to be done: all {len(verdicts)} jobs are finished"
    rows = [("job", "why", "time")]
    rows += [(name, verdicts[name].why, duration_text(costs.of(grid.steps[name]))) for name in todo]
    left_s, unknown = costs.time_left_s(todo, slots)
    alone = [cost for name in todo if (cost := costs.of(grid.steps[name])) is not None]
    sums = f"{len(todo)} of {len(verdicts)} jobs would run"
    if unknown == len(todo):
        return "\n".join([*aligned(rows), "", f"{sums}; their time is unknown: none like them was run in this folder"])
    sums += f": {duration_text(sum(alone))} one after the other, {duration_text(left_s)} with {slots} at a time"
    sums += f", and {unknown} jobs of unknown time" if unknown else ""
    return "\n".join([*aligned(rows), "", sums])


def status_of(grid: Grid) -> str:
    """The run table: a line a job."""
    verdicts = Staleness(grid).verdicts()
    rows = [("job", "state", "epoch", "score", "seconds", "device")]
    counts: dict[str, int] = {}
    for name, step in grid.steps.items():
        state = state_of(grid, step, verdicts[name])
        counts[state] = counts.get(state, 0) + 1
        entry = read_entry(grid, step)
        epoch, score, spent_s = _progress(grid, step) if step.kind in TRAININGS else ("", "", 0.0)
        if entry is not None:
            running_s = time.time() - entry.began
            spent_s = running_s if state == "running" else max(spent_s, entry.longest_s)
        rows.append((name, state, epoch, score, f"{spent_s:.0f}" if spent_s else "", entry.device if entry else ""))
    state_counts = ", ".join(f"{count} {state}" for state, count in counts.items())
    in_progress = "a run is in progress" if is_busy(grid.order.runs) else "no run is in progress"
    return "\n".join([*aligned(rows), "", f"{len(verdicts)} jobs: {state_counts}; {in_progress}"])


def state_of(grid: Grid, step: Step, verdict: Verdict) -> str:
    """waiting, running, finished, failed, killed or stale."""
    if is_running(grid, step):
        return "running"
    if verdict.done:
        return "finished"
    entry = read_entry(grid, step)
    if entry is not None and entry.state in ("failed", "running"):
        return "failed" if entry.state == "failed" else "killed"
    return "stale" if verdict.begun else "waiting"


def _progress(grid: Grid, step: Step) -> tuple[str, str, float]:
    """Epoch of epochs, validation loss and error of the last one, and the seconds of all of them."""
    folder = grid.network_folder(step)
    lines = history_of(folder)
    later = history_of(folder / SECOND)
    epochs = f"{len(lines) + len(later)}/{epochs_of(grid.member(step))}"
    if not lines:
        return epochs, "", 0.0
    last = (later or lines)[-1]
    score = f"{float(last['validation_loss']):.{DIGITS}g}"
    unit = "mm" if last.get("median_error_mm") else "px"
    score += f", {float(last[f'median_error_{unit}']):.1f} {unit}" if last["median_error_px"] else ""
    return epochs, score, sum(float(line["seconds"]) for line in (*lines, *later))
