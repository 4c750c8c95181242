"""Find and read the manifest, and read the bytes of its artefacts, verified by sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from ..manifest import MANIFEST_FORMAT, MANIFEST_FORMAT_VERSION, Artefact, Manifest
from ..specs import Member

MANIFEST_FILE = "manifest.json"
LISTED = 40


class WeightsError(Exception):
    """Unusable weights: names the file or member and the reason."""


def golden_inputs(member: Member, seed: int, batch: int = 2) -> list[Tensor]:
    """The member's views, (batch, slices, size_px, size_px) float32 noise each, and `present`, (batch, views) of ones.

    Uniform noise in the range of the view's normalisation.  RandomState, because its stream is frozen by NumPy.
    """
    random = np.random.RandomState(seed)
    tensors = []
    for request in member.inputs:
        shape = (batch, request.slices.count, request.size_px, request.size_px)
        noise = random.random_sample(shape)
        if request.normalisation == "zscore":
            noise = (noise - 0.5) * 12**0.5
        tensors.append(torch.from_numpy(noise.astype(np.float32)))
    return [*tensors, torch.ones(batch, len(member.inputs))]


def manifest_digest(path: Path) -> str:
    """sha256 of a manifest file: identifies a whole package, as the manifest holds the sha256 of every network."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_manifest(roots: Sequence[Path], depth: int = 5, wanted: str | None = None) -> Path:
    """The one manifest.json of this kit at most `depth` folders below the roots; of several, the one `wanted`.

    `wanted`: its sha256.  Raises WeightsError, with what is there, where none or several are found.
    """
    seen: dict[Path, Path] = {}
    for root in roots:
        for path in _manifest_files(root, depth):
            seen.setdefault(path.resolve(), path)
    ours = [path for path in seen.values() if _is_ours(path)]
    if len(ours) > 1 and wanted:
        ours = [path for path in ours if manifest_digest(path) == wanted] or ours
    if len(ours) == 1:
        return ours[0]
    if ours:
        raise WeightsError(f"several manifests, name the folder of one: {', '.join(str(path) for path in ours)}")
    others = ", ".join(str(path) for path in seen.values()) or "none"
    raise WeightsError(
        f"no {MANIFEST_FILE} of this kit; other files of that name: {others}; mounted: {_listing(roots)}"
    )


def _manifest_files(folder: Path, depth: int) -> Iterator[Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError:  # a root that does not exist or may not be read holds no manifest
        return
    for child in children:
        if child.name == MANIFEST_FILE and child.is_file():
            yield child
        # The competition's image folders hold hundreds of thousands of files, and no weights.
        elif depth > 0 and not child.name.endswith("_images") and child.is_dir():
            yield from _manifest_files(child, depth - 1)


def _is_ours(path: Path) -> bool:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # not of this kit, or damaged: listed in the error
        return False
    return isinstance(document, dict) and document.get("format") == MANIFEST_FORMAT


def _listing(roots: Sequence[Path]) -> str:
    """The first names, up to two folders deep."""
    names = [str(path) for root in roots for pattern in ("*", "*/*") for path in sorted(root.glob(pattern))]
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or f"nothing below {', '.join(str(root) for root in roots)}") + more


def read_manifest(path: Path) -> Manifest:
    """The checked manifest.  Raises WeightsError with the dotted path of what is wrong."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > MANIFEST_FORMAT_VERSION:
        raise WeightsError(
            f"{path}: has format version {version}, this notebook reads up to {MANIFEST_FORMAT_VERSION}: "
            "push the notebook of the commit that packaged the weights"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WeightsError(f"{path}: {where}: {first['msg']} ({error.error_count()} problem(s) in all)") from error
    except ValueError as error:  # half a character, which JSON can hold and UTF-8 cannot
        raise WeightsError(f"{path}: {error}") from error


def checked_bytes(folder: Path, artefact: Artefact) -> bytes:
    """The TorchScript archive of an artefact, verified by sha256.  Raises WeightsError, naming the member."""
    name, weights = artefact.member.name, artefact.weights
    path = folder / weights.file
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise WeightsError(f"{name}: {weights.file} lies outside of the folder of the manifest")
        with path.open("rb") as file:
            file.seek(weights.offset)
            # Not more than the file has: read allocates the requested size first.
            data = file.read(min(weights.bytes, path.stat().st_size))
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise WeightsError(f"{name}: {error}") from error
    if len(data) != weights.bytes:
        raise WeightsError(
            f"{name}: {weights.file} has {len(data)} of the {weights.bytes} bytes: the upload is incomplete"
        )
    if hashlib.sha256(data).hexdigest() != weights.sha256:
        raise WeightsError(
            f"{name}: {weights.file} has another sha256 than the manifest says: upload the weights again"
        )
    return data
