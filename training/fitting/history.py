"""The history of a run, epoch by epoch: history.csv, a TensorBoard event file, and curves.png."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from kernels.lumbar.run.submission import whole_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENT_FILES = "events.out.tfevents.*"


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a run."""

    epoch: int
    """From 1."""
    train_loss: float
    validation_loss: float
    """NaN if the held-out studies have no label for this network."""
    median_error_px: float | None
    """Localisers: median error of known landmarks, in input pixels."""
    seconds: float
    learning_rate: float
    """Of the epoch's first step."""
    median_error_mm: float | None = None
    """The same error in mm, where the spacing of the images is known."""


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
        in_mm = all(record.median_error_mm is not None for record in history if record.median_error_px is not None)
        found = [record.median_error_mm if in_mm else record.median_error_px for record in history]
        errors = [float("nan") if one is None else one for one in found]
        panels[1].plot(epochs, errors, marker=".", label="validation")
        panels[1].set_ylabel(f"median error, {'mm' if in_mm else 'pixels of the input'}")
        panels[1].set_ylim(bottom=0)
    for panel in panels:
        panel.axvline(best_epoch, linewidth=1, linestyle=":", color="black", label="kept")
        panel.set_xlabel("epoch")
        panel.legend()
    figure.suptitle(title)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


class Scalars(ExitStack):
    """The numbers of history.csv as a TensorBoard event file in `folder`, opened with the first epoch that is added.

    A resumed run replaces the old file by a new one with all epochs so far, so that none is written twice.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def add_newest(self, history: Sequence[EpochRecord]) -> None:
        """Write the last epoch; at first all epochs."""
        new = history[-1:]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds

            for old in self.folder.glob(EVENT_FILES):
                old.unlink()
            # purge_step: a viewer that has read the old file discards it.
            self._writer, new = self.enter_context(SummaryWriter(str(self.folder), purge_step=1)), history
        for record in new:
            for name, value in asdict(record).items():
                if name != "epoch" and value is not None:
                    self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()
