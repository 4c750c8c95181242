"""`python -m training.benchmarks.gpu.child CALL SETTING RECORD`: one part, in this process."""

from __future__ import annotations

import faulthandler
import logging
import sys
from pathlib import Path

from .parts import Part
from .setting import Record, Setting


def main() -> None:
    """Command line, only for the parent."""
    call, setting, record = sys.argv[1:]
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO)
    Part(call, call, 0, "alone").measure(Setting.from_json(setting), Record(Path(record)))


if __name__ == "__main__":
    main()
