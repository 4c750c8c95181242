"""From a packaged folder of weights to a submission on Kaggle, a shipping step or all of them.

    python -m kernels.kaggle upload|push|submit|ship [--weights DIR] [--ship DIR] [--dry-run] [--again] [--wait]
    python -m kernels.kaggle train --recipes a b [--profile full] [--folds 0 1] [--resume] [--datasets OWNER/SLUG]

Each step queries Kaggle's state before and afterwards; a failed step can be run again and resumes.  Exit codes: 0; 1 a
step failed; 4 Kaggle refuses the submission, which its site may still take; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.build_notebook import BuildError
from kernels.build_training import add_choice
from kernels.locks import LOCK, BusyError, hold

from .client import KaggleError, Polling
from .dataset import upload
from .notebook import push
from .submission import submit
from .training import push_training
from .unpack import disk_message

STEPS = ("upload", "push", "submit")
# Timeouts: a dataset of some GB is ready within minutes; a session may queue for a GPU, then run for up to 12 h.
READY_WITHIN_S, RUN_WITHIN_S = 3600.0, 14 * 3600.0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kernels.kaggle", description=__doc__.splitlines()[0])
    steps = (*STEPS, "ship", "train")
    parser.add_argument("step", choices=steps, help="a step; ship: all three in this order; train: on Kaggle's GPU")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="what `make package` made (weights)")
    parser.add_argument(
        "--ship", type=Path, default=Path("shipped"), help="folder for notebook, run and state (shipped)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check what is here, and only print what would be done")
    parser.add_argument("--again", action="store_true", help="upload, push or submit once more what was before")
    parser.add_argument("--anyway", action="store_true", help="take a run that left something undone")
    parser.add_argument("--no-gpu", action="store_true", help="a notebook without a GPU")
    parser.add_argument("--message", default="", help="description of the submission")
    parser.add_argument("--wait", action="store_true", help="wait for the submission's score")
    parser.add_argument("--poll", type=float, default=15.0, metavar="SECONDS", help="between two queries (15)")
    add_choice(parser.add_argument_group("train"), required=False)
    return parser.parse_args(argv)


def run_step(step: str, options: argparse.Namespace) -> None:
    """One step.  Raises KaggleError, BuildError."""
    polling = Polling(options.poll, READY_WITHIN_S if step == "upload" else RUN_WITHIN_S)
    flags = options.dry_run, options.again
    if step == "upload":
        upload(options.weights, options.ship, polling, *flags)
    elif step == "push":
        push(options.weights, options.ship, polling, *flags, gpu=not options.no_gpu, anyway=options.anyway)
    elif step == "train":
        push_training(options, polling)
    else:
        submit(options.weights, options.ship, polling, *flags, message=options.message, wait=options.wait)


def run_alone(step: str, options: argparse.Namespace) -> None:
    """A step as the only one of its SHIP folder; training may go on beside the others.  Raises BusyError, too."""
    if options.dry_run:
        run_step(step, options)
        return
    with hold(options.ship / (f".training{LOCK}" if step == "train" else LOCK), wait=False):
        run_step(step, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the first step that fails ends it, with its name, the reason and how to continue."""
    options = parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a pipe shows each line at once, as a terminal does
    for step in STEPS if options.step == "ship" else (options.step,):
        try:
            run_alone(step, options)
        except (KaggleError, BuildError, BusyError) as error:
            print(f"{step} stopped: {error}", file=sys.stderr)
            return error.exit_code if isinstance(error, KaggleError) else 1
        except OSError as error:
            reason = disk_message(error, options.ship)
            print(f"{step} stopped: {reason}; then the same command resumes", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"{step} interrupted: the same command resumes", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
