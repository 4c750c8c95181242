"""Training on Kaggle's GPU: push the training notebook, wait for its session, and download its runs."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from kernels.build_notebook import METADATA_NAME, OWNER_PLACEHOLDER
from kernels.build_training import TRAINING_NAME, write_training

from .access import own_name
from .client import KaggleError, Polling
from .notebook import RefusedSources, send
from .pushes import recognise, url_of
from .run import ENDED_BADLY, ENDED_WELL, Pushed, failure, fetch_outputs, run_status
from .state import SentTraining, ShipState, last_version

COMMAND = "make push-train"
# Exit codes of a session (training/session.py): all is trained, or its time was up.
TRAINED, TIME_UP = 0, 3


def push_training(options: argparse.Namespace, polling: Polling) -> None:
    """Push, wait, download SHIP/trained/runs and print the next command.  Raises KaggleError, BuildError.

    A session that is still running, or whose outputs are not here yet, is not pushed again.
    """
    owner = options.owner if options.owner != OWNER_PLACEHOLDER or options.dry_run else own_name()
    if owner is None:
        raise KaggleError(f"the notebook has no owner: `{COMMAND} OWNER=<your Kaggle name>`, or set KAGGLE_USERNAME")
    folder = options.ship / "training"
    chosen = (owner, options.recipes, options.profile, options.folds)
    write_training(folder, *chosen, resume=options.resume, datasets=options.datasets)
    ref = json.loads((folder / METADATA_NAME).read_text())["id"]
    if options.dry_run:
        print(f"would run: kaggle kernels push -p {shlex.quote(str(folder))}   ({ref})")
        return
    state, again = ShipState(options.ship), command_of(options)
    sha256 = hashlib.sha256((folder / TRAINING_NAME).read_bytes()).hexdigest()
    chosen_here = (options.recipes, options.profile, options.folds)
    begun = SentTraining(ref=ref, going=True, chosen=chosen_here, sha256=sha256)
    known, trained = state.sent.training, options.ship / "trained"
    if known is not None and known.done and (known.ref, known.sha256) == (ref, sha256) and not options.again:
        print(f"all of it is trained already: see {trained / 'runs'} (AGAIN=1 trains it once more)")
        return
    pushed = known_session(state, begun, folder, options, again) or _push(state, begun, folder)
    print(f"{pushed}: follow it at {url_of(ref)}", flush=True)
    status, message = _wait(pushed, polling, again)
    try:
        fetched = fetch_outputs(pushed, options.ship / "fetched")
    except KaggleError as error:
        raise KaggleError(f"{error}; `{again}` fetches what was trained") from error
    over = begun.model_copy(update={"version": pushed.version, "going": False})
    try:
        if status != ENDED_WELL:
            raise KaggleError(failure(pushed, status, message, fetched, f"{again} RESUME=1"))
        session = read_session(fetched, again)
    except KaggleError:
        state.put(training=over)
        raise
    # Beside the runs of earlier sessions, of the same recipe or of others.
    shutil.copytree(fetched, trained, dirs_exist_ok=True)
    # From here on nothing is fetched again.
    state.put(training=over.model_copy(update={"done": session["code"] == TRAINED}))
    shutil.rmtree(fetched)
    print(describe(session, trained, options), flush=True)


def known_session(
    state: ShipState, begun: SentTraining, folder: Path, options: argparse.Namespace, again: str
) -> Pushed | None:
    """The session to wait for: the one that is not over, or one that Kaggle has of this very notebook.

    Raises KaggleError where a session of another choice is not over, or there is none to resume.
    """
    known = state.sent.training
    if options.again:
        return None
    if options.resume and known is None:
        raise KaggleError(f"there is no earlier session to resume in {options.ship}: `{again}`")
    if known is not None and known.going and known.version is not None:
        if (known.ref, known.chosen) != (begun.ref, begun.chosen):
            raise KaggleError(f"the session of {' '.join(known.chosen[0])} is not over: wait for it first, or AGAIN=1")
        pushed = Pushed(begun.ref, known.version)
        print(f"{pushed} is still to be waited for: not pushed again (AGAIN=1 does)", flush=True)
        return pushed
    after = last_version(known, begun.ref)
    version = recognise(folder, begun.ref, after)
    if version is None:
        return None
    state.put(training=begun.model_copy(update={"version": version, "after": after}))
    pushed = Pushed(begun.ref, version)
    print(f"{pushed} on Kaggle is this very session: not pushed again (AGAIN=1 does)", flush=True)
    return pushed


def _push(state: ShipState, begun: SentTraining, folder: Path) -> Pushed:
    known = state.sent.training
    after = last_version(known, begun.ref)
    state.put(training=begun.model_copy(update={"after": after}))
    try:
        pushed = send(folder, Pushed(begun.ref, after), lambda: state.put(training=known))
    except RefusedSources as error:
        # Kaggle made this version and runs it, without a data set that it was to have.
        state.put(training=begun.model_copy(update={"version": error.version, "going": False}))
        raise
    state.put(training=begun.model_copy(update={"version": pushed.version, "after": after}))
    print(f"{pushed} pushed; Kaggle trains now, for up to 12 hours", flush=True)
    return pushed


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
    if not isinstance(session, dict) or not all(isinstance(session.get(name), list) for name in ("finished", "left")):
        raise KaggleError(f"the session's runs/session.json does not say what is trained: see {trained}")
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
