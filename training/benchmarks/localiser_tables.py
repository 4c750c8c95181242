"""Findings of localisers (training/evaluation/localiser_findings.py) as tables of text, as JSON and as curves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kernels.lumbar.labels import LEVELS
from training.evaluation.json_safe import finite
from training.evaluation.localiser_findings import summary

VIEW_NAMES = {"sagittal_t2": "canal, Sag T2", "sagittal_t1": "foramina, Sag T1", "axial_t2": "recesses, Ax T2"}
CURVE_END_MM = 20.0
Costs = Mapping[str, Mapping[str, float | None]]


def report(findings: pd.DataFrame, costs: Costs) -> tuple[str, dict[str, Any]]:
    """The two tables as text, and all their numbers by localiser: those with costs in their order, then the others."""
    numbers: dict[str, Any] = {}
    for name in dict.fromkeys([*costs, *findings["localiser"]]):
        own = findings[findings["localiser"] == name]
        views = {view: own[own["view"] == view] for view in VIEW_NAMES if (own["view"] == view).any()}
        numbers[name] = {
            "together": summary(own),
            "sagittal": summary(own[own["view"].str.startswith("sagittal")]),
            "views": {view: summary(part) for view, part in views.items()},
            "levels": {
                view: {level: summary(part[part["level"] == level]) for level in LEVELS} for view, part in views.items()
            },
            "cost": dict(costs.get(name, {})),
        }
    return f"{_main_table(numbers)}\n\n{_level_tables(numbers)}", finite(numbers)


def _main_table(numbers: Mapping[str, Any]) -> str:
    """A row a localiser; what it does not answer, or does not have, is a dash."""
    width = max(len(name) for name in numbers) + 1
    error = "".join(f" {title:^17}" for title in VIEW_NAMES.values())
    over = f"{'error in plane, mm':{width}}{error}  {'within':^11}  {'right level':^11}  {'right slice':^11}"
    under = f"{'':{width}}" + " {:>8} {:>8}".format("median", "95 %") * len(VIEW_NAMES)
    under += "  {:>5} {:>5}".format("5 mm", "10 mm") + "  {:>5} {:>5}".format("sag.", "axial") * 2
    lines = [over, under + f"  {'found':>6} {'M par.':>7} {'GFLOPs':>7} {'ms':>7}"]
    for name, one in numbers.items():
        views, sagittal, axial = one["views"], one["sagittal"], one["views"].get("axial_t2", {})
        cells = [f"{name:{width}}"]
        for view in VIEW_NAMES:
            own = views.get(view, {})
            cells.append(f" {_number(own.get('median_mm'), 8)} {_number(own.get('p95_mm'), 8)}")
        cells.append(f"  {_percent(one['together']['within_5_mm'])} {_percent(one['together']['within_10_mm'])}")
        for what in ("right_level", "right_slice"):
            cells.append(f"  {_percent(sagittal[what])} {_percent(axial.get(what))}")
        cost = one["cost"]
        millions = None if cost.get("parameters") is None else cost["parameters"] / 1e6
        cells.append(f"  {_percent(one['together']['found'], 6)} {_number(millions, 7, 2)}")
        cells.append(f" {_number(cost.get('gflops'), 7, 2)} {_number(cost.get('ms'), 7)}")
        lines.append("".join(cells))
    return "\n".join(lines)


def _level_tables(numbers: Mapping[str, Any]) -> str:
    """A table a view: median and 95th percentile of the error, and right levels and slices, at each level."""
    width = max(len(name) for name in numbers) + 1
    blocks = []
    for view, title in VIEW_NAMES.items():
        titles = "".join(f"  {level.upper().replace('_', '/'):^23}" for level in LEVELS)
        columns = "  {:>5} {:>5} {:>5} {:>5}".format("med.", "95 %", "level", "slice") * len(LEVELS)
        lines = [f"{title:{width}}{titles}".rstrip(), f"{'':{width}}{columns}"]
        for name, one in numbers.items():
            if view not in one["levels"]:
                continue
            cells = [
                f"  {_number(at['median_mm'], 5)} {_number(at['p95_mm'], 5)}"
                f" {_percent(at['right_level'])} {_percent(at['right_slice'])}"
                for at in one["levels"][view].values()
            ]
            lines.append(f"{name:{width}}{''.join(cells)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _number(value: float | None, width: int, digits: int = 1) -> str:
    if value is None or math.isnan(value):
        return f"{'–':>{width}}"
    return f"{'∞':>{width}}" if math.isinf(value) else f"{value:{width}.{digits}f}"


def _percent(share: float | None, width: int = 5) -> str:
    if share is None or math.isnan(share):
        return f"{'–':>{width}}"
    return f"{min(100 * share, 99.9):{width - 1}.1f}%" if share < 1 else f"{'100%':>{width}}"


def draw_curves(findings: pd.DataFrame, path: Path) -> None:
    """One panel a view, one curve a localiser: the share of its landmarks that it finds within so many mm.

    A recipe has one colour; its whole set of localisers is the thick line.
    """
    figure, axes = plt.subplots(1, len(VIEW_NAMES), figsize=(18, 7.5), sharey=True)
    limits = np.linspace(0, CURVE_END_MM, 201)
    recipes = list(dict.fromkeys(str(name).split()[0] for name in findings["localiser"]))
    for axis, (view, title) in zip(axes, VIEW_NAMES.items(), strict=True):
        drawn: Counter[str] = Counter()
        for name, own in findings[findings["view"] == view].groupby("localiser", sort=False):
            errors = own["error_mm"].to_numpy(float)
            if np.isnan(errors).any():
                continue
            recipe = str(name).split()[0]
            style: dict[str, Any] = {"color": f"C{recipes.index(recipe)}", "linewidth": 2.6}
            if str(name).startswith("mean shape"):
                style = {"color": "black", "linestyle": "--"}
            elif "together" not in str(name):
                style |= {"linewidth": 1.3, "linestyle": ("-", "--", ":", "-.")[drawn[recipe] % 4]}
                drawn[recipe] += 1
            axis.plot(limits, (errors[:, None] <= limits).mean(0), label=str(name), **style)
        axis.set_title(title)
        axis.set_xlabel("error in plane, mm")
        axis.set_xlim(0, CURVE_END_MM)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=8, frameon=False)
    axes[0].set_ylabel("share of landmarks")
    axes[0].set_ylim(0, 1.01)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
