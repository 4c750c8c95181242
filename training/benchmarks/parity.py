"""Every network of a package on a device against the CPU: single precision, with and without TensorFloat-32, half."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from kernels.lumbar.labels import UNITS
from kernels.lumbar.manifest import Artefact
from kernels.lumbar.networks.devices import STUDIES_ON_GPU, computes
from kernels.lumbar.networks.loading import LoadedMember, load_fastest
from kernels.lumbar.networks.weights import checked_bytes, golden_inputs, read_manifest
from training.benchmarks.tables import Cell, Record, Table

ROWS, ROUNDS = 4, 3
# Limits in single precision: largest difference of a logit, median difference of a place.
LOGIT_EXACT, LOGIT_TF32, PX_EXACT, PX_TF32 = 2e-3, 5e-2, 0.05, 0.25
COLUMNS = ["network", "unit", "varies", "golden", "single", "TF32", "half", "half median", "kernel takes"]
COLUMNS += ["single, ms a study", "half"]


def compare(folder: Path, device: torch.device, record: Record, is_late: Callable[[], bool] = lambda: False) -> Table:
    """One row a network: largest differences from the CPU's answers, px for localisers and logits for graders.

    "golden": the CPU's answer against that of the exporting machine.  Half precision and times only on a GPU.
    """
    artefacts = read_manifest(folder / "manifest.json").artefacts
    made_by = ", ".join(sorted({artefact.provenance.torch_version for artefact in artefacts}))
    table = record.table(
        f"parity on {device}, package of torch {made_by}: px of localisers, logits of graders", COLUMNS
    )
    assert computes(device)
    for artefact in artefacts:
        if is_late():
            record.check(False, f"only {len(table.rows)} of {len(artefacts)} networks were compared")
            break
        try:
            table.rows.append(_row(folder, artefact, device, record))
        except Exception as error:  # noqa: BLE001 - an error of one network must not cost the others
            record.check(False, f"{artefact.member.name}: {type(error).__name__}: {str(error).strip()[-200:]}")
        record.save()
    table.remarks = [f"noise of {ROWS} rows; ms a study: {STUDIES_ON_GPU} studies at once, all test-time augmentation"]
    return table


def _row(folder: Path, artefact: Artefact, device: torch.device, record: Record) -> list[Cell]:
    member, seed, cpu = artefact.member, artefact.weights.golden_seed, torch.device("cpu")
    localises = member.role == "localiser"
    data = checked_bytes(folder, artefact)
    reference = LoadedMember(artefact, _module(data, cpu).float(), cpu, False)
    *views, present = golden_inputs(member, seed, ROWS)
    expected = reference(views, present)
    golden = torch.tensor(artefact.weights.golden_output).reshape(-1, *expected.shape[1:])
    *golden_views, golden_present = golden_inputs(member, seed)
    at_home = _difference(reference(golden_views, golden_present), golden, localises)
    single = LoadedMember(artefact, _module(data, device).float(), device, False)
    with tf32(False):
        exact = _difference(single(views, present), expected, localises)
    with tf32(True):
        rounded = _difference(single(views, present), expected, localises)
    half_row: list[Cell] = [None, None]
    times: list[Cell] = [None, None]
    if device.type == "cuda":
        single_ms = _ms_a_study(single)
        half = LoadedMember(artefact, single.module.half(), device, True)  # changes `single` as well
        half_row = [*_difference(half(views, present), expected, localises)]
        times = [single_ms, _ms_a_study(half)]
    judged, limits = (1, (PX_EXACT, PX_TF32)) if localises else (0, (LOGIT_EXACT, LOGIT_TF32))
    for name, found, limit in (
        ("golden", at_home, limits[0]),
        ("single", exact, limits[0]),
        ("TF32", rounded, limits[1]),
    ):
        record.check(found[judged] <= limit, f"{member.name}: {name} is off by {found[judged]:.2g}, not {limit}")
    varies = float((expected[..., 1:3] if localises else expected).std(0).mean())
    taken = load_fastest(artefact, data, device).precision
    return [member.name, member.unit, varies, at_home[0], exact[0], rounded[0], *half_row, taken, *times]


def _module(data: bytes, device: torch.device) -> torch.jit.ScriptModule:
    module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(data), map_location=device)
    return module.eval()


def _difference(answer: Tensor, expected: Tensor, localises: bool) -> tuple[float, float]:
    """Largest and median: in px along rows and columns, or of logits.  Infinite where something is not finite."""
    apart = answer - expected
    apart = apart[..., 1:3].norm(dim=-1) if localises else apart.abs()
    apart = torch.where(apart.isfinite(), apart, torch.inf)
    return float(apart.max()), float(apart.median())


def _ms_a_study(loaded: LoadedMember) -> float:
    """Of a batch of studies, in the best of some rounds."""
    member = loaded.member
    rows = STUDIES_ON_GPU * len(UNITS[member.unit]) * member.passes
    *views, present = golden_inputs(member, loaded.artefact.weights.golden_seed, rows)
    loaded(views, present)
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        loaded(views, present)  # copies the answer to the CPU, so nothing is outstanding
        best = min(best, time.perf_counter() - started)
    return 1e3 * best / STUDIES_ON_GPU


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """TensorFloat-32 in products and convolutions, or not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
