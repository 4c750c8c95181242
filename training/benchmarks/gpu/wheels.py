"""Fetches what a bare image with torch lacks, so that it can be carried to a machine without network."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

# Names only: the versions are those that are installed here.
NAMES = (
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
PYTHON, ABI = "3.12", "cp"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def fetch(folder: Path) -> None:
    """Download one wheel of each.  Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in NAMES]
    machine = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", ABI]
    for platform in PLATFORMS:
        machine += ["--platform", platform]
    given = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", *machine, "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *given, *wanted], check=True)
