"""Where networks run: every GPU that really computes, else the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..problems import Problem

# Studies that go through a network together: a GPU needs many rows to be busy, a CPU is no faster for them.
STUDIES_ON_GPU, STUDIES_ON_CPU = 8, 1


class DeviceLost(Exception):
    """A device that does not compute any more: all that it is asked will fail."""


def choose_devices(problems: list[Problem], wanted: str = "") -> list[torch.device]:
    """One device a lane of work: those `wanted` (names with commas between), else all GPUs, else the CPU.

    One that this torch does not know or cannot use is a Problem, not a crash.
    """
    named = []
    for name in filter(None, wanted.split(",")):
        try:
            if computes(torch.device(name)):
                named.append(torch.device(name))
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA asserts
            problems.append(Problem("", "device", "device-unusable", f"{name}: {str(error).splitlines()[0]}"))
    return named or _all_devices(problems)


def default_device() -> torch.device:
    """The current GPU if torch has one, else the CPU: for work on a single device."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _all_devices(problems: list[Problem]) -> list[torch.device]:
    usable = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", number)
        try:
            if computes(device):
                usable.append(device)
        except RuntimeError as error:
            detail = f"{device}: {str(error).splitlines()[0]}; ask for machine_shape NvidiaTeslaT4"
            problems.append(Problem("", "device", "gpu-unusable", detail))
    return usable or [torch.device("cpu")]


def computes(device: torch.device) -> bool:
    """Whether a product comes out right.  Raises RuntimeError, as torch does."""
    ones = torch.ones(8, 8, device=device)
    return float((ones @ ones).sum()) == 512.0


def check_alive(device: torch.device) -> None:
    """Raises DeviceLost where a forward failed because its device did, not its network."""
    try:
        alive = computes(device)
    except RuntimeError as error:
        raise DeviceLost(str(error).splitlines()[0]) from error
    if not alive:
        raise DeviceLost(f"{device} computes wrongly")


def studies_at_once(devices: Sequence[torch.device]) -> int:
    """How many studies make a batch."""
    return STUDIES_ON_GPU if any(device.type == "cuda" for device in devices) else STUDIES_ON_CPU
