"""Which steps of a grid are up to date, by digests of their inputs: no file times, no torch.

A step is up to date if the digest of its inputs equals the one stored with its results.  Steps after an outdated one
are outdated too, as their inputs are not known yet; if these turn out unchanged, the step ends at once.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from training.data.cache.cache_sources import images_digest
from training.data.external import IMPROVED, PRETRAINING
from training.data.folds import held_out_digest, read_folds
from training.data.label_correction import EarlierLabels, is_changed, read_labels
from training.data.tables import read_tables
from training.digests import digest, file_digest, fingerprint_of, training_digest
from training.evaluation import validation_stamp
from training.evaluation.landmark_errors import LandmarkError
from training.recipe_schema.order import sources_of
from training.runs import (
    ARTEFACT,
    BEGUN,
    DONE,
    HISTORY,
    OUT_OF_FOLD_TABLES,
    WEIGHTS,
    image_digests,
    is_finished,
    is_same_training,
    read_object,
)
from training.start import StartNetwork, start_networks, start_of
from training.workflow.grid import TRAININGS, Grid, Step


@dataclass(frozen=True)
class Verdict:
    """Whether a step is done; if not, why it is to be done."""

    done: bool
    why: str = ""
    begun: bool = False
    """Whether it has results, of other inputs: stale."""


class Staleness:
    """Compares a grid with its files.  Raises TablesError, FoldsError, OutOfFoldError, RunsError where data, folds,
    labels or START cannot be read."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._folds: dict[Path, dict[str, int]] = {}
        """Fold tables that were read, by their files."""

    def verdicts(self) -> dict[str, Verdict]:
        """Name → verdict of every step."""
        found: dict[str, Verdict] = {}
        for step in self.grid.steps.values():
            needs = [name for name in step.needs if self.grid.steps[name].kind != "prepare"]
            if waits := next((name for name in needs if not found[name].done), None):
                begun = any(path.is_file() for path in self._results(step)[:1])
                found[step.name] = Verdict(False, f"follows {waits}", begun)
            else:
                found[step.name] = self._own(step)
        for step in self.grid.steps.values():
            if step.kind == "prepare" and found[step.name].done and self._lacks_cache(step, found):
                found[step.name] = Verdict(False, "the cache is gone")
        return found

    def made_of(self, step: Step) -> str | None:
        """Digest of a step's current inputs; None while they are not known."""
        made_of: str | None = getattr(self, f"_of_{step.kind}")(step)
        return made_of

    def source_of(self, name: str) -> tuple[str, str | None, str | None] | None:
        """Fingerprints of tables, pretraining images and predictions for a recipe; None before they were prepared."""
        changed = any(is_changed(self._labels, one) for one in self.grid.members(name))
        predictions = self._labels.fingerprint if self._labels and changed else None
        if self.grid.order.coordinates is None:
            return (self._tables, None, predictions) if self._tables is not None else None
        kept = self._stamp(self.grid.steps[f"{name}/{self.grid.order.profile}/prepare"])
        return (kept["tables"], kept["images"], predictions) if kept.get("source") == self.source else None

    def lost_from_package(self) -> Path | None:
        """The first file that the package's manifest names and that has not all of its bytes there."""
        place = self.grid.order.package or Path()
        for artefact in read_object(place / "manifest.json").get("artefacts", []):
            weights = artefact["weights"]
            file = place / weights["file"]
            if not file.is_file() or file.stat().st_size < weights.get("offset", 0) + weights["bytes"]:
                return file
        return None

    @cached_property
    def source(self) -> str:
        """Digest of the tables of data and coordinates."""
        folder = self.grid.order.coordinates
        files = [folder / name for name in (IMPROVED, PRETRAINING)] if folder else []
        return digest(self._tables, [_file_digest(file) for file in files])

    @cached_property
    def _tables(self) -> str | None:
        """Digest of tables and image files; None where files may have changed, until prepare has read them."""
        order = self.grid.order
        tables = read_tables(order.data)
        images = images_digest(order.data, tables, image_digests(order.runs), may_read=False)
        return None if images is None else fingerprint_of(tables.fingerprint, images)

    @cached_property
    def _labels(self) -> EarlierLabels | None:
        return None if self.grid.order.labels is None else read_labels(self.grid.order.labels)

    @cached_property
    def _start(self) -> tuple[StartNetwork, ...]:
        return start_networks(self.grid.order.start)

    def _own(self, step: Step) -> Verdict:
        results = self._results(step)
        missing = next((path for path in results if not path.is_file()), None)
        begun = bool(results) and results[0].is_file()
        expected = self.made_of(step)
        if step.kind in TRAININGS:
            return self._of_job(step, expected, begun and missing is None)
        kept = self._errors_made_of(step) if step.kind == "errors" else self._stamp(step)
        if missing is not None or not kept:
            return Verdict(False, "not recorded yet" if begun else "not done yet")
        if kept.get("made_of") != expected:
            return Verdict(False, "what it is made of changed", True)
        if step.kind == "package" and (lost := self.lost_from_package()):
            return Verdict(False, f"{lost} is lost or not whole", True)
        if step.kind == "ensemble" and kept.get("result") != _file_digest(results[0]):
            return Verdict(False, f"{results[0]} is of another search", True)
        return Verdict(True)

    def _of_job(self, step: Step, expected: str | None, there: bool) -> Verdict:
        folder, held_out = self.grid.network_folder(step), self._held_out(step)
        if there and expected is not None and is_finished(folder, expected, held_out):
            return Verdict(True)
        if "digest" not in read_object(folder / BEGUN):
            return Verdict(False, "not trained yet")
        if expected is None:
            return Verdict(False, "its data are not known before prepare", there)
        if not is_same_training(folder / BEGUN, expected, held_out):
            start = ", START" if self._start else ""
            return Verdict(False, f"its recipe, its data{start} or the error of its localisers changed", True)
        done, epochs = len(history_of(folder)), self.grid.member(step).fitting.optimisation.epochs
        return Verdict(False, f"resumes after epoch {done} of {epochs}" if done < epochs else "not exported yet")

    def _held_out(self, step: Step) -> str | None:
        """Digest of the studies that a training never sees; None before its folds are made."""
        path = self.grid.folder(step.recipe).folds
        if path not in self._folds:
            if not path.is_file():
                return None
            self._folds[path] = read_folds(path, "delete it, it is made again")
        return held_out_digest(self._folds[path], step.fold)

    def _results(self, step: Step) -> list[Path]:
        """The files that a step leaves, the last one it writes first."""
        if step.kind in TRAININGS:
            return [self.grid.network_folder(step) / name for name in (DONE, WEIGHTS, ARTEFACT)]
        if step.kind == "ensemble":
            return [self.grid.ensemble]
        if step.kind == "package":
            return [self.grid.order.package / "manifest.json"] if self.grid.order.package else []
        folder = self.grid.folder(step.recipe)
        if step.kind == "prepare":
            return [folder.shape, folder.priors, folder.folds]
        if step.kind == "errors":
            return [self._errors_file(step)]
        return validation_stamp.results_of(folder, self.grid.folds[step.recipe])

    def _lacks_cache(self, step: Step, found: Mapping[str, Verdict]) -> bool:
        if not Path(self._stamp(step).get("cache", "")).is_dir():
            others = [one for one in self.grid.steps.values() if one.recipe == step.recipe]
            return any(one.kind in (*TRAININGS, "errors") and not found[one.name].done for one in others)
        return False

    def _stamp(self, step: Step) -> dict[str, Any]:
        return read_object(self.grid.stamp(step))

    def _of_prepare(self, step: Step) -> str:
        recipe, order = self.grid.recipes[step.recipe], self.grid.order
        views = [one.member.model_dump(mode="json") for one in self.grid.members(step.recipe)]
        pretrained = any(one.fitting.pretraining is not None for one in self.grid.members(step.recipe))
        start = [str(order.start)] if order.start else []  # prepare compares shapes with it
        return digest(self.source, views, recipe.folds, recipe.seed, pretrained, str(order.cache), *start)

    def _of_training(self, step: Step, errors: Mapping[str, Any]) -> str | None:
        source = self.source_of(step.recipe)
        if source is None:
            return None
        tables, images, predictions = source
        member = self.grid.member(step)
        images = images if member.fitting.pretraining else None
        predictions = predictions if is_changed(self._labels, member) else None
        recipe = self.grid.recipes[step.recipe]
        given = (member, step.fold, tables, self._held_out(step))
        found = start_of(self._start, self.grid.folder(step.recipe), *given)
        start = None if found is None else found.artefact.weights.sha256
        return training_digest(member, step.fold, recipe.seed, tables, errors, images, predictions, start)

    def _of_localiser(self, step: Step) -> str | None:
        has_sources = sources_of(self.grid.recipes[step.recipe], self.grid.member(step))
        return self._of_training(step, self._errors(self._errors_file(step)) if has_sources else {})

    def _of_grader(self, step: Step) -> str | None:
        return self._of_training(step, self._errors(self.grid.folder(step.recipe).localiser_errors(step.fold)))

    def _errors(self, file: Path) -> dict[str, Any]:
        return {kind: LandmarkError(**one).drawn for kind, one in read_object(file).get("errors", {}).items()}

    def _errors_file(self, step: Step) -> Path:
        """Of the localisers that come before one, or of all."""
        folder = self.grid.folder(step.recipe)
        return folder.source_errors(step.member, step.fold) if step.member else folder.localiser_errors(step.fold)

    def _of_errors(self, step: Step) -> str:
        located = [self.grid.steps[name] for name in step.needs]
        found = [self._network(step.recipe, one.member, one.fold) for one in located]
        return digest({one["member"]["name"]: one["weights"]["sha256"] for one in found if one})

    def _errors_made_of(self, step: Step) -> dict[str, Any]:
        """The networks of the errors, which training/evaluation/validate.py keeps beside them.

        Landmarks are in the cache alone: where only these changed, the training that draws the errors measures them.
        """
        kept = read_object(self._errors_file(step))
        return {"made_of": digest(kept["made_by"])} if {"made_by", "landmarks"} <= kept.keys() else {}

    def _of_validate(self, step: Step) -> str:
        networks: list[Any] = []
        folds, recipe = self.grid.folds[step.recipe], self.grid.recipes[step.recipe]
        for fold in folds:
            trained = [one for one in self.grid.members(step.recipe) if one.is_trained_in(fold)]
            networks += [self._network(step.recipe, one.member.name, fold) for one in trained]
            networks += [one.weight for one in trained]
        routes = {name: one.model_dump(mode="json") for name, one in recipe.routes.items()}
        return digest(networks, folds, recipe.average, routes, validation_stamp.made_of({}, {}, self._tables or ""))

    def _of_ensemble(self, step: Step) -> str:
        folders = [self.grid.folder(name) for name in self.grid.recipes]
        files = [file for one in folders for file in [one.seconds, one.priors, *one.profile.glob(OUT_OF_FOLD_TABLES)]]
        return digest(step.name, sorted((str(file), _file_digest(file)) for file in files))

    def _of_package(self, step: Step) -> str:
        networks = [
            _file_digest(self.grid.network_folder(one) / ARTEFACT)
            for one in self.grid.steps.values()
            if one.kind in TRAININGS
        ]
        found = _file_digest(self.grid.ensemble) if self.grid.has_ensemble else None
        recipes = list(self.grid.recipes.values())
        averages = [recipe.average for recipe in recipes]
        routes = [one.model_dump(mode="json") for recipe in recipes for one in recipe.routes.values()]
        folders = [self.grid.folder(name) for name in self.grid.recipes]
        # Without an ensemble, the temperatures are of these.
        tables = [_file_digest(file) for one in folders for file in sorted(one.profile.glob(OUT_OF_FOLD_TABLES))]
        return digest(
            step.name, networks, found, averages, routes, tables, str(self.grid.order.package), self.grid.order.owner
        )

    def _network(self, recipe: str, member: str, fold: int) -> dict[str, Any]:
        """artefact.json of a finished network without its provenance, into which validation writes the score."""
        known = read_object(self.grid.folder(recipe).network_folder(member, fold) / ARTEFACT)
        return {name: value for name, value in known.items() if name != "provenance"}


def history_of(folder: Path) -> list[dict[str, str]]:
    """The whole lines of a training's history."""
    try:
        with open(folder / HISTORY, encoding="utf-8", newline="") as file:
            return [line for line in csv.DictReader(file) if None not in line.values()]
    except FileNotFoundError:
        return []


def _file_digest(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None
