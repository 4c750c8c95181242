"""What results are made of, as sha256: names of data and jobs that change with what they depend on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from training.recipe.schema import MemberRecipe


def digest(*parts: Any) -> str:
    """sha256 of JSON-able parts: names what made a result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint_of(tables: str, images: str | None) -> str:
    """Names the data that networks are made of: tables and image files."""
    return digest(tables, images)


def job_digest(
    member: MemberRecipe,
    fold: int,
    seed: int,
    fingerprint: str,
    jitter_mm: dict[str, float],
    images: str | None = None,
    opinions: str | None = None,
) -> str:
    """What a job's weights depend on; `images`, `opinions`: what it was pretrained on, and its labels corrected by."""
    return digest(member.model_dump(mode="json"), fold, seed, fingerprint, jitter_mm, images, opinions)
