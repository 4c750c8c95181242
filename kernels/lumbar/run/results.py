"""All that is known of all studies so far: landmarks by route, logits by grader.  It outlives a killed kernel."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..answers.ensemble import combine_arrays, multipliers_of, shares_by_row, shares_of
from ..answers.locate import Located
from ..labels import ROW_INDEX, ROWS
from ..manifest import Manifest
from ..problems import Problem
from .submission import whole_file

Job = tuple[str, str]
"""A route, and one of its graders."""


class Results:
    """Arrays over (study, …): their size is known from the start, 25 kB a study for a large ensemble."""

    def __init__(self, manifest: Manifest, studies: Sequence[str]) -> None:
        self.manifest = manifest
        self.studies = {study: number for number, study in enumerate(studies)}
        parts = [(route, part) for route in manifest.routes for part in route.graders]
        self.jobs = {(route.name, part.name): place for place, (route, part) in enumerate(parts)}
        self._shares = np.array([shares_by_row(shares_of(route, part)) for route, part in parts]).reshape(-1, len(ROWS))
        self._multipliers = multipliers_of(manifest)
        self._routes = {route.name: number for number, route in enumerate(manifest.routes)}
        count, rows = len(studies), len(ROWS)
        self._logits = np.full((count, len(self.jobs), rows, 3), np.nan, np.float32)
        self.passes = np.zeros((count, len(self.jobs)), np.int8)
        """In how many passes a job was done; 0 = not yet."""
        self._points = np.full((count, len(self._routes), rows, 3), np.nan)
        self._confidence = np.zeros((count, len(self._routes), rows))
        self._guessed = np.zeros((count, len(self._routes), rows), bool)
        self._located = np.zeros((count, len(self._routes)), bool)
        self.problems: dict[Problem, None] = {}
        """In the order in which they were met, each once."""
        self.used: set[str] = set()
        """Members that have looked at a study."""

    def set_answers(self, study: str, job: Job, answers: Mapping[str, np.ndarray], passes: int) -> None:
        """Keep the logits by row that a grader gave."""
        place = self.studies[study], self.jobs[job]
        for row, logits in answers.items():
            self._logits[(*place, ROW_INDEX[row])] = logits
        self.passes[place] = passes
        self.used.add(job[1])

    def is_done(self, study: str, job: Job) -> bool:
        """Whether a grader of a route has looked at a study."""
        return bool(self.passes[self.studies[study], self.jobs[job]])

    def set_located(self, study: str, route: str, located: Located) -> None:
        """Keep where a route's localisers found the landmarks."""
        place = self.studies[study], self._routes[route]
        for row, point in located.points.items():
            self._points[(*place, ROW_INDEX[row])] = point
            self._confidence[(*place, ROW_INDEX[row])] = located.confidence[row]
            self._guessed[(*place, ROW_INDEX[row])] = row in located.guessed
        self._located[place] = True
        self.used |= located.by_member.keys()

    def is_located(self, study: str, route: str) -> bool:
        """Whether a route's localisers have looked at a study."""
        return bool(self._located[self.studies[study], self._routes[route]])

    def unlocated(self, route: str) -> int:
        """The number of studies at which a route's localisers have not looked."""
        return int((~self._located[:, self._routes[route]]).sum())

    def landmarks(self, study: str, route: str) -> dict[str, np.ndarray]:
        """Row name → patient mm."""
        points = self._points[self.studies[study], self._routes[route]]
        return {row: point for row, point in zip(ROWS, points, strict=True) if not np.isnan(point[0])}

    def rows(self, study: str) -> tuple[np.ndarray, list[str]]:
        """(25, 3) probabilities from all answers so far, and the rows that nobody has answered."""
        manifest, logits = self.manifest, self._logits[self.studies[study]].astype(np.float64)
        return combine_arrays(self._shares, logits, manifest.priors, manifest.average, self._multipliers)

    def graded(self) -> list[str]:
        """The studies at which at least one grader has looked."""
        looked = set(np.flatnonzero(self.passes.max(1, initial=0)).tolist())
        return [study for study, number in self.studies.items() if number in looked]

    def without_tta(self, job: Job, passes: int) -> list[str]:
        """The studies that a job was done for in fewer passes than these."""
        done = self.passes[:, self.jobs[job]]
        return [study for study, number in self.studies.items() if 0 < done[number] < passes]

    def landmark_table(self) -> list[tuple[object, ...]]:
        """study, route, row, x, y, z in mm, confidence, guessed: of all that were located."""
        table: list[tuple[object, ...]] = []
        for study, number in self.studies.items():
            for route, place in self._routes.items():
                for row, point in self.landmarks(study, route).items():
                    index = number, place, ROW_INDEX[row]
                    where = (round(float(value), 3) for value in point)
                    sure = round(float(self._confidence[index]), 4)
                    table.append((study, route, row, *where, sure, bool(self._guessed[index])))
        return table

    def save(self, path: Path, made_by: str) -> None:
        """Replace a file by what is known; `made_by` names the weights.  Raises OSError."""
        problems = [[one.study, one.where, one.kind, one.detail] for one in self.problems]
        known = {"made_of": self._made_of(made_by), "problems": problems, "used": sorted(self.used)}
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, known=json.dumps(known), **self._arrays())

    def _made_of(self, made_by: str) -> list[object]:
        return [made_by, list(self.studies)]

    def restore(self, path: Path, made_by: str) -> bool:
        """Take up what a killed kernel had saved for the same weights and studies; False where there is none."""
        own = self._arrays()
        try:
            with np.load(path, allow_pickle=False) as saved:
                known = json.loads(str(saved["known"]))
                arrays = {name: saved[name] for name in own}
            problems = {Problem(*map(str, one)): None for one in known["problems"]}
            fits = known["made_of"] == self._made_of(made_by) and all(
                arrays[name].shape == array.shape and arrays[name].dtype == array.dtype for name, array in own.items()
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
            return False  # none, or a damaged one: begin anew
        if not fits:
            return False
        for name, array in own.items():
            array[...] = arrays[name]
        self.problems, self.used = problems, set(known["used"])
        return True

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "logits": self._logits,
            "passes": self.passes,
            "points": self._points,
            "confidence": self._confidence,
            "guessed": self._guessed,
            "located": self._located,
        }
