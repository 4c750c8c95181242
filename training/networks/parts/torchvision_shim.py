"""Lets timm and segmentation_models_pytorch be imported beside a CPU build of torch.

PyPI's torchvision for Linux is built for CUDA.  Beside a CPU-only torch its C++ library does not load, and its import
then fails with "operator torchvision::nms does not exist", because it registers Python kernels for operators that only
that library declares.  Declaring these operators first is enough for everything but `torchvision.ops` itself, which
keeps raising its own clear error.  Known upstream: pytorch/vision #9077, #9085, #8985.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# Operators live only as long as the Library object that declares them.
_libraries: list[torch.library.Library] = []


def torchvision_build() -> str | None:
    """Version of the installed torchvision, such as "0.28.0+cu130", read without importing it; None = absent."""
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return None
    text = (Path(found.submodule_search_locations[0]) / "version.py").read_text()
    version = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", text)
    return version.group(1) if version else None


def apply() -> bool:
    """Declare torchvision's operators where its C++ library cannot.  True where that was needed and is done.

    Call it before anything imports timm, segmentation_models_pytorch or torchvision.  Elsewhere it does nothing.
    """
    if _libraries:
        return True
    if torch.version.cuda is not None or torch.version.hip is not None or "torchvision" in sys.modules:
        return False
    build = torchvision_build()
    if build is None or not re.search(r"\+(cu|rocm)", build):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)
    return True
