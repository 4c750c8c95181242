"""Devices for inference: every GPU that passes a small computation, else the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..problems import Problem

# Batch size in studies: a GPU needs many rows to be busy, a CPU gains nothing from them.
STUDIES_ON_GPU, STUDIES_ON_CPU = 8, 1


class DeviceLost(Exception):
    """A device that no longer computes: every later call on it would fail."""


def choose_devices(problems: list[Problem], wanted: str = "") -> list[torch.device]:
    """One device per worker: those `wanted` (comma-separated names), else all GPUs, else the CPU.

    A device that torch does not know or cannot use is a Problem.
    """
    # torch.backends.cudnn.benchmark stays off: each worker would time cuDNN's algorithms for itself, and workers that
    # take different ones give a study different bytes.

    def usable(names: Iterable[str], kind: str, hint: str = "") -> list[torch.device]:
        found = []
        for name in names:
            try:
                if computes(torch.device(name)):
                    found.append(torch.device(name))
            except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA asserts
                problems.append(Problem("", "device", kind, f"{name}: {str(error).splitlines()[0]}{hint}"))
        return found

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    return (
        usable(filter(None, wanted.split(",")), "device-unusable")
        or usable(gpus, "gpu-unusable", "; ask for machine_shape NvidiaTeslaT4")
        or [torch.device("cpu")]
    )


def default_device() -> torch.device:
    """The current GPU if torch has one, else the CPU: for work on a single device."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes(device: torch.device) -> bool:
    """Whether a matrix product is right.  Raises RuntimeError, as torch does."""
    ones = torch.ones(8, 8, device=device)
    return float((ones @ ones).sum()) == 512.0


def check_alive(device: torch.device) -> None:
    """After a failed forward: raises DeviceLost where the device, not the network, is at fault."""
    try:
        alive = computes(device)
    except RuntimeError as error:
        raise DeviceLost(str(error).splitlines()[0]) from error
    if not alive:
        raise DeviceLost(f"{device} computes wrongly")


def studies_at_once(devices: Sequence[torch.device]) -> int:
    """Default batch size in studies."""
    return STUDIES_ON_GPU if any(device.type == "cuda" for device in devices) else STUDIES_ON_CPU
