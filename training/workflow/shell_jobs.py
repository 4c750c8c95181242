"""The batch system of profiles/shell: jobs are detached processes of this machine.

python -m training.workflow.shell_jobs submit SCRIPT    prints the job's number
python -m training.workflow.shell_jobs status NUMBER    prints running, success or failed
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# In the working directory of Snakemake, RUNS/.workflow.
FOLDER = Path("shell_jobs")


def submit(script: str) -> str:
    """Begin a job that outlives whoever asked for it."""
    FOLDER.mkdir(exist_ok=True)
    with open(FOLDER / "output.log", "ab") as log:
        # The number is that of the shell, which writes down how its job ended.
        command = ["sh", "-c", 'sh "$0"; echo $? > "$1/$$.part" && mv "$1/$$.part" "$1/$$"', script, str(FOLDER)]
        job = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    (FOLDER / str(job.pid)).unlink(missing_ok=True)
    return str(job.pid)


def status(number: str) -> str:
    """How a job is doing; one that is gone without a word was killed."""
    end = FOLDER / number
    if not end.is_file():
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            # It may have ended in between.
            return _said(end) if end.is_file() else "failed"
        return "running"
    return _said(end)


def _said(end: Path) -> str:
    return "success" if end.read_text().strip() == "0" else "failed"


if __name__ == "__main__":
    sys.stdout.write({"submit": submit, "status": status}[sys.argv[1]](sys.argv[2]) + "\n")
