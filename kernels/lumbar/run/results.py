"""Results so far of all studies: landmarks by route, logits by grader.  Saved to disk, so that a restart resumes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..answers.ensemble import by_row, combine
from ..answers.locate import Located
from ..answers.route import RouteAnswers
from ..answers.stack import Stack
from ..dicom.study import Study
from ..inputs.image_statistics import FEATURES, image_statistics
from ..labels import KIND_OF_GROUP, ROW_INDEX, ROWS, SERIES_KINDS, SERIES_TEXTS, group_of
from ..manifest import Manifest
from ..problems import Problem
from .foreign_domain import compared
from .submission import whole_file

# Problems of a study that lacks a series.
NO_SERIES = ("missing-kind", "single-slice")

Job = tuple[str, str]
"""A route, and one of its graders."""


class Results:
    """Arrays of fixed size over (study, …): 25 kB per study for a large ensemble."""

    def __init__(self, manifest: Manifest, studies: Sequence[str]) -> None:
        self.manifest = manifest
        self.studies = {study: number for number, study in enumerate(studies)}
        parts = [(route, part) for route in manifest.routes for part in route.graders]
        self.jobs = {(route.name, part.name): place for place, (route, part) in enumerate(parts)}
        self._routes = {route.name: number for number, route in enumerate(manifest.routes)}
        shares = [by_row(part.weight.items(), 0.0) * route.weight for route, part in parts]
        self._shares = np.array(shares).reshape(-1, len(ROWS))  # (J, 25)
        self._multipliers = by_row(manifest.multipliers.items(), (1.0, 1.0, 1.0))  # (25, 3)
        self._temperatures = by_row(manifest.temperatures.items(), 1.0)  # (25,)
        self._priors = np.array([manifest.priors[row] for row in ROWS])  # (25, 3)
        self._stack = Stack(manifest.stacker, [grader for _, grader in self.jobs]) if manifest.stacker else None
        jobs, routes = (len(studies), len(self.jobs)), (len(studies), len(self._routes))
        self._logits = np.full((*jobs, len(ROWS), 3), np.nan, np.float32)
        self.passes = np.zeros(jobs, np.int8)
        """(study, job) in how many passes a job was done; 0 = not yet."""
        self._points = np.full((*routes, len(ROWS), 3), np.nan)
        self._confidence = np.zeros((*routes, len(ROWS)))
        self._guessed = np.zeros((*routes, len(ROWS)), bool)
        self._located = np.zeros(routes, bool)
        localisers = [one.member.name for one in manifest.artefacts if one.member.role == "localiser"]
        self._localisers = {name: number for number, name in enumerate(localisers)}
        self._sure = np.full((len(studies), len(self._localisers)), np.nan, np.float32)
        self._images = np.full((len(studies), len(SERIES_KINDS), len(FEATURES)), np.nan, np.float32)
        members = {artefact.member.name: artefact.member for artefact in manifest.artefacts}
        self.full_passes = np.array([members[grader].passes for _, grader in self.jobs], np.int8)
        """(job,) number of passes with test-time augmentation."""
        self._arrays: dict[str, np.ndarray] = {
            "logits": self._logits,
            "passes": self.passes,
            "points": self._points,
            "confidence": self._confidence,
            "guessed": self._guessed,
            "located": self._located,
            "sure": self._sure,
            "images": self._images,
        }
        self.problems: dict[Problem, None] = {}
        """Distinct problems, in the order of their first occurrence."""
        self.used: set[str] = set()
        """Members that were run on a study."""

    def add(self, studies: Sequence[str], route: str, answers: RouteAnswers, tta: bool = True) -> None:
        """Store the answers of a route for a batch of studies; landmarks only where there are none yet."""
        for number, study in enumerate(studies):
            if answers.located is not None and not self.is_located(study, route):
                self.set_located(study, route, answers.located[number])
            for grader, logits in answers.logits.items():
                job = route, grader
                self.set_answers(study, job, logits[number], self.full_passes[self.jobs[job]] if tta else 1)

    def lacking(self, jobs: Sequence[Job]) -> np.ndarray:
        """(studies, jobs) whether a job was not done on a study, or in too few passes."""
        places = [self.jobs[job] for job in jobs]
        return np.asarray(self.passes[:, places] < self.full_passes[places])

    def set_answers(self, study: str, job: Job, answers: Mapping[str, np.ndarray], passes: int) -> None:
        """Store a grader's (3,) logits by row."""
        place = self.studies[study], self.jobs[job]
        for row, logits in answers.items():
            self._logits[(*place, ROW_INDEX[row])] = logits
        self.passes[place] = passes
        self.used.add(job[1])

    def passes_of(self, jobs: Sequence[Job]) -> np.ndarray:
        """(studies, jobs) in how many passes each of some jobs was done."""
        return self.passes[:, [self.jobs[job] for job in jobs]]

    def set_located(self, study: str, route: str, located: Located) -> None:
        """Store the landmarks of a route."""
        place = self.studies[study], self._routes[route]
        for row, point in located.points.items():
            self._points[(*place, ROW_INDEX[row])] = point
            self._confidence[(*place, ROW_INDEX[row])] = located.confidence[row]
            self._guessed[(*place, ROW_INDEX[row])] = row in located.guessed
        for name, mean in located.mean_confidences().items():
            self._sure[self.studies[study], self._localisers[name]] = mean
        self._located[place] = True
        self.used |= located.by_member.keys()

    def add_images(self, study: Study) -> None:
        """Keep what the images of a study are like, for a manifest that says what those of its training were like."""
        images = self._images[self.studies[study.study_id]]
        if self.manifest.domain is None or not np.isnan(images).all():
            return
        for kind, its in zip(SERIES_KINDS.values(), images, strict=True):
            found = image_statistics(study, kind)
            its[:] = [found.get(name, np.nan) for name in FEATURES]

    def domain(self) -> dict[str, dict[str, Any]]:
        """What run/foreign_domain.py says of the images and confidences so far; empty without a domain."""
        if self.manifest.domain is None:
            return {}
        return compared(self.manifest, self._images, dict(zip(self._localisers, self._sure.T, strict=True)))

    def is_located(self, study: str, route: str) -> bool:
        """Whether a route's localisers were run on a study."""
        return bool(self._located[self.studies[study], self._routes[route]])

    def imputed(self) -> dict[str, int]:
        """Study → number of landmarks that the shape model imputed, of the route with the most; only where any are."""
        most = self._guessed.sum(2).max(1, initial=0)
        return {study: int(most[number]) for study, number in self.studies.items() if most[number]}

    def unlocated(self, route: str) -> int:
        """The number of studies on which a route's localisers were not run."""
        return int((~self._located[:, self._routes[route]]).sum())

    def landmarks(self, study: str, route: str) -> dict[str, np.ndarray]:
        """Row name → patient mm."""
        points = self._points[self.studies[study], self._routes[route]]
        return {row: point for row, point in zip(ROWS, points, strict=True) if not np.isnan(point[0])}

    def guessed_rows(self) -> dict[str, list[str]]:
        """Graded study → rows answered though their series is missing and no localiser of any route found their
        landmark; only where there are any."""
        missing: dict[str, set[str]] = {}
        for one in self.problems:
            if one.kind in NO_SERIES:
                missing.setdefault(one.study, set()).add(one.where)
        found = {study: self._guessed_of(study, missing[study]) for study in self.graded() if study in missing}
        return {study: rows for study, rows in found.items() if rows}

    def _guessed_of(self, study: str, missing: set[str]) -> list[str]:
        place = self.studies[study]
        located = ((self._confidence[place] > 0) & ~self._guessed[place]).any(0)  # (25,)
        answered = np.isfinite(self._logits[place]).all(2).any(0)
        return [
            row
            for row, is_located, is_answered in zip(ROWS, located, answered, strict=True)
            if is_answered and not is_located and SERIES_TEXTS[KIND_OF_GROUP[group_of(row)]] in missing
        ]

    def rows(self, study: str) -> tuple[np.ndarray, list[str]]:
        """(25, 3) probabilities from all answers so far, and the rows without any answer."""
        logits = self._logits[self.studies[study]].astype(np.float64)
        average, scaling = self.manifest.average, (self._multipliers, self._temperatures)
        rows, fallbacks = combine(self._shares, logits, self._priors, average, *scaling)
        stacker = self.manifest.stacker
        if self._stack is None or stacker is None:
            return rows, fallbacks
        rows, kept = self._stack.apply(logits, rows)
        return rows, [row for row in fallbacks if group_of(row) not in stacker.groups or kept[ROW_INDEX[row]]]

    def unstacked(self, study: str) -> list[str]:
        """Rows of stacked conditions that keep the mixture, as not all networks that the stacker needs answer them."""
        if self._stack is None:
            return []
        kept = self._stack.kept(self._logits[self.studies[study]])
        return [row for row, is_kept in zip(ROWS, kept, strict=True) if is_kept]

    def sort_problems(self) -> None:
        """Order the problems by study, so that they do not depend on which batch ended first."""
        last = len(self.studies)
        self.problems = dict.fromkeys(sorted(self.problems, key=lambda one: self.studies.get(one.study, last)))

    def graded(self) -> list[str]:
        """The studies that at least one grader was run on."""
        return [study for study, number in self.studies.items() if self.passes[number].any()]

    def landmark_table(self) -> list[tuple[object, ...]]:
        """study, route, row, x, y, z in mm, confidence, guessed: of all located landmarks."""
        table: list[tuple[object, ...]] = []
        for study, number in self.studies.items():
            for route, place in self._routes.items():
                for row, point in self.landmarks(study, route).items():
                    index = number, place, ROW_INDEX[row]
                    where = (round(float(value), 3) for value in point)
                    confidence = round(float(self._confidence[index]), 4)
                    table.append((study, route, row, *where, confidence, bool(self._guessed[index])))
        return table

    def save(self, path: Path, made_by: str) -> None:
        """Replace the file; `made_by` identifies the weights.  Raises OSError."""
        problems = [[one.study, one.where, one.kind, one.detail] for one in self.problems]
        known = {"made_of": self._made_of(made_by), "problems": problems, "used": sorted(self.used)}
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, known=json.dumps(known), **self._arrays)

    def _made_of(self, made_by: str) -> list[object]:
        return [made_by, list(self.studies)]

    def restore(self, path: Path, made_by: str) -> bool:
        """Load what a killed kernel saved for the same weights and studies; False where there is none."""
        try:
            with np.load(path, allow_pickle=False) as saved:
                known = json.loads(str(saved["known"]))
                arrays = {name: saved[name] for name in self._arrays}
            problems = {Problem(*map(str, one)): None for one in known["problems"]}
            fits = known["made_of"] == self._made_of(made_by) and all(
                (arrays[name].shape, arrays[name].dtype) == (own.shape, own.dtype) for name, own in self._arrays.items()
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
            return False  # none, or a damaged one: start anew
        if fits:
            for name, own in self._arrays.items():
                own[...] = arrays[name]
            self.problems, self.used = problems, set(known["used"])
        return fits
