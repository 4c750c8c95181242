"""What is done next, and how thoroughly: the largest gain per second first, and what the clock leaves out.

Short of time are given up, in this order: test-time augmentation, further folds of networks that have answered already,
networks, studies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ..labels import GROUPS, UNITS, group_of, row_of
from ..manifest import Artefact, Manifest, Route
from .clock import Clock
from .results import Job

# Networks that are in memory together, and the share of the time left after which the file shall be better all over.
ROUND_BYTES = 3_000_000_000
ROUND_SHARE = 0.25


@dataclass(frozen=True)
class Effort:
    """How much is done for some studies."""

    tta: bool
    all_folds: bool
    """Whether all folds of a route's localisers look, or one of each."""
    jobs: tuple[Job, ...]
    """None of them: there is no time for anything."""


class Schedule:
    """The order of work of a manifest, and the effort that measured seconds leave room for."""

    def __init__(self, manifest: Manifest, budget: Clock, studies: int, lanes: int = 1, readers: int = 1) -> None:
        self.manifest, self.budget = manifest, budget
        self.studies, self.lanes, self._readers = studies, lanes, readers
        self.artefacts = {artefact.member.name: artefact for artefact in manifest.artefacts}
        self.routes = {route.name: route for route in manifest.routes}
        self.ranks = _fold_ranks(manifest.artefacts)
        self.order = order_of(manifest, self.ranks)

    def next_round(self, left: Sequence[Job]) -> tuple[Job, ...]:
        """The jobs whose networks go over all studies next, of those left in the order of work.

        At first the fewest that answer every condition; then as many as memory holds and as end soon.
        """
        if len(left) == len(self.order):
            return self._first_answers(left)
        chosen: list[Job] = []
        costs = self._costs({})
        # Where reading is what takes the time, a round is for as many networks as can be used meanwhile.
        reading_s = self.studies * (self.budget.seconds("read") or 0.0) / self._readers
        longest_s = max(self.budget.available_s() * ROUND_SHARE, reading_s)
        for job in left:
            more = [*chosen, job]
            size = sum(self.artefacts[name].weights.bytes for name in {grader for _, grader in more})
            seconds = self._seconds([(one, self.studies) for one in more], {}, costs) / self.lanes
            if chosen and (size > ROUND_BYTES or seconds > longest_s):
                break
            chosen = more
        return tuple(chosen)

    def _first_answers(self, jobs: Sequence[Job]) -> tuple[Job, ...]:
        chosen: list[Job] = []
        answered: set[str] = set()
        for job in jobs:
            groups = set(self._groups(job))
            if not groups <= answered:
                chosen.append(job)
                answered |= groups
        return tuple(chosen) or tuple(jobs[:1])

    def _groups(self, job: Job) -> dict[str, float]:
        return _groups_of(self.routes[job[0]], self.artefacts[job[1]])

    def localisers(self, route: str, all_folds: bool) -> list[str]:
        """The names of those who look in a route."""
        names = self.routes[route].localisers
        return [name for name in names if all_folds or self.ranks[name] == 0]

    def effort(
        self,
        now: Sequence[Job],
        studies_now: int,
        later: Sequence[Job],
        unlocated: Callable[[str], int],
        studies_at_once: int,
        golden_s: Mapping[str, float],
    ) -> Effort:
        """How the next batch is treated: `now` is done for so many studies still, `later` for all.

        `unlocated`: route → studies that still have to be located.  `golden_s`: seconds a row, by loaded member, for
        those that no study was shown yet.
        """
        work = [(job, studies_now) for job in now] + [(job, self.studies) for job in later]
        everywhere = {route: unlocated(route) for route in self.routes}
        found = self._fitting(work, everywhere, self._costs({}), self.lanes)
        jobs = tuple(job for job in now if job in found.jobs) or tuple(now[:1])
        # Networks that were never measured count nothing above; here they must not run beyond the limit.
        locating = {route: min(unlocated(route), studies_at_once) for route in self.routes}
        batch = self._fitting([(job, studies_at_once) for job in jobs], locating, self._costs(golden_s), 1)
        return Effort(found.tta and batch.tta, found.all_folds and batch.all_folds, batch.jobs)

    def _fitting(
        self, work: Sequence[tuple[Job, int]], unlocated: Mapping[str, int], costs: Mapping[str, float], lanes: int
    ) -> Effort:
        """The largest effort whose networks fit the time left; reading, which is beside them, gains nothing by it."""
        available = self.budget.available_s() * lanes
        jobs = tuple(job for job, _ in work)
        for tta, all_folds in ((True, True), (False, True), (False, False)):
            if self._seconds(work, unlocated, costs, tta, all_folds) <= available:
                return Effort(tta, all_folds, jobs)
        chosen: list[tuple[Job, int]] = []
        for one in sorted(work, key=lambda one: self.ranks[one[0][1]] > 0):
            if self._seconds([*chosen, one], unlocated, costs, False, False) <= available:
                chosen.append(one)
        kept = {job for job, _ in chosen}
        return Effort(False, False, tuple(job for job in jobs if job in kept))

    def _seconds(
        self,
        work: Sequence[tuple[Job, int]],
        unlocated: Mapping[str, int],
        costs: Mapping[str, float],
        tta: bool = True,
        all_folds: bool = True,
    ) -> float:
        """What jobs will take for so many studies each, on one device."""

        def member_s(name: str) -> float:
            return costs[name] * (self.artefacts[name].member.passes if tta else 1)

        models = sum(count * member_s(grader) for (_, grader), count in work)
        for route in {route for (route, _), _ in work}:
            models += unlocated.get(route, 0) * sum(member_s(name) for name in self.localisers(route, all_folds))
        return models

    def _costs(self, golden_s: Mapping[str, float]) -> dict[str, float]:
        """Member → seconds a study and pass: as measured, else by the golden input, else by its GFLOPs, else 0."""
        rate = self._s_per_gflop()
        costs = {}
        for name, artefact in self.artefacts.items():
            seconds = self.budget.seconds(name)
            if seconds is None and name in golden_s:
                seconds = golden_s[name] * len(UNITS[artefact.member.unit])
            if seconds is None:
                seconds = (artefact.provenance.gflops_per_study or 0.0) / artefact.member.passes * rate
            costs[name] = seconds
        return costs

    def _s_per_gflop(self) -> float:
        """Of all that was measured; 0 before anything was."""
        seconds, gflops = 0.0, 0.0
        for name, artefact in self.artefacts.items():
            measured, counted = self.budget.seconds(name), artefact.provenance.gflops_per_study
            if measured is not None and counted:
                seconds += measured
                gflops += counted / artefact.member.passes
        return seconds / gflops if gflops else 0.0


def order_of(manifest: Manifest, ranks: Mapping[str, int]) -> tuple[Job, ...]:
    """All jobs, those first that gain most per second: as the manifest says, else as weights and GFLOPs suggest.

    Further folds of a network come after the first ones of all networks.
    """
    artefacts = {artefact.member.name: artefact for artefact in manifest.artefacts}
    routes = {route.name: route for route in manifest.routes}
    jobs = [(route.name, part.name) for route in manifest.routes for part in route.graders]
    jobs = [job for job in jobs if _groups_of(routes[job[0]], artefacts[job[1]])]
    if manifest.order:
        place = {name: number for number, name in enumerate(manifest.order)}
        return tuple(sorted(jobs, key=lambda job: (place.get(job[1], len(place)), jobs.index(job))))
    ordered: list[Job] = []
    answered = dict.fromkeys(GROUPS, 0.0)
    located: set[str] = set()

    def gain_per_cost(job: Job) -> tuple[int, float, int]:
        groups = _groups_of(routes[job[0]], artefacts[job[1]])
        # The share that it has in the answer once it has answered, too: all of the first, half of the second …
        gain = sum(share / (answered[group] + share) for group, share in groups.items())
        members = [job[1], *(routes[job[0]].localisers if job[0] not in located else ())]
        cost = sum(artefacts[name].provenance.gflops_per_study or 1.0 for name in members)
        return -ranks[job[1]], gain / cost, -jobs.index(job)

    while left := [job for job in jobs if job not in ordered]:
        best = max(left, key=gain_per_cost)
        for group, share in _groups_of(routes[best[0]], artefacts[best[1]]).items():
            answered[group] += share
        located.add(best[0])
        ordered.append(best)
    return tuple(ordered)


def _groups_of(route: Route, artefact: Artefact) -> dict[str, float]:
    """Condition group → weight, of the groups that a grader answers and has a weight in."""
    weight = next(dict(part.weight) for part in route.graders if part.name == artefact.member.name)
    units = UNITS[artefact.member.unit]
    graded = {group_of(row_of(target, unit)) for unit in units for target in artefact.member.targets}
    return {group: share * route.weight for group, share in weight.items() if share > 0 and group in graded}


def _fold_ranks(artefacts: Collection[Artefact]) -> dict[str, int]:
    """Member → 0 for the first fold of a network, 1 for its second …"""
    seen: dict[tuple[str, str], int] = {}
    ranks = {}
    for artefact in artefacts:
        name, made_by = artefact.member.name, artefact.provenance
        network = made_by.recipe, name.removesuffix(f"_fold{made_by.fold}")
        ranks[name] = seen.get(network, 0)
        seen[network] = ranks[name] + 1
    return ranks
