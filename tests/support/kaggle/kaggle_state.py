"""What the local Kaggle of the tests keeps, and what can be made to go wrong with it."""

from __future__ import annotations

import io
import itertools
import re
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

from kernels.build_notebook import COMPETITION

WHEN = "2026-10-01T00:00:00.000Z"
LARGEST_PAGE = 200  # as the client's help says

Body = dict[str, Any]
Files = dict[str, bytes]
# Text, metadata and attached datasets of a pushed kernel -> status, outputs, log, failure message.
RunKernel = Callable[[str, Body, dict[str, Files]], tuple[str, Files, str, str]]


@dataclass
class Faults:
    """What goes wrong; all of it is off by default, and a test may change it at any time."""

    cut_upload_after: int | None = None  # bytes kept of the next longer upload, which is answered 503
    upload_status: dict[str, int] = field(default_factory=dict)  # file name -> what its upload answers, for ever
    cut_download_after: int | None = None  # bytes sent of the next longer download before the line breaks
    ready_after: int = 0  # status questions until a new version is READY
    status_plan: list[str] = field(default_factory=list)  # or each answer in turn; the last one stays
    refuse_version_while_processing: bool = False
    not_found_after_create: int = 0  # questions on a dataset answered 404 after a create or version
    missing_is_forbidden: bool = False  # 403 for a missing dataset, as for foreign private ones
    title_in_use: bool = False
    drop_file: str | None = None  # not in the stored version
    shrink_file: str | None = None  # stored a byte too short
    corrupt_file: str | None = None  # stored in its right size, but with another first byte
    stale_version: bool = False  # number and files stay those of the version before
    stale_files: bool = False  # the number goes up, the files stay
    invalid_dataset_sources: tuple[str, ...] = ()
    invalid_competition_sources: tuple[str, ...] = ()
    kernel_result: tuple[str, str] | None = None  # status and failure message, instead of a run
    kernel_never_ends: bool = False
    submission_error: str = ""
    submission_refused: tuple[int, str] | None = None  # HTTP status and sentence
    unlisted_questions: int = 0  # questions on submissions answered without the newest one
    lose_request: str = ""  # the next call of this method ("SaveKernel") breaks off before it is done
    lose_answer: str = ""  # the next call of this method breaks off after it was done
    rules_not_accepted: bool = False
    unauthorised: bool = False
    rate_limited: int = 0  # calls still to be answered 429
    server_errors: int = 0  # calls still to be answered 503
    errors_without_code: bool = False  # the client then prints "404 Client Error: ..." instead of the message


class Refused(Exception):
    """An answer that is an HTTP error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Redirect(NamedTuple):
    """An answer that sends the client to a file."""

    url: str


@dataclass
class Upload:
    """A file on its way."""

    name: str
    size_bytes: int
    received: bytearray = field(default_factory=bytearray)


@dataclass
class Dataset:
    """All versions of a dataset, each as name -> content, and what is still to be told of the newest one."""

    number: int
    title: str
    licence: str
    versions: list[Files] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)
    hidden_questions: int = 0

    @property
    def status(self) -> str:
        return self.plan[0]


@dataclass
class KernelVersion:
    """What was pushed, what was attached to it, and how its run went."""

    text: str
    metadata: Body
    datasets: dict[str, Files]
    plan: list[str]
    status: str = "QUEUED"
    outputs: Files = field(default_factory=dict)
    log: str = ""
    failure: str = ""

    @property
    def has_ended(self) -> bool:
        return self.status in ("COMPLETE", "ERROR")


@dataclass
class Submission:
    """A version of a kernel that was handed in, and the file of it that is scored."""

    number: int
    competition: str
    kernel: str
    version: int
    file_name: str
    content: bytes
    description: str
    plan: list[str]


def run_nothing(text: str, metadata: Body, datasets: dict[str, Files]) -> tuple[str, Files, str, str]:
    """The run of a kernel that no test looks into."""
    return "COMPLETE", {"submission.csv": b""}, "", ""


class KaggleState:
    """Everything that Kaggle knows, and how tests want it to behave."""

    url = ""

    def __init__(self, user: str = "ann", competitions: Mapping[str, Files] | None = None) -> None:
        self.user = user
        self.faults = Faults()
        self.lock = threading.RLock()
        self.datasets: dict[str, Dataset] = {}
        self.kernels: dict[str, list[KernelVersion]] = {}
        self.submissions: list[Submission] = []
        self.competitions = dict(competitions or {COMPETITION: {"sample_submission.csv": b"row_id\n"}})
        self.run_kernel: RunKernel = run_nothing
        self.kernel_plan = ["QUEUED", "RUNNING"]
        self.submission_plan = ["PENDING"]
        self.public_score = "0.45"
        self.uploads: dict[str, Upload] = {}
        self.blobs: dict[str, bytes] = {}
        self.numbers = itertools.count(1)

    def publish(self, name: str, content: bytes) -> str:
        """Where the client may fetch this content from now on."""
        path = f"/blobs/{next(self.numbers)}/{quote(name)}"
        self.blobs[path] = content
        return self.url + path

    def receive(self, token: str, content: bytes, span: str) -> tuple[int, int]:
        """Take a PUT with this Content-Range; returns HTTP's status and the number of bytes that are here."""
        upload = self.uploads.get(token)
        if upload is None:
            return 404, 0
        received, cut = upload.received, self.faults.cut_upload_after
        if not span.startswith("bytes */"):
            start = re.match(r"bytes (\d+)-", span)
            del received[int(start.group(1)) if start else 0 :]
            received += content
            if cut is not None and len(received) > cut:
                self.faults.cut_upload_after = None
                del received[cut:]
                return 503, cut
        if upload.name in self.faults.upload_status:
            return self.faults.upload_status[upload.name], len(received)
        return (200 if len(received) == upload.size_bytes else 308), len(received)

    def files(self, ref: str, version: int | None = None) -> Files:
        """What Kaggle shows and mounts as this dataset, the newest version unless one is named."""
        if version is None:
            version = self.current_version(ref)
            version -= self.faults.stale_files and version > 1
        stored = self.datasets[ref].versions[version - 1] if version > 0 else {}
        shown = {name: content for name, content in stored.items() if name != self.faults.drop_file}
        for name, content in shown.items():
            if name == self.faults.shrink_file:
                shown[name] = content[:-1]
            if name == self.faults.corrupt_file:
                shown[name] = bytes([content[0] ^ 1]) + content[1:]
        return shown

    def current_version(self, ref: str) -> int:
        """The number of the newest version that is ready, 0 before the first one is."""
        dataset = self.datasets[ref]
        newest = len(dataset.versions)
        return newest - (dataset.status != "READY" or (self.faults.stale_version and newest > 1))


def next_of(plan: list[str]) -> str:
    return plan.pop(0) if len(plan) > 1 else plan[0]


def listed(files: Files) -> list[Body]:
    return [{"name": name, "totalBytes": len(files[name]), "creationDate": WHEN} for name in sorted(files)]


def page(key: str, items: Sequence[Body], body: Body) -> Body:
    start = int(body.get("pageToken") or 0)
    stop = start + min(body.get("pageSize", 20), LARGEST_PAGE)
    return {key: items[start:stop], "nextPageToken": str(stop) if stop < len(items) else ""}


def download(kaggle: KaggleState, name: str, files: Files, body: Body) -> Redirect:
    """One file where the call names one, else all as a zip whose bytes are the same each time."""
    wanted = body.get("fileName")
    if wanted is not None:
        if wanted not in files:
            raise Refused(404, f"{name} has no file {wanted}")
        return Redirect(kaggle.publish(wanted, files[wanted]))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(files):
            archive.writestr(zipfile.ZipInfo(path), files[path])
    return Redirect(kaggle.publish(f"{name}.zip", packed.getvalue()))
