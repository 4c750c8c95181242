"""The clock drops TTA first, then folds, then everything."""

from kernels.lumbar.budget import Budget, Effort

MEMBERS = [("a_fold0", 0, 2), ("a_fold1", 1, 2)]


class Clock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def __call__(self) -> float:
        return self.time_s


def measured(limit_s: float) -> Budget:
    budget = Budget(limit_s, Clock())
    budget.record("read", 1.0)
    for name, _, _ in MEMBERS:
        budget.record(name, 2.0)
    return budget


def test_everything_runs_while_nothing_is_measured() -> None:
    assert Budget(1000, Clock()).effort(MEMBERS, 700) == Effort(True, 2)


def test_what_is_dropped_and_in_which_order() -> None:
    # A study costs 1 s of reading and 2 s a member, twice with TTA; a twentieth of the time is kept back.
    studies = 10
    assert measured(95.0).effort(MEMBERS, studies) == Effort(True, 2)
    assert measured(90.0).effort(MEMBERS, studies) == Effort(False, 2)
    assert measured(52.0).effort(MEMBERS, studies) == Effort(False, 1)
    assert measured(31.0).effort(MEMBERS, studies) == Effort(False, 0)


def test_nothing_is_begun_after_the_limit() -> None:
    clock = Clock()
    budget = Budget(10, clock)
    clock.time_s = 11
    assert budget.effort(MEMBERS, 1) == Effort(False, 0)
