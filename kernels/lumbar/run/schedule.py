"""Order of the jobs, largest gain per second first, and what to drop when time is short.

Dropped in this order: test-time augmentation, further folds of networks that have answered already, networks, studies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ..labels import GROUPS, UNITS
from ..manifest import Artefact, Manifest
from .clock import Clock
from .results import Job

# Bytes of the networks of a round, and the share of the time left that it may take.
ROUND_BYTES = 3_000_000_000
ROUND_SHARE = 0.25
# Share of the time left within which all remaining networks must fit, for folds to go ahead of other networks.
FOLDS_SHARE = 0.5


@dataclass(frozen=True)
class Effort:
    """What is run on a batch."""

    tta: bool
    all_folds: bool
    """Whether all folds of a route's localisers run, or one of each."""
    jobs: tuple[Job, ...]
    """Empty where no time is left."""


class Schedule:
    """The jobs of a manifest in order, and the effort that fits the time left by the measured seconds."""

    def __init__(self, manifest: Manifest, clock: Clock, studies: int, workers: int = 1, readers: int = 1) -> None:
        self.manifest, self.clock = manifest, clock
        self.studies, self.workers, self._readers = studies, workers, readers
        self.artefacts = {artefact.member.name: artefact for artefact in manifest.artefacts}
        self.routes = {route.name: route for route in manifest.routes}
        self.ranks = _fold_ranks(manifest.artefacts)
        self.order = self._ordered()

    def localisers(self, route: str, all_folds: bool) -> list[str]:
        """The names of a route's localisers."""
        names = self.routes[route].localisers
        return [name for name in names if all_folds or self.ranks[name] == 0]

    def next_round(self, left: Sequence[Job], kept: int = 0) -> tuple[Job, ...]:
        """The next of the remaining jobs, all of which run on all studies.

        First the fewest that answer every condition; then as many as fit ROUND_BYTES and ROUND_SHARE, further folds
        beside their network where everything fits the time.  `kept`: number of studies that need not be read again.
        """
        if len(left) == len(self.order):
            return self._first_answers(left)
        chosen: list[Job] = []
        costs = self._costs({})
        # Where reading is the bottleneck, a round has as many networks as run in the meantime.
        reading_s = max(self.studies - kept, 0) * (self.clock.seconds("read") or 0.0) / self._readers
        longest_s = max(self.clock.available_s() * ROUND_SHARE, reading_s)
        for job in self._folds_together(left, costs):
            more = [*chosen, job]
            size = sum(self.artefacts[name].weights.bytes for name in {grader for _, grader in more})
            seconds = self._seconds([(one, self.studies) for one in more], {}, costs) / self.workers
            if chosen and (size > ROUND_BYTES or seconds > longest_s):
                break
            chosen = more
        return tuple(chosen)

    def _folds_together(self, left: Sequence[Job], costs: Mapping[str, float]) -> list[Job]:
        """The remaining jobs, with each network followed by its further folds of equal inputs: these are cut once.

        Folds that go ahead of other networks cost time that these may lack: so only where all costs are known, and all
        that remains takes no more than a part of the time left.
        """
        work = [(job, self.studies) for job in left]
        everywhere = dict.fromkeys(self.routes, self.studies)
        known = all(costs[grader] > 0 for _, grader in left)
        if not known or self._seconds(work, everywhere, costs) > FOLDS_SHARE * self.clock.available_s() * self.workers:
            return list(left)
        together: dict[object, list[Job]] = {}
        for job in left:
            artefact = self.artefacts[job[1]]
            key = job[0], network_of(artefact), artefact.member.inputs, artefact.member.unit
            together.setdefault(key, []).append(job)
        return [job for jobs in together.values() for job in jobs]

    def _first_answers(self, jobs: Sequence[Job]) -> tuple[Job, ...]:
        chosen: list[Job] = []
        answered: set[str] = set()
        for job in jobs:
            groups = set(self._shares(job))
            if not groups <= answered:
                chosen.append(job)
                answered |= groups
        return tuple(chosen) or tuple(jobs[:1])

    def effort(
        self,
        now: Sequence[Job],
        studies_now: int,
        later: Sequence[Job],
        unlocated: Callable[[str], int],
        studies_at_once: int,
        golden_s: Mapping[str, float],
    ) -> Effort:
        """The effort for the next batch: `now` still has to run on `studies_now` studies, `later` on all.

        `unlocated`: route → number of studies without landmarks.  `studies_at_once`: in flight on the device, this
        batch included.  `golden_s`: loaded member → seconds per row, the estimate for members that have not been run
        on a study.
        """
        work = [(job, studies_now) for job in now] + [(job, self.studies) for job in later]
        everywhere = {route: unlocated(route) for route in self.routes}
        found = self._fitting(work, everywhere, self._costs({}), self.workers)
        jobs = tuple(job for job in now if job in found.jobs) or tuple(now[:1])
        # Networks that were never measured cost nothing above; here they must not exceed the limit.
        locating = {route: min(unlocated(route), studies_at_once) for route in self.routes}
        batch = self._fitting([(job, studies_at_once) for job in jobs], locating, self._costs(golden_s), 1)
        return Effort(found.tta and batch.tta, found.all_folds and batch.all_folds, batch.jobs)

    def _fitting(
        self, work: Sequence[tuple[Job, int]], unlocated: Mapping[str, int], costs: Mapping[str, float], workers: int
    ) -> Effort:
        """The largest effort whose networks fit the time left; reading runs in parallel and is not counted."""
        available = self.clock.available_s() * workers
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
        """Expected seconds of (job, number of studies) on one device."""

        def member_s(name: str) -> float:
            return costs[name] * (self.artefacts[name].member.passes if tta else 1)

        seconds = sum(count * member_s(grader) for (_, grader), count in work)
        for route in {route for (route, _), _ in work}:
            seconds += unlocated.get(route, 0) * sum(member_s(name) for name in self.localisers(route, all_folds))
        return seconds

    def _costs(self, golden_s: Mapping[str, float]) -> dict[str, float]:
        """Member → seconds per study and pass: measured, else by the golden input, else by its GFLOPs, else 0."""
        measured = {name: self.clock.seconds(name) for name in self.artefacts}
        gflops = {
            name: (artefact.provenance.gflops_per_study or 0.0) / artefact.member.passes
            for name, artefact in self.artefacts.items()
        }
        both = [(seconds, gflops[name]) for name, seconds in measured.items() if seconds is not None and gflops[name]]
        counted = sum(one for _, one in both)
        rate = sum(seconds for seconds, _ in both) / counted if counted else 0.0  # seconds per GFLOP
        costs = {}
        for name, artefact in self.artefacts.items():
            seconds = measured[name]
            if seconds is None and name in golden_s:
                seconds = golden_s[name] * len(UNITS[artefact.member.unit])
            costs[name] = gflops[name] * rate if seconds is None else seconds
        return costs

    def _ordered(self) -> tuple[Job, ...]:
        """All jobs in the manifest's order; without one, by gain per cost from weights and GFLOPs.

        Further folds of a network come after the first folds of all networks.
        """
        stacked = self.manifest.stacker.graders if self.manifest.stacker else ()
        jobs = [(route.name, part.name) for route in self.manifest.routes for part in route.graders]
        jobs = [job for job in jobs if self._shares(job) or job[1] in stacked]
        if order := self.manifest.order:
            place = {name: number for number, name in enumerate(order)}
            return tuple(sorted(jobs, key=lambda job: (place.get(job[1], len(place)), jobs.index(job))))
        ordered: list[Job] = []
        answered = dict.fromkeys(GROUPS, 0.0)
        located: set[str] = set()

        def gain_per_cost(job: Job) -> tuple[int, float, int]:
            route, grader = job
            # Its share of the answer once it is included: all of the first, half of the second …
            gain = sum(share / (answered[group] + share) for group, share in self._shares(job).items())
            members = [grader, *(self.routes[route].localisers if route not in located else ())]
            cost = sum(self.artefacts[name].provenance.gflops_per_study or 1.0 for name in members)
            return -self.ranks[grader], gain / cost, -jobs.index(job)

        while left := [job for job in jobs if job not in ordered]:
            best = max(left, key=gain_per_cost)
            for group, share in self._shares(best).items():
                answered[group] += share
            located.add(best[0])
            ordered.append(best)
        return tuple(ordered)

    def _shares(self, job: Job) -> dict[str, float]:
        """Condition group → weight, of the groups that a job answers with a positive weight."""
        route, member = self.routes[job[0]], self.artefacts[job[1]].member
        weight = next(dict(part.weight) for part in route.graders if part.name == member.name)
        graded = member.groups
        return {group: share * route.weight for group, share in weight.items() if share > 0 and group in graded}


def _fold_ranks(artefacts: Collection[Artefact]) -> dict[str, int]:
    """Member → 0 for the first fold of a network, 1 for its second …"""
    seen: dict[tuple[str, str], int] = {}
    ranks = {}
    for artefact in artefacts:
        network = network_of(artefact)
        ranks[artefact.member.name] = seen.get(network, 0)
        seen[network] = ranks[artefact.member.name] + 1
    return ranks


def network_of(artefact: Artefact) -> tuple[str, str]:
    """The recipe, and the name of a member without its fold: all folds of a network have the same."""
    made_by = artefact.provenance
    return made_by.recipe, artefact.member.name.removesuffix(f"_fold{made_by.fold}")
