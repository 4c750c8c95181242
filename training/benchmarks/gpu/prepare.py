"""What the other parts need: a phantom and a package; and what a machine without network has to be given."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

from training.benchmarks.packages import SEED, make_package, smoke_members
from training.benchmarks.tables import Record
from training.phantom.dataset import Options, make_dataset
from training.recipe_schema.load import names_of

from .parts import Setting

TRAIN, TEST, SCALE = 32, 12, 0.5
SMALL_TRAIN, SMALL_TEST, SMALL_SCALE = 10, 2, 0.25
SMALL_RECIPES = ("level_sequence",)
# Networks small enough to be carried to the machine.
CARRIED_RECIPES = ("level_sequence", "slice_transformer")
# What a bare image with torch lacks; the versions are those that are installed here.
WHEELS = (
    "pydicom",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "typing-extensions",
    "segmentation-models-pytorch",
    "lightning-fabric",
    "lightning-utilities",
    "monai",
)
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def make_data(setting: Setting, record: Record) -> None:
    """A phantom in the competition's layout."""
    counts = (SMALL_TRAIN, SMALL_TEST, SEED, SMALL_SCALE) if setting.small else (TRAIN, TEST, SEED, SCALE)
    make_dataset(setting.data, Options(*counts), jobs=os.cpu_count() or 1, keep=True)


def make_five_systems(setting: Setting, record: Record) -> None:
    """Untrained networks of all systems, exported and packaged as trained ones are."""
    if not (setting.package / "manifest.json").is_file():
        make_package(setting.package, smoke_members(SMALL_RECIPES if setting.small else names_of([])))


def prepare(folder: Path) -> str:
    """Fill a folder that can be carried to the machine with the GPU: a package, and wheels; its size as text."""
    make_package(folder / "package", smoke_members(CARRIED_RECIPES))
    shutil.rmtree(folder / "package" / "exported")
    fetch_wheels(folder / "wheels")
    size_mib = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file()) / 2**20
    return f"{folder}: {size_mib:.1f} MiB"


def fetch_wheels(folder: Path) -> None:
    """Download one wheel of each of WHEELS.  Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    machine = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    for platform in PLATFORMS:
        machine += ["--platform", platform]
    given = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", *machine, "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *given, *wanted], check=True)
