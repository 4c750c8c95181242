"""Training on Kaggle's GPU: push the training notebook, wait for its session, and download its runs."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from kernels.build_notebook import METADATA_NAME, OWNER_PLACEHOLDER
from kernels.build_training import write_training

from .client import KaggleError, Polling, call
from .notebook import read_push
from .run import ENDED_BADLY, ENDED_WELL, Pushed, failure, fetch_outputs, run_status
from .state import ShipState

COMMAND = "make push-train"
# Exit codes of a session (training/session.py): all is trained, or its time was up.
TRAINED, TIME_UP = 0, 3


def push_training(options: argparse.Namespace, polling: Polling) -> None:
    """Push, wait, download SHIP/trained/runs and print the next command.  Raises KaggleError, BuildError.

    A session that is still running is waited for, not pushed again.
    """
    if options.owner == OWNER_PLACEHOLDER and not options.dry_run:
        raise KaggleError(f"the notebook has no owner: `{COMMAND} OWNER=<your Kaggle name>`, or set KAGGLE_USERNAME")
    folder = options.ship / "training"
    chosen = (options.owner, options.recipes, options.profile, options.folds)
    write_training(folder, *chosen, resume=options.resume, datasets=options.datasets)
    ref = json.loads((folder / METADATA_NAME).read_text())["id"]
    if options.dry_run:
        print(f"would run: kaggle kernels push -p {shlex.quote(str(folder))}   ({ref})")
        return
    state = ShipState(options.ship)
    known, again = state.get("training"), command_of(options)
    facts: dict[str, Any] = {"ref": ref, "chosen": [options.recipes, options.profile, options.folds]}
    if known.get("going") and not options.again:
        if {name: known[name] for name in facts} != facts:
            raise KaggleError(
                f"the session of {' '.join(known['chosen'][0])} is not over: wait for it first, or AGAIN=1"
            )
        pushed = Pushed(ref, known["version"])
        print(f"{pushed} is still to be waited for: not pushed again (AGAIN=1 does)")
    else:
        if options.resume and not known:
            raise KaggleError(f"there is no earlier session to resume in {options.ship}: `{again}`")
        pushed = read_push(call("kernels", "push", "-p", str(folder)), ref)
        state.put("training", **facts, version=pushed.version, going=True)
        print(f"{pushed} pushed; Kaggle trains now, for up to 12 hours")
    status, message = _wait(pushed, polling, again)
    try:
        fetched = fetch_outputs(ref, options.ship / "fetched")
    except KaggleError as error:
        raise KaggleError(f"{error}; `{again}` fetches what was trained") from error
    state.put("training", **facts, version=pushed.version, going=False)
    if status != ENDED_WELL:
        raise KaggleError(failure(pushed, status, message, fetched, f"{again} RESUME=1"))
    session = read_session(fetched, again)
    trained = options.ship / "trained"
    # Beside the runs of earlier sessions, of the same recipe or of others.
    shutil.copytree(fetched, trained, dirs_exist_ok=True)
    shutil.rmtree(fetched)
    print(describe(session, trained, options))


def command_of(options: argparse.Namespace, target: str = COMMAND) -> str:
    """The Make command of this choice."""
    words = [target, f"RECIPES={shlex.quote(' '.join(options.recipes))}"]
    words += [f"PROFILE={options.profile}"] if options.profile != "full" else []
    words += [f"FOLDS={shlex.quote(' '.join(map(str, options.folds)))}"] if options.folds else []
    return " ".join(words)


def _wait(pushed: Pushed, polling: Polling, again: str) -> tuple[str, str]:
    def state() -> tuple[str, tuple[str, str] | None]:
        status, message = run_status(pushed)
        return status, (status, message) if status in (ENDED_WELL, *ENDED_BADLY) else None

    return polling.wait(str(pushed), state, again)


def read_session(trained: Path, again: str) -> dict[str, Any]:
    """The session's report.  Raises KaggleError where there is none, or training failed."""
    try:
        session: dict[str, Any] = json.loads((trained / "runs" / "session.json").read_text())
    except (OSError, ValueError) as error:
        raise KaggleError(f"the session left no runs/session.json ({error}): see {trained}") from error
    if session.get("code") not in (TRAINED, TIME_UP):
        raise KaggleError(f"training failed, see the log in {trained}; once mended, `{again} RESUME=1` resumes")
    return session


def describe(session: dict[str, Any], trained: Path, options: argparse.Namespace) -> str:
    """Progress of training, and the next command."""
    finished, left = session["finished"], session["left"]
    if session["code"] == TIME_UP:
        return (
            f"{len(finished)} networks are trained and {len(left)} are left: `{command_of(options)} RESUME=1` resumes"
        )
    package = f"{command_of(options, 'make package')} RUNS={shlex.quote(str(trained / 'runs'))}"
    return f"all {len(finished)} networks are trained: `{package}` ships them"
