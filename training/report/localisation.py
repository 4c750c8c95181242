"""Where graders looked in held-out studies: landmarks by localisers that never saw them, computed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from kernels.lumbar.answers.locate import Located
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.run.clock import Clock
from training.evaluation.predictor import Predictor
from training.evaluation.validate import fold_manifest
from training.recipe.load import load_named
from training.recipe.schema import Profile, RecipeError
from training.runs import RunFolder, UnusableRun, read_run


class Looking:
    """The localisers of finished runs, loaded when a study of their fold is first asked for."""

    def __init__(self, runs: Path, profile: str, recipes: Sequence[str]) -> None:
        self._runs, self._profile, self._recipes = runs, cast(Profile, profile), recipes
        self._predictors: dict[tuple[str, int], Predictor | None] = {}
        self._found: dict[str, dict[str, Located]] = {}

    def at(self, study: Study, fold: int) -> dict[str, Located]:
        """Recipe → what its localisers of the study's fold find; without recipes whose localisers are gone."""
        if study.study_id not in self._found:
            found: dict[str, Located] = {}
            for recipe in self._recipes:
                if (predictor := self._predictor(recipe, fold)) is not None:
                    found |= predictor.predict(study, Clock(float("inf"))).located
            self._found[study.study_id] = found
        return self._found[study.study_id]

    def _predictor(self, recipe: str, fold: int) -> Predictor | None:
        if (recipe, fold) not in self._predictors:
            try:
                self._predictors[recipe, fold] = self._loaded(recipe, fold)
            except (RecipeError, UnusableRun, OSError):
                self._predictors[recipe, fold] = None
        return self._predictors[recipe, fold]

    def _loaded(self, recipe: str, fold: int) -> Predictor | None:
        """None where a localiser is not there as the recipe has it, or cannot be loaded."""
        folder = RunFolder(self._runs, load_named(recipe, self._profile))
        members = [one for one in folder.recipe.members() if one.member.role == "localiser" and one.is_trained_in(fold)]
        if not members or not all(read_run(folder.job(one.member.name, fold), one) for one in members):
            return None
        device = default_device()
        predictor = Predictor(fold_manifest(folder, members, fold), folder.profile, device)
        return None if predictor.problems else predictor
