"""The numbers of history.csv as a TensorBoard event file beside it, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .curves import EpochRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PATTERN = "events.out.tfevents.*"


class Scalars:
    """One event file in `folder`, opened with the first epoch that is added.

    A run that goes on begins a new file with all epochs so far, in place of the old one, so that none is told twice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def add_newest(self, history: Sequence[EpochRecord]) -> None:
        """Write the last epoch, and at first those before it."""
        told = history[-1:]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            for old in self.folder.glob(PATTERN):
                old.unlink()
            # A viewer that has seen the old file forgets what it had from this epoch on.
            self._writer, told = SummaryWriter(str(self.folder), purge_step=1), history
        for record in told:
            for name, value in asdict(record).items():
                if name != "epoch" and value is not None:
                    self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()
