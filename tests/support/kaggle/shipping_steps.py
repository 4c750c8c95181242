"""What tests of shipping have in common: a run as Kaggle would report it, and the steps on a ready package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from kernels.kaggle import __main__ as shipping
from kernels.lumbar.labels import ROWS
from tests.support.kaggle.kaggle_server import KaggleServer
from tests.support.kaggle.kaggle_state import Body, Dataset, Files, RunKernel

KERNEL, DATASET = "ann/lumbar-inference", "ann/lumbar-weights"


def ship(step: str, weights: Path, folder: Path, *more: str) -> int:
    """A step as `make` would call it, impatient and without a GPU."""
    given = ["--weights", str(weights), "--ship", str(folder), "--poll", "0.01"]
    return shipping.main([step, *given, *(more or ("--no-gpu",))])


def ran(without: tuple[str, ...] = (), **changed: Any) -> RunKernel:
    """A run that ended well and says so of itself, but for the files that it lacks and the facts that are changed."""

    def run(text: str, metadata: Body, datasets: dict[str, Files]) -> tuple[str, Files, str, str]:
        code = next(cell["source"] for cell in json.loads(text)["cells"] if cell["id"] == "run")
        notebook, manifest = (code.split(f'"LUMBAR_{name}", "')[1].split('"')[0] for name in ("NOTEBOOK", "MANIFEST"))
        (attached,) = datasets.values()
        report = {
            "notebook": notebook,
            "manifest_sha256": manifest,
            "device": "cpu",
            "members_used": [one["member"]["name"] for one in json.loads(attached["manifest.json"])["artefacts"]],
            "seconds": {"total": 1.0},
            "studies": {"asked": 1, "graded": 1},
            "fallbacks": {"rows": 0},
            "problems": [],
            "problem_counts": {},
        } | changed
        rows = pd.DataFrame(
            {"row_id": [f"7_{row}" for row in ROWS], "normal_mild": 1.0, "moderate": 0.0, "severe": 0.0}
        )
        files = {"submission.csv": rows.to_csv(index=False).encode(), "run_report.json": json.dumps(report).encode()}
        return "COMPLETE", {name: files[name] for name in files if name not in without}, "printed\n", ""

    return run


def store(kaggle: KaggleServer, weights: Path) -> None:
    """The package as if it had been uploaded before."""
    files = {path.name: path.read_bytes() for path in weights.iterdir() if path.name != "dataset-metadata.json"}
    kaggle.datasets[DATASET] = Dataset(1, "Lumbar Weights", "other", [files], ["READY"])
