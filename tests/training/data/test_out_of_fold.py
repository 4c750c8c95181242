"""The table of out-of-fold answers, and that mixing them is what the kernel does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import GROUPS, ROWS, SEVERITIES
from tests.support.networks.combined import combined
from training.data.out_of_fold import (
    MISSING,
    Answers,
    Average,
    Mixture,
    OutOfFoldError,
    Rule,
    Scaling,
    answers_of,
    read,
    rows_of,
    together,
    write,
)
from training.evaluation.metric import pooled, slopes


def labels_of(studies: int, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).choice([0, 1, 2, MISSING], (studies, len(ROWS)), p=(0.6, 0.2, 0.15, 0.05))
    return pd.DataFrame(values, index=[str(100 + study) for study in range(studies)], columns=list(ROWS))


def spoken(studies: list[str], seed: int, silence: float = 0.2) -> dict[str, dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return {s: {row: random.normal(size=3) for row in ROWS if random.random() >= silence} for s in studies}


def table_of(members: int = 3, studies: int = 4) -> pd.DataFrame:
    labels = labels_of(studies)
    names = list(labels.index)
    parts = [
        rows_of("a", f"a_{member}", "a", fold, spoken(names[fold::2], member), labels)
        for member in range(members)
        for fold in range(2)
    ]
    return pd.concat(parts, ignore_index=True)


def random_answers(members: int, studies: int, seed: int, silence: float) -> Answers:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (members, studies, len(ROWS), 3))
    logits[random.random(logits.shape[:3]) < silence] = np.nan
    names = tuple(f"a/{member}" for member in range(members))
    labels = labels_of(studies, seed).to_numpy()
    return Answers(names, tuple(map(str, range(studies))), np.arange(studies) % 5, labels, logits)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    table = table_of()
    write(tmp_path / "one.parquet", table)
    pd.testing.assert_frame_equal(read([tmp_path / "one.parquet"]), table, check_dtype=False)
    assert [path.name for path in tmp_path.iterdir()] == ["one.parquet"]


def test_arrays_hold_every_answer_in_its_place() -> None:
    table = table_of()
    answers = answers_of(table.sample(frac=1, random_state=0))
    assert answers.members == ("a/a_0", "a/a_1", "a/a_2")
    assert answers.studies == ("100", "101", "102", "103")
    assert answers.folds.tolist() == [0, 1, 0, 1]
    assert (answers.labels == labels_of(4).to_numpy()).all()
    said = spoken(["101", "103"], seed=2)["103"]
    for at, row in enumerate(ROWS):
        expected = said[row].astype(np.float32) if row in said else np.full(3, np.nan)
        np.testing.assert_array_equal(answers.logits[2, 3, at], expected)


def test_a_study_that_nobody_answers_stays_in_the_score() -> None:
    table = rows_of("a", "a_0", "a", 0, {"100": {}, "101": {}}, labels_of(2))
    answers = answers_of(table)
    assert answers.studies == ("100", "101") and np.isnan(answers.logits).all()
    rule = Rule("logits", public_priors())
    mixed = Mixture(answers, rule).mix(np.ones((1, 3)))
    np.testing.assert_allclose(mixed, np.broadcast_to(rule.prior_rows(), mixed.shape), atol=1e-15)


def test_who_was_shown_a_study_is_told_from_who_is_silent_on_it() -> None:
    one, both = labels_of(2), ["100", "101"]
    shown = rows_of("a", "a_0", "a", 0, {study: {} for study in both}, one)
    half = rows_of("a", "a_1", "a", 0, spoken(both[:1], 1), one)
    answers = answers_of(together([shown, half]))
    assert answers.evaluated is not None and answers.evaluated.tolist() == [[True, True], [True, False]]
    part = answers.only(studies=np.array([False, True]), members=["a/a_1", "a/a_0"])
    assert part.evaluated is not None and part.evaluated.tolist() == [[False], [True]]


def test_a_part_of_the_answers() -> None:
    answers = answers_of(table_of())
    part = answers.only(studies=answers.folds == 1, members=["a/a_2", "a/a_0"])
    assert part.studies == ("101", "103") and part.members == ("a/a_2", "a/a_0")
    np.testing.assert_array_equal(part.logits, answers.logits[[2, 0]][:, [1, 3]])
    assert answers.only(members=()).logits.shape == (0, 4, 25, 3)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from(["logits", "probabilities"]), st.floats(0, 0.9))
def test_mixing_is_the_kernels_combine(seed: int, members: int, average: Average, silence: float) -> None:
    answers = random_answers(members, 3, seed, silence)
    weights = np.random.default_rng(seed).choice([0.0, 0.2, 1.0, 3.0], (members, 3))
    random = np.random.default_rng(seed + 1)
    scaling = Scaling(random.uniform(0.5, 2, (3, 3)), random.choice([0.6, 1.0, 2.5], 3))
    factors = {group: tuple(its) for group, its in zip(GROUPS, scaling.multipliers.tolist(), strict=True)}
    divisors = dict(zip(GROUPS, scaling.temperatures.tolist(), strict=True))
    mixture = Mixture(answers, Rule(average, public_priors()))
    mixed, changed = mixture.mix(weights), mixture.mix(weights, scaling)
    for study in range(3):
        said = [
            (
                dict(zip(GROUPS, weights[member].tolist(), strict=True)),
                {
                    row: answers.logits[member, study, at]
                    for at, row in enumerate(ROWS)
                    if not np.isnan(answers.logits[member, study, at]).any()
                },
            )
            for member in range(members)
        ]
        expected, _ = combined(said, average)
        np.testing.assert_allclose(mixed[study], expected, atol=1e-12, rtol=0)
        expected, _ = combined(said, average, factors, divisors)
        np.testing.assert_allclose(changed[study], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("multipliers", [np.ones((3, 3)), np.array([[1, 2, 4], [1, 0.5, 3], [1, 1, 2.0]])])
@pytest.mark.parametrize("temperatures", [np.ones(3), np.array([1.4, 0.7, 1.0])])
def test_slopes_are_those_of_small_steps(average: Average, multipliers: np.ndarray, temperatures: np.ndarray) -> None:
    scaling = Scaling(multipliers, temperatures)
    answers = random_answers(4, 30, seed=1, silence=0.3)
    mixture = Mixture(answers, Rule(average, public_priors()))
    random = np.random.default_rng(2)
    weights, direction = random.uniform(0.2, 1, (4, 3)), random.normal(size=(4, 3))

    def final(step: float) -> float:
        return pooled(answers.labels, mixture.mix(weights + step * direction, scaling)).final

    by_probability = slopes(answers.labels, mixture.mix(weights, scaling))
    expected = (final(1e-6) - final(-1e-6)) / 2e-6
    assert (mixture.slopes(weights, by_probability, scaling) * direction).sum() == pytest.approx(expected, rel=1e-6)


def test_members_must_agree_on_folds_and_labels() -> None:
    table = table_of()
    first = (table["study"] == "100") & (table["member"] == "a_0")
    with pytest.raises(OutOfFoldError, match="disagree on the fold of 100"):
        answers_of(table.assign(fold=table["fold"].where(~first, 1)))
    with pytest.raises(OutOfFoldError, match=f"disagree on the label of 100 {ROWS[0]}"):
        answers_of(table.assign(label=table["label"].where(~first | (table["row"] != ROWS[0]), 3)))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda table: table.drop(columns=["fold", "severe"]), r"lacks the columns fold, severe"),
        (lambda table: table.iloc[:0], "has no rows"),
        (lambda table: pd.concat([table, table[:1]]), f"has a_0 a 100 {ROWS[0]} more than once"),
        (lambda table: table.assign(row="spinal"), "more than once|spinal is none of the 25 rows"),
        (lambda table: table.assign(label=3), "labels must be 0, 1, 2 or -100"),
        (lambda table: table.assign(severe=np.inf), "logits must be finite"),
        (lambda table: table.assign(severe=np.nan), "or all three NaN"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, broken, message: str) -> None:
    table = broken(table_of())
    with pytest.raises(OutOfFoldError, match=message):
        write(tmp_path / "one.parquet", table)
    assert not list(tmp_path.iterdir())
    table.to_parquet(tmp_path / "one.parquet")
    with pytest.raises(OutOfFoldError, match=message):
        read([tmp_path / "one.parquet"])


def test_unreadable_and_repeated_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(OutOfFoldError, match="no out-of-fold table"):
        read([])
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(OutOfFoldError, match="text.parquet cannot be read"):
        read([tmp_path / "text.parquet"])
    write(tmp_path / "one.parquet", table_of())
    with pytest.raises(OutOfFoldError, match="the tables together: has a_0"):
        read([tmp_path / "one.parquet"] * 2)


def test_answers_to_unlabelled_studies_are_refused() -> None:
    with pytest.raises(OutOfFoldError, match="a_0 answers study 7"):
        rows_of("a", "a_0", "a", 0, {"7": {}}, labels_of(2))


def test_logits_are_kept_in_float32() -> None:
    assert (table_of()[list(SEVERITIES)].dtypes == np.float32).all()
