"""What the ensemble search reads: finished recipes with their own weights, answers, priors and seconds; and members
from elsewhere."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from kernels.lumbar.labels import ROWS
from kernels.profiles import Profile
from training.data.folds import read_folds
from training.data.foreign_answers import ELSEWHERE, member_files, read_foreign
from training.data.out_of_fold import TRUTH, Answers, answers_of, read, together
from training.data.tables import MISSING, TABLES, read_labels
from training.data.training_priors import weighted_priors
from training.ensemble.exchanged_sides import refuse_exchanged_sides
from training.ensemble.search import MemberCosts, SearchError
from training.ensemble.strategies import RecipeWeights
from training.packaging.foreign_members import read_description, unshippable
from training.recipe_schema.load import load_named, names_of, path_of
from training.recipe_schema.schema import MemberRecipe, Recipe
from training.runs import ARTEFACT, DONE, FOLDS, OUT_OF_FOLD_TABLES, PRIORS, SECONDS, RunFolder

# Fewer studies than these are not enough to fit weights on, where there are more.
LEAST_STUDIES = 10
# At most so many members that answer a part of the studies are named.
NAMED = 6
CHANGED = "was trained with another state of its recipe: make train-all trains it again"


@dataclass(frozen=True)
class OutOfFoldSources:
    """Everything that a search is made of."""

    folders: list[Path]
    """RUNS/<recipe>/<profile> of the recipes that take part."""
    answers: Answers
    recipes: list[Recipe]
    """Those of them with a recipe in this project."""
    remarks: list[str]
    labels: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Study × 25 of the data, where members from elsewhere take part."""
    foreign: Path | None = None
    """Their folder."""

    def priors(self) -> dict[str, tuple[float, float, float]]:
        """See read_priors; without recipes, those of the labels."""
        if not self.folders:
            return weighted_priors(self.labels)
        return read_priors([folder.parent / PRIORS for folder in self.folders])

    def costs(self) -> tuple[MemberCosts, str]:
        """See read_costs."""
        known: dict[str, float] = {}
        needs: dict[str, Sequence[str]] = {}
        recipes = [folder.parent.name for folder in self.folders]
        for name in self.foreign_members():
            if self.foreign is not None and (self.foreign / f"{name}.yaml").is_file():
                described = read_description(self.foreign, name)
                known |= {} if described.seconds is None else {name: described.seconds}
                wanted = [described.landmarks] if described.landmarks else recipes
                needs[f"{ELSEWHERE}/{name}"] = [one for one in wanted if one in recipes]
        costs, remark = read_costs([folder / SECONDS for folder in self.folders], self.answers.members, known)
        return replace(costs, needs=needs), remark

    def foreign_members(self) -> list[str]:
        """Those from elsewhere, by their own names."""
        pairs = [name.partition("/")[::2] for name in self.answers.members]
        return [member for located, member in pairs if located == ELSEWHERE]

    def unshippable(self) -> dict[str, str]:
        """Members that cannot be packaged, with the reason."""
        if self.foreign is None:
            return {}
        found = {f"{ELSEWHERE}/{name}": unshippable(self.foreign, name) for name in self.foreign_members()}
        return {name: reason for name, reason in found.items() if reason}

    def recipe_weights(self) -> list[RecipeWeights]:
        """The recipes with their own weights."""
        return [recipe_weights_of(recipe) for recipe in self.recipes]


def read_sources(
    runs: Path, profile: str, names: Sequence[str] | None, foreign: Path | None = None, data: Path | None = None
) -> OutOfFoldSources:
    """The answers of the recipes named, with None of all that have some in this profile; and those in `foreign`.

    A recipe that cannot be used is left out with a remark, and refused where it was named.  `data`: whose train.csv has
    the labels, where no recipe's answers have them.  Raises RecipeError for a name that is no recipe; SearchError,
    OutOfFoldError, FoldsError, TablesError.
    """
    are_named = names is not None
    found = sorted(path.name for path in runs.glob("*") if (path / profile).is_dir()) if names is None else names
    recipes: dict[str, Recipe] = {}
    tables: dict[str, pd.DataFrame] = {}
    refused = []
    for given in found:
        name = Path(given).stem
        if are_named or path_of(given).is_file():
            recipes[name] = load_named(given, cast(Profile, profile))
        if not (paths := sorted((runs / name / profile).glob(OUT_OF_FOLD_TABLES))):
            refused.append(f"{name} has no out-of-fold answers of profile {profile}: make train-all first")
            continue
        table = read(paths)
        if name in recipes and (mismatch := mismatch_with(RunFolder(runs, recipes[name]), table)):
            refused.append(f"{name} {mismatch}")
        else:
            tables[name] = table
    if are_named and refused:
        raise SearchError(f"{refused[0]}, or leave it out of RECIPES")
    if not tables and foreign is None:
        nothing = f"{runs} has no out-of-fold answers of profile {profile}: make train-all first"
        raise SearchError("; ".join(refused) or nothing)
    every, labels = list(tables.values()), pd.DataFrame()
    if foreign is not None:
        member_files(foreign)
        labels, folds = _known_studies(runs, tables, recipes, data)
        every.append(read_foreign(foreign, labels, folds))
    answers, remark = usable(answers_of(together(every)))
    if foreign is not None:
        refuse_exchanged_sides(answers, foreign)
    unknown = [name for name in tables if name not in recipes]
    remarked = f"{', '.join(unknown)}: no recipe of this project, so make package will not take it" if unknown else ""
    return OutOfFoldSources(
        folders=[runs / name / profile for name in tables],
        answers=answers,
        recipes=[recipe for name, recipe in recipes.items() if name in tables],
        remarks=[*(f"left out: {one}" for one in refused), *filter(None, [remarked, remark])],
        labels=labels,
        foreign=foreign,
    )


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Options of what `sources_from` reads."""
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=[], help="default: all that have out-of-fold answers")
    parser.add_argument("--profile", default="full")
    add_foreign(parser)


def add_foreign(parser: argparse.ArgumentParser) -> None:
    """Options of members from elsewhere."""
    parser.add_argument("--oof", type=Path, help="folder of other people's out-of-fold predictions and their folds")
    parser.add_argument("--data", type=Path, help="whose train.csv has the labels, where no recipe is finished")


def sources_from(options: argparse.Namespace) -> OutOfFoldSources:
    """See read_sources."""
    names = names_of(options.recipes) if options.recipes else None
    return read_sources(options.runs, options.profile, names, options.oof, options.data)


def _known_studies(
    runs: Path, tables: Mapping[str, pd.DataFrame], recipes: Mapping[str, Recipe], data: Path | None
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Labels (study × 25) of the data's studies, as far as they are known, and study → fold of our recipes."""
    folds: dict[str, int] = {}
    for name, table in tables.items():
        folds |= dict(zip(table["study"], table["fold"].tolist(), strict=True))
        path = RunFolder(runs, recipes[name]).folds if name in recipes else runs / name / FOLDS
        if path.is_file():
            folds |= read_folds(path, "make train-all makes it")
    if data is not None:
        return read_labels(data / TABLES[0]), folds
    if not tables:
        raise SearchError(
            "the predictions in OOF= have no labels: name the competition's folder with DATA=, whose train.csv has "
            "them, or RUNS= with finished recipes"
        )
    known = pd.concat(list(tables.values())).drop_duplicates(["study", "row"])
    wide = known.pivot(index="study", columns="row", values="label").reindex(index=list(folds), columns=list(ROWS))
    return wide.fillna(MISSING).astype(int), folds


def recipe_weights_of(recipe: Recipe) -> RecipeWeights:
    """The weights and average of a recipe's YAML file."""
    graders = [one for one in recipe.members() if one.member.role == "grader"]
    weights = {
        f"{recipe.name}/{one.pooled_as}": {str(group): one.weight[group] for group in one.weight} for one in graders
    }
    return RecipeWeights(recipe.name, weights, recipe.average)


def mismatch_with(folder: RunFolder, table: pd.DataFrame) -> str:
    """Why a recipe's answers are not those of its finished networks, or nothing.  Raises SearchError."""
    for fold in sorted(int(one) for one in table["fold"].unique()):
        entries = [one for one in folder.recipe.members() if one.is_trained_in(fold)]
        graders = {one.pooled_as for one in entries if one.member.role == "grader"}
        if graders != set(table.loc[table["fold"] == fold, "member"]):
            return f"{CHANGED} (fold {fold})"
        for entry in entries:
            if mismatch := _mismatch_of(folder.network_folder(entry.member.name, fold), entry):
                return f"{mismatch} ({entry.member.name}, fold {fold})"
    return ""


def _mismatch_of(folder: Path, entry: MemberRecipe) -> str:
    if not (folder / DONE).is_file():
        return "has an unfinished network beside its answers: make train-all finishes it"
    try:
        made = json.loads((folder / ARTEFACT).read_text(encoding="utf-8"))["provenance"]
        recipe, scores = made["resolved_recipe"], made["oof_score"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SearchError(f"{folder / ARTEFACT} does not hold its recipe: {error!r}") from error
    if recipe != entry.model_dump(mode="json"):
        return CHANGED
    # Validation leaves a grader's own scores in its artefact; training begins without.
    if entry.member.role == "grader" and not scores:
        return "was trained again since it answered: make train-all predicts again"
    return ""


def usable(answers: Answers) -> tuple[Answers, str]:
    """The answers that an ensemble can be fitted on, and a remark naming what was left out.

    Without members that were given true landmarks, where there are others; only the studies that all members were
    shown.  Raises SearchError where these are too few.
    """
    remarks = []
    real = [name for name in answers.members if not name.startswith(f"{TRUTH}/")]
    if not real:
        remarks.append("all members were given true landmarks: Kaggle has none, so this score is out of reach there")
    elif len(real) < len(answers.members):
        left_out = len(answers.members) - len(real)
        remarks.append(f"members given true landmarks are left out ({left_out}): Kaggle has none")
        answers = answers.only(members=real)
    answers, shared = _shown_to_all(answers)
    answered = (~np.isnan(answers.logits[..., 0])).any(2).sum(1)
    partial = _partial(answers.members, answered, len(answers.studies))
    partial = f"{partial}; there the others answer, or the priors" if partial else ""
    count = len(answers.studies)
    few = f"fitted on {count} studies alone: weights and scores are little more than chance"
    doubt = few if count < LEAST_STUDIES else ""
    return answers, "; ".join(filter(None, [*remarks, shared, partial, doubt]))


def _shown_to_all(answers: Answers) -> tuple[Answers, str]:
    """Only the studies that all members were shown; a remark where that is a part of them."""
    if answers.evaluated is None or answers.evaluated.all():
        return answers, ""
    shared, total = np.asarray(answers.evaluated.all(0)), len(answers.studies)
    counts = _partial(answers.members, answers.evaluated.sum(1), total)
    if shared.sum() < LEAST_STUDIES:
        raise SearchError(
            f"{int(shared.sum())} of {total} studies are answered by all members, too few to fit on: {counts}; "
            "train all in the same folds, or name with RECIPES those that were"
        )
    only = f"only the {int(shared.sum())} of {total} studies count that all members answer"
    return answers.only(studies=shared), f"{only}: {counts}"


def _partial(members: Sequence[str], counts: np.ndarray, total: int) -> str:
    """Members that answer fewer than all studies; all of a recipe by its name where they answer as many."""
    table = pd.DataFrame({"name": members, "recipe": [name.partition("/")[0] for name in members], "count": counts})
    alike = table.groupby("recipe")["count"].transform("nunique") == 1
    table["name"] = table["name"].where(~alike, table["recipe"])
    partial = table[table["count"] < total].drop_duplicates("name")
    named = [f"{one.name} answers only {one.count} of {total} studies" for one in partial.itertuples()]
    more = [f"and {len(named) - NAMED} more answer a part"] if len(named) > NAMED else []
    return ", ".join([*named[:NAMED], *more])


def read_priors(paths: Sequence[Path]) -> dict[str, tuple[float, float, float]]:
    """The priors of the runs.  Raises SearchError where they are unreadable, incomplete or not the same."""
    found = []
    for path in paths:
        try:
            priors = json.loads(path.read_text(encoding="utf-8"))
            found.append({row: (float(priors[row][0]), float(priors[row][1]), float(priors[row][2])) for row in ROWS})
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise SearchError(f"{path} has no priors of the 25 rows: {error!r}") from error
    if any(priors != found[0] for priors in found):
        raise SearchError("the recipes were trained on different labels: their priors differ")
    return found[0]


def read_costs(
    paths: Sequence[Path], names: Sequence[str], foreign: Mapping[str, float] | None = None
) -> tuple[MemberCosts, str]:
    """Seconds a study from the runs' seconds.json; where any is missing, 1 for each of all, and a remark on it.

    `foreign`: seconds of members from elsewhere, as their descriptions say.
    """
    members: dict[str, float] = {}
    located: dict[str, float] = {TRUTH: 0.0, ELSEWHERE: 0.0}
    for path in paths:
        try:
            measured = json.loads(path.read_text(encoding="utf-8"))
            for kind, kept in (("members", members), ("located", located)):
                kept |= {name: _seconds(path, f"{kind}.{name}", float(one)) for name, one in measured[kind].items()}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SearchError(f"{path} does not hold seconds of members and localisers: {error!r}") from error
    pairs = {name: name.partition("/")[::2] for name in names}
    of_route = {name: foreign or {} if route == ELSEWHERE else members for name, (route, _) in pairs.items()}
    missing = [name for name, (route, one) in pairs.items() if one not in of_route[name] or route not in located]
    if missing:
        routes = {route: 0.0 if route in (TRUTH, ELSEWHERE) else 1.0 for route, _ in pairs.values()}
        remark = f"no measured seconds of {missing[0]}: every network counts as 1 instead"
        return MemberCosts(dict.fromkeys(names, 1.0), routes), remark
    return MemberCosts({name: of_route[name][member] for name, (_, member) in pairs.items()}, located), ""


def _seconds(path: Path, name: str, seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise SearchError(
            f"{path}: {name} is {seconds}, and seconds are 0 or more: delete the file, and make train-all measures "
            "them again"
        )
    return seconds
