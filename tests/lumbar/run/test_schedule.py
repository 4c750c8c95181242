"""The order of work, and what the clock leaves out first."""

from __future__ import annotations

import pytest

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.manifest import Artefact, GraderWeight, Manifest, Provenance, Route, Weights
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.schedule import Schedule
from kernels.lumbar.specs import Member, SliceChoice, ViewRequest
from tests.support.networks.tiny_members import PROVENANCE

VIEW = ViewRequest(series="sagittal_t2", slices=SliceChoice(by="middle", count=3), size_px=32)
TARGETS = {
    "spinal": ("spinal_canal_stenosis",),
    "foraminal": ("left_neural_foraminal_narrowing", "right_neural_foraminal_narrowing"),
    "subarticular": ("left_subarticular_stenosis", "right_subarticular_stenosis"),
}
WEIGHTS = Weights(file="weights.bin", bytes=1000, sha256="0" * 64, golden_seed=0, golden_output=(0.0,))


def artefact(network: str, fold: int, role: str, groups: tuple[str, ...], gflops: float = 1.0) -> Artefact:
    targets = tuple(target for group in groups for target in TARGETS[group])
    name = f"{network}_fold{fold}"
    member = Member(name=name, role=role, unit="level", inputs=(VIEW,), targets=targets, tta=("mirror",))  # type: ignore[arg-type]
    made = PROVENANCE.model_copy(update={"fold": fold, "gflops_per_study": gflops, "recipe": "r"})
    return Artefact(member=member, weights=WEIGHTS, provenance=Provenance.model_validate(made.model_dump()))


def manifest(*graders: Artefact, order: tuple[str, ...] = (), localisers: int = 1) -> Manifest:
    finders = [artefact("finder", fold, "localiser", ("spinal",)) for fold in range(localisers)]
    even = dict.fromkeys(TARGETS, 1.0)
    route = Route(
        name="r",
        localisers=tuple(one.member.name for one in finders),
        graders=tuple(GraderWeight(name=one.member.name, weight=even) for one in graders),  # type: ignore[arg-type]
    )
    return Manifest(
        name="m", priors=public_priors(), artefacts=(*finders, *graders), routes=(route,), order=order, shape=None
    )


ALL = tuple(TARGETS)
BIG, SMALL = artefact("big", 0, "grader", ALL, 100), artefact("small", 0, "grader", ALL, 10)
CANAL, SECOND = artefact("canal", 0, "grader", ("spinal",), 1), artefact("small", 1, "grader", ALL, 10)


def names(jobs) -> list[str]:
    return [grader for _, grader in jobs]


def schedule(of: Manifest, limit_s: float = 1e6, studies: int = 10, workers: int = 1) -> Schedule:
    return Schedule(of, Clock(limit_s, lambda: 0.0), studies, workers)


def test_without_an_order_gain_per_gflop_decides_and_further_folds_come_last():
    found = schedule(manifest(BIG, SECOND.model_copy(), SMALL, CANAL)).order
    # Fold ranks go by the manifest: of "small" its second fold comes first there.
    assert names(found) == ["canal_fold0", "small_fold1", "big_fold0", "small_fold0"]


def test_the_manifests_order_stands():
    order = ("big_fold0", "canal_fold0", "small_fold0")
    assert names(schedule(manifest(BIG, SMALL, CANAL, order=order)).order) == list(order)


def test_an_order_names_graders_alone():
    with pytest.raises(ValueError, match="order names 'finder_fold0', which is no grader"):
        manifest(BIG, order=("finder_fold0",))


def test_the_first_round_answers_every_condition_with_the_fewest():
    made = schedule(manifest(BIG, SMALL, CANAL))
    assert names(made.next_round(made.order)) == ["canal_fold0", "small_fold0"]
    assert names(made.next_round(made.order[2:])) == ["big_fold0"]


def test_a_round_holds_what_memory_and_a_quarter_of_the_time_hold():
    made = schedule(manifest(CANAL, BIG, SMALL), limit_s=1000)
    assert len(made.next_round(made.order[1:])) == 2, "nothing was measured yet"
    made.clock.record("small_fold0", 20.0)
    assert names(made.next_round(made.order[1:])) == ["small_fold0"]
    large = artefact("large", 0, "grader", ALL)
    heavy = large.model_copy(update={"weights": WEIGHTS.model_copy(update={"bytes": 2_900_000_000})})
    made = schedule(manifest(CANAL, heavy, BIG.model_copy(update={"weights": heavy.weights})))
    assert len(made.next_round([job for job in made.order if job[1] != "canal_fold0"])) == 1


def effort(made: Schedule, now, later=(), studies: int = 10, golden_s=None):
    return made.effort(now, studies, later, lambda route: 0, 1, golden_s or {})


def measured(limit_s: float, *graders: Artefact) -> Schedule:
    made = schedule(manifest(*graders), limit_s)
    for one in graders:
        made.clock.record(one.member.name, 1.0)
    return made


def test_tta_goes_first_then_further_folds_then_networks_then_studies():
    # Of three networks ten studies cost 60 s with TTA, 30 s without; 5 % and 2 s are kept back.
    graders = (SMALL, SECOND, BIG)
    for limit_s, tta, left in ((66, True, 3), (64, False, 3), (30, False, 2), (15, False, 1), (4, False, 1)):
        made = measured(limit_s, *graders)
        found = effort(made, made.order)
        assert (found.tta, len(found.jobs)) == (tta, left), limit_s
        if left == 2:
            assert names(found.jobs) == ["small_fold0", "big_fold0"], "the second fold is dropped before a network"
    made = measured(3.0, *graders)
    assert effort(made, made.order).jobs == ()


def test_what_comes_later_counts_and_two_workers_share_the_work():
    for workers, tta in ((1, False), (2, True)):
        made = schedule(manifest(SMALL, BIG), 40, workers=workers)
        for name in ("small_fold0", "big_fold0"):
            made.clock.record(name, 1.0)
        assert effort(made, made.order[:1]).tta
        assert effort(made, made.order[:1], made.order[1:]).tta is tta


def test_localisers_are_reduced_to_one_fold_only_when_nothing_else_fits():
    made = schedule(manifest(CANAL, localisers=3), 45)
    for fold in range(3):
        made.clock.record(f"finder_fold{fold}", 1.0)
    found = made.effort(made.order, 10, (), lambda route: 10, 1, {})
    assert not found.tta and found.all_folds
    made.clock.record("canal_fold0", 2.0)
    found = made.effort(made.order, 10, (), lambda route: 10, 1, {})
    assert not found.all_folds and names(found.jobs) == ["canal_fold0"]
    assert made.localisers("r", False) == ["finder_fold0"]


def test_gflops_stand_in_for_seconds_and_golden_rows_stop_what_would_not_end():
    made = schedule(manifest(SMALL, BIG), 100)
    made.clock.record("small_fold0", 1.0)
    assert not effort(made, made.order[:1], made.order[1:]).tta, "big has ten times the GFLOPs, so 200 s with TTA"
    fresh = schedule(manifest(BIG), 100)
    assert effort(fresh, fresh.order).tta, "nothing is known of it"
    assert not effort(fresh, fresh.order, golden_s={"big_fold0": 15.0}).tta, "five rows a study, twice"
    assert effort(fresh, fresh.order, golden_s={"big_fold0": 60.0}).jobs == ()


FOLDS = tuple(artefact(network, fold, "grader", ALL, 10) for fold in range(2) for network in ("one", "two", "three"))


def second_round(limit_s: float, *graders: Artefact, unmeasured: str = "") -> list[str]:
    order = ("canal_fold0", *(one.member.name for one in graders))
    made = schedule(manifest(CANAL, *graders, order=order), limit_s)
    for name in made.artefacts:
        if name != unmeasured:
            made.clock.record(name, 1.0)
    return names(made.next_round(made.order[1:]))


def test_folds_share_a_round_where_all_that_remains_fits_half_of_the_time():
    # Six networks cost 120 s with TTA, their localiser 20 s; a round holds a quarter of the time.
    assert second_round(320, *FOLDS) == ["one_fold0", "one_fold1", "two_fold0"]
    assert second_round(260, *FOLDS) == ["one_fold0", "two_fold0", "three_fold0"], (
        "a fold must not cost another network its time"
    )


def test_folds_wait_where_the_time_of_a_network_is_not_known_or_their_inputs_differ():
    unknown = artefact("unknown", 0, "grader", ALL, 0.0)
    folds = (*FOLDS[:2], unknown, *FOLDS[3:5])
    assert second_round(320, *folds, unmeasured="unknown_fold0")[:3] != ["one_fold0", "one_fold1", "two_fold0"]
    assert second_round(320, *folds)[:2] == ["one_fold0", "one_fold1"]
    wider = VIEW.model_copy(update={"size_px": 64})
    other = FOLDS[3].model_copy(update={"member": FOLDS[3].member.model_copy(update={"inputs": (wider,)})})
    assert second_round(320, *FOLDS[:3], other, *FOLDS[4:])[:2] == ["one_fold0", "two_fold0"]


def test_studies_at_hand_take_no_time_to_read():
    made = schedule(manifest(CANAL, BIG, SMALL), limit_s=1000)
    for name in ("big_fold0", "small_fold0"):
        made.clock.record(name, 20.0)
    made.clock.record("read", 90.0)
    assert len(made.next_round(made.order[1:])) == 2, "both run while all is read again"
    assert len(made.next_round(made.order[1:], kept=9)) == 1


def test_the_other_batches_in_flight_must_fit_too():
    made = schedule(manifest(BIG), 100)
    golden_s = {"big_fold0": 10.0}  # five rows a study, twice
    assert made.effort(made.order, 1, (), lambda route: 0, 1, golden_s).jobs
    assert not made.effort(made.order, 1, (), lambda route: 0, 2, golden_s).tta
    assert not made.effort(made.order, 1, (), lambda route: 0, 3, golden_s).jobs
