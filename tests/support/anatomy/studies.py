"""Studies and their mirror images."""

from __future__ import annotations

import numpy as np

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.inputs.views import mirror_pixels

MINUS_X = np.array([-1.0, 1.0, 1.0])


def mirror_stack(stack: Stack) -> Stack:
    """The stack of the mirrored patient, in canonical order: the same grey values at −x."""
    turned = [Plane(one.origin_mm * MINUS_X, one.column_mm * MINUS_X, one.row_mm * MINUS_X) for one in stack.planes]
    pixels = mirror_pixels(stack.pixels, stack.kind)
    if stack.kind == "axial_t2":
        planes = tuple(one.grid(0, pixels.shape[-1] - 1, column_step=-1) for one in turned)
        return Stack(stack.series_id, stack.kind, pixels, planes, stack.instances)
    return Stack(stack.series_id, stack.kind, pixels, tuple(turned[::-1]), stack.instances[::-1])


def mirror_study(study: Study) -> Study:
    """The mirrored patient."""
    return Study(study.study_id, tuple(mirror_stack(stack) for stack in study.stacks), [])
