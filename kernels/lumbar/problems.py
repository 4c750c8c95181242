"""What went wrong with a study's data: a named record instead of an exception, and a summary of many by kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Consequence → the kinds of problem that have it.
CONSEQUENCES = {
    "this file or slice is left out, the rest of its series is read": "unreadable-file empty-file no-image not-grey "
    "multi-frame no-geometry off-orientation duplicate-slice other-contrast",
    "the series is left out": "no-folder empty-folder wrong-id unknown-series-description",
    "used as it is, its landmarks may be less accurate": "assumed-geometry assumed-spacing unexpected-orientation "
    "several-stacks duplicate-number constant-pixels crowded-slices",
    "corrected while reading": "bad-rescale stray-bits larger-values missing-element missing-delimiter "
    "fast-path-differs",
    "the other series answer, or the rows keep their prior": "missing-kind single-slice nothing-to-look-at",
    "this output of a network is left out": "outside-the-image not-finite",
    "a located point contradicts the shape of the spine: it is dropped and imputed": "implausible-landmark",
    "imputed from the shape of the spine: these crops may show a neighbouring level": "guessed-landmarks",
    "the other networks answer for this study, or its rows keep their prior": "localiser-failed grader-failed",
    "this network is left out": "member-unusable",
    "the study keeps its priors": "no-series study-unreadable reading-stalled given-up",
    "the time was short: some answers are of fewer networks or passes": "tta-dropped fold-dropped member-dropped",
    "the time was over: the studies not reached keep their priors": "out-of-time",
    "the other devices or the CPU do its work": "device-unusable gpu-unusable device-lost",
    "no device is left: the supervisor restarts the kernel": "devices-lost",
    "slower, with the same answers": "single-precision not-optimised",
    "there is nothing to grade with: every study keeps its priors": "no-manifest no-job no-usable-member",
    "the weights are not those that the notebook was pushed for": "foreign-weights",
    "without this table no series is known: every study keeps its priors": "unreadable-table wrong-table",
    "the row is none of this kit's: it keeps 1/3": "unknown-row",
    "the last complete file stays": "file-not-replaced run-cut-short",
    "the kernel was killed, and resumes unless it was the last attempt": "kernel-ended",
    "submission.csv holds public priors alone": "priors-by-supervisor",
    "the annotation is not trained on": "annotation-without-image",
    "the last annotation counts": "annotated-twice",
    "trained on as it is: correct the line, or remove it": "point-outside point-far-off",
    "trained on as they are: correct the study's lines, or remove them": "sides-exchanged levels-exchanged",
}
LONGEST_EXAMPLE = 200
MEANINGS = {kind: consequence for consequence, kinds in CONSEQUENCES.items() for kind in kinds.split()}


@dataclass(frozen=True)
class Problem:
    """One oddity that was met and worked round."""

    study: str
    """Study id; empty where the problem belongs to no study."""
    where: str
    """What it concerns: "series/file", a series, a table, a network."""
    kind: str
    """A slug to count by, such as "unreadable-file"."""
    detail: str


@dataclass
class Report:
    """Collects the problems of one series."""

    study: str
    series: str
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: str, detail: str, file: str = "") -> None:
        """Record a problem of the series, or of one of its files."""
        where = f"{self.series}/{file}" if file else self.series
        self.problems.append(Problem(self.study, where, kind, detail))


def count_of(problem: Mapping[str, Any]) -> int:
    """How many problems a line of run_report.json stands for."""
    return int(problem.get("count", 1))


def summary(problems: Iterable[Mapping[str, Any]], kept_in: str = "run_report.json") -> str:
    """Two lines a kind, the most frequent first: its number, its studies and its consequence; then one example.

    `problems` have the fields of Problem, and a `count` where one stands for several; `kept_in` names the file that
    lists them all.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for one in problems:
        by_kind.setdefault(one["kind"], []).append(one)
    if not by_kind:
        return "no problems"
    counts = {kind: sum(map(count_of, its)) for kind, its in by_kind.items()}
    lines = [f"{sum(counts.values())} problems by kind (each one in {kept_in}):"]
    for kind in sorted(by_kind, key=lambda kind: -counts[kind]):
        count, first = counts[kind], by_kind[kind][0]
        studies = len({one["study"] for one in by_kind[kind]} - {""})
        place = " ".join(filter(None, [first["study"] and f"study {first['study']}", first["where"]]))
        lines += [
            f"  {kind}: {count_text(count, studies)}; {MEANINGS.get(kind, 'see the example')}",
            f"    such as {place}: {shortened(first['detail'])}",
        ]
    return printable("\n".join(lines))


def count_text(count: int, studies: int) -> str:
    """Such as "3 in 2 studies"; the count alone where no study is concerned."""
    return f"{count} in {studies} {'study' if studies == 1 else 'studies'}" if studies else f"{count}"


def shortened(detail: str) -> str:
    """A detail as an example for people."""
    return detail if len(detail) <= LONGEST_EXAMPLE else f"{detail[:LONGEST_EXAMPLE]} …"


def printable(text: str) -> str:
    """Text that a strict console takes: a file name that is not UTF-8 holds surrogates."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def outcome(report: Mapping[str, Any]) -> str:
    """What came of a run by its run_report.json: studies graded, rows that kept their prior, problems by kind."""
    asked, graded, rows = *(report["studies"][key] for key in ("asked", "graded")), report["fallbacks"]["rows"]
    left = f"; {asked - graded} not graded, with the prior in every row" if graded < asked else ""
    guessed = report["fallbacks"].get("guessed", {"rows": 0})["rows"]
    others = f"; {guessed} were answered from other series at guessed landmarks" if guessed else ""
    kept = f"{rows} of their rows kept the prior{others}{left}"
    foreign = [
        f"these images are unlike those trained on: {kind} ({one['studies']} studies): {'; '.join(one['unlike'])}\n"
        for kind, one in report.get("domain", {}).items()
        if one["unlike"]
    ]
    return f"graded {graded} of {asked} studies; {kept}\n{''.join(foreign)}{summary(report['problems'])}"
