"""Runs the kernel in a process of its own, again where that dies, and ends with a valid submission if one can be had.

`python -m kernels.lumbar.supervise` takes the options of predict.  Nothing inside a process survives a segmentation
fault in native code, or the system that kills it for want of memory; so this one does nothing but watch, and stays
small.  Exit code 0 = a valid submission.csv stands, 2 = none can be written, 3 = other weights than expected.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, TextIO

from .options import RESTART, STARTED, parser
from .run import output_check

# In all; and in vain, which is without a study done or another one found that kills it.
MOST_RESTARTS, MOST_IN_VAIN = 20, 2
# Another start with less time left than this would not come beyond loading.
LEAST_RESTART_S = 60.0
# A kernel that is asked to stop, or that is over its time, ends by itself within seconds: then it is made to.
OVERRUN_S, STOP_S = 60.0, 30.0
POLL_S = 0.2
DONE, NO_DATA, FOREIGN_WEIGHTS = 0, 2, 3


@dataclass(frozen=True)
class Ending:
    """How one process of the kernel ended."""

    code: int
    """Its exit code, or minus the signal that ended it; 1 where it could not be started."""
    after_s: float
    reason: str = ""
    """Why it was told to end; empty where it ended by itself."""

    @property
    def is_orderly(self) -> bool:
        """Whether it ended as the kernel means to."""
        return not self.reason and self.code in (DONE, NO_DATA, FOREIGN_WEIGHTS)

    def record(self) -> dict[str, Any]:
        """For the report."""
        how = {"signal": signal_name(-self.code)} if self.code < 0 else {"code": self.code}
        return {**how, "after_s": round(self.after_s, 1), **({"reason": self.reason} if self.reason else {})}

    def __str__(self) -> str:
        how = f"was ended by {signal_name(-self.code)}" if self.code < 0 else f"ended with code {self.code}"
        return f"the kernel {how} after {self.after_s:.0f} s" + (f" ({self.reason})" if self.reason else "")


class Signals:
    """SIGTERM and SIGINT to this process while it watches: remembered, and not deadly."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._remember)
            except ValueError:  # only the main thread may; elsewhere they do what they did
                return self
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kernel under watch; the exit code says what stands.

    A SIGTERM or SIGINT is passed on, and the code is 0 all the same where a valid file stands: Kaggle takes the file
    of a notebook only if no cell of it raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options, _ = parser().parse_known_args(arguments)
    started = time.monotonic()
    output_check.forget(options.out)
    with Signals() as signals:
        endings = _run(arguments, options.out, options.time_limit, signals)
        if len(endings) == 1 and endings[0].is_orderly and endings[0].code == NO_DATA:
            return NO_DATA
        problems = _problems(endings)
        # Data that were there at the first start and are not at a later one leave what stands.
        code = endings[-1].code if endings[-1].is_orderly and endings[-1].code != NO_DATA else DONE
        if fault := _make_stand(
            options.out, output_check.find_sample(options.competition, options.input_root), problems
        ):
            _say(f"no valid submission.csv stands: {fault}")
            code = NO_DATA
        _report(options.out, endings, problems, time.monotonic() - started)
        output_check.forget_progress(options.out)
    return code


def _run(arguments: Sequence[str], out: Path, limit_s: float, signals: Signals) -> list[Ending]:
    """Run the kernel until it ends in order, or there is no point in another start."""
    end = time.monotonic() + limit_s
    endings: list[Ending] = []
    mark, in_vain = output_check.progress_mark(out), 0
    while True:
        left_s = end - time.monotonic()
        # The last of several options of one name counts.
        more = ["--time-limit", f"{left_s:.1f}"] if endings else []
        endings.append(run_once([*arguments, *more], left_s, len(endings), signals))
        left_s, before, mark = end - time.monotonic(), mark, output_check.progress_mark(out)
        in_vain = in_vain + 1 if mark == before else 0
        no_use = in_vain > MOST_IN_VAIN or len(endings) > MOST_RESTARTS or left_s < LEAST_RESTART_S
        is_last = endings[-1].reason or signals.received or no_use
        if not endings[-1].is_orderly:
            _say(f"{endings[-1]}; {'it is not' if is_last else 'it is'} started again, {max(left_s, 0):.0f} s are left")
        if endings[-1].is_orderly or is_last:
            return endings


def run_once(arguments: Sequence[str], limit_s: float, restart: int, signals: Signals) -> Ending:
    """Run one process of the kernel to its end, or to the end of our patience."""
    started = time.monotonic()
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(
            command(arguments),
            env=environment(restart),
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,  # a group of its own: what it leaves running can be found and ended
        )
    except OSError as error:
        return Ending(1, 0.0, f"it could not be started: {error}")
    try:
        with Relay(child):
            reason = _watch(child, started + limit_s + OVERRUN_S, signals)
            _end_group(child)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return Ending(child.returncode, time.monotonic() - started, reason)


def _watch(child: subprocess.Popen[bytes], latest: float, signals: Signals) -> str:
    """Wait for the process; why it was told to end, if it was."""
    reason, told_at = "", 0.0
    while not _has_ended(child):
        now = time.monotonic()
        if not reason and (signals.received or now > latest):
            number = signals.received or signal.SIGTERM
            reason = f"{signal_name(number)} was passed on" if signals.received else "over its time limit"
            child.send_signal(number)
            told_at = now
        elif reason and now > told_at + STOP_S:
            child.kill()
    return reason


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End what a process left running: it would hold the GPU's memory and our pipes."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # nothing is left, or only what has ended
            return


def command(arguments: Sequence[str]) -> list[str]:
    """What starts the kernel."""
    return [sys.executable, "-m", f"{__package__}.predict", *arguments]


def environment(restart: int) -> dict[str, str]:
    """The kernel's: it finds this package, prints at once, says where native code failed, and keeps its progress."""
    root = Path(__file__).resolve().parents[len(str(__package__).split("."))]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    more = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    return {**os.environ, **more, RESTART: str(restart), STARTED: str(time.time())}


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"


def _problems(endings: Sequence[Ending]) -> list[dict[str, str]]:
    """The report's words for endings that were not meant."""
    return [_problem("kernel-ended", str(ending)) for ending in endings if not ending.is_orderly]


def _problem(kind: str, detail: str) -> dict[str, str]:
    return {"study": "", "where": "supervise", "kind": kind, "detail": detail}


def _make_stand(out: Path, sample: Path | None, problems: list[dict[str, str]]) -> str:
    """See to it that a valid submission stands; why none does, or nothing."""
    if not (fault := output_check.submission_fault(out, sample)):
        return ""
    if sample is None:
        return f"{fault}; no competition data was found to write one for"
    if failure := output_check.write_priors(out, sample):
        return f"{fault}; one of priors could not be written: {failure}"
    detail = f"the kernel left no valid submission.csv ({fault}): every study has the public priors"
    _say(detail)
    problems.append(_problem("priors-by-supervisor", detail))
    return ""


def _report(out: Path, endings: Sequence[Ending], problems: Sequence[Mapping[str, str]], seconds: float) -> None:
    if not problems:
        return
    records = [ending.record() for ending in endings if not ending.is_orderly]
    try:
        output_check.add_to_report(out, records, problems, seconds)
    except OSError as error:
        _say(f"run_report.json could not be written: {error}")


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens: no reason to fail
        sys.stderr.write(f"supervise: {text}\n")
        sys.stderr.flush()


CHUNK_BYTES = 1 << 16
# A grandchild that outlives the child may hold its pipes open.
PIPES_TIMEOUT_S = 5.0


class Relay:
    """Two threads that copy a child's stdout and stderr to ours, which in a notebook are no files."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        pairs = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        self._threads = [
            threading.Thread(target=_copy, args=pair, daemon=True) for pair in pairs if pair[0] is not None
        ]

    def __enter__(self) -> Relay:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(PIPES_TIMEOUT_S)


def _copy(source: IO[bytes], sink: TextIO) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    is_open = True
    with source:
        while chunk := source.read1(CHUNK_BYTES):  # type: ignore[attr-defined]
            try:
                if is_open:
                    sink.write(decoder.decode(chunk))
                    sink.flush()
            except (OSError, ValueError):  # nobody listens any more: still to be read, or the child would wait for us
                is_open = False


if __name__ == "__main__":
    sys.exit(main())
