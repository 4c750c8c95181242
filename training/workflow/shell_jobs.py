"""The batch system of profiles/shell: jobs are detached processes of this machine.

python -m training.workflow.shell_jobs submit SCRIPT    prints the job's name
python -m training.workflow.shell_jobs status NAME      prints running, success or failed
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from kernels.locks import hold, is_held

# In the working directory of Snakemake, RUNS/.workflow.
FOLDER = Path("shell_jobs")


def submit(script: str) -> str:
    """Begin a job that outlives this process: it inherits a lock, and leaves its exit code before it releases it."""
    FOLDER.mkdir(exist_ok=True)
    job = Path(tempfile.mkdtemp(dir=FOLDER))
    command = ["sh", "-c", 'sh "$0"; echo $? > "$1"', script, str(job / "code")]
    with hold(job / "lock") as lock, open(FOLDER / "output.log", "ab") as log:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=[lock]
        )
    return job.name


def status(name: str) -> str:
    """A job's status; one that ended without an exit code was killed."""
    if is_held(FOLDER / name / "lock"):
        return "running"
    code = FOLDER / name / "code"
    return "success" if code.is_file() and code.read_text().strip() == "0" else "failed"


if __name__ == "__main__":
    sys.stdout.write({"submit": submit, "status": status}[sys.argv[1]](sys.argv[2]) + "\n")
