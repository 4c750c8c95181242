"""The history of a run as a table and a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from matplotlib.figure import Figure

from kernels.lumbar.run.submission import whole_file


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did."""

    epoch: int
    """From 1."""
    train_loss: float
    validation_loss: float
    """NaN where the held-out studies have no label for this member."""
    median_error_px: float | None
    """Localisers: median distance of known landmarks from their place, in input pixels."""
    seconds: float
    learning_rate: float
    """Of the epoch's first step."""


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """history.csv, one line an epoch."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [field.name for field in fields(EpochRecord)])
        table.writeheader()
        table.writerows(asdict(record) for record in history)


def draw_curves(path: Path, history: Sequence[EpochRecord], title: str, best_epoch: int) -> None:
    """curves.png: losses, and for localisers the median error, by epoch."""
    epochs = [record.epoch for record in history]
    has_error = any(record.median_error_px is not None for record in history)
    figure = Figure(figsize=(10 if has_error else 6, 4), layout="constrained")
    panels = figure.subplots(1, 1 + has_error, squeeze=False)[0]
    panels[0].plot(epochs, [record.train_loss for record in history], marker=".", label="training")
    panels[0].plot(epochs, [record.validation_loss for record in history], marker=".", label="validation")
    panels[0].set_ylabel("loss")
    if has_error:
        errors = [float("nan") if r.median_error_px is None else r.median_error_px for r in history]
        panels[1].plot(epochs, errors, marker=".", label="validation")
        panels[1].set_ylabel("median error, pixels")
        panels[1].set_ylim(bottom=0)
    for panel in panels:
        panel.axvline(best_epoch, linewidth=1, linestyle=":", color="black", label="kept")
        panel.set_xlabel("epoch")
        panel.legend()
    figure.suptitle(title)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
