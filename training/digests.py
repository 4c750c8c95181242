"""sha256 digests of files, data and trainings, which change with whatever these depend on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from training.recipe_schema.schema import MemberRecipe


def digest(*parts: Any) -> str:
    """sha256 of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(tables: str, images: str | None) -> str:
    """Digest of the training data: tables and image files."""
    return digest(tables, images)


def training_digest(
    member: MemberRecipe,
    fold: int,
    seed: int,
    fingerprint: str,
    jitter_mm: dict[str, float],
    images: str | None = None,
    labels: str | None = None,
) -> str:
    """Digest of everything a network's weights depend on.

    `images`, `labels`: digests of the images it is pretrained on, and of the predictions that correct its labels.
    """
    return digest(member.model_dump(mode="json"), fold, seed, fingerprint, jitter_mm, images, labels)
