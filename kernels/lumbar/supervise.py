"""Run the kernel in a child process, restart it if that dies, and end with a valid submission if one can be had.

`python -m kernels.lumbar.supervise` takes the options of predict.  No process survives a segmentation fault in native
code or the out-of-memory killer; so this one only supervises, and stays small.  Exit code 0 = a valid submission.csv is
there, 2 = none can be written, 3 = other weights than expected.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

from .options import RESTART, STARTED, parser
from .run import output_check

# In all; and in a row without progress: no study done, and no further study found that kills the kernel.
MOST_RESTARTS, MOST_IN_VAIN = 20, 2
# With less time left than this, a restart would not get beyond loading.
LEAST_RESTART_S = 60.0
# Grace periods: beyond the time limit until SIGTERM, and from a signal until SIGKILL.
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
    """Why the supervisor ended it; empty where it ended by itself."""

    @property
    def is_orderly(self) -> bool:
        """Whether it ended by itself with one of the kernel's own exit codes."""
        return not self.reason and self.code in (DONE, NO_DATA, FOREIGN_WEIGHTS)

    def record(self) -> dict[str, Any]:
        """Entry of `supervision` in the report."""
        how = {"signal": signal_name(-self.code)} if self.code < 0 else {"code": self.code}
        return {**how, "after_s": round(self.after_s, 1), **({"reason": self.reason} if self.reason else {})}

    def __str__(self) -> str:
        how = f"was ended by {signal_name(-self.code)}" if self.code < 0 else f"ended with code {self.code}"
        return f"the kernel {how} after {self.after_s:.0f} s" + (f" ({self.reason})" if self.reason else "")


@contextlib.contextmanager
def recorded_signals() -> Iterator[list[int]]:
    """Append SIGTERM and SIGINT to the list instead of ending this process."""
    received: list[int] = []
    before = {}
    with contextlib.suppress(ValueError):  # only the main thread may set handlers; elsewhere they stay as they are
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kernel under supervision.

    A SIGTERM or SIGINT is passed on; the exit code is 0 nevertheless if a valid file is there, as Kaggle takes the file
    of a notebook only if no cell of it raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options, _ = parser().parse_known_args(arguments)
    out, started = options.out, time.monotonic()
    output_check.remove_outputs(out)
    with recorded_signals() as received:
        endings = _run(arguments, out, options.time_limit, received)
        abnormal = [ending for ending in endings if not ending.is_orderly]
        if not abnormal and endings[-1].code == NO_DATA:
            return NO_DATA
        problems = [_problem("kernel-ended", str(ending)) for ending in abnormal]
        # Data that are missing at a restart only do not invalidate the file of an earlier start.
        code = endings[-1].code if endings[-1].is_orderly and endings[-1].code != NO_DATA else DONE
        sample = output_check.find_sample(options.competition, options.input_root)
        if fault := output_check.submission_fault(out, sample):
            detail = f"the kernel left no valid submission.csv ({fault}): every study has the public priors"
            if failure := "no competition data was found" if sample is None else output_check.write_priors(out, sample):
                _say(f"no valid submission.csv stands: {fault}; one of priors could not be written: {failure}")
                code = NO_DATA
            else:
                _say(detail)
                problems.append(_problem("priors-by-supervisor", detail))
        if problems:
            try:
                records = [ending.record() for ending in abnormal]
                output_check.add_to_report(out, records, problems, time.monotonic() - started)
            except OSError as error:
                _say(f"run_report.json could not be written: {error}")
        output_check.remove_progress(out)
    return code


def _problem(kind: str, detail: str) -> dict[str, str]:
    return {"study": "", "where": "supervise", "kind": kind, "detail": detail}


def _run(arguments: Sequence[str], out: Path, limit_s: float, received: Sequence[int]) -> list[Ending]:
    """Run the kernel until it ends in order, or another restart is of no use."""
    end = time.monotonic() + limit_s
    endings: list[Ending] = []
    mark, in_vain = output_check.progress_mark(out), 0
    while True:
        left_s = end - time.monotonic()
        # The last of several options of one name counts.
        more = ["--time-limit", f"{left_s:.1f}"] if endings else []
        endings.append(run_once([*arguments, *more], left_s, len(endings), received))
        if endings[-1].is_orderly:
            return endings
        left_s, before, mark = end - time.monotonic(), mark, output_check.progress_mark(out)
        in_vain = in_vain + 1 if mark == before else 0
        is_useless = in_vain > MOST_IN_VAIN or len(endings) > MOST_RESTARTS or left_s < LEAST_RESTART_S
        is_last = endings[-1].reason or received or is_useless
        _say(f"{endings[-1]}; {'it is not' if is_last else 'it is'} started again, {max(left_s, 0):.0f} s are left")
        if is_last:
            return endings


def run_once(arguments: Sequence[str], limit_s: float, restart: int, received: Sequence[int]) -> Ending:
    """Run one process of the kernel until it ends or is over its time limit."""
    started = time.monotonic()
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(
            command(arguments),
            env=environment(restart),
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,  # a process group of its own, so that its children can be ended, too
        )
    except OSError as error:
        return Ending(1, 0.0, f"it could not be started: {error}")
    try:
        with _relayed(child):
            reason = _watch(child, started + limit_s + OVERRUN_S, received)
            _end_group(child)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return Ending(child.returncode, time.monotonic() - started, reason)


def _watch(child: subprocess.Popen[bytes], latest: float, received: Sequence[int]) -> str:
    """Wait for the process; returns why it was ended, if it was."""
    reason, signalled_at = "", 0.0
    while True:
        try:
            child.wait(POLL_S)
            return reason
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        if not reason and (received or now > latest):
            number = received[-1] if received else signal.SIGTERM
            reason = f"{signal_name(number)} was passed on" if received else "over its time limit"
            child.send_signal(number)
            signalled_at = now
        elif reason and now > signalled_at + STOP_S:
            child.kill()


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the process's remaining children, which would hold GPU memory and our pipes."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none, or ended ones only
            os.killpg(child.pid, signal.SIGKILL)


def command(arguments: Sequence[str]) -> list[str]:
    """Command line of the kernel."""
    return [sys.executable, "-m", f"{__package__}.predict", *arguments]


def environment(restart: int) -> dict[str, str]:
    """Environment of the kernel: import path, unbuffered output, traceback of native crashes, number of restarts."""
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


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed stderr is no reason to fail
        sys.stderr.write(f"supervise: {text}\n")
        sys.stderr.flush()


CHUNK_BYTES = 1 << 16
# A grandchild that outlives the child may hold its pipes open.
PIPES_TIMEOUT_S = 5.0


@contextlib.contextmanager
def _relayed(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Copy the child's stdout and stderr to ours, which have no file descriptors in a notebook, in two threads."""
    pairs = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
    threads = [threading.Thread(target=_copy, args=pair, daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
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
            except (OSError, ValueError):  # a closed sink: keep reading, or the child would block on a full pipe
                is_open = False


if __name__ == "__main__":
    sys.exit(main())
