"""Pushes the inference notebook, built for the uploaded weights, and records its version."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path

from kernels.build_notebook import METADATA_NAME, NOTEBOOK_NAME, write_kernel

from .client import ClientAnswer, KaggleError, Polling, call
from .dataset import read_package, remote_digest, remote_state
from .run import COMMAND, Pushed, UnusableKernelRun, check_report, describe, finish_run, shortcomings
from .state import ShipState


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

    A pushed notebook is not pushed again while its run continues or once that was verified.
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
    known = state.get("kernel")
    if known.get("sha256") == sha256 and state.get("run").get("usable", True) and not again:
        pushed = Pushed(ref, known["version"])
        print(f"{ref} version {pushed.version} is this very notebook: not pushed again")
    else:
        check_dataset(package.ref, package.digest)
        pushed = read_push(call("kernels", "push", "-p", str(folder)), ref)
        state.drop("run", "submission")
        state.put("kernel", ref=ref, version=pushed.version, sha256=sha256, manifest_sha256=package.digest)
        print(f"{ref} version {pushed.version} pushed; Kaggle runs it now")
    try:
        report = finish_run(pushed, ship, polling)
        check_report(report, package, gpu)
    except UnusableKernelRun:
        state.put("run", usable=False)
        raise
    print(describe(report))
    undone = shortcomings(report, package, ship / "run")
    if undone and not anyway:
        raise KaggleError(
            f"the run {'; it '.join(undone)}: see problems in {ship / 'run' / 'run_report.json'}; "
            f"`{COMMAND} AGAIN=1` runs it once more, `{COMMAND} ANYWAY=1` takes it as it is"
        )
    state.put("run", usable=True, seen=True)


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
    wrong = [line for line in text.splitlines() if "not valid" in line or "push error" in line]
    if wrong:
        raise KaggleError(f"Kaggle did not take the notebook as it is: {wrong[0]}; then `{COMMAND}`")
    found = re.search(r"Kernel version (\d+) successfully pushed", text)
    if not found:
        last = text.splitlines()[-1] if text else "nothing"
        raise KaggleError(f"Kaggle did not print which version was pushed ({last}): `{COMMAND}` pushes again")
    return Pushed(ref, int(found.group(1)))
