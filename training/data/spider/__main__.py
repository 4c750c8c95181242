"""SPIDER as downloaded → data in the competition's layout: T1 and T2 as DICOM, canal landmarks and severities.

    python -m training.data.spider --spider DIR --out DIR [--jobs N] [--no-test]

DIR holds images/*.mha, masks/*.mha, overview.csv and radiological_gradings.csv; any part of the patients
and series will do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.commands import ends_with_a_sentence
from kernels.locks import BusyError
from training.data.spider.dataset import import_spider
from training.data.spider.mha import SpiderError


@ends_with_a_sentence("nothing is imported", SpiderError, BusyError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data.spider", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spider", type=Path, required=True, help="the unpacked download")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must be empty or absent")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; 1 or more")
    parser.add_argument("--no-test", action="store_true", help="keep no patients for the test: all are for training")
    given = parser.parse_args(argv)
    print(import_spider(given.spider, given.out, max(1, given.jobs), has_test=not given.no_test))
    crossed = " CROSSED=1" if given.no_test else ""
    print(f"next: make train-all DATA={given.out} RECIPES=canal_only, or make bench-real DATA={given.out}{crossed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
