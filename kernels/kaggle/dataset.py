"""The weights as a Kaggle dataset: create it or add a version, wait until it is ready, and verify what arrived.

Kaggle's client silently makes a version without the files whose upload failed, so the listing afterwards and the
downloaded manifest are compared with the package.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kernels.build_notebook import OWNER_PLACEHOLDER
from kernels.lumbar.manifest import Manifest
from kernels.lumbar.networks.weights import MANIFEST_FILE, WeightsError, checked_bytes, manifest_digest, read_manifest

from .client import (
    NEXT_PAGE,
    ClientAnswer,
    KaggleError,
    Polling,
    StillWaiting,
    act,
    call,
    json_in,
    query,
    query_json,
    user_in,
)
from .state import SentDataset, ShipState

METADATA_FILE = "dataset-metadata.json"
# Kaggle's limit of top-level files.
MOST_FILES = 50
# Kaggle unpacks archives and rewrites tables; files of these types stay as they are.
KEPT_SUFFIXES = (".bin", ".json", ".ts", ".md", ".txt")
# Queries after which a version that was just made must be listed.
UNLISTED_QUERIES = 6
# Time within which Kaggle shows a version that was made.
SHOWN_WITHIN_S = 30.0
COMMAND = "make upload"


@dataclass(frozen=True)
class Package:
    """A folder made by build_dataset.py, verified before the upload."""

    folder: Path
    ref: str
    manifest: Manifest
    digest: str
    files: dict[str, int]
    """Name → size in bytes."""


@dataclass(frozen=True)
class Remote:
    """State of a dataset on Kaggle."""

    status: str
    version: int


def read_package(folder: Path) -> Package:
    """The package in a folder, every network's bytes checked.  Raises KaggleError for one that must not be uploaded."""
    if not (folder / METADATA_FILE).is_file():
        raise KaggleError(f"{folder} holds no package: make it with `make package`")
    try:
        metadata = json.loads((folder / METADATA_FILE).read_text())
        manifest = read_manifest(folder / MANIFEST_FILE)
        for artefact in manifest.artefacts:
            checked_bytes(folder, artefact)
    except (OSError, ValueError, WeightsError) as error:
        raise KaggleError(f"{folder} is no whole package ({error}): make it with `make package`") from error
    ref = metadata.get("id") if isinstance(metadata, dict) else None
    if not isinstance(ref, str) or not re.fullmatch(r"[\w-]*/[\w-]+", ref, re.ASCII):
        raise KaggleError(f"{folder / METADATA_FILE} has no id OWNER/SLUG ({ref!r}): make it with `make package`")
    if ref.split("/")[0] in ("", OWNER_PLACEHOLDER):
        raise KaggleError(f"{folder} names no owner: `make package OWNER=<your Kaggle name>`")
    entries = sorted(path for path in folder.iterdir() if path.name != METADATA_FILE)
    changed = [path.name for path in entries if path.is_dir() or path.suffix not in KEPT_SUFFIXES]
    if changed:
        raise KaggleError(f"{folder} holds {', '.join(changed[:5])}, which Kaggle would skip or change: remove that")
    if len(entries) > MOST_FILES:
        raise KaggleError(f"{folder} has {len(entries)} files; Kaggle takes {MOST_FILES}")
    sizes = {path.name: path.stat().st_size for path in entries}
    return Package(folder, ref, manifest, manifest_digest(folder / MANIFEST_FILE), sizes)


def remote_state(ref: str) -> Remote | None:
    """Status and version of a dataset; None where Kaggle has none of that name.  Raises KaggleError."""
    try:
        answer = query_json("datasets", "status", ref, "--format", "json(status,current_version_number)")
    except KaggleError as error:
        # For a private dataset that does not exist Kaggle may answer 403 as well as 404.
        if error.status in (403, 404):
            return None
        raise
    return Remote(str(answer.get("status", "")).lower(), int(answer.get("current_version_number") or 0))


def remote_files(ref: str) -> dict[str, int]:
    """Name → bytes of all files of a dataset's newest version.  Raises KaggleError."""
    found: dict[str, int] = {}
    page: list[str] = []
    while True:
        answer = query("datasets", "files", ref, "--format", "json", "--page-size", "200", *page)
        try:
            found |= {str(row["name"]): int(row["size"]) for row in json_in(answer)}
        except (KeyError, TypeError, ValueError) as error:
            raise KaggleError(f"`{answer.command}` answered another list than of names and sizes: {error}") from error
        tokens = [line.removeprefix(NEXT_PAGE) for line in answer.out.splitlines() if line.startswith(NEXT_PAGE)]
        if not tokens:
            return found
        page = ["--page-token", tokens[0]]


def remote_digest(ref: str) -> str | None:
    """sha256 of the manifest in a dataset's newest version; None where there is none.  Raises KaggleError."""
    with tempfile.TemporaryDirectory(prefix="lumbar_manifest_") as scratch:
        try:
            query("datasets", "download", ref, "-f", MANIFEST_FILE, "-p", scratch, "-o", "-q")
        except KaggleError as error:
            if error.status in (403, 404):
                return None
            raise
        folder = Path(scratch)
        for archive in folder.glob("*.zip"):  # Kaggle may pack a single file
            with zipfile.ZipFile(archive) as packed:
                packed.extract(MANIFEST_FILE, folder)
        path = folder / MANIFEST_FILE
        return manifest_digest(path) if path.is_file() else None


def differences(package: Package) -> list[str]:
    """How Kaggle's newest version differs from the package, a phrase each.  Raises KaggleError."""
    there = remote_files(package.ref)
    found = [f"{name} is missing" for name in package.files if name not in there]
    found += [f"{name} should not be there" for name in there if name not in package.files]
    found += [
        f"{name} has {there[name]} bytes instead of {size}"
        for name, size in package.files.items()
        if name in there and there[name] != size
    ]
    if not found:
        digest = remote_digest(package.ref)
        if digest != package.digest:
            found.append(f"its manifest is {_short(digest)}, not {_short(package.digest)}")
    return found


def check_owner_is_user(ref: str) -> None:
    """Raises KaggleError where a package belongs to another user than the client's."""
    name, owner = user_in(call("config", "view")), ref.split("/")[0]
    if name and name.lower() != owner.lower():
        raise KaggleError(f"this package is {owner}'s and the client's user is {name}: `make package OWNER={name}`")


def upload(folder: Path, ship: Path, polling: Polling, dry_run: bool = False, again: bool = False) -> Remote:
    """Upload a package; returns once Kaggle lists the same files.  Raises KaggleError.

    `ship`: folder of the state.  `again`: even where they are listed; changed bytes in a file of the same size cannot
    be detected.
    """
    package = read_package(folder)
    total_mb = sum(package.files.values()) / 1e6
    what = f"{len(package.files)} files, {total_mb:.1f} MB, {package.manifest.name}, manifest {_short(package.digest)}"
    print(f"{package.ref}: {what}", flush=True)
    if dry_run:
        print(f"would run: kaggle datasets create -p {shlex.quote(str(folder))}   (or version, if it is there already)")
        return Remote("dry run", 0)
    check_owner_is_user(package.ref)
    state, before = ShipState(ship), remote_state(package.ref)
    sent = state.sent.dataset
    if sent is not None and (sent.ref, sent.digest) == (package.ref, package.digest) and not again:
        before = _shown(sent.ref, sent.version, polling) or before
    if before is not None:
        before = wait_until_ready(package.ref, before.version, polling)
        if not again and not differences(package):
            print(f"{package.ref} version {before.version} is this very package: nothing to upload (AGAIN=1 does)")
            return before
    version = before.version + 1 if before else 1
    state.put(dataset=SentDataset(ref=package.ref, digest=package.digest, version=version))
    _send(package, version, before is None, polling)
    after = wait_until_ready(package.ref, version, polling)
    wrong = differences(package)
    if wrong:
        raise KaggleError(
            f"{package.ref} version {after.version} is not what was sent: {'; '.join(wrong[:3])}: "
            f"`{COMMAND}` sends it again"
        )
    print(f"{package.ref} version {after.version} is ready and holds exactly these files", flush=True)
    return after


def _send(package: Package, version: int, is_new: bool, polling: Polling) -> None:
    """Make this version.  A failed call is none where Kaggle shows the version: an answer may be lost, and the client
    then repeats the call by itself, which Kaggle refuses.  Raises KaggleError."""
    folder = str(package.folder)
    if is_new:
        answer = act("datasets", "create", "-p", folder, timeout_s=None, live=True)
    else:
        notes = f"{package.manifest.name}, manifest {_short(package.digest)}"
        answer = act("datasets", "version", "-p", folder, "-m", notes, timeout_s=None, live=True)
    try:
        check_sent(answer, package)
    except KaggleError as error:
        if answer.may_have_acted:
            arrived = _shown(package.ref, version, polling) is not None
        else:
            arrived = error.status in REPEATED and _is_shown(remote_state(package.ref), version)
        if not arrived:
            raise
        print(f"Kaggle has {package.ref} version {version}, though the client failed ({answer.words[0]})", flush=True)


# How Kaggle refuses a call that it had done already: busy with that version, or its title is in use.
REPEATED = (403, 409)


def _is_shown(now: Remote | None, version: int) -> bool:
    """Whether Kaggle has a version, or is busy with one."""
    return now is not None and (now.version >= version or now.status != "ready")


def _shown(ref: str, version: int, polling: Polling) -> Remote | None:
    """The dataset once Kaggle shows that version; None where that does not come.  Raises KaggleError."""

    def state() -> tuple[str, Remote | None]:
        now = remote_state(ref)
        return f"waiting for version {version} to show", now if _is_shown(now, version) else None

    now = remote_state(ref)
    if _is_shown(now, version):
        return now
    try:
        return Polling(polling.interval_s, SHOWN_WITHIN_S).wait(ref, state, COMMAND)
    except StillWaiting:
        return None


def check_sent(answer: ClientAnswer, package: Package) -> None:
    """Raises KaggleError where the client's output reports a failure, whatever its exit code."""
    text = answer.text
    if "already in use" in text:
        raise KaggleError(
            f"another dataset of yours has the title of {package.ref}, or Kaggle does not show it yet: "
            f"`{COMMAND}` in a minute, or rename that one on Kaggle",
            409,
        )
    lost = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("Upload unsuccessful")]
    if lost:
        raise KaggleError(f"Kaggle did not take {', '.join(lost)}: `{COMMAND}` resumes the upload")
    if answer.code != 0:
        if answer.status == 403:
            raise KaggleError(
                f"Kaggle refuses another version of {package.ref} ({answer.words[0]}), perhaps while it is busy with "
                f"the last one: `{COMMAND}` in a minute",
                403,
            )
        raise answer.error()
    if "creation error" in text:
        raise KaggleError(f"Kaggle made no version of {package.ref}: {text.splitlines()[-1]}; then `{COMMAND}`")


def wait_until_ready(ref: str, version: int, polling: Polling) -> Remote:
    """Wait until at least that version of a dataset is ready.  Raises KaggleError."""
    unlisted = itertools.count(1)

    def state() -> tuple[str, Remote | None]:
        now = remote_state(ref)
        if now is None:
            if next(unlisted) > UNLISTED_QUERIES:
                raise KaggleError(f"Kaggle does not list {ref} after the upload: `{COMMAND}` sends it again")
            return "not listed yet", None
        if now.status in ("failed", "deleted"):
            raise KaggleError(f"on Kaggle {ref} version {now.version} {now.status}: `{COMMAND}` sends it again")
        is_ready = now.status == "ready" and now.version >= version
        return f"version {now.version} {now.status}", now if is_ready else None

    return polling.wait(ref, state, COMMAND)


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"
