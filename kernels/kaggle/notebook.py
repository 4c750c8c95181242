"""Pushes the inference notebook, built for the uploaded weights, and records its version."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from kernels.build_notebook import METADATA_NAME, NOTEBOOK_NAME, write_kernel

from .client import ClientAnswer, KaggleError, Polling, act
from .dataset import check_owner_is_user, read_package, remote_digest, remote_state
from .pushes import recognise
from .run import COMMAND, Pushed, UnusableKernelRun, check_report, describe, finish_run, remedy, shortcomings
from .state import KernelRun, SentKernel, ShipState, last_version


class RefusedSources(KaggleError):
    """A version that Kaggle made and runs, but without a data set or the competition."""

    def __init__(self, message: str, version: int) -> None:
        super().__init__(message)
        self.version = version


def push(
    weights: Path,
    ship: Path,
    polling: Polling,
    dry_run: bool = False,
    again: bool = False,
    gpu: bool = True,
    anyway: bool = False,
) -> None:
    """Build the notebook for these weights, push it, wait for its run and verify that.  Raises KaggleError.

    A pushed notebook, also from another machine, is not pushed again while its run continues or once that was verified.
    `anyway`: accept a run with shortcomings.
    """
    package = read_package(weights)
    owner, dataset = package.ref.split("/")
    folder = ship / ("kernel-dry-run" if dry_run else "kernel")
    write_kernel(folder, owner, dataset, package.digest, gpu)
    ref = json.loads((folder / METADATA_NAME).read_text())["id"]
    if dry_run:
        path = shlex.quote(str(folder))
        print(f"would run: kaggle kernels push -p {path}   ({ref}, for the weights {package.digest[:12]})")
        return
    state = ShipState(ship)
    sha256 = hashlib.sha256((folder / NOTEBOOK_NAME).read_bytes() + (folder / METADATA_NAME).read_bytes()).hexdigest()
    built = SentKernel(ref=ref, sha256=sha256, manifest_sha256=package.digest)
    pushed = None if again else known_push(state, built, folder)
    if pushed is None:
        check_owner_is_user(package.ref)
        check_dataset(package.ref, package.digest)
        pushed = push_now(state, built, folder)
    try:
        report = finish_run(pushed, ship, polling)
        check_report(report, package, gpu)
    except UnusableKernelRun:
        state.put(run=KernelRun(usable=False))
        raise
    print(describe(report))
    undone = shortcomings(report, package, ship / "run")
    if undone and not anyway:
        raise KaggleError(
            f"the run {'; it '.join(undone)}: see problems in {ship / 'run' / 'run_report.json'}; "
            f"{remedy(report)}, `{COMMAND} ANYWAY=1` takes it as it is"
        )
    state.put(run=KernelRun(usable=True, seen=True))


def known_push(state: ShipState, built: SentKernel, folder: Path) -> Pushed | None:
    """The version on Kaggle that is this very notebook, unless its run was of no use.  Raises KaggleError."""
    known, run = state.sent.kernel, state.sent.run
    is_built = known is not None and (known.ref, known.sha256) == (built.ref, built.sha256)
    if known is not None and is_built and known.version is not None:
        if run is not None and not run.usable:
            return None
        print(f"{built.ref} version {known.version} is this very notebook: not pushed again", flush=True)
        return Pushed(built.ref, known.version)
    after = known.after if known is not None and is_built else 0
    version = recognise(folder, built.ref, after)
    if version is None:
        return None
    state.put(kernel=built.model_copy(update={"version": version, "after": after}), run=None, submission=None)
    print(f"{built.ref} version {version} on Kaggle is this very notebook: not pushed again (AGAIN=1 does)", flush=True)
    return Pushed(built.ref, version)


def push_now(state: ShipState, built: SentKernel, folder: Path) -> Pushed:
    """Push the notebook, and record it before and afterwards.  Raises KaggleError."""
    before = state.sent
    after = last_version(before.kernel, built.ref)
    state.put(kernel=built.model_copy(update={"after": after}), run=None, submission=None)
    try:
        pushed = send(
            folder,
            Pushed(built.ref, after),
            lambda: state.put(kernel=before.kernel, run=before.run, submission=before.submission),
        )
    except RefusedSources as error:
        # Kaggle made this version and runs it, without what the notebook needs.
        state.put(kernel=built.model_copy(update={"version": error.version}), run=KernelRun(usable=False))
        raise
    state.put(kernel=built.model_copy(update={"version": pushed.version, "after": after}))
    print(f"{pushed} pushed; Kaggle runs it now", flush=True)
    return pushed


def send(folder: Path, last: Pushed, restore: Callable[[], None]) -> Pushed:
    """Push a notebook that was built in a folder; where the answer is lost, Kaggle's newest version decides.

    `last`: the version that the new one exceeds; `restore`: takes the record of this push back, called where Kaggle did
    nothing.  Raises RefusedSources, KaggleError.
    """
    answer = act("kernels", "push", "-p", str(folder))
    try:
        return read_push(answer, last.ref)
    except RefusedSources:
        raise
    except KaggleError:
        if not answer.may_have_acted:
            restore()
            raise
        version = recognise(folder, last.ref, last.version)
        if version is None:
            raise
    print(f"Kaggle has version {version}, though its answer was lost ({answer.words[0]})", flush=True)
    return Pushed(last.ref, version)


def check_dataset(ref: str, digest: str) -> None:
    """Raises KaggleError where the weights on Kaggle are not ready, or not those of the notebook."""
    remote = remote_state(ref)
    if remote is None:
        raise KaggleError(f"there is no dataset {ref} on Kaggle: `make upload` first")
    if remote.status != "ready":
        raise KaggleError(f"{ref} is still {remote.status}: `make upload` waits for it, then `{COMMAND}`")
    there = remote_digest(ref)
    if there != digest:
        raise KaggleError(
            f"{ref} holds the manifest {there or 'of no package'} and this notebook is made for {digest}: "
            "`make upload` first"
        )


def read_push(answer: ClientAnswer, ref: str) -> Pushed:
    """The version that was pushed.  Raises KaggleError where the client's output reports a failure."""
    text = answer.text
    if answer.status == 409 or "already in use" in text:
        raise KaggleError(
            f"Kaggle has another notebook with the title of {ref}: delete or rename that one, then `{COMMAND}`", 409
        )
    if answer.code != 0:
        raise answer.error()
    found = re.search(r"Kernel version (\d+) successfully pushed", text)
    wrong = [line for line in text.splitlines() if "not valid" in line or "push error" in line]
    if wrong:
        sentence = f"Kaggle did not take the notebook as it is: {wrong[0]}; then `{COMMAND}`"
        raise RefusedSources(sentence, int(found.group(1))) if found else KaggleError(sentence)
    if not found:
        last = text.splitlines()[-1] if text else "nothing"
        raise KaggleError(f"Kaggle did not print which version was pushed ({last}): `{COMMAND}` looks for it there")
    return Pushed(ref, int(found.group(1)))
