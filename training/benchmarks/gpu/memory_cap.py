"""Too little memory, by a cap: networks take fewer rows at once, and the kernel's answers stay what they were."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from kernels.lumbar import predict
from kernels.lumbar.labels import UNITS
from kernels.lumbar.networks.loading import LoadedMember, load_fastest
from kernels.lumbar.networks.weights import golden_inputs, read_manifest

from .kernel_runs import KernelRun, arguments, nearly_all, worst
from .setting import Record, Setting

STUDIES, MOST_NETWORKS = 16, 5
# Of what a network takes beyond its weights, and of what the kernel takes beyond its start, so much is left to it.
SHARE, KERNEL_SHARE = 0.45, 0.6
MOST_APART = 0.02
# Memory is reserved in blocks: a network that takes no more than a few fits under the cap all the same.
TOO_SMALL_BYTES = 64 * 2**20


def measure(setting: Setting, record: Record) -> None:
    """The largest networks one by one, then the whole kernel in this process."""
    if setting.device != "cuda":
        record.table("memory cap", ["what"]).rows.append(["only a GPU's memory can be capped: not measured"])
        return
    _networks(setting, record)
    record.save()
    _kernel(setting, record)


def _networks(setting: Setting, record: Record) -> None:
    table = record.table(
        "memory cap, by network", ["network", "rows", "MiB uncapped", "rows under cap", "median difference"]
    )
    artefacts = sorted(
        read_manifest(setting.package / "manifest.json").artefacts,
        key=lambda one: -(one.provenance.gflops_per_study or 0.0),
    )
    for artefact in artefacts[:MOST_NETWORKS]:
        loaded = load_fastest(setting.package, artefact, torch.device("cuda"))
        rows = STUDIES * len(UNITS[artefact.member.unit])
        *views, present = golden_inputs(artefact.member, 3, rows)
        on_device = [view.cuda() for view in views], present.cuda()
        before = _reset()
        free = loaded(*on_device)
        took = torch.cuda.max_memory_reserved() - before
        answer = _capped(loaded, on_device, before + SHARE * took)
        apart = float((answer - free).abs().median())
        table.rows.append([artefact.member.name, rows, took / 2**20, loaded.limit.rows, apart])
        halved = loaded.limit.rows is not None and loaded.limit.rows < rows
        record.check(halved or took < TOO_SMALL_BYTES, f"{artefact.member.name}: rows were not halved")
        record.check(apart <= 0.05, f"{artefact.member.name}: under the cap it answers otherwise by {apart:.2g}")
        record.save()


def _capped(loaded: LoadedMember, inputs: tuple[list[torch.Tensor], torch.Tensor], limit: float) -> torch.Tensor:
    _reset()
    cap(limit)
    try:
        return loaded(*inputs)
    finally:
        cap(None)


def _reset() -> int:
    """Bytes that are held when all that can be is given back."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()


def cap(limit: float | None) -> None:
    """Let this process take so many bytes of the GPU's memory; None = all."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else min(1.0, limit / total))


def _kernel(setting: Setting, record: Record) -> None:
    table = record.table("memory cap, the kernel", ["run", "peak MiB", "difference", "what"])
    free, peak = _run(setting, "uncapped")
    table.rows.append(["uncapped", peak / 2**20, 0.0, free.summary()])
    record.save()
    held = _reset()
    cap(held + KERNEL_SHARE * (peak - held))
    done, peak = _run(setting, "capped")
    cap(None)
    table.rows.append(["capped", peak / 2**20, worst(done, free), done.summary()])
    most = nearly_all(done, free)
    record.check(most <= MOST_APART, f"under a cap 1 % of the rows differ by more than {most:.2g}")
    record.check(done.report["studies"] == free.report["studies"], f"under a cap: {done.summary()}")


def _run(setting: Setting, name: str) -> tuple[KernelRun, int]:
    _reset()
    out: Path = setting.work / name
    code = predict.main(arguments(setting, out, "cuda"))
    sys.stdout.flush()
    assert code == 0, f"the kernel ended with code {code}"
    return KernelRun(out, 0.0), torch.cuda.max_memory_reserved()
