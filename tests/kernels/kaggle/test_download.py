"""The competition's data: counted, unpacked so that any stop is gone on from, and fetched by the real client."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.build_notebook import COMPETITION
from kernels.kaggle import download, unpack
from kernels.kaggle.access import Access
from kernels.kaggle.client import ClientAnswer, KaggleError
from kernels.kaggle.contents import COMPETITION_COUNTS, IMAGES, LABELLED, STUDIES, count_contents, differences
from tests.support.kaggle.kaggle_server import KaggleServer

FILES = {
    "train.csv": b"study_id,spinal_canal_stenosis_l1_l2\n7,Moderate\n8,Severe\n",
    "train_series_descriptions.csv": b"study_id,series_id,series_description\n7,70,Sagittal T1\n7,71,Axial T2\n",
    "train_label_coordinates.csv": b"study_id,series_id\n7,70\n",
    "test_series_descriptions.csv": b"study_id,series_id,series_description\n9,90,Sagittal T1\n",
    "sample_submission.csv": b"row_id,normal_mild,moderate,severe\n9_a,0.3,0.3,0.4\n",
    "train_images/7/70/1.dcm": b"seventy" * 900,
    "train_images/7/70/2.dcm": b"seventy, the second",
    "train_images/7/71/5046.dcm": b"seventy-one",
    "test_images/9/90/1.dcm": b"ninety",
}
COUNTS = {
    "studies in train_images": 1,
    "series in train_images": 2,
    "images in train_images": 3,
    "studies in test_images": 1,
    "series in test_images": 1,
    "rows in train.csv": 2,
    "rows in train_series_descriptions.csv": 2,
    "rows in train_label_coordinates.csv": 1,
    "rows in test_series_descriptions.csv": 1,
    "rows in sample_submission.csv": 1,
}


def write_archive(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "archive.zip")


def test_counts_are_of_studies_series_images_and_rows(archive, tmp_path):
    assert count_contents(tmp_path / "nothing") == dict.fromkeys(COMPETITION_COUNTS, 0)
    unpack.unpack(archive, tmp_path / "data")
    (tmp_path / "data" / "train_images" / "7" / "71" / "notes.txt").write_text("no image")
    assert count_contents(tmp_path / "data") == COUNTS


def test_blank_lines_and_quoted_line_breaks_are_no_rows(tmp_path):
    (tmp_path / "train.csv").write_text('\ufeffstudy_id,note\n7,"two\nlines"\n\n8,x\n\n')
    assert count_contents(tmp_path)[LABELLED] == 2


def test_differences_are_named_and_images_known_to_the_thousand():
    assert differences(COMPETITION_COUNTS) == []
    assert differences({**COMPETITION_COUNTS, IMAGES: COMPETITION_COUNTS[IMAGES] + 999}) == []
    found = {**COMPETITION_COUNTS, STUDIES: 1974, IMAGES: 90_000}
    assert differences(found) == [
        "1,974 studies in train_images instead of 1,975",
        "90,000 images in train_images instead of about 147,000",
    ]


def test_unpacking_brings_every_byte_and_then_finds_nothing_to_do(archive, tmp_path):
    assert unpack.unpack(archive, tmp_path / "data") == len(FILES)
    assert held(tmp_path / "data") == FILES
    assert unpack.unpack(archive, tmp_path / "data") == 0


def test_only_missing_cut_and_changed_files_are_written_again(archive, tmp_path):
    data = tmp_path / "data"
    unpack.unpack(archive, data)
    (data / "train_images/7/70/1.dcm").write_bytes(b"seven")
    (data / "test_images/9/90/1.dcm").unlink()
    table = data / "train.csv"
    table.write_bytes(FILES["train.csv"].replace(b"Severe", b"severe"))
    untouched = (data / "train_images/7/71/5046.dcm").stat()
    assert unpack.unpack(archive, data) == 3
    assert held(data) == FILES
    assert (data / "train_images/7/71/5046.dcm").stat().st_ino == untouched.st_ino


def test_a_stop_between_two_files_leaves_whole_files_alone(archive, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(source, target, length):
        target.write(source.read(3))
        raise Stopped

    monkeypatch.setattr(shutil, "copyfileobj", stop)
    with pytest.raises(Stopped):
        unpack.unpack(archive, tmp_path / "data")
    assert held(tmp_path / "data") == {}


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_cut_archive_is_named_with_what_to_do(archive, tmp_path, kept):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(unpack.UnpackError, match=f"{archive} is damaged .*: delete it"):
        unpack.unpack(archive, tmp_path / "data")


@settings(deadline=None, max_examples=40)
@given(place=st.floats(0, 1, exclude_max=True))
def test_changed_bytes_never_become_data(tmp_path_factory, place):
    folder = tmp_path_factory.mktemp("changed")
    archive = write_archive(folder / "archive.zip")
    content = bytearray(archive.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    archive.write_bytes(content)
    try:
        unpack.unpack(archive, folder / "data")
    except unpack.UnpackError:
        pass
    # A changed name or date is no business of the checksums; a changed content is.
    assert set(held(folder / "data").values()) <= set(FILES.values())


@pytest.mark.parametrize("name", ["../outside.csv", "/outside.csv", "train_images/../../outside.csv", "a\\..\\b.csv"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    archive = write_archive(tmp_path / "archive.zip", {"train.csv": b"study_id\n", name: b"harm"})
    with pytest.raises(unpack.UnpackError, match="leads out of its folder"):
        unpack.unpack(archive, tmp_path / "deep" / "data")
    assert not (tmp_path / "deep").exists() and not list(tmp_path.rglob("outside.csv"))


def test_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        link = zipfile.ZipInfo("train_images")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    with pytest.raises(unpack.UnpackError, match="leads out of its folder"):
        unpack.unpack(tmp_path / "archive.zip", tmp_path / "data")


def test_room_is_checked_before_the_first_file(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "free_bytes", lambda folder: 5_000)
    with pytest.raises(unpack.UnpackError, match=r"0\.0 GB free and 0\.0 GB are needed to unpack: free some"):
        unpack.unpack(archive, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_full_disk_is_said_in_a_sentence(archive, tmp_path, monkeypatch):
    def full(source, target, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(unpack.UnpackError, match="is full: free some space"):
        unpack.unpack(archive, tmp_path / "data")
    assert held(tmp_path / "data") == {}


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (ClientAnswer("kaggle", 1, "", "OSError: [Errno 28] No space left on device"), "the disk .* is full"),
        (
            ClientAnswer("kaggle", 1, "", "requests.exceptions.ChunkedEncodingError: (...)"),
            "the line to Kaggle broke after",
        ),
        (
            ClientAnswer("kaggle", 1, "", "ProtocolError: ('Connection broken: x')\n\nIf"),
            "the line to Kaggle broke after",
        ),
        (ClientAnswer("kaggle", 1, "", "404 Client Error: Not Found"), "404 Client Error"),
    ],
)
def test_a_download_that_failed_says_why(answer, word, tmp_path):
    error = download.failure(answer, tmp_path / "archive.zip")
    assert isinstance(error, KaggleError)
    with pytest.raises(KaggleError, match=word):
        raise error


def test_another_data_set_is_not_mixed_with_the_competitions(archive, tmp_path, capsys):
    unpack.unpack(archive, tmp_path / "data")
    before = held(tmp_path / "data")
    assert download.main(["--out", str(tmp_path / "data")]) == 1
    message = capsys.readouterr().err
    assert "holds another data set (2 labelled studies): move it elsewhere" in message
    assert f"make data OUT={tmp_path / 'data'}" in message
    assert held(tmp_path / "data") == before


def test_an_archive_that_is_there_is_unpacked_without_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download, "call", None)
    data = tmp_path / "data"
    data.mkdir()
    write_archive(data / f"{COMPETITION}.zip")
    assert download.main(["--out", str(data), "--keep-zip"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"{len(FILES)} of them new: 2 labelled studies")
    assert "unlike the competition as it is known: 1 studies in train_images instead of 1,975" in lines
    assert (data / f"{COMPETITION}.zip").exists()
    assert download.main(["--out", str(data)]) == 0
    assert "holds all data already" in capsys.readouterr().out
    (data / "train_images/7/70/2.dcm").unlink()
    assert download.main(["--out", str(data)]) == 0
    assert "1 of them new" in capsys.readouterr().out
    assert not (data / f"{COMPETITION}.zip").exists()


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A Kaggle that serves the files above, and the environment of this test a client of it."""
    with KaggleServer(competitions={COMPETITION: FILES}) as server:
        for name, value in server.environment(tmp_path / "scratch").items():
            monkeypatch.setenv(name, value)
        yield server


def ranges(kaggle: KaggleServer) -> list[str]:
    """Which parts of the archive were asked for."""
    gets = kaggle.asked("GET")
    return [one["range"] for one in gets if one["path"].endswith(".zip")]


def test_data_are_downloaded_and_unpacked_once(kaggle, tmp_path, capsys):
    data = tmp_path / "deep" / "data"
    assert download.main(["--out", str(data)]) == 0
    assert {name: content for name, content in held(data).items() if name != download.RECORD_FILE} == FILES
    asked = len(kaggle.requests)
    assert download.main(["--out", str(data)]) == 0
    assert "holds all data already: 2 labelled studies" in capsys.readouterr().out
    assert len(kaggle.requests) == asked and kaggle.connects == []


def test_a_download_that_was_stopped_goes_on_where_it_was(kaggle, tmp_path):
    data, chunk = tmp_path / "data", 1 << 20
    archive = data / f"{COMPETITION}.zip"
    big = {"train_images/7/71/5046.dcm": random.Random(0).randbytes(4 * chunk)}
    kaggle.competitions[COMPETITION] = {**FILES, **big}
    kaggle.faults.cut_download_after = 2 * chunk + 9
    data.mkdir()
    client = [sys.executable, "-m", "kaggle", "competitions", "download", COMPETITION, "-p", str(data), "-q"]
    with subprocess.Popen(client) as process:
        # After the cut it waits for two seconds and more, with two whole chunks on the disk.
        for _ in range(600):
            if archive.exists() and archive.stat().st_size == 2 * chunk:
                break
            time.sleep(0.05)
        process.kill()
    assert archive.stat().st_size == 2 * chunk and not download.is_whole(archive)
    assert download.main(["--out", str(data)]) == 0
    assert [span for span in ranges(kaggle) if span] == [f"bytes={2 * chunk}-"]
    assert count_contents(data) == COUNTS and held(data)[next(iter(big))] == next(iter(big.values()))


def fake_attempts(monkeypatch, archive: Path, *sizes: int | None) -> list[int]:
    """A client that leaves an archive of these sizes when it is stopped, attempt for attempt; None: it ends well."""
    monkeypatch.setattr(download, "request_access", lambda: Access())
    monkeypatch.setattr(download, "listed_bytes", lambda: 100)
    left = list(sizes)

    def call(*arguments, timeout_s):
        size = left.pop(0)
        if size is None:
            return ClientAnswer("kaggle", 0, "", "")
        archive.write_bytes(bytes(size))
        raise KaggleError("stopped")

    monkeypatch.setattr(download, "call", call)
    return left


def test_an_attempt_that_brought_something_is_followed_by_another(tmp_path, monkeypatch):
    left = fake_attempts(monkeypatch, tmp_path / "archive.zip", 30, 60, None)
    download.fetch(tmp_path / "archive.zip")
    assert left == []


def test_an_attempt_that_brought_nothing_is_the_last(tmp_path, monkeypatch):
    left = fake_attempts(monkeypatch, tmp_path / "archive.zip", 30, 30, None)
    with pytest.raises(KaggleError, match="sent nothing for 900 s"):
        download.fetch(tmp_path / "archive.zip")
    assert left == [None]


def test_the_size_is_known_where_all_files_are_listed(monkeypatch):
    rows = '[{"name": "a", "size": 7}, {"name": "b", "size": 5}]'
    for printed, size in ((rows, 12), ("Next Page Token = x\n" + rows, None), ("No files found", None)):
        answer = ClientAnswer("kaggle", 0, printed, "")
        monkeypatch.setattr(download, "query", lambda *arguments, answer=answer: answer)
        assert download.listed_bytes() == size


def test_refusals_say_what_to_do(kaggle, tmp_path, capsys, monkeypatch):
    kaggle.faults.rules_not_accepted = True
    assert download.main(["--out", str(tmp_path / "data")]) == 1
    message = capsys.readouterr().err
    assert f"accept them at https://www.kaggle.com/competitions/{COMPETITION}/rules" in message
    assert message.count("\n") == 1 and f"make data OUT={tmp_path / 'data'}" in message
    monkeypatch.setenv("KAGGLE_KEY", "")
    assert download.main(["--out", str(tmp_path / "data")]) == 1
    message = capsys.readouterr().err
    assert "there are no Kaggle credentials: create a token" in message and message.count("\n") == 1


def test_too_little_room_is_said_before_the_download(kaggle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(unpack, "free_bytes", lambda folder: 10_000)
    assert download.main(["--out", str(tmp_path / "data")]) == 1
    assert "are needed to download and unpack: free some" in capsys.readouterr().err
    assert ranges(kaggle) == []
