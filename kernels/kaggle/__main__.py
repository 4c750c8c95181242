"""From a packaged folder of weights to a submission on Kaggle, a step or all of them.

    python -m kernels.kaggle upload|push|submit|ship [--weights DIR] [--ship DIR] [--dry-run] [--again] [--wait]
    python -m kernels.kaggle train --recipes a b [--profile full] [--folds 0 1] [--resume] [--datasets OWNER/SLUG]

Each step asks Kaggle what is there before and afterwards; a step that failed says so, and goes on when run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.build_notebook import BuildError, kaggle_owner
from kernels.build_training import PROFILES

from .client import KaggleError
from .dataset import upload
from .notebook import push
from .patience import Patience
from .submission import submit
from .training import push_training
from .unpack import disk_message

STEPS = ("upload", "push", "submit")
# A dataset of some GB is ready within minutes; a session may wait for a GPU, and then run for up to 12 h.
READY_WITHIN_S, RUN_WITHIN_S = 3600.0, 14 * 3600.0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kernels.kaggle", description=__doc__.splitlines()[0])
    steps = (*STEPS, "ship", "train")
    parser.add_argument("step", choices=steps, help="a step; ship: all three in this order; train: on Kaggle's GPU")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="what `make package` made (weights)")
    parser.add_argument(
        "--ship", type=Path, default=Path("shipped"), help="folder for notebook, run and state (shipped)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check what is here, and only say what would be done")
    parser.add_argument("--again", action="store_true", help="upload, push or submit once more what was before")
    parser.add_argument("--anyway", action="store_true", help="take a run that left something undone")
    parser.add_argument("--no-gpu", action="store_true", help="a notebook that asks for no GPU")
    parser.add_argument("--message", default="", help="description of the submission")
    parser.add_argument("--wait", action="store_true", help="wait for the submission's score")
    parser.add_argument("--poll", type=float, default=15.0, metavar="SECONDS", help="between two questions (15)")
    training = parser.add_argument_group("train")
    training.add_argument("--recipes", nargs="+", default=[], help="names of training/recipes")
    training.add_argument("--profile", choices=PROFILES, default="full")
    training.add_argument("--folds", nargs="*", type=int, default=[], help="default: those of the recipe")
    training.add_argument("--owner", default=kaggle_owner(), help="Kaggle user name (environment KAGGLE_USERNAME)")
    training.add_argument("--resume", action="store_true", help="go on from the last session's output")
    training.add_argument("--datasets", nargs="*", default=[], help="more inputs, such as published coordinates")
    return parser.parse_args(argv)


def run_step(step: str, options: argparse.Namespace) -> None:
    """One step.  Raises KaggleError, BuildError."""
    if step == "upload":
        upload(options.weights, Patience(options.poll, READY_WITHIN_S), options.dry_run, options.again)
    elif step == "push":
        patience = Patience(options.poll, RUN_WITHIN_S)
        flags = (options.dry_run, options.again, not options.no_gpu, options.anyway)
        push(options.weights, options.ship, patience, *flags)
    elif step == "train":
        push_training(options, Patience(options.poll, RUN_WITHIN_S))
    else:
        patience = Patience(options.poll, RUN_WITHIN_S)
        wanted = {"message": options.message, "wait": options.wait}
        submit(options.weights, options.ship, patience, options.dry_run, options.again, **wanted)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the first step that fails ends it, with its name, the reason and how to go on."""
    options = parse(argv)
    for step in STEPS if options.step == "ship" else (options.step,):
        try:
            run_step(step, options)
        except (KaggleError, BuildError) as error:
            print(f"{step} stopped: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            print(
                f"{step} stopped: {disk_message(error, options.ship)}; then the same command goes on", file=sys.stderr
            )
            return 1
        except KeyboardInterrupt:
            print(f"{step} interrupted: the same command goes on", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
