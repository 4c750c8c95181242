"""The metric against published values, against scikit-learn, and on what crashes the organisers' code."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from kernels.lumbar.labels import GROUPS, LEVELS, ROWS, SEVERITIES, SEVERITY_WEIGHTS, group_of
from training.data.training_priors import weighted_priors
from training.evaluation.metric import MetricError, score, with_mean

STUDIES = 1975
# Normal/mild, moderate and severe labels of the competition's columns, L1/L2 to L5/S1; the rest is not labelled.
COUNTS = """
left_neural_foraminal_narrowing   1908 63 2    1791 171 11  1522 411 40   1204 629 140  1247 520 206
left_subarticular_stenosis        1690 93 28   1555 255 83  1324 454 194  887 624 461   1408 409 147
right_neural_foraminal_narrowing  1891 63 13   1793 168 6   1512 414 41   1208 629 130  1281 496 190
right_subarticular_stenosis       1680 110 24  1577 243 73  1322 454 197  891 622 460   1399 396 173
spinal_canal_stenosis             1886 67 21   1770 151 53  1622 230 122  1482 237 255  1904 51 19
"""
NUMBERS = np.array([line.split()[1:] for line in COUNTS.strip().splitlines()], int).reshape(25, 3)
COLUMNS = {row: tuple(counts) for row, counts in zip(ROWS, NUMBERS.tolist(), strict=True)}
# Studies by the worst level of their canal: weights 1, 2 and 4 of the any-severe loss.
WORST = (1263, 346, 365)

# Published scores of constants on the real labels: spinal, foraminal, subarticular, any severe, final.
CONSTANTS = {
    (1 / 3, 1 / 3, 1 / 3): (1.09861, 1.09861, 1.09861, 0.70180, 0.99941),
    (0.55, 0.20, 0.25): (0.84512, 0.97546, 1.06269, 0.75737, 0.91016),
    (0.60, 0.20, 0.20): (0.81730, 0.95043, 1.07844, 0.81582, 0.91550),
    (0.50, 0.15, 0.35): (0.89644, 1.07178, 1.09572, 0.69544, 0.93984),
    (0.90, 0.05, 0.05): (0.91166, 1.26192, 1.59871, 1.31012, 1.27060),
}


def real_counts() -> pd.DataFrame:
    """study × 25 severities that give the real counts of every column and of every worst canal.

    The rows of the real table may not be here, but constants cannot tell it from this one.  Severe canals: all of
    L4/L5 and most of L3/L4 are different studies, until there are 365; all others lie in these.  Moderate ones follow
    likewise, and what is too many for 346 studies lies in severe ones.
    """
    labels = pd.DataFrame(0, index=[str(study) for study in range(STUDIES)], columns=list(ROWS))
    for row, (normal, moderate, severe) in COLUMNS.items():
        labels.loc[labels.index[normal + moderate + severe :], row] = -100
        if group_of(row) != "spinal":
            labels.iloc[:severe, labels.columns.get_loc(row)] = 2
            labels.iloc[severe : severe + moderate, labels.columns.get_loc(row)] = 1
    severe_end, moderate_end = WORST[2], WORST[2] + WORST[1]
    _, most_moderate, most_severe = COLUMNS["spinal_canal_stenosis_l4_l5"]
    for level in LEVELS:
        column = labels.columns.get_loc(f"spinal_canal_stenosis_{level}")
        _, moderate, severe = COLUMNS[f"spinal_canal_stenosis_{level}"]
        own_severe, own_moderate = np.arange(severe), np.arange(severe_end, severe_end + moderate)
        if level == "l3_l4":  # what L4/L5 leaves of the 365 and of the 346, and what is too many in severe studies
            alone = severe_end - most_severe
            own_severe = np.r_[most_severe:severe_end, : severe - alone]
            alone = moderate_end - severe_end - most_moderate
            own_moderate = np.r_[severe_end + most_moderate : moderate_end, severe : severe + moderate - alone]
        labels.iloc[own_severe, column] = 2
        labels.iloc[own_moderate, column] = 1
    return labels


@pytest.fixture(scope="module")
def real():
    return real_counts()


def solution_of(labels: pd.DataFrame) -> pd.DataFrame:
    """One-hot rows; those without label are NaN."""
    onehot = np.vstack([np.eye(3), np.full((1, 3), np.nan)])[labels.to_numpy().clip(-1).ravel()]
    return frame_of(labels, onehot)


def frame_of(labels: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    ids = [f"{study}_{row}" for study in labels.index for row in labels.columns]
    return pd.DataFrame(values, columns=list(SEVERITIES)).assign(row_id=ids)


def constant(labels: pd.DataFrame, values) -> pd.DataFrame:
    return frame_of(labels, np.broadcast_to(values, (labels.size, 3)))


def random_case(studies=40, seed=0):
    random = np.random.default_rng(seed)
    labels = pd.DataFrame(random.choice([0, 1, 2, -100], (studies, 25), p=(0.6, 0.2, 0.15, 0.05)), columns=list(ROWS))
    labels.index = [str(study) for study in random.permutation(10**9 + np.arange(studies))]
    return labels, frame_of(labels, random.dirichlet((1, 1, 1), labels.size))


def test_the_stand_in_has_the_counts_of_the_real_table(real):
    assert {row: tuple((real[row] == grade).sum() for grade in range(3)) for row in ROWS} == COLUMNS
    worst = real[[row for row in ROWS if group_of(row) == "spinal"]].max(axis=1)
    assert tuple((worst == grade).sum() for grade in range(3)) == WORST


@pytest.mark.parametrize("probabilities", CONSTANTS)
def test_constants_have_their_published_scores(real, probabilities):
    result = score(solution_of(real), constant(real, probabilities))
    assert astuple(result) == pytest.approx(CONSTANTS[probabilities], abs=1e-5)


@pytest.mark.parametrize(
    ("foraminal", "spinal", "any_severe", "subarticular", "published"),
    [(0.4793, 0.2761, 0.2740, 0.5617, 0.3978), (0.4783, 0.2745, 0.2704, 0.5603, 0.3959)],
)
def test_the_score_is_the_plain_mean_of_its_parts_as_the_notes_of_the_second_place_add_them_up(
    foraminal, spinal, any_severe, subarticular, published
):
    weight = np.array([3.0, 1.0, 7.0, 2.0])
    loss = np.array([spinal, foraminal, subarticular, any_severe]) * weight
    assert with_mean(loss, weight)[4] == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize(
    ("pooled", "published"),
    [
        (lambda row: row[-5:] + group_of(row), (0.70625, 0.80462, 0.95111, 0.69804, 0.79000)),
        (lambda row: row, (0.70625, 0.80371, 0.95084, 0.69804, 0.78971)),
        (lambda row: group_of(row), (0.78326, 0.91890, 1.05071, 0.89045, 0.91083)),
        (lambda row: "all", (0.83956, 0.93539, 1.07081, 0.83512, 0.92022)),
    ],
    ids=["condition and level", "column", "condition", "global"],
)
def test_weighted_frequencies_have_their_published_scores(real, pooled, published):
    weighted = {row: np.array(COLUMNS[row]) * SEVERITY_WEIGHTS for row in ROWS}
    sums = {row: sum(weighted[other] for other in ROWS if pooled(other) == pooled(row)) for row in ROWS}
    values = np.array([sums[row] / sums[row].sum() for row in ROWS])
    result = score(solution_of(real), frame_of(real, np.tile(values, (STUDIES, 1))))
    assert astuple(result) == pytest.approx(published, abs=1e-5)


def test_priors_are_the_best_constant_that_does_not_know_sides(real):
    priors = weighted_priors(real)
    result = score(solution_of(real), frame_of(real, np.tile([priors[row] for row in ROWS], (STUDIES, 1))))
    assert result.final == pytest.approx(0.79000, abs=2e-5)
    assert list(priors) == list(ROWS)
    assert priors["left_subarticular_stenosis_l4_l5"] == priors["right_subarticular_stenosis_l4_l5"]
    assert priors["spinal_canal_stenosis_l4_l5"] == pytest.approx((0.498, 0.159, 0.343), abs=1e-3)


def test_priors_are_positive_whatever_is_missing(real):
    for labels in (real.iloc[:1], real * 0 - 100, real.iloc[:0]):
        values = np.array(list(weighted_priors(labels).values()))
        assert values.min() > 0 and values.sum(1) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_every_part_agrees_with_scikit_learn(seed):
    labels, submission = random_case(seed=seed)
    result = score(solution_of(labels), submission.sample(frac=1, random_state=seed))
    flat = labels.to_numpy().ravel()
    known, values = flat >= 0, submission[list(SEVERITIES)].to_numpy()
    groups = np.array([group_of(row) for _ in labels.index for row in ROWS])
    weights = np.array([*SEVERITY_WEIGHTS, 0])[flat.clip(-1)]
    for group in GROUPS:
        chosen = known & (groups == group)
        expected = log_loss(flat[chosen], values[chosen], sample_weight=weights[chosen], labels=[0, 1, 2])
        assert getattr(result, group) == pytest.approx(expected, abs=1e-12)
    canal = groups == "spinal"
    worst = np.where(known, flat, 0)[canal].reshape(-1, 5).max(1)
    severe = np.where(known, values[:, 2], 0)[canal].reshape(-1, 5).max(1)
    expected = log_loss(worst == 2, severe, sample_weight=np.array(SEVERITY_WEIGHTS)[worst], labels=[False, True])
    assert result.any_severe == pytest.approx(expected, abs=1e-12)
    assert result.final == pytest.approx(np.mean([result.spinal, result.foraminal, result.subarticular, expected]))


def test_rows_are_joined_by_name_and_extra_ones_do_not_count():
    labels, submission = random_case()
    solution = solution_of(labels)
    expected = score(solution, submission)
    shuffled = score(solution.sample(frac=1, random_state=1), submission.sample(frac=1, random_state=2))
    assert astuple(shuffled) == pytest.approx(astuple(expected), abs=1e-12)
    assert score(solution.dropna(), submission) == expected
    extra = pd.DataFrame({"row_id": ["9_spinal_canal_stenosis_l1_l2"], "normal_mild": 7, "moderate": 7, "severe": 7})
    assert score(solution, pd.concat([submission, extra])) == expected


def test_nothing_given_is_changed():
    labels, submission = random_case(5)
    solution = solution_of(labels)
    copies = solution.copy(), submission.copy()
    score(solution, submission)
    pd.testing.assert_frame_equal(solution, copies[0])
    pd.testing.assert_frame_equal(submission, copies[1])


@pytest.mark.parametrize("only", [0, 1, 2])
def test_sets_of_one_class_have_a_score(only):
    labels = pd.DataFrame(only, index=["1", "2"], columns=list(ROWS))
    result = score(solution_of(labels), constant(labels, (0.5, 0.3, 0.2)))
    assert result.spinal == result.foraminal == pytest.approx(-np.log((0.5, 0.3, 0.2)[only]))
    assert result.any_severe == pytest.approx(-np.log(0.2 if only == 2 else 0.8))


def test_a_condition_without_labels_is_left_out_of_the_mean():
    labels, submission = random_case()
    labels[[row for row in ROWS if group_of(row) == "spinal"]] = -100
    result = score(solution_of(labels), submission)
    assert np.isnan(result.spinal) and np.isnan(result.any_severe)
    assert result.final == pytest.approx((result.foraminal + result.subarticular) / 2)


def test_certain_and_wrong_costs_what_float64_costs():
    labels = pd.DataFrame(2, index=["1"], columns=list(ROWS))
    result = score(solution_of(labels), constant(labels, (1.0, 0.0, 0.0)))
    assert result.final == pytest.approx(-np.log(np.finfo(float).eps)) == pytest.approx(36.04, abs=0.01)
    right = score(solution_of(labels), constant(labels, (0.0, 0.0, 1.0)))
    assert 0 <= right.final < 1e-15


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1, 0.50001, 1, "much"])
def test_rows_that_are_no_probabilities_are_named(wrong):
    labels, _ = random_case(3)
    labels.iloc[1, 2] = 0
    submission = constant(labels, (0.2, 0.3, 0.5)).astype({"severe": object})
    submission.loc[27, "severe"] = wrong
    with pytest.raises(MetricError, match=f"1 rows of the submission .* the first is {labels.index[1]}_{ROWS[2]}"):
        score(solution_of(labels), submission)


def test_missing_and_repeated_rows_and_columns_are_named():
    labels, submission = random_case(3)
    labels.iloc[:] = 0
    solution = solution_of(labels)
    first = submission["row_id"][0]
    with pytest.raises(MetricError, match=f"lacks 2 rows of the solution, the first is {first}"):
        score(solution, submission.iloc[2:])
    with pytest.raises(MetricError, match=f"the submission has {first} more than once"):
        score(solution, pd.concat([submission, submission[:1]]))
    with pytest.raises(MetricError, match=r"the submission lacks the columns severe"):
        score(solution, submission.drop(columns="severe"))
    with pytest.raises(MetricError, match="the solution is not one-hot"):
        score(solution.assign(severe=1.0), submission)
    with pytest.raises(MetricError, match="labels no row"):
        score(solution.assign(normal_mild=np.nan), submission)
