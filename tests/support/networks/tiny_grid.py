"""Recipes of one localiser and one grader that train in a second each, and how the workflow is called on them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support import ROOT

EPOCHS = {"epochs": 2, "batch_size": 4, "learning_rate": 0.002}
VIEW = {"series": "sagittal_t2", "slices": {"by": "middle", "count": 3}}
SMALL = {"encoder": "tu-test_resnet", "decoder": "unet", "decoder_channels": [16, 8, 8], "depth": 3}
DOCUMENT: dict[str, Any] = {
    "source": "nobody's",
    "folds": 2,
    "train_folds": [0],
    "localisers": {
        "canal": {
            "unit": "study",
            "targets": [f"spinal_canal_stenosis_{level}" for level in ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")],
            "inputs": [VIEW | {"size_px": 32}],
            "fitting": {
                "network": {"name": "deeplab_heatmap", "options": SMALL | {"pretrained": False}},
                "loss": "heatmap_mse",
                "sigma_px": 3,
                "optimisation": EPOCHS,
            },
        }
    },
    "backbones": {"tiny": {"timm": "test_resnet", "size_px": 32, "learning_rate": 0.002, "pretrained": False}},
    "graders": {
        "spinal": {
            "unit": "level",
            "targets": ["spinal_canal_stenosis"],
            "weight": {"spinal": 1.0},
            "inputs": [VIEW | {"centre": ["spinal_canal_stenosis"], "size_mm": 50, "size_px": 32}],
            "fitting": {
                "network": {"name": "split_gru", "options": {"hidden": 8}},
                "loss": "weighted_cross_entropy",
                "optimisation": EPOCHS,
                "augmentation": {"jitter_mm": "localiser"},
            },
        }
    },
    "profiles": {"smoke": {}},
}


def write_recipe(path: Path, **optimisation: Any) -> Path:
    """A recipe named as its file; `optimisation` changes that of its grader."""
    document = json.loads(json.dumps(DOCUMENT)) | {"name": path.stem}
    document["graders"]["spinal"]["fitting"]["optimisation"] |= optimisation
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def command(what: str, data: Path, runs: Path, recipes: Sequence[Path], *further: str) -> list[str]:
    """The command line of `python -m training.workflow`."""
    order = ["--data", str(data), "--runs", str(runs), "--profile", "smoke", "--gpus", "0", "--no-ensemble"]
    return [sys.executable, "-m", "training.workflow", what, *order, "--recipes", *map(str, recipes), *further]


def environment() -> dict[str, str]:
    """One thread, as the jobs have, and this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def call(given: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Let it end, and take what it says."""
    return subprocess.run(given, env=environment(), capture_output=True, text=True, check=False, timeout=600)


def weights(runs: Path) -> dict[str, str]:
    """Place below `runs` → sha256 of every network."""
    found = sorted(runs.rglob("weights.ts"))
    return {str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
