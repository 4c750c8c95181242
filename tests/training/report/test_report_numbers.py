"""The report's tables and figures: rows add up to the metric, its best answer lies on the reliability line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels.lumbar.labels import GROUPS, LEVELS, ROWS, SEVERITIES
from training.data.tables import ROW_GROUPS
from training.ensemble.search import CurvePoint
from training.evaluation.metric import pooled, row_losses
from training.report.figures import apart, gain_figure
from training.report.numbers import confusion, losses_by_condition_and_level, reliability, worst
from training.report.predictions import predict
from training.report.sources import read_sources


def test_rows_and_cells_add_up_to_the_metric(runs: Path) -> None:
    own = predict(read_sources(runs, "smoke", [], None))
    sums = row_losses(own.labels, own.ensemble)
    score = pooled(own.labels, own.ensemble)
    for at, group in enumerate(GROUPS):
        part = sums.loss[:, ROW_GROUPS == at].sum() / sums.weight[:, ROW_GROUPS == at].sum()
        assert part == pytest.approx(getattr(score, group))
    cells = losses_by_condition_and_level(own.labels, own.ensemble, own.priors)
    assert cells["spinal_canal_stenosis", "all"].loss == pytest.approx(score.spinal)
    assert sum(cells["left_subarticular_stenosis", level].rows for level in LEVELS) == (own.labels[:, 5:10] >= 0).sum()
    first = worst(own.labels, own.ensemble, 3)
    assert [one.loss for one in first] == sorted(sums.loss.ravel(), reverse=True)[:3]
    assert worst(own.labels[:1, :], own.ensemble[:1], 100)[-1].loss >= 0 and not worst(own.labels, own.ensemble, 0)


def test_the_metrics_best_answer_lies_on_the_reliability_line() -> None:
    random = np.random.default_rng(0)
    shares = random.dirichlet((2, 1, 1), (4000, len(ROWS)))
    labels = (random.random((4000, len(ROWS), 1)) > shares.cumsum(-1)).sum(-1).clip(0, 2)
    best = shares * (1, 2, 4)
    best /= best.sum(-1, keepdims=True)
    for severity in SEVERITIES:
        bins = reliability(labels, best, "foraminal", severity)
        assert sum(one.rows for one in bins) == 4000 * 10
        assert all(abs(one.observed - one.predicted) < 0.04 for one in bins if one.rows > 500)
    counts = confusion(labels, np.eye(3)[labels], "spinal")
    assert counts.sum() == 4000 * 5 and (counts == np.diag(np.diag(counts))).all()


def test_numbers_in_the_gain_figure_do_not_lie_on_each_other() -> None:
    places = np.array([[0, 0], [1, 0], [10, 0], [11, 1], [30, 0], [31, 0]])
    assert apart(places, 5) == [0, 2, 5] and apart(places[:1], 5) == [0] and apart(places[:0], 5) == []
    assert gain_figure([CurvePoint("a", 1.0, 0.3), CurvePoint("b", 1.01, 0.29)]).startswith(
        "data:image/svg+xml;base64,"
    )
