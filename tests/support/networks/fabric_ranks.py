"""What test_fabric.py lets torchrun start twice: fits shared by two processes.  `fabric_ranks.py OUT`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.support.networks.tiny_members import TinySamples, grader, localiser
from training.data.samples.batch import Batch
from training.fitting.device import device_of
from training.fitting.loop import fit
from training.fitting.time_limit import StoppedBySignal
from training.recipe_schema.schema import MemberRecipe

CPU = torch.device("cpu")
STEPS = 22
"""More than the steps after which processes agree whether to stop."""
SHARED: dict[str, MemberRecipe] = {
    # No batch normalisation, whose statistics are those of each process's part.
    "grader": grader(backbone="test_convnext", epochs=2, batch_size=6, ema_decay=0.9, learning_rate=1e-4),
    "localiser": localiser(epochs=1, batch_size=6, learning_rate=1e-4),
}
STOPPED = grader(backbone="test_convnext", epochs=1, options={"view_dropout": 0.4})


class Terminated(TinySamples):
    """The second process is told to end, in the midst of an epoch."""

    def training(self, epoch: int) -> Iterator[Batch]:
        for number, batch in enumerate(super().training(epoch)):
            if number == 7 and device_of(CPU).rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def main(out: Path) -> None:
    """Fit all, and one of them twice: undisturbed and stopped.  Each process leaves its own weights."""
    torch.set_num_threads(1)
    rank = device_of(CPU).rank
    nets = {name: fit(recipe, TinySamples(recipe), out / name, CPU, seed=5).net for name, recipe in SHARED.items()}
    nets["undisturbed"] = fit(STOPPED, TinySamples(STOPPED, STEPS, 4), out / "undisturbed", CPU, seed=5).net
    try:
        fit(STOPPED, Terminated(STOPPED, STEPS, 4), out / "stopped", CPU, seed=5)
    except StoppedBySignal as stopped:
        (out / f"said{rank}.txt").write_text(str(stopped))
    nets["stopped"] = fit(STOPPED, TinySamples(STOPPED, STEPS, 4), out / "stopped", CPU, seed=5).net
    torch.save({name: net.state_dict() for name, net in nets.items()}, out / f"weights{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
