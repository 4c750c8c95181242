"""What the figures were measured on, and what it can do at most."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import torch

from .setting import Record, Setting

ROUNDS = 10


def measure(setting: Setting, record: Record) -> None:
    """Names and versions, one copy, one product."""
    about = record.table("machine", ["what", "is"])
    about.rows += [
        ["python", platform.python_version()],
        ["torch", torch.__version__],
        ["cores", os.cpu_count() or 0],
        ["TF32 of convolutions, of products", f"{torch.backends.cudnn.allow_tf32}, {_tf32_of_products()}"],
        ["TorchScript may fuse on a GPU", str(torch._C._jit_can_fuse_on_gpu())],
    ]
    if setting.device == "cuda":
        about.rows += [
            ["GPU", torch.cuda.get_device_name(0)],
            ["GPU memory, GiB", torch.cuda.get_device_properties(0).total_memory / 2**30],
            ["capability, built for", f"{torch.cuda.get_device_capability(0)}, {' '.join(torch.cuda.get_arch_list())}"],
            ["cuDNN", str(torch.backends.cudnn.version())],
        ]
    record.save()
    size = 512 if setting.small else 8192
    dtype = torch.float32 if setting.device == "cpu" else torch.float16
    a = torch.randn(size, size, device=setting.device).to(dtype)
    b = torch.randn_like(a)
    about.rows.append([f"product, TFLOP/s {dtype}", 2 * size**3 / seconds_of(lambda: a @ b, setting.device) / 1e12])
    source, target = (torch.empty(size * size, device=setting.device) for _ in range(2))
    copied = 2 * source.numel() * source.element_size()
    about.rows.append(["copy, GB/s", copied / seconds_of(lambda: target.copy_(source), setting.device) / 1e9])


def _tf32_of_products() -> bool:
    return bool(torch.backends.cuda.matmul.allow_tf32)


def seconds_of(call: Callable[[], object], device: str, rounds: int = ROUNDS) -> float:
    """Seconds of one call, the median of some, after two to warm up."""
    for _ in range(2):
        call()
    taken = []
    for _ in range(rounds):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 2]


def wait(device: str) -> None:
    """Until the device has done all that it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()
