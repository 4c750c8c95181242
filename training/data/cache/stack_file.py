"""One decoded study as a file: memory-mapped 8-bit stacks with their geometry, in the safetensors format.

The pixels are those that the kernel cuts crops from.  Planes of the files' own pixel grids are kept beside them, so
that annotations can be lifted without the DICOM files.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import save

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.problems import Problem
from kernels.lumbar.run.submission import whole_file

# What missing, truncated, foreign or corrupt files raise.
DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)
# Of any study: names of a few hundred files and stacks.
MOST_HEADER_BYTES = 1 << 26


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
    with open(path, "rb") as file:
        header, first = _header(file)
        whole = json.loads(header["__metadata__"]["study"])
        if whole["made_of"] != made_of:
            raise StaleError("made of other data, or by other code")
        content: dict[str, Any] = whole["content"]
        numbers = range(len(content["stacks"]))
        source = _loaded(file, first, header["source.planes"])
        planes = [_loaded(file, first, header[f"{number}.planes"]) for number in numbers]
    # Not by the library, whose arrays are copies, or pages that count as this process's memory.
    mapped = np.memmap(path, np.uint8, "r").view(np.ndarray)
    pixels = [_part(mapped, first, header[f"{number}.pixels"]) for number in numbers]
    if whole["checksum"] != _checksum(made_of, content, [source, *planes]):
        raise ValueError("its content is not what was written")
    stacks = []
    for its_pixels, its_planes, (series_id, kind, instances, assumed, (checksum, *shape)) in zip(
        pixels, planes, content["stacks"], strict=True
    ):
        is_whole = (list(its_pixels.shape), its_pixels.dtype) == (shape, np.uint8)
        if not is_whole or (check_pixels and zlib.crc32(its_pixels.data) != checksum):
            raise ValueError("its pixels are not what was written")
        stacks.append(Stack(series_id, kind, its_pixels, _planes(its_planes), tuple(instances), assumed))
    sources = ((series_id, instance) for series_id, instance in content["sources"])
    problems = [Problem(**problem) for problem in content["problems"]]
    return Study(content["study"], tuple(stacks), problems, dict(zip(sources, _planes(source), strict=True)))


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where the tensors begin.  Raises ValueError where the file is not whole."""
    length = int.from_bytes(file.read(8), "little")
    if length > MOST_HEADER_BYTES:
        raise ValueError("its header is not what was written")
    header: dict[str, Any] = json.loads(file.read(length))
    first = 8 + length
    end = max(its["data_offsets"][1] for name, its in header.items() if name != "__metadata__")
    if os.fstat(file.fileno()).st_size != first + end:
        raise ValueError("its size is not what was written")
    return header, first


def _loaded(file: BinaryIO, first: int, tensor: Mapping[str, Any]) -> np.ndarray:
    """A tensor of float64, in memory."""
    begin, end = tensor["data_offsets"]
    file.seek(first + begin)
    return np.frombuffer(file.read(end - begin), np.float64).reshape(tensor["shape"])


def _part(mapped: np.ndarray, first: int, tensor: Mapping[str, Any]) -> np.ndarray:
    """A tensor of uint8, as a part of the mapped file; read-only."""
    begin, end = tensor["data_offsets"]
    return mapped[first + begin : first + end].reshape(tensor["shape"])


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
