"""What validation saw out of fold: spreads of images and confidences, and how reliable landmarks are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.answers.localiser_answers import LocaliserAnswer
from kernels.lumbar.answers.locate import Located
from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.manifest import Domain, Reliability
from training.evaluation.domain import SeenStudies, merged_domain
from training.evaluation.predictor import Prediction

ROW, OTHER = "spinal_canal_stenosis_l1_l2", "spinal_canal_stenosis_l2_l3"
STUDIES = 12


def seen_studies(count: int = STUDIES) -> SeenStudies:
    """Studies with grey values of 10, 20, …; of each landmark one in four is wrong, and found with less confidence."""
    lines = [(str(number), "20", 0, row, 30.0, 20.0) for number in range(count) for row in (ROW, OTHER)]
    columns = ["study_id", "series_id", "instance", "row", "x", "y"]
    seen = SeenStudies(pd.DataFrame(lines, columns=columns))
    plane = Plane(np.zeros(3), np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0]))
    for number in range(count):
        pixels = np.full((1, 50, 60), 10 * (number + 1), np.uint8)
        study = Study(str(number), (Stack("20", "sagittal_t2", pixels, (plane,), (0,)),), [], {("20", 0): plane})
        is_wrong = number % 4 == 0
        points = {row: np.array([0.0, 30.0 + 20 * is_wrong, -20.0]) for row in (ROW, OTHER)}
        confidence = dict.fromkeys(points, 0.5 if is_wrong else 0.9)
        by_member = {"canal_fold0": {row: LocaliserAnswer(points[row], confidence[row]) for row in points}}
        located = Located(points, confidence, by_member=by_member)
        seen.add(study, Prediction(study.study_id, np.zeros((25, 3)), [], {"own": located}, {}, []))
    return seen


def test_images_confidences_and_what_was_right_are_kept():
    found = seen_studies().as_json()
    domain = Domain.model_validate(found["domain"])
    assert set(domain.images) == {"sagittal_t2"}
    median = domain.images["sagittal_t2"]["median"]
    greys = 10.0 * np.arange(1, STUDIES + 1)
    assert (median.studies, median.mean, median.sd) == (STUDIES, 65.0, pytest.approx(greys.std(ddof=1), abs=1e-3))
    sure = domain.confidence["canal_fold0"]
    assert (sure.studies, sure.mean) == (STUDIES, pytest.approx(0.8))
    fitted = Reliability.model_validate(found["reliability"]["own"])
    assert fitted.imputed == 0 and -1 < fitted.offset < 1  # none was imputed, and the confidence is about right


def test_too_few_studies_say_nothing():
    assert seen_studies(9).as_json() == {"domain": None, "reliability": {}}
    assert merged_domain([{}, {"domain": None}]) is None


def test_several_recipes_share_the_images_of_the_most_studies_and_keep_all_localisers():
    def seen(name: str, studies: int) -> dict[str, object]:
        spread = {"studies": studies, "mean": float(studies), "sd": 1.0}
        return {"domain": {"images": {"axial_t2": {"median": spread}}, "confidence": {name: spread}}}

    merged = merged_domain([seen("a", 20), seen("b", 30)])
    assert merged is not None and set(merged.confidence) == {"a", "b"}
    assert merged.images["axial_t2"]["median"].studies == 30
