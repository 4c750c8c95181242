"""Which GPUs this machine has for us, and one of them for each job."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GPUS = "LUMBAR_GPUS"


def gpus_here() -> int:
    """How many NVIDIA GPUs this machine has for us, without loading what takes seconds."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([one for one in visible.split(",") if one.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@contextmanager
def one_gpu(folder: Path) -> Iterator[None]:
    """Keep one of this machine's GPUs to oneself, where a run said which it may use; a cluster gives its own.

    `folder`: where those who share the GPUs see which are taken.
    """
    names = os.environ.get(GPUS, "")
    if not names:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for name in names.split(","):
            with open(folder / f"gpu{name}.lock", "a+") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                os.environ["CUDA_VISIBLE_DEVICES"] = name
                yield
                return
        time.sleep(1)
