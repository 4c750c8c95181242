"""The local Kaggle, driven by the real client: what it keeps, what the client reads of it, and what can go wrong.

It holds that the client and the model agree with each other, not that Kaggle's own server does as the model.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import requests

from kernels.build_notebook import COMPETITION
from kernels.kaggle.client import ClientAnswer, call
from tests.support.kaggle.kaggle_server import KaggleServer
from tests.support.kaggle.kaggle_state import Body, Dataset, Files, Redirect, Refused

DATASET, KERNEL = "ann/lumbar-weights", "ann/lumbar-inference"
BIG = bytes(range(256)) * 1200
AUTHORIZATION = "Bearer KGAT_0123456789abcdef"


def client(*arguments: str) -> ClientAnswer:
    """A call of the client that ends well."""
    answer = call(*arguments)
    assert answer.code == 0, answer.text
    return answer


def ask(server: KaggleServer, route: str, **body: object) -> Body | Redirect:
    """A request as the client would send it, without its process."""
    return server.answer(route, body, AUTHORIZATION)


def write_dataset(folder: Path, files: Files) -> str:
    folder.mkdir()
    named = {"id": DATASET, "title": "Lumbar weights", "licenses": [{"name": "apache-2.0"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(named))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def write_kernel(folder: Path, **changed: object) -> str:
    folder.mkdir()
    (folder / "inference.py").write_text("print('hello')")
    named = {"id": KERNEL, "title": "Lumbar inference", "code_file": "inference.py", "language": "python"}
    sources = {"dataset_sources": [DATASET], "competition_sources": [COMPETITION]}
    kind = {"kernel_type": "script", "enable_internet": False}
    (folder / "kernel-metadata.json").write_text(json.dumps({**named, **sources, **kind, **changed}))
    return str(folder)


def store(server: KaggleServer, *versions: Files) -> None:
    """A dataset as if it had been uploaded."""
    server.datasets[DATASET] = Dataset(7, "Lumbar weights", "apache-2.0", list(versions), ["READY"])


def pushed(**changed: object) -> Body:
    """What the client sends for a push."""
    named = {"slug": KERNEL, "newTitle": "Lumbar inference", "text": "1", "datasetDataSources": [DATASET]}
    return {**named, "competitionDataSources": [COMPETITION], **changed}


def test_a_dataset_is_created_and_listed_in_pages(kaggle, tmp_path):
    files = {"manifest.json": b"{}", "empty.txt": b"", "weights-0.bin": BIG}
    created = client("datasets", "create", "-p", write_dataset(tmp_path / "w", files))
    assert "private Dataset is being created" in created.out
    assert kaggle.datasets[DATASET].versions == [files]
    listing = ("datasets", "files", DATASET, "--page-size", "2", "--format", "json")
    first = client(*listing).out
    assert "Next Page Token = 2" in first and "weights-0.bin" not in first
    (last,) = json.loads(client(*listing, "--page-token", "2").out)
    assert (last["name"], last["size"]) == ("weights-0.bin", len(BIG))
    again = client("datasets", "create", "-p", str(tmp_path / "w"))
    assert "already in use" in again.out and len(kaggle.datasets[DATASET].versions) == 1


def test_a_cut_upload_of_a_new_version_is_resumed(kaggle, tmp_path):
    store(kaggle, {"manifest.json": b"old"})
    kaggle.faults.cut_upload_after, kaggle.faults.ready_after = 100_000, 1
    client("datasets", "version", "-m", "second", "-p", write_dataset(tmp_path / "w", {"weights-0.bin": BIG}))
    spans = [(put["range"], put["status"]) for put in kaggle.asked("PUT")]
    assert spans == [("", 503), (f"bytes */{len(BIG)}", 308), (f"bytes 100000-{len(BIG) - 1}/{len(BIG)}", 200)]
    status = ("datasets", "status", DATASET, "--format", "json(status,current_version_number)")
    assert json.loads(client(*status).out) == {"status": "blobs_received", "current_version_number": 2}
    assert kaggle.files(DATASET) == {"weights-0.bin": BIG}


def test_a_refused_file_is_left_out_of_the_version(kaggle, tmp_path):
    store(kaggle, {})
    kaggle.faults.upload_status = {"b.bin": 400}
    folder = write_dataset(tmp_path / "w", {"a.bin": b"a", "b.bin": b"b"})
    call("datasets", "version", "-m", "second", "-p", folder)
    # Client 2.2.4 makes a version without the file, 2.2.5 makes none.
    assert all("b.bin" not in files for files in kaggle.datasets[DATASET].versions)
    assert [put["status"] for put in kaggle.asked("PUT")].count(400) == 1


def test_a_dataset_is_downloaded_whole_and_in_parts(kaggle, tmp_path):
    for manifest in (b"{}", b"[]"):
        store(kaggle, {"manifest.json": manifest, "weights-0.bin": BIG})
        client("datasets", "download", DATASET, "-f", "manifest.json", "-p", str(tmp_path))
        assert (tmp_path / "manifest.json").read_bytes() == manifest
    client("datasets", "download", DATASET, "-p", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "lumbar-weights.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == kaggle.files(DATASET)


def test_a_notebook_is_pushed_run_read_and_submitted(kaggle, tmp_path):
    store(kaggle, {"manifest.json": b"{}"})
    kaggle.kernel_plan = ["RUNNING"]
    kaggle.run_kernel = lambda text, metadata, datasets: ("COMPLETE", {"submission.csv": text.encode()}, "a log", "")
    assert "Kernel version 1 successfully pushed" in client("kernels", "push", "-p", write_kernel(tmp_path / "k")).out
    (version,) = kaggle.kernels[KERNEL]
    assert version.datasets == {DATASET: {"manifest.json": b"{}"}} and version.metadata["enableInternet"] is False
    states = [client("kernels", "status", KERNEL).out.split('"')[1].rpartition(".")[2] for _ in range(2)]
    assert states == ["RUNNING", "COMPLETE"]
    client("kernels", "output", KERNEL, "-p", str(tmp_path / "out"))
    assert (tmp_path / "out" / "submission.csv").read_text() == "print('hello')"
    assert (tmp_path / "out" / "lumbar-inference.log").read_text() == "a log"
    handed_in = ("-k", KERNEL, "-v", "1", "-f", "submission.csv", "-m", "first")
    assert "Successfully submitted" in client("competitions", "submit", COMPETITION, *handed_in).out
    assert [one.content for one in kaggle.submissions] == [b"print('hello')"]
    rows = [json.loads(client("competitions", "submissions", COMPETITION, "--format", "json").out) for _ in range(2)]
    assert [(row[0]["status"], row[0]["publicScore"]) for row in rows] == [
        ("SubmissionStatus.PENDING", ""),
        ("SubmissionStatus.COMPLETE", "0.45"),
    ]
    missing = call("competitions", "submit", COMPETITION, *handed_in[:3], "9", *handed_in[4:])
    assert missing.code == 1 and "Could not find" in missing.text


def test_a_broken_download_of_the_competition_goes_on_where_it_broke(kaggle, tmp_path):
    images = BIG * 5  # the client keeps what arrived in whole chunks of a MiB
    kaggle.competitions[COMPETITION] = {"train.csv": b"id\n", "train_images/1/2/3.dcm": images}
    listed = json.loads(client("competitions", "files", COMPETITION, "--format", "json").out)
    assert [(file["name"], file["size"]) for file in listed] == [
        ("train.csv", 3),
        ("train_images/1/2/3.dcm", len(images)),
    ]
    kaggle.faults.cut_download_after = 1_200_000
    client("competitions", "download", COMPETITION, "-p", str(tmp_path))
    assert [get["range"] for get in kaggle.asked("GET")] == ["", f"bytes={2**20}-"]
    with zipfile.ZipFile(tmp_path / f"{COMPETITION}.zip") as archive:
        assert archive.read("train_images/1/2/3.dcm") == images


@pytest.mark.parametrize("without_code", [False, True])
def test_the_client_tells_of_rules_that_were_not_accepted(kaggle, tmp_path, without_code):
    kaggle.faults.rules_not_accepted, kaggle.faults.errors_without_code = True, without_code
    answer = call("competitions", "download", COMPETITION, "-p", str(tmp_path))
    assert answer.code == 1
    assert ("403 Client Error: Forbidden" if without_code else "accept this competition's rules") in answer.text


def test_a_key_that_is_unknown_is_refused(kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "f" * 16)
    answer = call("datasets", "list", "--mine")
    assert answer.code == 1 and "Authentication required" in answer.text


def test_a_token_names_its_user(kaggle, tmp_path, monkeypatch):
    for name, value in kaggle.environment(tmp_path / "token", with_token=True).items():
        monkeypatch.setenv(name, value)
    store(kaggle, {"manifest.json": b"{}"})
    (mine,) = json.loads(client("datasets", "list", "--mine", "--format", "json").out)
    assert mine["ref"] == DATASET and kaggle.asked("IntrospectToken")


def test_other_hosts_are_noted_and_refused():
    with KaggleServer() as server:
        proxies = {"http": server.url, "https": server.url}
        with pytest.raises(requests.exceptions.ProxyError):
            requests.get("https://www.kaggle.com/", proxies=proxies)
        assert requests.get("http://example.org/file", proxies=proxies).status_code == 403
        assert server.connects == ["www.kaggle.com:443", "http://example.org/file"]


@pytest.mark.parametrize(
    ("fault", "version", "seen"),
    [
        ({}, 2, {"a": b"new", "b": b"new"}),
        ({"drop_file": "a"}, 2, {"b": b"new"}),
        ({"shrink_file": "a"}, 2, {"a": b"ne", "b": b"new"}),
        ({"corrupt_file": "a"}, 2, {"a": b"oew", "b": b"new"}),
        ({"stale_files": True}, 2, {"a": b"old"}),
        ({"stale_version": True}, 1, {"a": b"old"}),
    ],
)
def test_stored_versions_differ_from_what_was_sent(kaggle, fault, version, seen):
    store(kaggle, {"a": b"old"}, {"a": b"new", "b": b"new"})
    for name, value in fault.items():
        setattr(kaggle.faults, name, value)
    assert kaggle.current_version(DATASET) == version
    assert kaggle.files(DATASET) == seen


def test_a_version_shows_when_it_is_ready_and_not_before(kaggle):
    store(kaggle, {"a": b"old"})
    kaggle.faults.ready_after, kaggle.faults.not_found_after_create = 1, 1
    kaggle.faults.refuse_version_while_processing = True
    named = {"ownerSlug": "ann", "datasetSlug": "lumbar-weights"}
    service = "datasets.DatasetApiService"
    ask(kaggle, f"{service}/CreateDatasetVersion", **named, body={})
    with pytest.raises(Refused, match="denied"):
        ask(kaggle, f"{service}/CreateDatasetVersion", **named, body={})
    with pytest.raises(Refused, match="not found"):
        ask(kaggle, f"{service}/GetDatasetStatus", **named)
    assert (kaggle.current_version(DATASET), kaggle.files(DATASET)) == (1, {"a": b"old"})
    states = [ask(kaggle, f"{service}/GetDatasetStatus", **named) for _ in range(3)]
    assert states == [{"status": "BLOBS_RECEIVED"}, {"status": "READY"}, {"status": "READY"}]
    assert (kaggle.current_version(DATASET), kaggle.files(DATASET)) == (2, {})


def test_a_push_succeeds_without_the_sources_that_are_unknown(kaggle):
    kaggle.faults.invalid_competition_sources = (COMPETITION,)
    answer = ask(kaggle, "kernels.KernelsApiService/SaveKernel", **pushed())
    told = [answer[key] for key in ("versionNumber", "invalidDatasetSources", "invalidCompetitionSources")]
    assert told == [1, [DATASET], [COMPETITION]]


def test_a_new_notebook_is_named_by_its_title(kaggle):
    save = "kernels.KernelsApiService/SaveKernel"
    assert ask(kaggle, save, **pushed(newTitle="Other name"))["ref"] == "ann/other-name"
    with pytest.raises(Refused, match="already in use") as refused:
        ask(kaggle, save, **pushed(newTitle="Other name"))
    assert refused.value.status == 409
    assert ask(kaggle, save, **pushed(slug="bob/lumbar-inference")) == {"error": "Notebook not found"}


def test_a_run_fails_or_never_ends_as_it_is_told(kaggle):
    asked = {"userName": "ann", "kernelSlug": "lumbar-inference"}
    status = "kernels.KernelsApiService/GetKernelSessionStatus"
    ask(kaggle, "kernels.KernelsApiService/SaveKernel", **pushed())
    kaggle.faults.kernel_never_ends, kaggle.faults.kernel_result = True, ("ERROR", "out of memory")
    assert {ask(kaggle, status, **asked)["status"] for _ in range(9)} == {"QUEUED", "RUNNING"}
    kaggle.faults.kernel_never_ends = False
    assert [ask(kaggle, status, **asked)["failureMessage"] for _ in range(2)] == ["", "out of memory"]
    with pytest.raises(Refused, match="denied"):
        ask(kaggle, status, **asked, versionLabel="v2")


def test_a_submission_is_refused_or_scored_as_it_is_told(kaggle):
    service, handed_in = "competitions.CompetitionApiService", {"kernelOwner": "ann", "kernelSlug": "lumbar-inference"}
    handed_in |= {"competitionName": COMPETITION, "kernelVersion": 1, "fileName": "submission.csv"}
    kaggle.kernel_plan, kaggle.submission_plan, kaggle.faults.submission_error = [], [], "wrong rows"
    ask(kaggle, "kernels.KernelsApiService/SaveKernel", **pushed())
    with pytest.raises(Refused, match="no output file"):
        ask(kaggle, f"{service}/CreateCodeSubmission", **handed_in)
    ask(kaggle, "kernels.KernelsApiService/GetKernelSessionStatus", userName="ann", kernelSlug="lumbar-inference")
    made = ask(kaggle, f"{service}/CreateCodeSubmission", **handed_in)
    scored = ask(kaggle, f"{service}/GetSubmission", ref=made["ref"])
    assert (scored["status"], scored["errorDescription"], scored["publicScore"]) == ("ERROR", "wrong rows", "")


def test_trouble_of_the_server_passes(kaggle):
    kaggle.faults.rate_limited, kaggle.faults.server_errors = 1, 1
    route = "competitions.CompetitionApiService/ListCompetitions"
    for status in (429, 503):
        with pytest.raises(Refused) as refused:
            ask(kaggle, route)
        assert refused.value.status == status
    assert ask(kaggle, route)["competitions"][0]["title"] == COMPETITION
