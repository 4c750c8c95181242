"""Options and environment variables of the kernel and of its supervisor."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .run.clock import PATIENCE_S

DEFAULT_TIME_LIMIT_S = 8.5 * 3600
# Set by the supervisor for the kernel: the number of restarts (if set, the kernel saves its progress), and the time of
# this start.
RESTART, STARTED = "LUMBAR_RESTART", "LUMBAR_STARTED"


def parser() -> argparse.ArgumentParser:
    """Options of predict; each is also an environment variable LUMBAR_<NAME>."""
    working = Path("/kaggle/working")
    defaults: dict[str, tuple[Any, Any, str]] = {
        "competition": (Path, None, "folder of the competition's files; default: found below --input-root"),
        "weights": (Path, None, "folder of manifest.json and its weights; default: found below --input-root"),
        "out": (Path, working if working.is_dir() else Path.cwd(), "folder for submission.csv and run_report.json"),
        "time-limit": (float, DEFAULT_TIME_LIMIT_S, "seconds within which the run ends"),
        "input-root": (Path, Path("/kaggle/input"), "where mounts are searched"),
        "manifest": (str, "", "sha256 of the manifest it must be; default: any of this kit"),
        "notebook": (str, "", "what the report names as the code that ran"),
        "devices": (str, "", "torch devices, one worker each, such as cuda:0,cuda:1; default: all that compute"),
        "batch": (int, 0, "studies that go through a network together; default: 8 on GPUs, 1 on a CPU"),
        "patience": (float, PATIENCE_S, "seconds without a study read or a forward of a batch, after which it hangs"),
    }
    found = argparse.ArgumentParser(prog="lumbar.predict", allow_abbrev=False)
    for name, (convert, default, text) in defaults.items():
        found.add_argument(f"--{name}", type=convert, default=_from_environment(name, convert, default), help=text)
    return found


def _from_environment(name: str, convert: Callable[[str], Any], default: Any) -> Any:
    """The value of a variable, else the default; an unusable value is a warning, as it must not cost the submission."""
    variable = "LUMBAR_" + name.upper().replace("-", "_")
    given = os.environ.get(variable)
    try:
        return convert(given) if given else default
    except ValueError:
        sys.stderr.write(f"{variable}={given} is not usable: {default} is used\n")
        return default
