"""What the kernel saw out of fold: images, confidences, and which landmarks were right; for the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from kernels.lumbar.answers.localiser_answers import LocaliserAnswer
from kernels.lumbar.answers.reliability import imputed_share, logit
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.image_statistics import FEATURES, image_statistics
from kernels.lumbar.labels import SERIES_KINDS
from kernels.lumbar.manifest import Domain, Reliability, Spread
from training.data.annotations import annotations_of, lift_all
from training.evaluation.calibrate import LEAST_POINTS, is_right
from training.evaluation.predictor import Prediction

# Fewer studies say too little about the spread between studies.
LEAST_STUDIES = 10
DIGITS = 4


class SeenStudies:
    """Collects held-out studies one by one."""

    def __init__(self, coordinates: pd.DataFrame) -> None:
        """`coordinates`: training.data.tables.Tables.coordinates."""
        self._annotations = {str(study): annotations_of(own) for study, own in coordinates.groupby("study_id")}
        self._images: dict[str, list[dict[str, float]]] = {kind: [] for kind in SERIES_KINDS.values()}
        self._confidence: dict[str, list[float]] = {}
        self._evidence: dict[str, list[tuple[float, float]]] = {}
        self._right: dict[str, list[bool]] = {}

    def add(self, study: Study, prediction: Prediction) -> None:
        """A study, and what networks that never saw it answered."""
        for kind, images in self._images.items():
            if found := image_statistics(study, kind):
                images.append(found)
        truth = lift_all(Study(study.study_id, (), [], study.source_planes), self._annotations.get(study.study_id, []))
        for route, located in prediction.located.items():
            for name, mean in located.mean_confidences().items():
                self._confidence.setdefault(name, []).append(mean)
            share = imputed_share(located)
            for row in sorted(truth.keys() & located.points.keys() - located.guessed):
                answer = LocaliserAnswer(located.points[row], located.confidence[row])
                self._evidence.setdefault(route, []).append((logit(answer.confidence), share))
                self._right.setdefault(route, []).append(is_right(answer, truth[row], row, "points"))

    def as_json(self) -> dict[str, Any]:
        """`domain` (kernels.lumbar.manifest.Domain or null), and `reliability`: route → Reliability."""
        images = {kind: _spreads(its) for kind, its in self._images.items() if len(its) >= LEAST_STUDIES}
        several = {name: its for name, its in self._confidence.items() if len(its) >= LEAST_STUDIES}
        spreads = {"images": images, "confidence": {name: _spread(its) for name, its in several.items()}}
        domain = Domain.model_validate(spreads)
        rated = {
            route: fit_reliability(np.array(known), np.array(self._right[route]))
            for route, known in self._evidence.items()
        }
        return {
            "domain": domain.model_dump(mode="json") if images or several else None,
            "reliability": {route: one.model_dump(mode="json") for route, one in rated.items() if one is not None},
        }


def fit_reliability(known: np.ndarray, right: np.ndarray) -> Reliability | None:
    """From logits of confidences and imputed shares (n, 2), and whether the landmarks were right (n,).

    Logistic regression whose weight of the logit is 1, as confidences are calibrated already; None with fewer than
    LEAST_POINTS.
    """
    if len(known) < LEAST_POINTS:
        return None
    # Platt's prior, as in fit_calibration: one more right and one more wrong point at the mean.
    logits, shares = np.concatenate([known, [known.mean(0)] * 2]).T
    signs = np.where(np.append(right, [False, True]), 1.0, -1.0)

    def loss(weights: np.ndarray) -> float:
        odds = logits + weights[0] * shares + weights[1]
        return float(np.logaddexp(0, -signs * odds).sum() + weights[0] ** 2 / 2)

    imputed, offset = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(None, 0.0), (None, None)]).x
    return Reliability(imputed=round(float(imputed), DIGITS), offset=round(float(offset), DIGITS))


def merged_domain(found: Sequence[Mapping[str, Any]]) -> Domain | None:
    """That of several recipes, which were trained on the same data; `found`: what as_json gave for each."""
    domains = [Domain.model_validate(one["domain"]) for one in found if one.get("domain")]
    if not domains:
        return None
    images = max(domains, key=lambda one: max((spread.studies for spread in _all_of(one)), default=0)).images
    return Domain(images=images, confidence={name: its for one in domains for name, its in one.confidence.items()})


def _all_of(domain: Domain) -> Iterable[Spread]:
    return (spread for its in domain.images.values() for spread in its.values())


def _spreads(images: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    names = [name for name in FEATURES if name in images[0]]
    return {name: _spread([one[name] for one in images]) for name in names}


def _spread(values: Sequence[float]) -> Spread:
    mean, sd = round(float(np.mean(values)), DIGITS), round(float(np.std(values, ddof=1)), DIGITS)
    return Spread(studies=len(values), mean=mean, sd=sd)
