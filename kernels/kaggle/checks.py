"""Checks of this machine: disk, GPU, torch, packages, the competition's data and the weights folder."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from kernels.build_notebook import PACKAGE
from kernels.disk import free_bytes
from kernels.imports import imports_of
from kernels.text import first_of

from .client import KaggleError
from .contents import (
    ARCHIVE_BYTES,
    LABELLED,
    STUDIES,
    UNPACKED_BYTES,
    count_contents,
    data_command,
    differences,
    is_other_data,
)
from .dataset import MOST_FILES, read_package

# TorchScript exported by torch versions of this range loads in READERS with the same outputs.
OLDEST_TORCH, NEWEST_TORCH = (2, 6), (2, 13)
READERS, TORCH_ON_KAGGLE = "2.6, 2.8 and 2.10", "2.10 or 2.11"
TRUTH_FOLDER = "truth"  # beside a phantom's data
LISTED = 4
PIP = f"{sys.executable} -m pip install --upgrade"


class Mark(StrEnum):
    OK = "ok"
    SKIP = "-"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """Result of a check; where it is not ok, with a command or a link as remedy."""

    name: str
    mark: Mark
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n{'':26}→ {self.remedy}" if self.remedy else ""
        return f"{self.mark:5} {self.name:20}{self.found}{remedy}"


def check_disk(data: Path | None) -> Finding:
    """Whether there is room for the competition's archive and files, unless they are there."""
    folder = data or Path()
    free = free_bytes(folder)
    found = f"{free / 1e9:.0f} GB free at {folder.absolute()}"
    needed = ARCHIVE_BYTES + UNPACKED_BYTES
    if free >= needed or (data is not None and _is_downloaded(data)):
        return Finding("disk", Mark.OK, found)
    found += f"; the competition takes {UNPACKED_BYTES / 1e9:.0f} GB, and {needed / 1e9:.0f} GB while it is unpacked"
    return Finding("disk", Mark.WARN, found, data_command(Path("<folder on a larger disk>")))


def _is_downloaded(data: Path) -> bool:
    counts = count_contents(data)
    return not differences(counts) or _is_other_data(data, counts)


def _is_other_data(data: Path, found: Mapping[str, int]) -> bool:
    return (data / TRUTH_FOLDER).is_dir() or is_other_data(found)


def check_gpu() -> Finding:
    """Whether a GPU computes; `is_available` alone is no proof."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        found = f"none that CUDA {built} can use" if built else "none: this torch is built without CUDA"
        remedy = "the full profile trains on one: https://pytorch.org/get-started/locally (not needed for make ship)"
        return Finding("GPU", Mark.WARN, found, remedy)
    major, minor = torch.cuda.get_device_capability()
    architectures = torch.cuda.get_arch_list()
    found = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, sm_{major}{minor}"
    try:
        ones = torch.ones(64, 64, device="cuda")
        right = bool((ones @ ones).eq(64).all())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        found += f", which does not compute ({reason}); this torch has code for {' '.join(architectures)}"
        return Finding(
            "GPU", Mark.WARN, found, "a torch for this GPU: https://pytorch.org/get-started/previous-versions"
        )
    if not right:
        return Finding("GPU", Mark.WARN, f"{found}, multiplies wrongly", "python -c 'import torch; torch.cuda.init()'")
    native = f"sm_{major}{minor}" in architectures
    return Finding("GPU", Mark.OK, found + ("" if native else ", by code for a related one"))


def check_torch() -> Finding:
    """Whether exports of this torch load on Kaggle."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    newest = ".".join(map(str, NEWEST_TORCH))
    found = f"{torch.__version__}; Kaggle's image has {TORCH_ON_KAGGLE}; exports up to {newest} load in {READERS}"
    if OLDEST_TORCH <= version <= NEWEST_TORCH:
        return Finding("torch", Mark.OK, found)
    return Finding("torch", Mark.WARN, f"{found}, others are untried", f"{PIP} 'torch=={newest}.*'")


def kernel_packages() -> list[str]:
    """Third-party packages that the kernel imports, sorted."""
    found = {
        one.top
        for path in PACKAGE.rglob("*.py")
        for one in imports_of(ast.parse(path.read_text(encoding="utf-8")), "")
        if not one.is_relative
    }
    return sorted(found - sys.stdlib_module_names)


def check_packages() -> Finding:
    """Whether the kernel's packages, which Kaggle's image has, can be imported here."""
    here, missing = [], []
    for name in kernel_packages():
        try:
            here.append(f"{name} {getattr(importlib.import_module(name), '__version__', '')}".strip())
        except (ImportError, OSError, RuntimeError) as error:
            missing.append(f"{name} ({error})")
    if missing:
        return Finding("kernel's packages", Mark.WARN, f"cannot be imported: {', '.join(missing)}", "make install")
    return Finding("kernel's packages", Mark.OK, ", ".join(here))


def check_data(data: Path | None) -> Finding:
    """Whether a folder holds all data of the competition."""
    name = "competition data"
    if data is None:
        return Finding(name, Mark.SKIP, "not checked: make doctor DATA=DIR")
    remedy = data_command(data)
    found = count_contents(data)
    if not found[LABELLED] and not found[STUDIES]:
        return Finding(name, Mark.WARN, f"{data} holds none", remedy)
    if _is_other_data(data, found):
        kind = "a phantom" if (data / TRUTH_FOLDER).is_dir() else "another data set"
        text = f"{kind}: {found[STUDIES]:,} studies, {found[LABELLED]:,} of them labelled"
        return Finding(name, Mark.WARN, text, f"for the competition's: {data_command(Path('<another folder>'))}")
    lacking = differences(found)
    if lacking:
        return Finding(name, Mark.WARN, f"incomplete: {first_of(lacking, LISTED, '; ')}", remedy)
    return Finding(name, Mark.OK, f"{found[STUDIES]:,} studies, all tables and images")


def check_weights(weights: Path | None) -> Finding:
    """Whether a weights folder is complete, has an owner, and is within Kaggle's limits: if not, no step takes it."""
    if weights is None:
        return Finding("weights", Mark.SKIP, "none yet: make package, or make doctor WEIGHTS=DIR")
    if not weights.is_dir():
        return Finding("weights", Mark.WARN, f"{weights} is not there yet", "make package")
    try:
        package = read_package(weights)
    except KaggleError as error:
        mark = Mark.FAIL if any(weights.iterdir()) else Mark.WARN  # `make ship` packages into an empty folder
        commands = re.findall(r"`([^`]+)`", str(error))
        return Finding("weights", mark, str(error), commands[-1] if commands else "make package")
    size = sum(package.files.values()) / 1e6
    text = f"{package.ref}: {len(package.manifest.artefacts)} networks, {size:.1f} MB in {len(package.files)} files "
    return Finding("weights", Mark.OK, f"{text}(at most {MOST_FILES}), manifest {package.digest[:12]}")
