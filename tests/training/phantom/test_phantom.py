"""The phantom's latent model, geometry and anatomy, without files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.lumbar.labels import CONDITIONS, LEVELS, MIRROR, ROW_INDEX, ROWS, SEVERITY_WEIGHTS
from tests.support.anatomy.phantoms import grade_posterior, mirrored_patient, mirrored_series, tissue_at
from training.phantom.aggregates import ROWS_PREVALENCE
from training.phantom.annotate import CLICK_SPREAD_MM
from training.phantom.body import signal_at
from training.phantom.curve import DISCS, FIRST_LABELLED
from training.phantom.protocol import AXIAL_T2, SAGITTAL_T1
from training.phantom.render import render_series
from training.phantom.severity import Severity, sample_severity
from training.phantom.sizes import Anatomy, sample_anatomy
from training.phantom.study import PhantomStudy, sample_study
from training.phantom.tissue import Tissue, signal_table

SAMPLES = 4000
S1_S2 = DISCS.index("s1_s2")


@pytest.fixture(scope="module")
def severities() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Grades and narrowing measures (study, 25) of many studies."""
    drawn = [sample_severity(np.random.default_rng((5, index))) for index in range(SAMPLES)]
    return np.stack([one.grades for one in drawn]), np.stack([one.narrowing for one in drawn])


@pytest.fixture(scope="module")
def studies() -> list[PhantomStudy]:
    return [sample_study((3, 0, index), 1.0) for index in range(60)]


def anatomy_of(seed: int, narrowing: float | None = None) -> Anatomy:
    rng = np.random.default_rng(seed)
    severity = sample_severity(rng)
    if narrowing is not None:
        severity = Severity(severity.grades, np.full(len(ROWS), narrowing))
    return sample_anatomy(rng, severity)


def columns_of(group: str) -> list[int]:
    return [index for index, row in enumerate(ROWS) if group in row]


def weighted_log_loss(loss: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return float((loss * weights).sum() / weights.sum())


def test_prevalence(severities: tuple[NDArray[np.int64], NDArray[np.float64]]) -> None:
    grades, _ = severities
    shares = np.stack([(grades == grade).mean(axis=0) for grade in range(3)], axis=1)
    assert np.abs(shares - ROWS_PREVALENCE).max() < 0.03
    assert (grades.max(axis=1) == 0).mean() == pytest.approx(0.129, abs=0.03)
    assert (grades[:, columns_of("spinal")].max(axis=1) == 2).mean() == pytest.approx(0.185, abs=0.035)


def test_correlations(severities: tuple[NDArray[np.int64], NDArray[np.float64]]) -> None:
    grades, _ = severities
    ranks = np.apply_along_axis(_mid_ranks, 0, grades)
    found = np.asarray(np.corrcoef(ranks.T))
    measured = {
        ("spinal_canal_stenosis_l4_l5", "left_subarticular_stenosis_l4_l5"): 0.583,
        ("spinal_canal_stenosis_l5_s1", "left_subarticular_stenosis_l5_s1"): 0.227,
        ("left_subarticular_stenosis_l3_l4", "right_subarticular_stenosis_l3_l4"): 0.571,
        ("left_neural_foraminal_narrowing_l4_l5", "right_neural_foraminal_narrowing_l4_l5"): 0.358,
        ("left_neural_foraminal_narrowing_l3_l4", "left_neural_foraminal_narrowing_l4_l5"): 0.459,
        ("spinal_canal_stenosis_l3_l4", "spinal_canal_stenosis_l4_l5"): 0.399,
    }
    for (one, other), value in measured.items():
        assert found[ROW_INDEX[one], ROW_INDEX[other]] == pytest.approx(value, abs=0.1), (one, other)


def _mid_ranks(values: NDArray[np.int64]) -> NDArray[np.float64]:
    counts = np.bincount(values, minlength=3)
    return np.asarray((np.cumsum(counts) - counts / 2)[values], float)


def test_best_reader_is_neither_perfect_nor_blind(
    severities: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> None:
    grades, narrowing = severities
    posterior = grade_posterior(narrowing)
    assert np.allclose(posterior.sum(axis=-1), 1.0)
    chosen = np.take_along_axis(posterior, grades[..., None], axis=-1)[..., 0]
    loss, weights = -np.log(chosen), np.array(SEVERITY_WEIGHTS)[grades]
    scores = []
    for group in ("spinal", "foraminal", "subarticular"):
        columns = columns_of(group)
        scores.append(weighted_log_loss(loss[:, columns], weights[:, columns]))
    spinal = columns_of("spinal")
    severe = grades[:, spinal].max(axis=1) == 2
    any_severe = posterior[:, spinal, 2].max(axis=1).clip(1e-12, 1 - 1e-12)
    any_loss = -np.log(np.where(severe, any_severe, 1.0 - any_severe))
    scores.append(weighted_log_loss(any_loss, weights[:, spinal].max(axis=1)))
    assert 0.2 < float(np.mean(scores)) < 0.4


def test_curve_inverse() -> None:
    curve = anatomy_of(1).curve
    for disc in (4, 6, 8):
        for place in ((18.0, 19.0, 7.5), (-18.0, 19.0, 7.5), (0.0, 22.0, 0.0), (9.0, 18.0, -6.0)):
            left, posterior, height = place
            found = curve.locate(curve.point(disc, left, posterior, height)[None, :])
            assert found.disc[0] == disc
            assert (found.left[0], found.posterior[0], found.height[0]) == pytest.approx(place, abs=0.01)


def test_landmarks_lie_in_their_tissue_and_on_their_side() -> None:
    anatomy = anatomy_of(2, narrowing=0.3)
    landmarks = anatomy.landmarks()
    centre = anatomy.curve.centres
    for index, row in enumerate(ROWS):
        disc = FIRST_LABELLED + index % len(LEVELS)
        sideways = float((landmarks[index] - centre[disc]) @ anatomy.curve.axes[disc, 0])
        wanted = {"left": 1, "right": -1}.get(row.split("_")[0], 0)
        assert np.sign(round(sideways)) == wanted, row
    tissues = tissue_at(landmarks, anatomy)
    spinal, foraminal = columns_of("spinal"), columns_of("foraminal")
    assert set(tissues[spinal]) <= {Tissue.CSF, Tissue.ROOT, Tissue.CORD}  # a low conus reaches L1/L2
    assert set(tissues[foraminal]) <= {Tissue.FAT, Tissue.ROOT}
    assert set(tissues[columns_of("subarticular")]) <= {Tissue.ROOT, Tissue.FAT}
    separation = np.linalg.norm(landmarks[0:5] - landmarks[10:15], axis=1)
    assert np.all((separation > 28.0) & (separation < 40.0))


@pytest.mark.parametrize("group", ["spinal", "foraminal", "subarticular"])
def test_narrowing_takes_the_bright_tissue(group: str) -> None:
    """Bright signal within 9 mm of the landmark falls from normal over moderate to severe, by far."""
    table = signal_table("t1" if group == "foraminal" else "t2")
    shares = []
    for narrowing in (0.4, 1.5, 2.6):
        anatomy = anatomy_of(4, narrowing)
        row = next(index for index in columns_of(group) if ROWS[index].endswith("l4_l5"))
        axes = anatomy.curve.axes[FIRST_LABELLED + 3]
        first, second = (axes[1], axes[2]) if group == "foraminal" else (axes[0], axes[1])
        reach = np.arange(-4.5, 4.6, 0.3)
        points = anatomy.landmarks()[row] + reach[:, None, None] * first + reach[None, :, None] * second
        shares.append(float((signal_at(points.astype(np.float32), anatomy, table) > 0.6).mean()))
    assert shares[0] > shares[1] + 0.08 > shares[2] + 0.16


def test_mirrored_anatomy_is_the_mirror_image() -> None:
    anatomy = anatomy_of(6)
    mirror = mirrored_patient(anatomy)
    points = np.random.default_rng(0).uniform([-70, -60, -110], [70, 100, 90], (20000, 3)).astype(np.float32)
    flipped = points * np.array([-1.0, 1.0, 1.0], np.float32)
    table = signal_table("t2")
    difference = np.abs(signal_at(points, anatomy, table) - signal_at(flipped, mirror, table))
    assert np.quantile(difference, 0.999) < 1e-2
    expected = anatomy.landmarks()[list(MIRROR)] * np.array([-1.0, 1.0, 1.0])
    assert mirror.landmarks() == pytest.approx(expected, abs=1e-2)
    left = [level.foramen_width.left for level in anatomy.levels]
    assert left != [level.foramen_width.left for level in mirror.levels]


def test_mirrored_study_renders_mirrored(studies: list[PhantomStudy]) -> None:
    study = studies[0]
    for description, flip in ((SAGITTAL_T1, False), (AXIAL_T2, True)):
        plan = next(plan for plan in study.plans if plan.description == description)
        plan = replace(plan, slices=plan.slices[6:7], noise=0.0, texture=0.0)
        _, image = next(render_series(study.anatomy, plan, np.random.default_rng(1)))
        _, other = next(render_series(mirrored_patient(study.anatomy), mirrored_series(plan), np.random.default_rng(1)))
        difference = np.abs(image.astype(int) - (other[:, ::-1] if flip else other).astype(int))
        assert difference.mean() < 0.005 * plan.white
        if flip:
            assert np.abs(image.astype(int) - other.astype(int)).mean() > 0.02 * plan.white


def test_axial_image_right_is_patient_left(studies: list[PhantomStudy]) -> None:
    for study in studies:
        for plan in study.plans:
            x = plan.slices[0].along_row[0]
            assert x > 0.9 if plan.description == AXIAL_T2 else abs(x) < 0.2
            assert abs(plan.slices[0].along_row @ plan.slices[0].along_column) < 1e-9


def test_clicks_project_onto_landmarks(studies: list[PhantomStudy]) -> None:
    for study in studies:
        assert len({click.row for click in study.clicks}) == len(study.clicks)
        for click in study.clicks:
            assert study.graded[click.row]
            plan = study.plans[click.series]
            place = next(place for place in plan.slices if place.instance == click.instance)
            column, row, away = place.project(study.landmarks[click.row], plan.spacing_mm)
            error_mm = np.hypot(column - click.x, row - click.y) * plan.spacing_mm
            assert error_mm < 6.0 * CLICK_SPREAD_MM
            assert abs(away) < 2.5 * plan.distance_mm + 2.0
            assert 0 <= click.x < plan.columns and 0 <= click.y < plan.rows


def test_protocols_follow_the_measured_distributions() -> None:
    studies = [sample_study((8, 0, index), 1.0) for index in range(250)]
    axial = [sum(plan.description == AXIAL_T2 for plan in study.plans) for study in studies]
    assert np.mean(np.array(axial) == 1) == pytest.approx(0.83, abs=0.07)
    missing = 1.0 - np.stack([study.graded for study in studies]).mean(axis=0)
    assert missing.mean() == pytest.approx(0.0116, abs=0.008)
    first = missing[ROW_INDEX["left_subarticular_stenosis_l1_l2"]]
    assert first > missing[ROW_INDEX["left_subarticular_stenosis_l2_l3"]] > missing[columns_of("spinal")].max()
    higher = [_left_is_higher(study) for study in studies]
    assert np.nanmean(higher) == pytest.approx(0.64, abs=0.08)


def test_sagittal_fields_end_where_real_ones_do(studies: list[PhantomStudy]) -> None:
    """All five levels within them; ends within the sacrum, wide fields, such as are cut above, and narrow ones."""
    below, above, portrait = [], [], []
    for study in studies:
        centres = study.anatomy.curve.centres
        for plan in study.plans:
            if plan.description == AXIAL_T2:
                continue
            place, height_mm = plan.slices[len(plan.slices) // 2], plan.rows * plan.spacing_mm
            rows_mm = [place.project(centre, plan.spacing_mm)[1] * plan.spacing_mm for centre in centres]
            assert all(plan.holds(len(plan.slices) // 2, point) for point in study.landmarks[columns_of("spinal")])
            assert rows_mm[FIRST_LABELLED] > 10.0 and rows_mm[S1_S2 - 1] < height_mm - 5.0
            below.append(height_mm - rows_mm[S1_S2])
            above.append(rows_mm[FIRST_LABELLED])
            portrait.append(plan.columns < 0.95 * plan.rows)
    assert np.mean(np.array(below) < 15.0) > 0.05  # ends at S1
    assert np.mean(np.array(below) > 60.0) > 0.15  # shows all of the sacrum that there is
    assert np.mean(np.array(above) < 55.0) > 0.05  # hardly anything above L1/L2
    assert 0.2 < np.mean(portrait) < 0.6


def test_the_sacrum_and_the_lowest_steps_vary_as_in_real_spines() -> None:
    anatomies = [anatomy_of(seed) for seed in range(80)]
    remnants = np.array([one.levels[S1_S2].disc_height for one in anatomies])
    lumbar = np.array([one.levels[S1_S2 - 1].disc_height for one in anatomies])
    assert np.quantile(remnants, 0.05) < 1.2 and remnants.max() > 0.6 * np.median(lumbar)
    canals = np.array([one.landmarks()[columns_of("spinal")] for one in anatomies])
    steps = np.linalg.norm(np.diff(canals, axis=1), axis=2)
    # SPIDER and other public masks: 33.6 32.0 30.1 25.1 and 33.5 33.3 32.1 27.5 mm.
    assert steps.mean(0) == pytest.approx([34.5, 33.5, 31.9, 25.4], abs=1.2)
    assert steps[:, 3].std() > 3.0


def _left_is_higher(study: PhantomStudy) -> float:
    clicks = {click.row: click for click in study.clicks}
    left, right = (clicks.get(CONDITIONS.index(f"{side}_neural_foraminal_narrowing") * 5) for side in ("left", "right"))
    if left is None or right is None:
        return float("nan")
    return float(left.instance > right.instance)
