"""Bootstrap intervals of a score over studies, and whether a difference of scores is more than noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from training.evaluation.metric import PARTS, Sums, losses, with_mean
from training.evaluation.ties import SAME

RESAMPLES = 2000
LEVEL = 0.95
# The metric's parts, then their mean.
FIGURES = (*PARTS, "final")

Verdict = Literal["better", "worse", "noise"]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval; NaN = undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """Score of new minus score of old predictions: negative is a gain."""

    verdict: Verdict
    """"noise" if the interval contains 0, up to rounding, or is undefined."""

    @property
    def text(self) -> str:
        """The value and its interval."""
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def is_none(self) -> bool:
        """Whether the two are the same in every resample."""
        return max(abs(self.value), abs(self.low), abs(self.high)) <= SAME


def intervals(labels: np.ndarray, probabilities: np.ndarray, resamples: int = RESAMPLES) -> dict[str, Interval]:
    """The pooled score of labels (N, 25), negative = missing, and probabilities (N, 25, 3): figure → interval.

    Studies are drawn with replacement, with the same draws for the same N.  A resample without a labelled row of a part
    that the studies have is excluded from that part and from the mean.
    """
    sums = losses(labels, probabilities)
    value, drawn = _value(sums), _drawn(sums, resamples)
    return {name: Interval(float(value[at]), *_bounds(drawn[:, at])) for at, name in enumerate(FIGURES)}


def difference(
    labels: np.ndarray, new: np.ndarray, old: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL
) -> Difference:
    """Paired difference of final scores, new minus old predictions (N, 25, 3), on the same resamples."""
    return differences(labels, new, old, resamples, level)["final"]


def differences(
    labels: np.ndarray, new: np.ndarray, old: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, Difference]:
    """`difference` for each of FIGURES."""
    first, second = losses(labels, new), losses(labels, old)
    value, drawn = _value(first) - _value(second), _drawn(first, resamples) - _drawn(second, resamples)
    return {name: _difference(float(value[at]), drawn[:, at], level) for at, name in enumerate(FIGURES)}


def unpaired(
    new: tuple[np.ndarray, np.ndarray], old: tuple[np.ndarray, np.ndarray], resamples: int = RESAMPLES
) -> Difference:
    """Unpaired difference of final scores, new minus old (labels, predictions), of different studies."""
    random = np.random.default_rng(0)
    values, drawn = [], []
    for labels, probabilities in (new, old):
        sums, count = losses(labels, probabilities), len(labels)
        values.append(_value(sums)[-1])
        times = random.multinomial(count, np.full(count, 1 / count), size=resamples)
        drawn.append(_figures(sums, times)[:, -1])
    return _difference(float(values[0] - values[1]), drawn[0] - drawn[1])


def _difference(value: float, drawn: np.ndarray, level: float = LEVEL) -> Difference:
    low, high = _bounds(drawn, level)
    return Difference(value, low, high, "better" if high < -SAME else "worse" if low > SAME else "noise")


def _value(sums: Sums) -> np.ndarray:
    return with_mean(sums.loss.sum(0), sums.weight.sum(0))


def _drawn(sums: Sums, resamples: int) -> np.ndarray:
    return _figures(sums, _times(len(sums.loss), resamples))


def _figures(sums: Sums, times: np.ndarray) -> np.ndarray:
    """(resamples, 5) figures of the resamples; NaN for a resample that lacks a part that the studies have."""
    figures = with_mean(times @ sums.loss, times @ sums.weight)
    present = sums.weight.sum(0) > 0
    figures[np.isnan(figures[:, :-1][:, present]).any(1), -1] = np.nan
    return figures


@lru_cache(maxsize=1)
def _times(studies: int, resamples: int) -> np.ndarray:
    """(resamples, studies) how often each study is drawn; cached, as members are compared on the same draws."""
    random = np.random.default_rng(0)
    drawn = random.integers(studies, size=(resamples, studies)) + np.arange(resamples)[:, None] * studies
    times = np.bincount(drawn.ravel(), minlength=resamples * studies).reshape(resamples, studies).astype(np.float64)
    times.flags.writeable = False
    return times


def _bounds(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
