"""Images of a run compared with those that its networks were trained on: said in the report, and nothing depends on it.

A number is unlike the training's if its mean over the run lies farther off than LEAST_OFF standard deviations between
training studies, and SURE standard errors beyond that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..inputs.image_statistics import FEATURES
from ..labels import SERIES_KINDS
from ..manifest import Manifest, Spread

# With fewer studies nothing is said: one unusual patient would be enough.
LEAST_STUDIES = 5
LEAST_OFF = 1.5
SURE = 3.0
# Smallest spread of a study's mean confidence that is believed.
LEAST_SD = 0.05


def compared(manifest: Manifest, images: np.ndarray, confidence: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Name of a series kind → `studies`, `means` and `unlike`: a phrase for each number that is unlike training's.

    `images`: (study, kind, feature), NaN = none.  `confidence`: localiser → (study,) mean confidence, NaN = none.
    """
    assert manifest.domain is not None
    localisers = {one.member.name: one.member.inputs[0].series for one in manifest.artefacts}
    trained = {str(kind): its for kind, its in manifest.domain.images.items()}
    found: dict[str, dict[str, Any]] = {}
    for (text, kind), values in zip(SERIES_KINDS.items(), np.moveaxis(images, 1, 0), strict=True):
        studies = int((~np.isnan(values)).any(1).sum())
        if not studies:
            continue
        means: dict[str, float] = {}
        unlike: list[str] = []
        known = trained.get(kind, {})
        for (name, feature), column in zip(FEATURES.items(), values.T, strict=True):
            if name in known:
                _judge(name, feature.text, column, known[name], feature.least_sd, means, unlike)
        its = [name for name, series in localisers.items() if series == kind and name in manifest.domain.confidence]
        if its:
            spreads = [manifest.domain.confidence[name] for name in its]
            column = np.stack([confidence[name] for name in its]).mean(0)
            _judge("confidence", "confidence of its landmarks", column, _mean_of(spreads), LEAST_SD, means, unlike)
        found[text] = {"studies": studies, "means": means, "unlike": unlike}
    return found


def _judge(
    name: str,
    text: str,
    column: np.ndarray,
    spread: Spread,
    least_sd: float,
    means: dict[str, float],
    unlike: list[str],
) -> None:
    """Add a number's mean over the studies, and a sentence where it is unlike the training's."""
    own = column[~np.isnan(column)]
    if not len(own):
        return
    mean, sd = float(own.mean(dtype=np.float64)), max(spread.sd, least_sd)
    means[name] = round(mean, 3)
    far = LEAST_OFF + SURE * math.sqrt(1 / len(own) + 1 / spread.studies)
    # Surer than out of fold is no fault: so localisers are of studies that they were trained on.
    off = spread.mean - mean if name == "confidence" else abs(mean - spread.mean)
    if len(own) >= LEAST_STUDIES and off > far * sd:
        digits = 0 if sd >= 3 else 2
        unlike.append(f"{text} {mean:.{digits}f}, in training {spread.mean:.{digits}f} ± {spread.sd:.{digits}f}")


def _mean_of(spreads: Sequence[Spread]) -> Spread:
    """That of several localisers together."""
    mean, sd = (float(np.mean([getattr(one, part) for one in spreads])) for part in ("mean", "sd"))
    return Spread(studies=min(one.studies for one in spreads), mean=mean, sd=sd)
