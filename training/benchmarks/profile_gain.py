"""What a longer training is worth: the same recipes trained in two profiles, on the same test studies.

    python -m training.benchmarks.profile_gain --data DIR --runs RUNS --against smoke [--profile bench] [--recipes a b]

A row is a recipe, or all of them side by side, with the scaling that a package has, fitted on the studies that the fold
held out.  Differences are paired.  profile_gain.json goes to --out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.run.submission import replace_json
from kernels.profiles import PROFILES, Profile
from training.benchmarks.command import trained_parser
from training.benchmarks.grader_answers import (
    OWN,
    TRUE,
    System,
    find_system,
    grade_test_studies,
    held_out_answers,
    labels_of,
)
from training.benchmarks.tables import BenchError, Table
from training.data.out_of_fold import Answers, OutOfFoldError, Rule
from training.ensemble.search import as_tested, calibrated
from training.ensemble.sources import recipe_weights_of
from training.ensemble.strategies import RecipeWeights, side_by_side
from training.evaluation.intervals import Difference, difference, intervals
from training.evaluation.json_safe import finite
from training.evaluation.truth import TruthError, read_solution, score_name
from training.recipe_schema.load import load_named, names_of
from training.recipe_schema.schema import RecipeError
from training.runs import UnusableRun

TOGETHER = "all side by side"


@dataclass(frozen=True)
class Trained:
    """The recipes that one profile has finished, and the answers of their graders."""

    recipes: Mapping[str, RecipeWeights]
    rule: Rule
    held_out: Answers
    test: Mapping[str, Answers]
    """Kind of landmarks → answers for the test studies."""

    def probabilities(self, names: Sequence[str], where: str) -> np.ndarray:
        """(N, 25, 3) of the test studies, by these recipes with equal shares."""
        recipes = [self.recipes[name] for name in names]
        average = recipes[0].average if len(recipes) == 1 else self.rule.average
        ensemble = calibrated(side_by_side(self.held_out, recipes, average), self.held_out, self.rule)
        return as_tested(ensemble, self.held_out).predict(self.test[where], self.rule)


def find_both(
    runs: Path, names: Sequence[str], profiles: tuple[Profile, Profile], fold: int
) -> tuple[list[System], list[System]]:
    """The recipes that are finished in both profiles, of each.  Raises BenchError where there is none."""
    found = [[find_system(runs, load_named(name, profile), fold) for profile in profiles] for name in names]
    pairs = [(one, other) for one, other in found if one is not None and other is not None]
    if not pairs:
        both = " and ".join(profiles)
        raise BenchError(f"{runs} holds no recipe that is finished in both {both}, fold {fold}: make train-all first")
    return [one for one, _ in pairs], [other for _, other in pairs]


def read_trained(data: Path, runs: Path, systems: Sequence[System], fold: int, labels: pd.DataFrame) -> Trained:
    """Grades the test studies."""
    held_out, rule = held_out_answers(systems, fold)
    recipes = {system.name: recipe_weights_of(system.folder.recipe) for system in systems}
    return Trained(recipes, rule, held_out, grade_test_studies(data, runs, systems, fold, labels))


def compare(one: Trained, other: Trained, names: Sequence[str], where: str) -> tuple[float, float, Difference]:
    """Scores of both, and that of the one less that of the other."""
    truth, rows, others = one.test[where].labels, one.probabilities(names, where), other.probabilities(names, where)
    mine, its = (intervals(truth, answers)["final"].value for answers in (rows, others))
    return mine, its, difference(truth, rows, others)


def bench(data: Path, runs: Path, out: Path, names: Sequence[str], profiles: tuple[Profile, Profile], fold: int) -> str:
    """The table as text, of the first profile less the second; profile_gain.json is left in `out`.

    Raises BenchError where no recipe is finished in both.
    """
    labels = labels_of(read_solution(data))
    systems = find_both(runs, names, profiles, fold)
    one, other = (read_trained(data, runs, its, fold, labels) for its in systems)
    rows = {name: [name] for name in one.recipes} | ({TOGETHER: list(one.recipes)} if len(one.recipes) > 1 else {})
    found = {name: {where: compare(one, other, its, where) for where in (OWN, TRUE)} for name, its in rows.items()}
    columns = [f"{title}, {where}" for where in (OWN, TRUE) for title in (*profiles, f"less {profiles[1]} [95 %]")]
    title = f"{score_name(data)}, {len(labels)} test studies, fold {fold}"
    table = Table("profile_gain", title, ["recipe", *columns])
    for name, by_landmarks in found.items():
        cells = [name]
        for mine, its, gain in by_landmarks.values():
            cells += [f"{mine:.4f}", f"{its:.4f}", gain.text]
        table.rows.append(cells)
    table.remarks.append(f"{OWN}: at the landmarks of the recipe's own localisers; {TRUE}: at those of the data set")
    figures = {
        name: {where: [*scores, asdict(gain)] for where, (*scores, gain) in its.items()} for name, its in found.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    replace_json(out / "profile_gain.json", finite({"profiles": profiles, "fold": fold, "scores": figures}))
    return table.text()


@ends_with_a_sentence("bench-grade stopped", BenchError, OutOfFoldError, RecipeError, TruthError, UnusableRun, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; expected errors end it with one sentence and exit code 1."""
    parser = trained_parser("profile_gain", __doc__, "profile_gain.json")
    parser.add_argument("--against", choices=PROFILES, required=True, help="the profile to compare with")
    given = parser.parse_args(argv)
    if given.against == given.profile:
        raise BenchError(f"AGAINST={given.against} is the profile itself: name another one")
    names, out = names_of(given.recipes), given.out or given.runs
    sys.stdout.write(bench(given.data, given.runs, out, names, (given.profile, given.against), given.fold) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
