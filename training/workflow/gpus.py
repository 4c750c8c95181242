"""The GPUs of this machine, and one of them for each job."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kernels.locks import BusyError, hold

GPUS = "LUMBAR_GPUS"


def gpus_here() -> int:
    """How many NVIDIA GPUs this machine has, of those that CUDA_VISIBLE_DEVICES names; without importing torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([one for one in visible.split(",") if one.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@contextmanager
def one_gpu(folder: Path) -> Iterator[None]:
    """Hold one of the GPUs that LUMBAR_GPUS names, the only one visible here; a cluster assigns its own.

    `folder`: of the lock files of the processes that share the GPUs.
    """
    names = os.environ.get(GPUS, "")
    with ExitStack() as stack:
        if names:
            os.environ["CUDA_VISIBLE_DEVICES"] = _hold_one(stack, folder, names.split(","))
        yield


def _hold_one(stack: ExitStack, folder: Path, names: Sequence[str]) -> str:
    while True:
        for name in names:
            with suppress(BusyError):
                stack.enter_context(hold(folder / f"gpu{name}.lock", wait=False))
                return name
        time.sleep(1)
