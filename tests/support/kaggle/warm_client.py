"""The real kaggle client without its second of start-up: a process with its libraries forks for each call.

What is forked runs `python -m kaggle …` as it stands, in an environment of its own.  For tests of many calls.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class WarmClient:
    """Stands in for subprocess.run where that would start `python -m kaggle`."""

    def __init__(self) -> None:
        program = [sys.executable, __file__]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, program: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """As subprocess.run, for programs that are the client."""
        assert program[1:3] == ["-m", "kaggle"], program
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            asked = {"arguments": program[2:], "environment": dict(os.environ), "folder": folder, "cwd": os.getcwd()}
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            out, err = ((Path(folder) / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(program, code, out, err)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve() -> None:
    """Fork for each line of standard input; answer with the exit code."""
    import kagglesdk.kaggle_client  # noqa: F401 - this is what takes the time
    import requests  # noqa: F401
    import slugify  # noqa: F401
    import tqdm  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(asked)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(asked: dict[str, Any]) -> None:
    """Turn this process into the client; never returns."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{asked['folder']}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    sys.argv = ["kaggle", *asked["arguments"][1:]]
    code: Any = 0
    try:
        runpy.run_module("kaggle", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:  # noqa: BLE001 - as an interpreter ends on it
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve()
