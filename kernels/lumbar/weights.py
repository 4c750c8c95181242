"""Finds the manifest, and turns its artefacts into callables that are proven to answer as they did when exported."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from .manifest import MANIFEST_FORMAT, MANIFEST_FORMAT_VERSION, Artefact, Manifest
from .specs import Member

MANIFEST_FILE = "manifest.json"
# Largest difference from the exporting machine's answer, relative to max(1, |answer|).  Other CPUs add in another
# order; GPUs convolve in TensorFloat-32; half floats have 11 bits.
TOLERANCE_CPU, TOLERANCE_CUDA, TOLERANCE_HALF = 1e-3, 5e-2, 1e-1
LISTED = 40


class WeightsError(Exception):
    """Weights that cannot be used, with the file or member and the reason."""


def golden_inputs(member: Member, seed: int, batch: int = 2) -> list[Tensor]:
    """The member's views, (batch, slices, size_px, size_px) float32 noise each, and `present`, (batch, views) of ones.

    The noise is uniform with the range of the view's normalisation.  RandomState, because its stream never changes.
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
    """sha256 of a manifest file: names a whole package, since the manifest holds the sha256 of every network."""
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
    except (OSError, ValueError):  # someone else's file of the same name, or a damaged one: listed in the error
        return False
    return isinstance(document, dict) and document.get("format") == MANIFEST_FORMAT


def _listing(roots: Sequence[Path]) -> str:
    """The first names two folders deep."""
    names = [str(path) for root in roots for pattern in ("*", "*/*") for path in sorted(root.glob(pattern))]
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or f"nothing below {', '.join(str(root) for root in roots)}") + more


def read_manifest(path: Path) -> Manifest:
    """The checked manifest.  Raises WeightsError with the dotted path of what is wrong."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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


@dataclass(frozen=True)
class LoadedMember:
    """A member that answers: points (B, K, 4) of a localiser, logits (B, K, 3) of a grader, float32 on the CPU."""

    artefact: Artefact
    module: torch.jit.ScriptModule
    device: torch.device
    half: bool

    @property
    def member(self) -> Member:
        return self.artefact.member

    def __call__(self, views: Sequence[Tensor], present: Tensor) -> Tensor:
        """Answer for one (B, slices, size_px, size_px) float tensor a view and `present` (B, views) of 0 and 1."""
        dtype = torch.float16 if self.half else torch.float32
        inputs = [tensor.to(self.device, dtype, non_blocking=True) for tensor in (*views, present)]
        # Without optimisation TorchScript does not recompile for each new batch size.
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            answer = self.module(*inputs).float().cpu()
        return answer.clone()  # an ordinary tensor: those of inference mode refuse changes in place


def load_member(folder: Path, artefact: Artefact, device: torch.device, half: bool = False) -> LoadedMember:
    """Load a member from its bytes, and prove it on its golden input.  Raises WeightsError, naming the member."""
    name = artefact.member.name
    archive = io.BytesIO(checked_bytes(folder, artefact))
    try:
        module = _load_archive(archive, device)
        stored_half = any(tensor.dtype == torch.float16 for tensor in module.parameters())
        loaded = LoadedMember(artefact, module.half() if half else module.float(), device, half)
        _prove(loaded, stored_half)
    except (RuntimeError, ValueError) as error:  # what torch raises for a damaged archive or a device without memory
        raise WeightsError(f"{name}: cannot be loaded on {device}: {str(error).strip().splitlines()[-1]}") from error
    return loaded


def checked_bytes(folder: Path, artefact: Artefact) -> bytes:
    """The TorchScript archive of an artefact, proven by its sha256.  Raises WeightsError, naming the member."""
    name, weights = artefact.member.name, artefact.weights
    path = folder / weights.file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise WeightsError(f"{name}: {weights.file} lies outside of the folder of the manifest")
    try:
        with path.open("rb") as file:
            file.seek(weights.offset)
            data = file.read(weights.bytes)
    except OSError as error:
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


def _load_archive(archive: io.BytesIO, device: torch.device) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # TorchScript is deprecated, and yet the only format that every torch of the last years reads.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        module: torch.jit.ScriptModule = torch.jit.load(archive, map_location=device)
    return module.eval()


def _prove(loaded: LoadedMember, stored_half: bool) -> None:
    """Compare with the golden output, which also warms the member up.

    The highest pixel of a heatmap of noise can be a tie that other hardware breaks otherwise, so of a localiser the
    confidences must agree and half of the places.
    """
    weights, member = loaded.artefact.weights, loaded.member
    *views, present = golden_inputs(member, weights.golden_seed)
    answer = loaded(views, present).numpy()
    golden = np.asarray(weights.golden_output, np.float32)
    if answer.size != golden.size:
        raise WeightsError(f"{member.name}: answers {answer.size} numbers to the golden input instead of {golden.size}")
    golden = golden.reshape(answer.shape)
    error = np.abs(answer - golden) / np.maximum(1, np.abs(golden))
    error = np.where(np.isfinite(error), error, np.inf)
    tolerance = TOLERANCE_CUDA if loaded.device.type == "cuda" else TOLERANCE_CPU
    if loaded.half or stored_half:
        tolerance = TOLERANCE_HALF
    worst = error.max()
    if member.role == "localiser":
        worst = max(error[..., 3].max(), np.median(error[..., :3].max(-1)))
    if worst > tolerance:
        raise WeightsError(
            f"{member.name}: differs from its golden output by {worst:.2g} on {loaded.device}; {tolerance:g} is allowed"
        )
