"""Temperatures and class multipliers for recipes that are packaged with their own weights, from out-of-fold answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernels.lumbar.specs import Group
from training.data.out_of_fold import Answers, Average, OutOfFoldError, Rule, answers_of, read, together
from training.ensemble.search import Ensemble, SearchError, as_tested, calibrated, cross_calibrated
from training.ensemble.sources import mismatch_with, recipe_weights_of, usable
from training.ensemble.strategies import side_by_side
from training.evaluation.intervals import difference
from training.evaluation.metric import pooled
from training.packaging.ensemble_weights import ALL_GROUPS
from training.runs import RunFolder, TrainedMember

# Digits of a number in a manifest.
DIGITS = 4
UNSCALED = "temperatures and multipliers stay 1"


@dataclass(frozen=True)
class FittedScaling:
    """Temperatures and multipliers of the three severities by condition group; none where all stay 1."""

    temperatures: dict[Group, float]
    multipliers: dict[Group, tuple[float, float, float]]
    remark: str
    """What they are worth, cross-fitted; or why there are none."""


def fit_recipe_scaling(
    runs: Sequence[tuple[RunFolder, Sequence[TrainedMember]]],
    average: Average,
    priors: Mapping[str, tuple[float, float, float]],
) -> FittedScaling:
    """The scaling of the recipes' own mixture, which is taken if it lowers the cross-fitted score.

    `runs`: finished networks of each recipe, of which the out-of-fold answers of their folds are read.  `average`: how
    the package averages.
    """
    graded = [(folder, found) for folder, found in runs if _folds(found)]
    try:
        answers = _answers(graded)
        own = _mixture([folder for folder, _ in graded], answers, average)
        return of_mixture(own, answers, Rule(average, priors))
    except (SearchError, OutOfFoldError) as error:
        return FittedScaling({}, {}, f"{UNSCALED}: {error}")


def of_mixture(own: Ensemble, answers: Answers, rule: Rule) -> FittedScaling:
    """The scaling of a mixture that was not rescaled."""
    count = f"{len(answers.studies)} out-of-fold studies"
    fitted = as_tested(calibrated(own, answers, rule), answers)
    if (fitted.temperatures == 1).all() and (fitted.multipliers == 1).all():
        return FittedScaling({}, {}, f"{UNSCALED}: {count} give no others, or are too few")
    plain, changed = own.predict(answers, rule), cross_calibrated(own, answers, rule)
    before, after = (pooled(answers.labels, rows).final for rows in (plain, changed))
    gain = difference(answers.labels, changed, plain)
    worth = f"cross-fitted score {before:.4f} → {after:.4f} ({gain.text})"
    temperatures = dict(zip(ALL_GROUPS, fitted.temperatures.round(DIGITS).tolist(), strict=True))
    multipliers = dict(zip(ALL_GROUPS, map(tuple, fitted.multipliers.round(DIGITS).tolist()), strict=True))
    named = ", ".join(
        f"{group} {temperatures[group]:.2f} (× {' '.join(f'{value:.2f}' for value in multipliers[group])})"
        for group in ALL_GROUPS
    )
    if gain.value >= 0:
        return FittedScaling({}, {}, f"{UNSCALED}: {named} from {count} gain nothing, {worth}")
    return FittedScaling(temperatures, multipliers, f"temperatures (× multipliers): {named}, from {count}, {worth}")


def _folds(found: Sequence[TrainedMember]) -> list[int]:
    """The folds whose graders are packaged."""
    return sorted({run.artefact.provenance.fold for run in found if run.recipe.member.role == "grader"})


def _answers(runs: Sequence[tuple[RunFolder, Sequence[TrainedMember]]]) -> Answers:
    """Raises SearchError, OutOfFoldError where these are not there or not those of the networks."""
    tables = []
    for folder, found in runs:
        paths = [folder.out_of_fold(fold) for fold in _folds(found)]
        if missing := next((path for path in paths if not path.is_file()), None):
            raise SearchError(f"{missing.relative_to(folder.runs)} is not there, which make train-all writes last")
        table = read(paths)
        if mismatch := mismatch_with(folder, table):
            raise SearchError(f"{folder.recipe.name} {mismatch}")
        tables.append(table)
    return usable(answers_of(together(tables)))[0]


def _mixture(folders: Sequence[RunFolder], answers: Answers, average: Average) -> Ensemble:
    """The recipes' graders with the shares that a package gives them."""
    own = [recipe_weights_of(folder.recipe) for folder in folders]
    return own[0].ensemble(answers) if len(own) == 1 else side_by_side(answers, own, average)
