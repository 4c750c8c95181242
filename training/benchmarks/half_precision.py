"""Half precision against single, member by member: how much faster, and how far the answers lie apart."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from tqdm import tqdm

from kernels.lumbar.labels import UNITS
from kernels.lumbar.manifest import Artefact
from kernels.lumbar.networks.devices import STUDIES_ON_GPU
from kernels.lumbar.networks.loading import LoadedMember, load_fastest, load_member
from kernels.lumbar.networks.weights import WeightsError, golden_inputs, read_manifest
from training.benchmarks.table_text import Cell, Table

ROUNDS = 3
NOT_MEASURED = "no GPU: not measured"


def no_gpu() -> Table:
    """What stands in for all tables of a GPU where there is none."""
    return Table("gpu", "GPU", [], remarks=[NOT_MEASURED], figures=[("GPU", NOT_MEASURED)])


def precision(package: str, folder: Path, device: torch.device, studies: int = STUDIES_ON_GPU) -> Table:
    """Each member of a package on noise of the size of a batch of studies."""
    columns = ["member", "single ms a study", "half ms a study", "× as fast", "largest difference", "kernel takes"]
    table = Table(f"precision {device}", f"Half precision against single, {package}, {device}", columns)
    artefacts = read_manifest(folder / "manifest.json").artefacts
    for artefact in tqdm(artefacts, unit="member", desc="precision"):
        table.rows.append(_compared(artefact, folder, device, studies))
    table.remarks = [f"{studies} studies of noise at once; differences of logits (localisers: px)"]
    measured = [row for row in table.rows if row[2] is not None]
    if measured:
        single, half = (sum(float(row[place] or 0) for row in measured) for place in (1, 2))
        worst = max(float(row[4] or 0) for row in measured)
        figure = f"{single / half:.1f} × as fast; logits differ by {worst:.2g} at most"
        table.figures = [(f"half precision against single, {len(measured)} members ({device})", figure)]
    return table


def _compared(artefact: Artefact, folder: Path, device: torch.device, studies: int) -> list[Cell]:
    name = artefact.member.name
    single = load_member(folder, artefact, device)
    single_ms, answer = _timed(single, studies)
    try:
        half_ms, other = _timed(load_member(folder, artefact, device, half=True), studies)
    except WeightsError:  # what it answers is too far from its golden output: the kernel takes single precision
        return [name, single_ms, None, None, None, "single"]
    taken = "half" if load_fastest(folder, artefact, device).half else "single"
    return [name, single_ms, half_ms, single_ms / half_ms, float((answer - other).abs().max()), taken]


def _timed(loaded: LoadedMember, studies: int) -> tuple[float, torch.Tensor]:
    """Milliseconds a study in the best of some rounds, and the answer."""
    member = loaded.member
    rows = studies * len(UNITS[member.unit]) * member.passes
    *views, present = golden_inputs(member, loaded.artefact.weights.golden_seed, rows)
    answer, best = loaded(views, present), float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        answer = loaded(views, present)  # the answer is copied to the CPU, so nothing is outstanding
        best = min(best, time.perf_counter() - started)
    return 1e3 * best / studies, answer
