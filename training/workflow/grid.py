"""All steps of some recipes, and which step needs which: what run, plan and status work on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kernels.lumbar.run.submission import replace_json
from kernels.lumbar.specs import Spec
from kernels.profiles import Profile
from training.recipe_schema.load import folds_of, load_named, members_of, names_of
from training.recipe_schema.order import localisers_in_order, sources_of, starts_from
from training.recipe_schema.schema import MemberRecipe, Recipe, RecipeError
from training.runs import ENSEMBLE, RunFolder

GRID = "grid.json"
TRAININGS = ("localiser", "grader")


class GridOrder(Spec):
    """What a command line orders; all paths are absolute, as steps may run on other machines."""

    data: Path
    runs: Path
    recipes: tuple[str, ...] = ()
    """Names, or paths of YAML files."""
    profile: Profile = "full"
    folds: tuple[int, ...] = ()
    jobs: int = 1
    localisers_only: bool = False
    coordinates: Path | None = None
    labels: Path | None = None
    cache: Path | None = None
    start: Path | None = None
    """Run folder or package whose networks are begun from."""
    package: Path | None = None
    """Where the Kaggle dataset is made; None = nowhere."""
    owner: str | None = None
    search: bool = True
    """Whether the best mixture of several recipes is searched for."""


PATHS = ("data", "runs", "coordinates", "labels", "cache", "start", "package")


@dataclass(frozen=True)
class Step:
    """One step of a recipe, or of all recipes together; Snakemake runs it as a job."""

    kind: str
    name: str
    """Also the place of its log below RUNS/logs."""
    recipe: str = ""
    member: str = ""
    fold: int = -1
    needs: tuple[str, ...] = ()
    """Names of the steps that come before."""


class Grid(Spec):
    """An order with its recipes as they were when it was given: later changes of them belong to the next run."""

    order: GridOrder
    recipes: dict[str, Recipe]
    folds: dict[str, tuple[int, ...]]
    todo: dict[str, tuple[str, ...]] = {}
    """What a run is to do: step → those of its needs that are to be done as well."""
    threads: int | None = None
    """Threads of a training; None = as many as Snakemake gives it."""

    @cached_property
    def steps(self) -> dict[str, Step]:
        """Name → step, each after all that it needs."""
        found = [step for name in self.recipes for step in self._of_recipe(name)]
        scored = [step.name for step in found if step.kind == "validate"]
        last = tuple(scored)
        if len(scored) > 1 and self.order.search:
            found.append(Step("ensemble", f"ensemble_{self.order.profile}", needs=last))
            last = (found[-1].name,)
        if self.order.package is not None and scored:
            found.append(Step("package", f"package_{self.order.profile}", needs=last))
        steps: dict[str, Step] = {}
        for step in found:
            steps.setdefault(step.name, step)  # recipes may share localisers
        return steps

    def _of_recipe(self, name: str) -> Iterator[Step]:
        top = f"{name}/{self.order.profile}"
        yield Step("prepare", f"{top}/prepare", name)
        trained: list[str] = []
        for fold in self.folds[name]:
            located = list(self._localisers(name, fold))
            # A localiser that is another recipe's waits for that one's preparation.
            own = (f"{top}/prepare",) if self.recipes[name].localisers_of else ()
            its = (*(one.name for one in located if one.kind == "localiser"), *own)
            errors = Step("errors", f"{top}/errors_fold{fold}", name, "", fold, its)
            entries = [one for one in self.members(name) if one.member.role == "grader" and one.is_trained_in(fold)]
            graders = [self._training(name, one, fold, errors.name) for one in entries]
            yield from (*located, errors, *graders)
            trained += [errors.name, *(one.name for one in graders)]
        if any(one.member.role == "grader" for one in self.members(name)):
            yield Step("validate", f"{top}/validate", name, needs=tuple(trained))

    def _localisers(self, name: str, fold: int) -> Iterator[Step]:
        """Trainings of localisers, each after what it needs: other localisers, and their errors measured."""
        recipe = self.recipes[name]
        # Localisers that recipes share are one step.
        top = f"{recipe.localisers_owner}/{self.order.profile}"
        for entry in localisers_in_order(recipe):
            member, start = entry.member.name, starts_from(recipe, entry)
            needs = [] if start is None else [f"{top}/{start.member.name}/fold{fold}"]
            if sources := sources_of(recipe, entry):
                its = tuple(f"{top}/{one.member.name}/fold{fold}" for one in sources)
                yield (errors := Step("errors", f"{top}/errors_{member}_fold{fold}", name, member, fold, its))
                needs.append(errors.name)
            yield self._training(name, entry, fold, *needs)

    def _training(self, name: str, entry: MemberRecipe, fold: int, *needs: str) -> Step:
        top, member = f"{name}/{self.order.profile}", entry.member.name
        own = f"{self.recipes[name].owner_of(member)}/{self.order.profile}"
        return Step(entry.member.role, f"{own}/{member}/fold{fold}", name, member, fold, (f"{top}/prepare", *needs))

    def members(self, name: str) -> list[MemberRecipe]:
        """The networks of a recipe that are to be trained."""
        return members_of(self.recipes[name], self.order.localisers_only)

    def member(self, step: Step) -> MemberRecipe:
        """The network of a training, or before which errors are measured."""
        return next(one for one in self.members(step.recipe) if one.member.name == step.member)

    def folder(self, name: str) -> RunFolder:
        """Where the runs of a recipe lie."""
        return RunFolder(self.order.runs, self.recipes[name])

    def network_folder(self, step: Step) -> Path:
        """The folder of a training."""
        return self.folder(step.recipe).network_folder(step.member, step.fold)

    @property
    def own(self) -> Path:
        """The folder of what this package writes for itself."""
        return own_folder(self.order.runs)

    def stamp(self, step: Step) -> Path:
        """The file that records of what a step's results were made: what Snakemake waits for."""
        return self.own / step.kind / f"{step.name}.json"

    def log(self, step: Step) -> Path:
        """Output of a step, all attempts one after the other."""
        return self.order.runs / "logs" / f"{step.name}.log"

    @property
    def ensemble(self) -> Path:
        """What the search for the best mixture writes."""
        return self.order.runs / ENSEMBLE

    @property
    def has_ensemble(self) -> bool:
        """Whether there is such a search."""
        return any(step.kind == "ensemble" for step in self.steps.values())


def own_folder(runs: Path) -> Path:
    """The folder of this package among runs."""
    return runs / ".workflow"


def make_grid(order: GridOrder) -> Grid:
    """The grid of an order.  Raises RecipeError."""
    refuse_braces(order.runs)
    names = names_of(order.recipes)
    recipes = [load_named(name, order.profile) for name in names]
    folds = {recipe.name: tuple(folds_of(recipe, order.folds)) for recipe in recipes}
    if len(folds) < len(recipes):
        raise RecipeError(f"two recipes have one name, so one folder below RUNS=: {', '.join(names)}")
    named = tuple(str(Path(name).resolve()) if name.endswith(".yaml") else name for name in names)
    kept = order.model_copy(update={"recipes": named})
    return Grid(order=kept, recipes={recipe.name: recipe for recipe in recipes}, folds=folds)


def refuse_braces(folder: Path) -> None:
    """Raises RecipeError for a folder whose name Snakemake would fill in."""
    if set("{}") & set(str(folder)):
        raise RecipeError(f"{folder} has braces in its name, which Snakemake fills in: name a folder without them")


def remember_grid(grid: Grid) -> None:
    """Write the grid where none is kept that can be read and has its steps: status then shows them."""
    try:
        kept = set(read_grid(grid.own / GRID).steps)
    except (OSError, ValueError):
        kept = set()
    if not set(grid.steps) <= kept:
        keep_grid(grid)


def keep_grid(grid: Grid) -> Path:
    """Write the grid where its steps find it."""
    grid.own.mkdir(parents=True, exist_ok=True)
    path = grid.own / GRID
    replace_json(path, grid.model_dump(mode="json"))
    return path


def read_grid(path: Path) -> Grid:
    """The grid that `keep_grid` wrote.  Raises OSError, ValueError."""
    return Grid.model_validate_json(path.read_bytes())
