"""Finished runs of made-up answers, and the page that is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import GROUPS, ROWS
from training.data.out_of_fold import rows_of, write
from training.report.__main__ import main


def write_run(
    runs: Path, recipe: str, labels: pd.DataFrame, folds: int = 2, weights: tuple[float, float, float] = (1, 1, 1)
) -> None:
    """A recipe's runs of two networks a fold, of which one is the better."""
    random, profile = np.random.default_rng(sum(recipe.encode())), runs / recipe / "smoke"
    for fold in range(folds):
        parts = []
        for member, skill in (("good", 2.0), ("poor", 0.5)):
            said = {
                study: {
                    row: skill * np.eye(3)[max(int(labels.loc[study, row]), 0)] + random.normal(size=3) for row in ROWS
                }
                for study in labels.index[fold::folds]
            }
            parts.append(rows_of(recipe, f"{recipe}_{member}", recipe, fold, said, labels))
            write_network(profile / f"{recipe}_{member}" / f"fold{fold}", recipe, fold, weights)
        write(profile / f"out_of_fold{fold}.parquet", pd.concat(parts))
        error = {"count": 10, "median_mm": 2.0 + fold, "p95_mm": 8.25, "sigma_mm": 1.0}
        content = {"made_by": {}, "errors": {"sagittal_t2": error}}
        (profile / f"localiser_errors_fold{fold}.json").write_text(json.dumps(content))
    seconds = {"members": {f"{recipe}_good": 1.25, f"{recipe}_poor": 0.5}, "located": {recipe: 0.25}}
    (profile / "seconds.json").write_text(json.dumps(seconds))
    (runs / recipe / "priors.json").write_text(json.dumps(public_priors()))


def write_network(folder: Path, recipe: str, fold: int, weights: tuple[float, float, float]) -> None:
    """What training leaves of one network, but for its weights."""
    folder.mkdir(parents=True)
    provenance = {
        "recipe": recipe,
        "network": "tiny",
        "backbone": "none",
        "fold": fold,
        "seed": 1,
        "profile": "smoke",
        "torch_version": "2.13.0",
        "git_commit": "0123456789abcdef+",
        "data_fingerprint": "fedcba9876543210ff",
        "resolved_recipe": {"model": "", "weight": dict(zip(GROUPS, weights, strict=True))},
    }
    member = {"role": "grader", "name": f"{folder.parent.name}_fold{fold}"}
    (folder / "artefact.json").write_text(json.dumps({"member": member, "provenance": provenance}))
    (folder / "recipe.resolved.yaml").write_text("text: a < b & c\n")
    (folder / "done.json").write_text("{}")


def made(runs: Path, out: Path, *more: str) -> str:
    """The text of the page."""
    assert main(["--runs", str(runs), "--profile", "smoke", "--out", str(out), *more]) == 0
    return out.read_text(encoding="utf-8")
