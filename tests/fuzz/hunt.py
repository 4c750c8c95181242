"""Runs cases in a worker that may crash or hang, and keeps what is found."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.fuzz.cases import CASE
from tests.support import ROOT

# Wall time, on a machine that may be busy; the processor time allowed is less: worker.MOST_CPU_S.
HANG_S = 30.0
KEPT_A_SIGNATURE = 3


def command(folder: Path) -> list[str]:
    """What starts a worker."""
    return [sys.executable, "-m", "tests.fuzz.worker", str(folder)]


class Worker:
    """One process that reads cases."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "OFF", "PYTHONFAULTHANDLER": "1"}
        self.errors = (folder / "errors.txt").open("w+b")
        self.process = subprocess.Popen(
            command(folder),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self._buffer = b""

    def ask(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None where the process died, or was ended as it took too long."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        end = time.monotonic() + HANG_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                ready = selector.select(max(end - time.monotonic(), 0))
                chunk = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
                if not chunk:
                    return None
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def death(self) -> dict[str, str]:
        """What there is to say of a worker that gave no answer."""
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return {"signature": "hang", "text": f"no answer within {HANG_S:.0f} s"}
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace")[-2000:]
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        return {"signature": f"death of the process: {name}", "text": said}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                stream.close()


@dataclass
class Tally:
    """What was tried and found."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    mutations: Counter[str] = field(default_factory=Counter)
    finds: Counter[str] = field(default_factory=Counter)
    kept: list[tuple[str, Path, str]] = field(default_factory=list)
    """Signature, folder and text of the finds that were kept."""
    slowest_s: float = 0.0
    largest_bytes: int = 0

    @property
    def cases(self) -> int:
        return sum(self.outcomes.values())


class Hunt:
    """Cases of a seed, one after the other."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.seed, self.tally = out, seed, Tally()
        self._work = Path(tempfile.mkdtemp(prefix="fuzz_"))
        self._worker: Worker | None = None

    def __enter__(self) -> Hunt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()
        shutil.rmtree(self._work, ignore_errors=True)

    def _close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def run(self, numbers: Iterable[int]) -> Tally:
        """Make and read the cases of some numbers."""
        for number in numbers:
            self.one(number)
        return self.tally

    def one(self, number: int) -> None:
        """Make and read one case; keep it if it is a find."""
        if self._worker is None:
            self._worker = Worker(self._work)
        answer = self._worker.ask({"seed": self.seed, "number": number})
        if answer is None:
            answer = {"outcome": "find", **self._worker.death(), **self._unread()}
            self._close()
        tally = self.tally
        tally.outcomes[answer["target"], answer["outcome"]] += 1
        tally.mutations.update(answer["mutations"])
        tally.slowest_s = max(tally.slowest_s, answer.get("cpu_s", 0.0))
        tally.largest_bytes = max(tally.largest_bytes, answer.get("memory_bytes", 0))
        if "signature" in answer:
            tally.finds[answer["signature"]] += 1
            if tally.finds[answer["signature"]] <= KEPT_A_SIGNATURE:
                self._keep(number, answer)

    def _unread(self) -> dict[str, Any]:
        """Target and mutations of the case that the worker did not survive."""
        try:
            case = json.loads((self._work / "case" / CASE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"target": "making the case", "mutations": []}
        return {"target": case["target"], "mutations": case["mutations"]}

    def _keep(self, number: int, answer: dict[str, Any]) -> None:
        folder = self.out / f"find-{self.seed}-{number}"
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if (self._work / "case").exists():
            shutil.move(self._work / "case", folder)
            (folder / "find.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
        self.tally.kept.append((answer["signature"], folder, answer["text"]))


def again(folder: Path) -> dict[str, Any]:
    """Read a case that was kept."""
    work = Path(tempfile.mkdtemp(prefix="fuzz_"))
    worker = Worker(work)
    try:
        return worker.ask({"again": str(folder.resolve())}) or {"outcome": "find", **worker.death()}
    finally:
        worker.close()
        shutil.rmtree(work, ignore_errors=True)
