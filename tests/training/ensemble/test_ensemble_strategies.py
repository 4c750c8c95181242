"""Which way to mix is taken, that the choice is honest, and what is told of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.lumbar.labels import GROUPS
from tests.training.ensemble.test_ensemble_search import LOGITS, answers_with
from training.data.out_of_fold import Answers
from training.data.tables import ROW_GROUPS
from training.ensemble.find import search
from training.ensemble.result import SearchResult, table_of
from training.ensemble.search import MemberCosts, SearchError, best_ensemble
from training.ensemble.strategies import (
    CALIBRATED,
    FREE,
    MEAN,
    RECIPE,
    SIDE_BY_SIDE,
    SUBSET,
    RecipeWeights,
    plainest_best,
    shipped,
    strategies,
)
from training.evaluation.intervals import LEVEL, differences
from training.evaluation.metric import pooled
from training.evaluation.ties import SAME, first_best


def standing(*members: str, name: str = "", weight: float = 1.0, average: str = "logits") -> RecipeWeights:
    weights = {member: dict.fromkeys(GROUPS, weight) for member in members}
    return RecipeWeights(name or members[0].partition("/")[0], weights, average)  # type: ignore[arg-type]


def found_in(answers: Answers, seconds: float | None = None, *recipes: RecipeWeights) -> SearchResult:
    return search(answers, LOGITS, MemberCosts.equal(answers.members), seconds, recipes)


def finals(result: SearchResult) -> dict[str, float]:
    return {name: its["final"].value for name, its in result.scores.items()}


def test_weights_are_taken_where_they_gain() -> None:
    answers = answers_with([(3, 1, 1), (1, 3, 1), (1, 1, 1)], 300)
    result = found_in(answers, None, standing("a/m0", "a/m2"), standing("b/m1"))
    scores = finals(result)
    assert result.strategy == FREE and result.fitted_score <= scores["cross_fitted"] == scores[FREE]
    assert scores[FREE] < scores["calibrated_mean"] < scores[MEAN] and scores[FREE] < scores[RECIPE]
    assert result.against[MEAN].verdict == "better" and FREE not in result.against
    assert result.best_single["spinal"] == "a/m0" and result.best_single["foraminal"] == "b/m1"
    assert sorted(result.order) == sorted(result.weights) and result.seconds == len(result.order)


# Four members that know as much, six that know nothing, and few studies: who chooses freely takes some of the latter.
FEW = answers_with([(1.5, 1.5, 1.5)] * 4 + [(0, 0, 0)] * 6, 12, seed=1)


def test_one_recipe_as_it_stands_is_taken_where_nothing_is_better() -> None:
    own, other = standing(*FEW.members[:4], name="one", weight=0.5), standing(*FEW.members[4:], name="other")
    result = found_in(FEW, None, own, other)
    scores = finals(result)
    assert result.strategy == RECIPE and "best recipe with its own weights (one)" in result.reason
    assert result.against[SIDE_BY_SIDE].verdict == "better"
    assert sorted(result.order) == sorted(own.weights)
    assert all(its == dict.fromkeys(GROUPS, 0.25) for its in result.weights.values())
    assert scores["cross_fitted"] == pytest.approx(scores["recipe one"], abs=SAME)
    assert scores["cross_fitted"] < min(scores[name] for name in (FREE, SUBSET, MEAN))
    assert set(result.against) >= {FREE, SUBSET, MEAN, "recipe other"} and "recipe one" not in result.against


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 0.7, 1.0])
def test_of_two_ways_to_the_same_mean_the_plainer_is_taken_and_the_other_no_rival(weight: float) -> None:
    few = answers_with([(1.5, 1.5, 1.5)] * 3, 12, seed=1)
    result = found_in(few, None, standing(*few.members, name="all", weight=weight))
    scores = finals(result)
    assert scores[MEAN] == pytest.approx(scores["recipe all"], abs=SAME) and scores[MEAN] < scores[FREE]
    assert result.strategy == RECIPE and not {MEAN, RECIPE, "recipe all"} & set(result.against)


def test_rounding_is_no_gain() -> None:
    assert first_best([0.3 + 1e-16, 0.3 - 1e-16, 0.4]) == 0 and first_best([0.3, 0.3 - 1e-6]) == 1
    assert first_best([np.array([1.0, 2.0]), np.array([1.0 - 1e-15, 1.0])]).tolist() == [0, 1]
    rows = np.full((4, 25, 3), 1 / 3)
    nudged = rows - np.array([1e-15, 0, 0])
    told = differences(np.zeros((4, 25), int), nudged, rows)["final"]
    assert told.value != 0 and told.is_none and told.verdict == "noise"


def test_a_recipe_keeps_its_own_way_to_average() -> None:
    own = standing(*FEW.members[:4], name="one", average="logits")
    rule = replace(LOGITS, average="probabilities")
    result = search(FEW, rule, MemberCosts.equal(FEW.members), None, [own])
    assert result.strategy == RECIPE and result.average == "logits"
    assert pooled(FEW.labels, own.ensemble(FEW).predict(FEW, LOGITS)).final == pytest.approx(result.fitted_score)


def test_recipes_side_by_side_are_taken_where_they_help_each_other_and_fits_are_unsure() -> None:
    few = answers_with([(1.5, 1.5, 1.5)] * 2, 12, seed=2)
    one, other = standing(few.members[0], weight=2.0), standing(few.members[1])
    made = strategies(few, LOGITS, MemberCosts.equal(few.members), None, [one, other]).fits[SIDE_BY_SIDE](few)
    assert made.weights.tolist() == [[1.0] * 3, [1.0] * 3]
    alone = few.only(members=few.members[:1])
    assert SIDE_BY_SIDE not in strategies(alone, LOGITS, MemberCosts.equal(alone.members), None, [one]).fits
    # A member of no recipe is as one of its own.
    beside = strategies(few, LOGITS, MemberCosts.equal(few.members), None, [one]).fits[SIDE_BY_SIDE](few)
    assert beside.weights.tolist() == made.weights.tolist()
    result = found_in(few, None, one, other)
    assert finals(result)[SIDE_BY_SIDE] < min(finals(result)[name] for name in ("recipe a", "recipe b"))
    assert SIDE_BY_SIDE in strategies(few, LOGITS, MemberCosts.equal(few.members), 1.0, [one, other]).over_budget


def test_the_best_recipe_is_chosen_without_the_rows_it_is_scored_on() -> None:
    answers = answers_with([(1, 1, 1), (1, 1, 1)], 10)
    sure = 9 * np.eye(3)[answers.labels.clip(0)]
    part = answers.folds == 0
    logits = np.stack([np.where(part[:, None, None], sure, -sure), np.where(part[:, None, None], 0 * sure, sure / 9)])
    answers = replace(answers, logits=logits)
    fits = strategies(
        answers, LOGITS, MemberCosts.equal(answers.members), None, [standing("a/m0"), standing("b/m1")]
    ).fits
    assert fits[RECIPE](answers.only(studies=~part)).members == ("b/m1",)
    assert fits[RECIPE](answers.only(studies=part)).members == ("a/m0",)


def test_what_costs_more_than_the_budget_is_told_and_not_taken() -> None:
    answers = answers_with([(1, 1, 1)] * 4, 30)
    result = found_in(answers, 2.0, standing(*answers.members, name="all"), standing("a/m0"))
    scores = finals(result)
    assert scores[MEAN] < scores["cross_fitted"] and result.seconds <= 2 and result.strategy != MEAN
    assert result.costs[MEAN] == 4 and result.costs[RECIPE] == 1
    lines = {line.split("  ")[0]: line for line in table_of(result).splitlines()}
    over = {name for name, line in lines.items() if line.endswith("over the budget")}
    assert {"simple mean of all", "recipe all with its own weights"} <= over
    assert not over & {
        "free weights",
        "best subset",
        "best recipe with its own weights",
        "recipe a with its own weights",
    }
    with pytest.raises(SearchError, match="no member fits in 0.5 seconds"):
        found_in(answers, 0.5)


def test_a_member_has_no_weight_where_it_is_silent() -> None:
    answers = answers_with([(2, 2, 2), (2, 2, 2)], 20)
    logits = answers.logits.copy()
    logits[1][:, ROW_GROUPS != 0] = np.nan
    answers = replace(answers, logits=logits)
    made = strategies(answers, LOGITS, MemberCosts.equal(answers.members), None).fits[MEAN](answers)
    found = shipped(made, answers)
    assert sorted((found.weights > 0).sum(0).tolist()) == [1, 1, 2]
    np.testing.assert_allclose(found.predict(answers, LOGITS), made.predict(answers, LOGITS))


def test_a_condition_that_nobody_answers_is_left_to_the_priors() -> None:
    answers = answers_with([(2, 2, 2), (1, 1, 1)], 20)
    assert found_in(answers).left_to_priors == []
    logits = answers.logits.copy()
    logits[:, :, ROW_GROUPS != 0] = np.nan
    result = found_in(replace(answers, logits=logits))
    assert result.left_to_priors == ["foraminal", "subarticular"]
    assert "no member answers foraminal, subarticular better than the priors" in table_of(result)


def test_members_are_compared_where_they_grade() -> None:
    answers = answers_with([(2, 2, 2), (4, 4, 4), (1, 1, 1)], 60)
    logits = answers.logits.copy()
    logits[1][:, ROW_GROUPS != 0] = np.nan
    result = found_in(replace(answers, logits=logits))
    members = result.members
    assert set(members["b/m1"].against_best) == {"spinal"} and set(members["a/m0"].against_best) == set(GROUPS)
    assert members["a/m0"].against_best["spinal"].verdict == "worse"
    assert members["b/m1"].against_best["spinal"].value == members["a/m0"].against_best["foraminal"].value == 0
    text = table_of(result).split("run order")[0]
    spinal, foraminal, subarticular = text.split(": each member that grades it, alone")[1:]
    assert "b/m1" in spinal and "b/m1" not in foraminal + subarticular and "+0.0000" not in text


def test_long_names_keep_the_columns_straight() -> None:
    answers = answers_with([(1, 1, 1)] * 3, 20)
    answers = replace(answers, members=("a/m", f"a/{'long_' * 14}name", "b/m"))
    lines = table_of(found_in(answers)).splitlines()
    columns = {line.index(" [0.") for line in lines[1:] if "/" in line and " [0." in line}
    assert len(columns) == 1


def test_a_freer_way_that_is_lower_by_chance_is_not_taken() -> None:
    result = found_in(answers_with([(1, 1, 1)] * 5 + [(0.9, 0.9, 0.9)] * 5, 6, seed=1))
    scores = finals(result)
    lower = {name for name in (SUBSET, FREE) if scores[name] < scores[SIDE_BY_SIDE] - SAME}
    assert lower and all(result.against[name].verdict == "noise" for name in lower)
    assert result.strategy == SIDE_BY_SIDE and "no freer way beats it for sure; the lowest is" in result.reason
    assert "(this less that: +" in result.reason and ", 99 %)" in result.reason


def test_of_many_ways_one_that_would_pass_alone_must_gain_more() -> None:
    labels = np.zeros((40, 25), int)
    plain = np.full((40, 25, 3), 1 / 3)
    better = np.tile([0.36, 0.32, 0.32], (40, 25, 1))
    better[::3] = [0.31, 0.345, 0.345]
    gain = differences(labels, better, plain)["final"]
    assert gain.verdict == "better"
    assert plainest_best(labels, {MEAN: plain, FREE: better}, LEVEL) == FREE
    assert plainest_best(labels, {MEAN: plain, FREE: better}, 0.99) == MEAN
    worse = np.tile([0.3, 0.35, 0.35], (40, 25, 1))
    assert plainest_best(labels, {MEAN: plain, SUBSET: worse, FREE: better}, LEVEL) == FREE


@pytest.mark.parametrize(("gains", "studies", "rises"), [([1, 0.9] * 5, 6, True), ([3, 0, 0], 120, False)])
def test_a_tail_that_raises_the_score_is_only_of_a_plain_mean_and_explained(
    gains: list[float], studies: int, rises: bool
) -> None:
    result = found_in(answers_with([(one, one, one) for one in gains], studies))
    assert (result.strategy in (SIDE_BY_SIDE, MEAN, CALIBRATED)) == rises
    assert (result.curve[-1].score > min(step.score for step in result.curve)) == rises
    assert ("the score rises, but only on these rows" in table_of(result)) == rises


def test_where_only_members_that_gain_nothing_fit_in_the_budget_none_is_taken() -> None:
    answers = answers_with([(3, 3, 3), (-3, -3, -3)], 20)
    costs = MemberCosts({"a/m0": 5.0, "b/m1": 0.1}, {"a": 0.0, "b": 0.0})
    assert best_ensemble(answers, LOGITS, costs).members == ("a/m0",)
    assert best_ensemble(answers, LOGITS, costs, 0.1).members == ()
    with pytest.raises(SearchError, match="no member answers better than the priors"):
        search(answers, LOGITS, costs, 0.1)


def test_without_a_label_nothing_is_compared() -> None:
    answers = answers_with([(1, 1, 1)], 20)
    with pytest.raises(SearchError, match="no study has a label"):
        found_in(replace(answers, labels=np.full_like(answers.labels, -100)))


def test_a_scaling_that_no_cross_fit_could_have_is_not_written() -> None:
    few, enough = (found_in(answers_with([(2, 2, 2), (1, 1, 1)], studies)) for studies in (17, 19))
    assert set(few.temperatures.values()) == {1.0} != set(enough.temperatures.values())
