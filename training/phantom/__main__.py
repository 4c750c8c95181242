"""`python -m training.phantom --out DIR --train N --test M`: write an embedded data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from .dataset import Options, make_dataset


def main() -> None:
    """Read the command line and write the data set."""
    parser = argparse.ArgumentParser(
        prog="python -m training.phantom",
        description="Write random lumbar spine phantoms as DICOM, in the exact layout of the competition.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must be empty or absent")
    parser.add_argument("--train", type=int, default=40, help="number of training studies")
    parser.add_argument("--test", type=int, default=10, help="number of test studies")
    parser.add_argument("--seed", type=int, default=0, help="decides everything in the data set")
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks the images, not their field")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 = one a core")
    parser.add_argument("--keep", action="store_true", help="continue or keep a data set of the same options")
    given = parser.parse_args()
    if min(given.train, given.test) < 0 or given.train + given.test == 0:
        parser.error(f"{given.train} studies to train on and {given.test} to test cannot be made: name 1 or more")
    options = Options(given.train, given.test, given.seed, given.scale)
    try:
        make_dataset(given.out, options, given.jobs, given.keep)
    except FileExistsError as problem:
        parser.error(str(problem))


if __name__ == "__main__":
    main()
