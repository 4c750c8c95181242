"""The process that reads the cases: watched for files it writes, memory it takes and processor time it spends.

    python -m tests.fuzz.worker FOLDER      # one line of JSON in, one out

In: {"seed", "number"} makes a case in FOLDER/case and reads it; {"again": folder} reads one that was kept.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.fuzz import checks
from tests.fuzz.cases import CASE, make

MOST_CPU_S = 4.0
MOST_MEMORY_BYTES = 1 << 30
# Beyond this an allocation fails, before the machine runs out.
MOST_ADDRESSES_BYTES = 4 << 30
FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate")


class Watch:
    """Notes what a case does beyond reading, except in its own folder for results."""

    def __init__(self) -> None:
        self.allowed: Path | None = None
        self.done: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if event in FORBIDDEN:
            self.done.append(f"{event} {arguments[:1]!r}")
        elif (writes or event in CHANGING) and not str(arguments[0]).startswith(str(self.allowed)):
            self.done.append(f"{event} {arguments[0]!r}")


def read_case(case: dict[str, Any], folder: Path, watch: Watch) -> dict[str, Any]:
    """The outcome of a case, and of a find its signature and what is to be said of it."""
    _forget_peak()
    held, started = _memory("VmRSS"), time.process_time()
    found: dict[str, Any] = {}
    watch.done, watch.allowed = [], folder / "out"
    try:
        outcome = checks.run(case, folder)
    except Exception as error:  # noqa: BLE001 - whatever gets out is what is looked for
        outcome, found = "find", {"signature": _signature(error), "text": traceback.format_exc(limit=-12)[-3000:]}
    finally:
        watch.allowed = None
    spent_s, taken = time.process_time() - started, _memory("VmHWM") - held
    if not found and watch.done:
        found = {"signature": f"does more than read: {watch.done[0].split()[0]}", "text": "; ".join(watch.done[:5])}
    if not found and spent_s > MOST_CPU_S:
        found = {"signature": f"slow: {case['target']}", "text": f"{spent_s:.1f} s of processor time"}
    if not found and taken > MOST_MEMORY_BYTES:
        found = {"signature": f"memory: {case['target']}", "text": f"{taken / 1e6:.0f} MB"}
    return {"outcome": "find" if found else outcome, "cpu_s": spent_s, "memory_bytes": taken, **found}


def _signature(error: Exception) -> str:
    """By which finds are the same: what was raised, and in which function of the kernel."""
    if isinstance(error, checks.Broken):
        return f"broken: {error}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "lumbar" in frame.filename]
    where = f" in {Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{where}: {re.sub(r'[0-9]+', 'N', str(error))[:60]}"


def _memory(field: str) -> int:
    """Bytes, by /proc; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # then the peak is that of all cases so far
        return


def main(root: Path) -> int:
    watch, folder = Watch(), root / "case"
    limit = _memory("VmSize") + MOST_ADDRESSES_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the libraries print is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        if "again" in asked:
            folder = Path(asked["again"])
            case = json.loads((folder / CASE).read_text(encoding="utf-8"))
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            case = make(folder, asked["seed"], asked["number"])
        found = read_case(case, folder, watch)
        answers.write(json.dumps({"target": case["target"], "mutations": case["mutations"], **found}) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
