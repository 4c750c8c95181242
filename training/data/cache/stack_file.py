"""One decoded study as a file: memory-mapped 8-bit stacks with their geometry, in the safetensors format.

The pixels are those that the kernel cuts crops from.  Planes of the files' own pixel grids are kept beside them, so
that annotations can be lifted without the DICOM files.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.problems import Problem
from kernels.lumbar.run.submission import whole_file

# What missing, truncated, foreign or corrupt files raise.
DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError)


class StaleError(ValueError):
    """A file that was made of other data, or by other code."""


def write_stacks(path: Path, study: Study, made_of: str) -> None:
    """Write a study's file, whole or not at all.  `made_of`: digest of the inputs.  Raises OSError."""
    tensors: dict[str, np.ndarray] = {"source.planes": _vectors(study.source_planes.values())}
    stacks = []
    for number, stack in enumerate(study.stacks):
        tensors[f"{number}.pixels"] = np.ascontiguousarray(stack.pixels)
        tensors[f"{number}.planes"] = _vectors(stack.planes)
        pixels = zlib.crc32(tensors[f"{number}.pixels"].data), *stack.pixels.shape
        stacks.append([stack.series_id, stack.kind, list(stack.instances), stack.assumed, list(pixels)])
    content = {
        "study": study.study_id,
        "stacks": stacks,
        "sources": list(study.source_planes),
        "problems": [asdict(problem) for problem in study.problems],
    }
    planes = [tensor for name, tensor in tensors.items() if name.endswith("planes")]
    whole = {"made_of": made_of, "content": content, "checksum": _checksum(made_of, content, planes)}
    metadata = {"study": json.dumps(whole)}  # one entry, as the format does not keep the order of several
    with whole_file(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def read_stacks(path: Path, made_of: str, check_pixels: bool = False) -> Study:
    """The study of a file, its pixels memory-mapped and read-only.

    Everything is compared with its checksum, pixels if wished: these must be read for it.  Raises StaleError, or an
    error of DAMAGE.
    """
    with safe_open(path, framework="pt") as file:  # this framework maps the file, NumPy's copies it
        whole = json.loads((file.metadata() or {})["study"])
        if whole["made_of"] != made_of:
            raise StaleError("made of other data, or by other code")
        content: dict[str, Any] = whole["content"]
        source = file.get_tensor("source.planes").numpy()
        numbers = range(len(content["stacks"]))
        pixels = [file.get_tensor(f"{number}.pixels").numpy() for number in numbers]
        planes = [file.get_tensor(f"{number}.planes").numpy() for number in numbers]
    if whole["checksum"] != _checksum(made_of, content, [source, *planes]):
        raise ValueError("its content is not what was written")
    stacks = []
    for its_pixels, its_planes, (series_id, kind, instances, assumed, (checksum, *shape)) in zip(
        pixels, planes, content["stacks"], strict=True
    ):
        is_whole = (list(its_pixels.shape), its_pixels.dtype) == (shape, np.uint8)
        if not is_whole or (check_pixels and zlib.crc32(its_pixels.data) != checksum):
            raise ValueError("its pixels are not what was written")
        its_pixels.flags.writeable = False
        stacks.append(Stack(series_id, kind, its_pixels, _planes(its_planes), tuple(instances), assumed))
    sources = ((series_id, instance) for series_id, instance in content["sources"])
    problems = [Problem(**problem) for problem in content["problems"]]
    return Study(content["study"], tuple(stacks), problems, dict(zip(sources, _planes(source), strict=True)))


def _vectors(planes: Iterable[Plane]) -> np.ndarray:
    """(N, 3, 3) origin, column step and row step of each plane."""
    return np.array([(plane.origin_mm, plane.column_mm, plane.row_mm) for plane in planes]).reshape(-1, 3, 3)


def _planes(vectors: np.ndarray) -> tuple[Plane, ...]:
    return tuple(Plane(*its) for its in vectors.copy())


def _checksum(made_of: str, content: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> str:
    checksum = hashlib.sha256(json.dumps([made_of, content]).encode())
    for array in arrays:
        checksum.update(repr((array.shape, array.dtype)).encode())
        checksum.update(np.ascontiguousarray(array).data)
    return checksum.hexdigest()
