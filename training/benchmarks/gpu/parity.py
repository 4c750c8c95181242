"""Every network on CPU, on the device in single precision with and without TensorFloat-32, and in half."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from kernels.lumbar.manifest import Artefact
from kernels.lumbar.networks.devices import computes
from kernels.lumbar.networks.loading import LoadedMember, load_fastest
from kernels.lumbar.networks.weights import checked_bytes, golden_inputs, read_manifest

from .setting import Record, Setting

ROWS = 4
# The largest difference of a logit, and the median one of a place, that single precision may show.
LOGIT_EXACT, LOGIT_TF32, PX_EXACT, PX_TF32 = 2e-3, 5e-2, 0.05, 0.25
COLUMNS = ["network", "unit", "varies", "golden", "single", "TF32", "half", "half median", "takes"]


def measure(setting: Setting, record: Record) -> None:
    """All packages that there are."""
    for folder in filter(None, (setting.foreign, setting.package)):
        compare(folder, setting, record)


def compare(folder: Path, setting: Setting, record: Record) -> None:
    """One row a network: largest differences from the CPU's answers, px for localisers and logits for graders."""
    artefacts = read_manifest(folder / "manifest.json").artefacts
    made_by = {artefact.provenance.torch_version for artefact in artefacts}
    title = f"parity, package of torch {', '.join(sorted(made_by))}: px of localisers, logits of graders"
    table = record.table(title, COLUMNS)
    assert computes(torch.device(setting.device))
    for artefact in artefacts:
        if setting.is_late:
            record.check(False, f"only {len(table.rows)} of {len(artefacts)} networks were compared")
            return
        try:
            table.rows.append(_row(folder, artefact, setting, record))
        except Exception as error:  # noqa: BLE001 - whatever one network raises shall not cost the others
            record.check(False, f"{artefact.member.name}: {type(error).__name__}: {str(error).strip()[-200:]}")
        record.save()


def _row(folder: Path, artefact: Artefact, setting: Setting, record: Record) -> list[str | float | None]:
    member, device = artefact.member, torch.device(setting.device)
    data = checked_bytes(folder, artefact)
    reference = LoadedMember(artefact, _module(data, torch.device("cpu")).float(), torch.device("cpu"), False)
    *views, present = golden_inputs(member, artefact.weights.golden_seed, ROWS)
    expected = reference(views, present)
    golden = torch.tensor(artefact.weights.golden_output).reshape(-1, *expected.shape[1:])
    *two, both = golden_inputs(member, artefact.weights.golden_seed)
    at_home = _difference(reference(two, both), golden, member.role)
    single = LoadedMember(artefact, _module(data, device).float(), device, False)
    with tf32(False):
        exact = _difference(single(views, present), expected, member.role)
    with tf32(True):
        rounded = _difference(single(views, present), expected, member.role)
    half = 0.0, 0.0
    if setting.device == "cuda":
        half = _difference(
            LoadedMember(artefact, single.module.half(), device, True)(views, present), expected, member.role
        )
    of_places = member.role == "localiser"
    judged, limits = (1, (PX_EXACT, PX_TF32)) if of_places else (0, (LOGIT_EXACT, LOGIT_TF32))
    for name, found, limit in (
        ("golden", at_home, limits[0]),
        ("single", exact, limits[0]),
        ("TF32", rounded, limits[1]),
    ):
        record.check(found[judged] <= limit, f"{member.name}: {name} is off by {found[judged]:.2g}, not {limit}")
    varies = expected[..., 1:3] if of_places else expected
    taken = "half" if load_fastest(folder, artefact, device).half else "single"
    spread = float(varies.std(0).mean())
    return [member.name, member.unit, spread, at_home[0], exact[0], rounded[0], half[0], half[1], taken]


def _module(data: bytes, device: torch.device) -> torch.jit.ScriptModule:
    module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(data), map_location=device)
    return module.eval()


def _difference(said: Tensor, expected: Tensor, role: str) -> tuple[float, float]:
    """Largest and median: in px along rows and columns, or of logits.  Infinite where something is not finite."""
    apart = said - expected
    apart = apart[..., 1:3].norm(dim=-1) if role == "localiser" else apart.abs()
    apart = torch.where(apart.isfinite(), apart, torch.inf)
    return float(apart.max()), float(apart.median())


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """TensorFloat-32 in products and convolutions, or not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
