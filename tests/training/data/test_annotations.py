"""Annotations are lifted from their file's own pixels; what cannot be is named."""

from __future__ import annotations

import numpy as np

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Study
from training.data.annotations import Annotation, lift_all


def test_annotations_are_in_the_files_own_pixels_and_oddities_are_problems():
    plane = Plane(np.array([10.0, 20, 30]), np.array([0.0, 0.5, 0]), np.array([0.0, 0, -2]))
    study = Study("1", (), [], {("7", 5046): plane})
    row = "spinal_canal_stenosis_l4_l5"
    lifted = lift_all(study, [Annotation("7", 5046, row, x=4.0, y=3.0), Annotation("7", 1, row, 1, 1)])
    assert lifted.keys() == {row} and lifted[row].tolist() == [10, 22, 24]
    lifted = lift_all(study, [Annotation("7", 5046, row, 4.0, 3.0), Annotation("7", 5046, row, 0, 0)])
    assert lifted[row].tolist() == [10, 20, 30]
    assert [problem.kind for problem in study.problems] == ["annotation-without-image", "annotated-twice"]
