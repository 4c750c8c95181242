"""The device of a fit: one, or several that share every batch (data parallel).  The only user of Lightning Fabric.

One process per device.  `torchrun --nproc-per-node N [--nnodes M …] -m <module>` starts N processes on each of M
machines and sets their environment; a process started without it is alone, on a cluster too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from training.recipe_schema.fitting import Precision

from . import FitError
from .losses.registry import outputs_of

MOST_CUTTING_THREADS = 8
# Environment variables that torchrun sets.
RANKS, RANKS_HERE = "WORLD_SIZE", "LOCAL_WORLD_SIZE"


def ranks() -> int:
    """Number of processes that fit one network together."""
    return int(os.environ.get(RANKS, 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


class Device:
    """One process's device, and its communication with the other processes."""

    def __init__(self, device: torch.device, precision: Precision, *, mixed_on_cpu: bool = False) -> None:
        # Imported here: Fabric takes seconds.
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
        from lightning_fabric.strategies import DDPStrategy

        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and precision == "float16")
        self.is_mixed = precision != "float32" and (device.type == "cuda" or mixed_on_cpu)
        plugins: list[Any] = [_mixed(device.type, self.scaler)] if self.is_mixed else []
        self.ranks = ranks()
        here = int(os.environ[RANKS_HERE]) if self.ranks > 1 else 1
        if device.type == "cuda" and here > torch.cuda.device_count():
            raise FitError(
                f"torchrun started {here} processes on a machine with {torch.cuda.device_count()} GPUs: "
                "give it --nproc-per-node with the number of GPUs"
            )
        alone = self.ranks == 1
        self.fabric = Fabric(
            accelerator=device.type,
            # Some parameters may be unused in a batch, such as the vector of a missing view.
            strategy="auto" if alone else DDPStrategy(find_unused_parameters=True),
            devices=[device.index or 0] if alone and device.type == "cuda" else here,
            num_nodes=self.ranks // here,
            # Explicit, as Fabric would otherwise infer several processes from a cluster job's variables.
            plugins=[*plugins, LightningEnvironment() if alone else TorchElasticEnvironment()],
        )
        self.fabric.launch()
        self.rank = self.fabric.global_rank
        self.device: torch.device = device if alone else self.fabric.device

    @property
    def cutting_threads(self) -> int:
        """Threads that cut batches: on a CPU half of those that compute beside them; beside a GPU this process's share
        of the cores."""
        if self.device.type == "cpu":
            return min(MOST_CUTTING_THREADS, max(1, torch.get_num_threads() // 2))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        here = int(os.environ[RANKS_HERE]) if self.ranks > 1 else 1
        return min(MOST_CUTTING_THREADS, max(2, cores // here))

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def prepare(self, net: nn.Module, optimiser: torch.optim.Optimizer) -> nn.Module:
        """A module of the network's outputs whose backward pass averages gradients over all processes."""
        module, _ = self.fabric.setup(_Outputs(net), optimiser, move_to_device=False)
        return module

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast in this device's precision."""
        return self.fabric.autocast()

    def backward(self, loss: Tensor, module: nn.Module, *, last: bool) -> None:
        """Accumulate gradients; with the `last` part of a batch they are averaged over all processes."""
        with self.fabric.no_backward_sync(module, enabled=not last):  # type: ignore[arg-type]
            self.fabric.backward(loss)

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """One optimiser step, skipped if half precision overflowed.  Gradients must be unscaled by `scaler`."""
        self.scaler.step(optimiser)
        self.scaler.update()

    def sum(self, *values: Tensor) -> Tensor:
        """(N,) each value summed over all processes."""
        stacked = torch.stack([value.detach().float() for value in values])
        if self.ranks > 1:
            torch.distributed.all_reduce(stacked)
        return stacked

    def gather(self, value: Any) -> list[Any]:
        """All processes' values, by rank, in every process."""
        if self.ranks == 1:
            return [value]
        found: list[Any] = [None] * self.ranks
        torch.distributed.all_gather_object(found, value)
        return found

    def align(self, net: nn.Module) -> None:
        """Copy buffers, such as running statistics, from the first process to all."""
        if self.ranks > 1:
            for buffer in net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait for all processes."""
        self.fabric.barrier()


class _Outputs(nn.Module):
    """A network's `outputs`, from which the loss is computed, as a forward pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Any:
        return outputs_of(self.net)(*inputs)


@cache
def device_of(device: torch.device, precision: Precision = "float16", *, mixed_on_cpu: bool = False) -> Device:
    """The device of this process, created once; waits for all processes.

    A CPU computes in single precision, or `mixed_on_cpu` in bfloat16 where the precision is a half one.  Raises
    FitError for too few GPUs.
    """
    return Device(device, precision, mixed_on_cpu=mixed_on_cpu)


def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16, so that mixed precision is faster than single; known on Linux alone."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _mixed(device: str, scaler: torch.amp.GradScaler) -> Any:
    from lightning_fabric.plugins.precision import MixedPrecision

    name: Literal["16-mixed", "bf16-mixed"] = "16-mixed" if scaler.is_enabled() else "bf16-mixed"

    class Mixed(MixedPrecision):
        """Inputs stay float32: coordinates in pixels need more precision than half floats have."""

        def convert_input(self, data: Any) -> Any:
            return data

    return Mixed(name, device, scaler if scaler.is_enabled() else None)


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Deterministic algorithms only.  Raises FitError for an operation that has none."""
    if not on:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is refused
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise FitError(f"{str(error).partition(',')[0]}: set fitting.optimisation.deterministic: false") from error
    finally:
        torch.use_deterministic_algorithms(before)
