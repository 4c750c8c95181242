"""Stackers on out-of-fold answers: they gain where something is planted, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from kernels.lumbar.answers.stack import _TreeArrays
from kernels.lumbar.labels import LEVELS, MIRROR
from tests.training.ensemble.test_ensemble_search import LOGITS, answers_with, final
from training.data.out_of_fold import Answers, Rule
from training.ensemble import stackers
from training.ensemble import try_stackers as tried
from training.ensemble.find import search
from training.ensemble.result import table_of
from training.ensemble.search import Ensemble, MemberCosts, simple_mean
from training.ensemble.stackers import KINDS, Kind, fit_stacker, trees_of
from training.ensemble.try_stackers import try_stackers
from training.evaluation.metric import pooled


def in_two_parts(answers: Answers) -> Answers:
    """In two folds, so that little is fitted."""
    return replace(answers, folds=np.arange(len(answers.studies)) % 2)


def by_level(studies: int) -> Answers:
    """One member knows the two upper levels, the other the three lower: weights by condition cannot tell."""
    answers = answers_with([(0, 0, 0), (0, 0, 0)], studies)
    upper = np.tile(np.arange(len(LEVELS)) < 2, 5)
    skill = np.stack([upper, ~upper])[:, None, :, None] * 3.0
    return in_two_parts(replace(answers, logits=answers.logits + skill * np.eye(3)[answers.labels.clip(0)]))


def mean(part: Answers) -> Ensemble:
    return simple_mean(part, LOGITS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stacker_gains_where_members_are_good_at_different_levels(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stackers, "ROUNDS", 5)  # enough here, and quick
    monkeypatch.setattr(stackers, "TREE_RATE", 0.3)
    answers = by_level(140)
    scores, stacker = try_stackers([kind], mean, mean(answers), answers, LOGITS)
    one = scores[kind]
    assert one.is_taken and one.against["final"].verdict == "better" and one.verdict == "gains"
    assert one.control.verdict != "better" and stacker is not None and stacker.kind == kind
    whole = fit_stacker(kind, mean(answers), answers, LOGITS)
    assert whole.stacker == stacker  # the same numbers again
    rows = whole.predict(answers, LOGITS)
    assert pooled(answers.labels, rows).final < final(answers, mean(answers)) - 0.02
    mirrored = replace(answers, logits=answers.logits[:, :, list(MIRROR)])
    np.testing.assert_allclose(whole.predict(mirrored, LOGITS), rows[:, list(MIRROR)], atol=1e-9)


def test_what_is_good_at_a_condition_is_found_by_the_metric() -> None:
    answers = in_two_parts(answers_with([(3, 0, 1), (0, 3, 1)], 100))
    scores, stacker = try_stackers(["mlp"], mean, mean(answers), answers, LOGITS)
    assert scores["mlp"].is_taken and stacker is not None
    assert scores["mlp"].against["foraminal"].verdict == scores["mlp"].against["spinal"].verdict == "better"


def test_noise_is_no_gain_and_nothing_is_written() -> None:
    answers = in_two_parts(answers_with([(1, 1, 1)] * 2, 60))
    result = search(answers, LOGITS, MemberCosts.equal(answers.members), None, stackers=["mlp"])
    assert result.stacker is None and not result.stackers["mlp"].is_taken
    text = table_of(result)
    assert "mlp: no gain here" in text and "none is taken: the mixture is written as it is" in text
    plain = search(answers, LOGITS, MemberCosts.equal(answers.members), None)
    assert plain.stackers == {} and "stackers" not in table_of(plain) and plain.scores == result.scores


def test_without_a_mixture_nothing_is_stacked_and_one_member_is_enough() -> None:
    answers = in_two_parts(answers_with([(1, 1, 1)] * 2, 30))
    none = Ensemble((), np.zeros((0, 3)), np.ones((3, 3)))
    assert all(fit_stacker(kind, none, answers, LOGITS).stacker is None for kind in KINDS)

    def nothing_in_one(part: Answers) -> Ensemble:
        return none if part.folds[0] == 0 else mean(part)

    scores, _ = try_stackers(["mlp"], nothing_in_one, mean(answers), answers, LOGITS)
    assert np.isfinite(scores["mlp"].scores["final"].value)
    alone = answers.only(members=answers.members[:1])
    stacker = fit_stacker("mlp", mean(alone), alone, LOGITS).stacker
    assert stacker is not None and set(stacker.graders) == {answers.members[0]}


class SeesLabels:
    """What is fitted so that it knows the labels of the studies it is applied to."""

    stacker = None

    def predict(self, answers: Answers, rule: Rule) -> np.ndarray:
        return np.eye(3)[answers.labels.clip(0)] * 0.9 + 0.1 / 3


def test_what_sees_labels_is_caught_by_the_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tried, "fit_stacker", lambda *given: SeesLabels())
    answers = in_two_parts(answers_with([(1, 1, 1)] * 2, 40))
    scores, stacker = try_stackers(["mlp"], mean, mean(answers), answers, LOGITS)
    assert scores["mlp"].against["final"].verdict == "better" and scores["mlp"].control.verdict == "better"
    assert "shuffled labels" in scores["mlp"].verdict and not scores["mlp"].is_taken and stacker is None


def test_rows_that_a_member_leaves_out_keep_the_mixture() -> None:
    answers = by_level(60)
    logits = answers.logits.copy()
    logits[0, :3, 7] = np.nan
    answers = replace(answers, logits=logits)
    rows = fit_stacker("mlp", mean(answers), answers, LOGITS).predict(answers, LOGITS)
    mixed = mean(answers).predict(answers, LOGITS)
    assert (rows[:3, 7] == mixed[:3, 7]).all() and np.abs(rows[3:, 7] - mixed[3:, 7]).max(1).min() > 0
    logits[0, ::2] = np.nan  # a member that answers half of the rows is no input
    half = fit_stacker("mlp", mean(answers), replace(answers, logits=logits), LOGITS).stacker
    assert half is not None and {group.models for group in half.groups.values()} == {(("b/m1",),)}


def test_written_trees_answer_as_scikit_learns() -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(80, 5))
    labels = (inputs[:, 0] + 0.3 * random.normal(size=80) > 0).astype(int) + (inputs[:, 1] > 0.5)
    model = HistGradientBoostingClassifier(max_iter=4, max_leaf_nodes=5, min_samples_leaf=5, early_stopping=False)
    model.fit(inputs, labels)
    found = _TreeArrays(trees_of(model, 1.0))(inputs[:, None])[:, 0]
    np.testing.assert_allclose(found, model.decision_function(inputs), atol=1e-5)
    np.testing.assert_allclose(_TreeArrays(trees_of(model, 0.5))(inputs[:, None])[:, 0], found / 2, atol=1e-5)
