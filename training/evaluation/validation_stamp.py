"""Digest of a validation's networks, studies and code, by which existing results are reused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import kernels.lumbar
from kernels.lumbar.manifest import Manifest
from kernels.lumbar.run.submission import replace_json
from training.digests import digest, file_digest
from training.evaluation.metric import Score
from training.runs import RunFolder

# Not part of the digest: validation itself writes the out-of-fold score there.
NOT_WEIGHED = {"artefacts": {"__all__": {"provenance"}}}


def made_of(
    manifests: Mapping[int, Manifest], studies: Mapping[int, Sequence[str]], fingerprint: str
) -> dict[str, str]:
    """Digests of all that a validation depends on; `fingerprint`: of the training tables."""
    networks = {fold: manifest.model_dump(mode="json", exclude=NOT_WEIGHED) for fold, manifest in manifests.items()}
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(kernels.lumbar.__path__[0]).rglob("*.py"))]
    return {"networks": digest(networks), "studies": digest(studies), "data": fingerprint, "kernel": digest(code)}


def results_of(folder: RunFolder, folds: Sequence[int]) -> list[Path]:
    """The files that a validation writes for itself, its score first."""
    return [folder.score, folder.seconds, folder.domain, *map(folder.out_of_fold, folds)]


def keep(folder: RunFolder, made: Mapping[str, str], folds: Sequence[int]) -> None:
    """Save the digests of the results that were just written."""
    replace_json(folder.validated, {"made_of": made, "answers": _answers(folder, folds)})


def kept_score(folder: RunFolder, made: Mapping[str, str], manifests: Mapping[int, Manifest]) -> Score | None:
    """The score of an earlier validation with these digests, if all its results exist; else None."""
    graders = {member.name for one in manifests.values() for route in one.routes for member in route.graders}
    scored = [
        artefact.member.name
        for one in manifests.values()
        for artefact in one.artefacts
        if artefact.provenance.oof_score
    ]
    try:
        known = json.loads(folder.validated.read_text(encoding="utf-8"))
        score = json.loads(folder.score.read_text(encoding="utf-8"))
        if not all(path.is_file() for path in results_of(folder, list(manifests))):
            return None
        if known != {"made_of": made, "answers": _answers(folder, list(manifests))}:
            return None
        return Score(**{part: score[part] for part in Score.__annotations__}) if graders <= set(scored) else None
    except (OSError, ValueError, KeyError, TypeError):  # a missing or damaged file
        return None


def _answers(folder: RunFolder, folds: Sequence[int]) -> dict[str, str]:
    """Name → sha256 of the folds' tables."""
    paths = [folder.out_of_fold(fold) for fold in folds]
    return {path.name: file_digest(path) for path in paths}
