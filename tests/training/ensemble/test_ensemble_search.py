"""Ensembles fitted on out-of-fold answers: what they gain, that the gain is honest, and what they cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import MIRROR, ROWS
from training.data.out_of_fold import Answers, Average, Mixture, Rule, Scaling
from training.data.tables import ROW_GROUPS
from training.ensemble.fit_weights import fit_weights
from training.ensemble.search import (
    LEAST_GAIN,
    Ensemble,
    MemberCosts,
    SearchError,
    best_ensemble,
    best_single,
    best_subset,
    calibrated,
    cross_fitted,
    pruned,
    run_order,
    simple_mean,
)
from training.evaluation.metric import group_losses, pooled

LOGITS = Rule("logits", public_priors())
FREQUENCIES = np.array([0.7, 0.2, 0.1])
AVERAGES: tuple[Average, ...] = ("logits", "probabilities")
EQUAL = np.ones((3, 3))


def labels_of(studies: int, random: np.random.Generator) -> np.ndarray:
    labels = random.choice(3, (studies, len(ROWS)), p=FREQUENCIES)
    return np.where(random.random(labels.shape) < 0.03, -100, labels)


def answers_with(
    skills: list[tuple[float, float, float]], studies: int, seed: int = 0, silence: float = 0.0
) -> Answers:
    """Members that know so much of the three groups beside weighted frequencies (1/2/4), each with its own noise."""
    random = np.random.default_rng(seed)
    labels = labels_of(studies, random)
    skill = np.array(skills)[:, ROW_GROUPS][:, None, :, None]
    logits = np.log(FREQUENCIES * (1, 2, 4)) + skill * np.eye(3)[labels.clip(0)]
    logits = logits + random.normal(size=(len(skills), studies, len(ROWS), 3))
    logits[random.random(logits.shape[:3]) < silence] = np.nan
    members = tuple(f"{'ab'[at % 2]}/m{at}" for at in range(len(skills)))
    return Answers(members, tuple(map(str, range(studies))), np.arange(studies) % 5, labels, logits)


def final(answers: Answers, ensemble: Ensemble, rule: Rule = LOGITS) -> float:
    return pooled(answers.labels, ensemble.predict(answers, rule)).final


def weighted(answers: Answers, weights: np.ndarray) -> Ensemble:
    return Ensemble(answers.members, weights, EQUAL)


@pytest.mark.parametrize("average", AVERAGES)
def test_noise_gets_little_weight(average: Average) -> None:
    answers = answers_with([(3, 3, 3), (0, 0, 0), (3, 3, 3)], 300)
    weights = fit_weights(answers, Rule(average, public_priors()))
    np.testing.assert_allclose(weights.sum(0), 1)
    assert weights[1].max() < 0.15 and weights[[0, 2]].min() > 0.3


@pytest.mark.parametrize("average", AVERAGES)
def test_each_member_counts_where_it_is_good(average: Average) -> None:
    rule = Rule(average, public_priors())
    answers = answers_with([(3, 0, 1), (0, 3, 1)], 200)
    fitted = weighted(answers, fit_weights(answers, rule))
    assert fitted.weights[0, 0] > 0.8 and fitted.weights[1, 1] > 0.8
    alone = [final(answers, weighted(answers, np.eye(2)[member][:, None] * np.ones(3)), rule) for member in range(2)]
    assert final(answers, fitted, rule) < min(alone) - 0.05
    mixed = cross_fitted(answers, rule, lambda part: weighted(part, fit_weights(part, rule)))
    assert pooled(answers.labels, mixed).final < min(alone) - 0.05
    single = best_single(answers, rule)
    assert single.weights[:, :2].tolist() == [[1, 0], [0, 1]]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from(AVERAGES), st.sampled_from([0.0, 0.3, 0.9]))
def test_fitting_never_loses_to_the_simple_mean(seed: int, members: int, average: Average, silence: float) -> None:
    rule = Rule(average, public_priors())
    skills = np.random.default_rng(seed).uniform(0, 2, (members, 3)).tolist()
    answers = answers_with(skills, 12, seed, silence)
    simple = simple_mean(answers, rule)
    weights = fit_weights(answers, rule)
    plain = weighted(answers, weights)
    losses = [
        group_losses(answers.labels, one.predict(answers, rule))
        for one in (simple, plain, calibrated(plain, answers, rule))
    ]
    assert (losses[1] <= losses[0] + 1e-12).all() and (losses[2] <= losses[1] + 1e-12).all()
    np.testing.assert_array_equal(weights, fit_weights(answers, rule))


def test_the_fit_of_noise_is_not_reported_as_a_gain() -> None:
    for seed in range(3):
        answers = answers_with([(0, 0, 0)] * 8, 40, seed)
        fitted = final(answers, best_ensemble(answers, LOGITS, MemberCosts.equal(answers.members)))
        mixed = cross_fitted(answers, LOGITS, lambda part: best_ensemble(part, LOGITS, MemberCosts.equal(part.members)))
        assert pooled(answers.labels, mixed).final >= fitted


def test_with_few_studies_weights_stay_nearer_to_the_mean() -> None:
    skills = [(1.0, 1.0, 1.0)] * 3 + [(0.8, 0.8, 0.8)]
    few, many = (fit_weights(answers_with(skills, studies, seed=1), LOGITS) for studies in (3, 600))
    assert np.abs(few - 0.25).max() < 0.25
    assert many[3].max() < 0.25


@pytest.mark.parametrize("folds", [[0, 1, 2], [4]])
def test_no_study_is_answered_by_what_was_fitted_on_it(folds: list[int]) -> None:
    answers = answers_with([(1, 1, 1)], 12)
    answers = replace(answers, folds=np.array(folds * 12)[:12])
    shown: list[set[str]] = []

    def fit(part: Answers) -> Ensemble:
        shown.append(set(part.studies))
        return Ensemble(part.members, np.full((1, 3), 1.0), np.full((3, 3), [1.0, 1.0, len(shown)]))

    mixed = cross_fitted(answers, LOGITS, fit)
    assert len(shown) == (3 if len(folds) == 3 else 5)
    assert sum(len(answers.studies) - len(part) for part in shown) == 12
    for at, part in enumerate(shown):
        by_it = fit_free(answers, at + 1)
        for study in set(answers.studies) - part:
            np.testing.assert_allclose(mixed[int(study)], by_it[int(study)])


def fit_free(answers: Answers, severe: int) -> np.ndarray:
    return Mixture(answers, LOGITS).mix(np.ones((1, 3)), Scaling(np.full((3, 3), [1.0, 1.0, severe])))


@pytest.mark.parametrize("average", AVERAGES)
def test_scaling_undoes_an_unweighted_training(average: Average) -> None:
    rule = Rule(average, public_priors())
    answers = answers_with([(0, 0, 0)], 1500)
    answers = replace(answers, logits=np.broadcast_to(np.log(FREQUENCIES), answers.logits.shape))
    plain = simple_mean(answers, rule)
    found = calibrated(plain, answers, rule)
    weighted_shares = FREQUENCIES * [1, 2, 4] / (FREQUENCIES * [1, 2, 4]).sum()
    rows = found.predict(answers, rule)[0]
    np.testing.assert_allclose(rows[ROW_GROUPS != 0], np.tile(weighted_shares, (20, 1)), atol=0.03)
    by_hand = Ensemble(answers.members, np.ones((1, 3)), np.array([[1, 2, 4]] * 3))
    assert final(answers, found, rule) <= final(answers, by_hand, rule)


def test_multipliers_leave_priors_alone() -> None:
    answers = answers_with([(1, 1, 1)], 10, silence=0.5)
    silent = np.isnan(answers.logits[0]).all(-1)
    mixed = Mixture(answers, LOGITS).mix(np.ones((1, 3)), Scaling(np.full((3, 3), [1.0, 2.0, 4.0])))
    expected = np.broadcast_to(LOGITS.prior_rows(), mixed.shape)
    np.testing.assert_allclose(mixed[silent], expected[silent])
    assert not np.isclose(mixed[~silent], expected[~silent]).all(-1).any()


def test_left_and_right_are_fitted_alike() -> None:
    answers = answers_with([(2, 1, 0), (1, 1, 1), (0, 1, 2)], 60, silence=0.1)
    mirrored = replace(answers, labels=answers.labels[:, MIRROR], logits=answers.logits[:, :, MIRROR])
    one, other = (fit_weights(its, LOGITS) for its in (answers, mirrored))
    np.testing.assert_allclose(one, other, atol=1e-3)
    assert final(mirrored, weighted(mirrored, one)) == pytest.approx(final(answers, weighted(answers, one)), abs=1e-12)


def test_a_subset_leaves_noise_out() -> None:
    answers = answers_with([(2, 2, 2), (0, 0, 0), (2, 2, 0), (0, 0, 0)], 200)
    chosen = best_subset(answers, LOGITS)
    assert set(chosen.members) == {"a/m0", "a/m2"}
    assert chosen.weights[chosen.members.index("a/m2")].tolist() == [1, 1, 0]
    assert final(answers, chosen) < final(answers, simple_mean(answers, LOGITS))


def test_localisers_are_paid_once() -> None:
    costs = MemberCosts({"a/x": 1.0, "a/y": 2.0, "b/x": 4.0}, {"a": 10.0, "b": 20.0})
    assert costs.of([]) == 0
    assert costs.of(["a/x", "a/y"]) == 13
    assert costs.of(["a/x", "a/y", "b/x"]) == 37


SHARED = answers_with([(2, 0, 1), (0, 2, 1), (1, 1, 1), (2, 2, 2), (0, 0, 0)], 25, seed=3, silence=0.1)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0.0, 5), min_size=7, max_size=7), st.floats(0.1, 15))
def test_the_budget_is_kept(values: list[float], seconds: float) -> None:
    costs = MemberCosts(dict(zip(SHARED.members, values, strict=False)), {"a": values[5], "b": values[6]})
    cheapest = min(costs.of([name]) for name in SHARED.members)
    if cheapest > seconds:
        with pytest.raises(SearchError, match="no member fits in"):
            best_ensemble(SHARED, LOGITS, costs, seconds)
        return
    found = best_ensemble(SHARED, LOGITS, costs, seconds)
    assert costs.of(found.members) <= seconds
    assert [step.seconds for step in run_order(SHARED, LOGITS, found, costs)][-1:] == pytest.approx(
        [costs.of(found.members)] if found.members else []
    )


def test_a_dear_good_member_is_not_shut_out_by_cheap_ones() -> None:
    answers = answers_with([(1, 1, 1), (4, 4, 4)], 100)
    costs = MemberCosts({"a/m0": 0.5, "b/m1": 10.0}, {"a": 0.0, "b": 0.0})
    assert best_ensemble(answers, LOGITS, costs, 10.0).members == ("b/m1",)


def test_each_step_of_the_order_gains_most_a_second() -> None:
    random = np.random.default_rng(0)
    costs = MemberCosts({name: float(random.uniform(0.5, 3)) for name in SHARED.members}, {"a": 1.0, "b": 2.0})
    ensemble = Ensemble(SHARED.members, random.uniform(0.1, 1, (5, 3)), random.uniform(0.5, 2, (3, 3)))
    curve = run_order(SHARED, LOGITS, ensemble, costs)
    assert sorted(step.member for step in curve) == sorted(SHARED.members)

    def of(names: list[str]) -> tuple[float, float]:
        weights = ensemble.weights[[SHARED.members.index(name) for name in names]]
        return final(SHARED, Ensemble(tuple(names), weights, ensemble.multipliers)), costs.of(names)

    names: list[str] = []
    for step in curve:
        score, seconds = of(names)
        gains = {}
        for name in set(SHARED.members) - set(names):
            after, cost = of([*names, name])
            gains[name] = (score - after) / (cost - seconds)
        assert max(gains, key=lambda name: gains[name]) == step.member
        names.append(step.member)
        assert (step.score, step.seconds) == pytest.approx(of(names))


def test_members_worse_than_the_prior_leave_the_prior() -> None:
    answers = answers_with([(-4, -4, -4)], 40)
    found = best_ensemble(answers, LOGITS, MemberCosts.equal(answers.members), seconds=1)
    if found.members:  # its multipliers may make it a constant that is better than the public prior
        assert final(answers, found) < pooled(answers.labels, Mixture(answers, LOGITS).mix(np.zeros((1, 3)))).final
    nobody = Ensemble((), np.zeros((0, 3)), EQUAL)
    np.testing.assert_allclose(nobody.predict(answers, LOGITS)[0], LOGITS.prior_rows())
    assert run_order(answers, LOGITS, nobody, MemberCosts.equal(answers.members)) == []


def test_one_study_cannot_be_cross_fitted() -> None:
    answers = answers_with([(1, 1, 1)], 1)
    with pytest.raises(SearchError, match="one study alone"):
        cross_fitted(answers, LOGITS, lambda part: simple_mean(part, LOGITS))


def curve_of(answers: Answers, ensemble: Ensemble) -> list[float]:
    return [step.score for step in run_order(answers, LOGITS, ensemble, MemberCosts.equal(answers.members))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fit", [best_ensemble, pruned])
def test_every_member_earns_its_seconds_and_the_last_lowers_the_score(seed: int, fit: object) -> None:
    skills = np.random.default_rng(seed).uniform(-0.5, 1.5, (9, 3)).tolist()
    answers = answers_with(skills, 40, seed)
    costs = MemberCosts.equal(answers.members)
    given = (simple_mean(answers, LOGITS),) if fit is pruned else ()
    found = fit(answers, LOGITS, *given, costs)  # type: ignore[operator]
    assert 1 < len(found.members) < len(answers.members)
    whole = final(answers, found)
    for name in found.members:
        rest = found.only([other for other in found.members if other != name])
        assert final(answers, rest) - whole >= LEAST_GAIN - 1e-9
    curve = curve_of(answers, found)
    assert min(curve) == curve[-1] == pytest.approx(whole)
    np.testing.assert_allclose(found.weights.sum(0), 1)


def test_members_that_only_pass_the_minimum_together_are_cut_at_it() -> None:
    answers = answers_with([(2, 2, 2), (2, 2, 2), (0, 0, 0), (0, 0, 0)], 60)
    kept = pruned(answers, LOGITS, simple_mean(answers, LOGITS), MemberCosts.equal(answers.members))
    assert set(kept.members) == {"a/m0", "b/m1"}


def test_a_budget_that_is_large_enough_changes_nothing() -> None:
    free = best_ensemble(SHARED, LOGITS, MemberCosts.equal(SHARED.members))
    spent = float(len(free.members))
    assert spent < len(SHARED.members)
    for seconds in (spent, 100.0):
        found = best_ensemble(SHARED, LOGITS, MemberCosts.equal(SHARED.members), seconds)
        assert found.members == free.members
        np.testing.assert_array_equal(found.weights, free.weights)
