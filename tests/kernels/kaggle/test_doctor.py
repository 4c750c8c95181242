"""make doctor: every check has a line, what is wrong has a remedy, and only what stops `make ship` fails."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest
import torch

from kernels.build_notebook import COMPETITION, OWNER_PLACEHOLDER
from kernels.kaggle import access, checks, doctor
from kernels.kaggle.checks import Finding, Mark
from kernels.kaggle.client import ClientAnswer, KaggleError
from kernels.kaggle.contents import COMPETITION_COUNTS, IMAGES, LABELLED, STUDIES
from kernels.kaggle.dataset import Package
from kernels.lumbar.manifest import Manifest

KAGGLE_LINES = {doctor.CLIENT, doctor.NETWORK, doctor.CREDENTIALS, doctor.RULES, doctor.USER}


def ask(owner: str = "ann") -> dict[str, Finding]:
    """The findings on Kaggle by name; all five are there, and what is not ok has a remedy."""
    found = {finding.name: finding for finding in doctor.check_kaggle(owner)}
    assert set(found) == KAGGLE_LINES
    assert all(bool(finding.remedy) == (finding.mark is not Mark.OK) for finding in found.values())
    return found


def failed(found: dict[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if finding.mark is Mark.FAIL]


def test_all_is_well_with_a_key(kaggle, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "check_gpu", lambda: Finding("GPU", Mark.OK, "one"))
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("nothing stops `make ship`, ")
    for name in KAGGLE_LINES | {"GPU", "disk", "torch", "kernel's packages", "competition data", "weights"}:
        assert len([line for line in lines if line[6:].startswith(name)]) == 1
    assert not any("FAIL" in line for line in lines)
    assert kaggle.connects == []


def test_all_is_well_with_a_token(kaggle, tmp_path, monkeypatch):
    for name, value in kaggle.environment(tmp_path / "scratch", with_token=True).items():
        monkeypatch.setenv(name, value)
    found = ask()
    assert {finding.mark for finding in found.values()} == {Mark.OK}
    assert found[doctor.CREDENTIALS].found == "KAGGLE_API_TOKEN, accepted"
    assert found[doctor.USER].found == "ann"


def test_rules_that_are_not_accepted_fail_with_their_page(kaggle, capsys):
    kaggle.faults.rules_not_accepted = True
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert f"accept them at https://www.kaggle.com/competitions/{COMPETITION}/rules" in printed
    assert "1 problem(s) stop `make ship`" in printed and "kernel's packages" in printed


def test_refused_credentials_are_told_from_missing_ones(kaggle, monkeypatch):
    kaggle.faults.unauthorised = True
    found = ask()
    assert failed(found) == [doctor.CREDENTIALS] and found[doctor.NETWORK].mark is Mark.OK
    assert "refuses the credentials of KAGGLE_USERNAME and KAGGLE_KEY" in found[doctor.CREDENTIALS].found
    monkeypatch.setenv("KAGGLE_KEY", "")
    found = ask()
    assert failed(found) == [doctor.CREDENTIALS]
    assert found[doctor.CREDENTIALS].found == "there are no Kaggle credentials"
    assert "https://www.kaggle.com/settings" in found[doctor.CREDENTIALS].remedy
    assert found[doctor.NETWORK].found == found[doctor.USER].found == f"not known: see {doctor.CREDENTIALS}"


def test_no_network_is_told_from_refused_credentials(kaggle, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    found = ask()
    assert failed(found) == [doctor.NETWORK] and found[doctor.NETWORK].found == "Kaggle cannot be reached"
    assert found[doctor.CREDENTIALS].mark is Mark.WARN


def test_an_error_of_kaggles_own_is_no_fault_of_the_user(kaggle):
    kaggle.faults.server_errors = 9
    found = ask()
    assert failed(found) == [doctor.NETWORK] and "unavailable" in found[doctor.NETWORK].found


def test_kaggle_that_does_not_answer_is_not_waited_for(monkeypatch):
    def call(*arguments, timeout_s):
        assert timeout_s == access.QUERY_TIMEOUT_S
        if arguments == ("--version",):
            return ClientAnswer("kaggle --version", 0, "Kaggle CLI 2.2.5", "")
        raise KaggleError("it did not end")

    monkeypatch.setenv("KAGGLE_API_TOKEN", "x")
    monkeypatch.setattr(access, "call", call)
    monkeypatch.setattr(doctor, "call", call)
    found = ask()
    assert failed(found) == [doctor.NETWORK] and "did not answer within 60 s" in found[doctor.NETWORK].found


@pytest.mark.parametrize(
    ("printed", "mark", "word"),
    [
        ("Kaggle CLI 2.2.5", Mark.OK, "2.2.5"),
        ("Authentication required ...\nKaggle CLI 2.10.0", Mark.OK, "2.10.0"),
        ("Kaggle CLI 2.2.4", Mark.FAIL, "2.2.4 is older than 2.2.5"),
        ("ModuleNotFoundError: No module named 'six'", Mark.FAIL, "No module named 'six'"),
        ("", Mark.FAIL, "it printed nothing"),
    ],
)
def test_the_client_starts_and_is_new_enough(printed, mark, word):
    finding = doctor.read_version(ClientAnswer("kaggle --version", 0, printed, ""))
    assert finding.mark is mark and word in finding.found
    assert ("six" in finding.remedy) == (mark is Mark.FAIL)


def test_without_a_client_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(
        doctor, "call", lambda *arguments, timeout_s: ClientAnswer("kaggle", 1, "", "No module named 'six'")
    )
    monkeypatch.setattr(doctor, "request_access", None)
    found = ask()
    assert failed(found) == [doctor.CLIENT] and found[doctor.RULES].found == f"not known: see {doctor.CLIENT}"


@pytest.mark.parametrize(
    ("owner", "mark", "word"),
    [
        ("Ann", Mark.OK, "ann"),
        (OWNER_PLACEHOLDER, Mark.OK, "ann"),
        ("bob", Mark.FAIL, "ann by the credentials, but bob"),
    ],
)
def test_the_user_is_the_one_that_the_kit_writes(owner, mark, word):
    finding = doctor.read_user(
        ClientAnswer("kaggle", 0, "Configuration values\n- username: ann\n- path: None", ""), owner
    )
    assert finding.mark is mark and word in finding.found
    assert mark is Mark.OK or "KAGGLE_USERNAME=ann" in finding.remedy


def test_a_check_that_breaks_down_is_a_finding(monkeypatch, capsys):
    def broken(*arguments):
        raise PermissionError("the driver says no")

    for name in ("check_kaggle", "check_disk", "check_gpu", "check_torch", "check_packages", "check_data"):
        monkeypatch.setattr(doctor, name, broken)
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.count("could not be checked: PermissionError: the driver says no") == 6


def fake_gpu(monkeypatch, capability: tuple[int, int], ones) -> Finding:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    monkeypatch.setattr(torch, "ones", ones)
    return checks.check_gpu()


def test_a_gpu_is_believed_once_it_has_computed(monkeypatch):
    real = torch.ones

    def dead(*shape, device):
        raise RuntimeError("CUDA error: no kernel image is available\nlong advice")

    found = fake_gpu(monkeypatch, (7, 5), lambda *shape, device: real(*shape))
    assert (found.mark, found.found) == (Mark.OK, "2 × Tesla, sm_75")
    found = fake_gpu(monkeypatch, (8, 6), lambda *shape, device: real(*shape))
    assert (found.mark, found.found) == (Mark.OK, "2 × Tesla, sm_86, by code for a related one")
    found = fake_gpu(monkeypatch, (6, 0), dead)
    assert found.mark is Mark.WARN and "sm_60, which does not compute (CUDA error: no kernel image" in found.found
    assert "sm_75 sm_80" in found.found and found.remedy
    found = fake_gpu(monkeypatch, (7, 5), lambda *shape, device: 2 * real(*shape))
    assert found.mark is Mark.WARN and "multiplies wrongly" in found.found


def test_no_gpu_is_a_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checks.check_gpu().mark is Mark.WARN


@pytest.mark.parametrize(("version", "mark"), [("2.13.0+cpu", Mark.OK), ("2.6.1", Mark.OK), ("2.14.0", Mark.WARN)])
def test_torch_is_one_whose_exports_load_on_kaggle(monkeypatch, version, mark):
    monkeypatch.setattr(torch, "__version__", version)
    finding = checks.check_torch()
    assert finding.mark is mark and version in finding.found and ("torch==2.13.*" in finding.remedy) == (mark != "ok")


def test_packages_are_those_of_the_kernel_and_the_missing_one_is_named(monkeypatch):
    assert set(checks.kernel_packages()) == {"cv2", "numpy", "pydantic", "pydicom", "torch", "tqdm"}
    assert checks.check_packages().mark is Mark.OK
    monkeypatch.setitem(sys.modules, "cv2", None)
    finding = checks.check_packages()
    assert finding.mark is Mark.WARN and "cv2" in finding.found and "numpy" not in finding.found
    assert importlib.import_module("numpy")


def counted(monkeypatch, **changed: int) -> None:
    names = {"studies": STUDIES, "images": IMAGES, "labelled": LABELLED}
    counts = {**COMPETITION_COUNTS, **{names[name]: count for name, count in changed.items()}}
    monkeypatch.setattr(checks, "count_contents", lambda folder: counts)


def test_data_are_whole_incomplete_another_set_or_absent(monkeypatch, tmp_path):
    assert checks.check_data(None).mark is checks.check_weights(None).mark is Mark.SKIP
    absent = checks.check_data(tmp_path)
    assert absent.mark is Mark.WARN and absent.remedy == f"make data OUT={tmp_path}"
    counted(monkeypatch)
    assert checks.check_data(tmp_path).mark is Mark.OK
    counted(monkeypatch, studies=1900, images=140_000)
    cut = checks.check_data(tmp_path)
    assert cut.mark is Mark.WARN and "1,900 studies in train_images instead of 1,975" in cut.found
    assert cut.remedy == f"make data OUT={tmp_path}"
    counted(monkeypatch, studies=40, labelled=40)
    assert "another data set: 40 studies, 40 of them labelled" in checks.check_data(tmp_path).found
    (tmp_path / "truth").mkdir()
    assert "a phantom: 40 studies" in checks.check_data(tmp_path).found


def test_the_disk_is_measured_where_the_data_still_have_to_come(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "free_bytes", lambda folder: 50_000_000_000)
    short = checks.check_disk(tmp_path)
    assert short.mark is Mark.WARN and "50 GB free" in short.found and "72 GB while it is unpacked" in short.found
    counted(monkeypatch)
    assert checks.check_disk(tmp_path).mark is Mark.OK
    monkeypatch.setattr(checks, "free_bytes", lambda folder: 80_000_000_000)
    assert checks.check_disk(None).mark is Mark.OK


def test_weights_are_whole_or_the_reason_is_told(monkeypatch, tmp_path):
    assert checks.check_weights(tmp_path / "none").remedy == "make package"
    assert "holds no package" in checks.check_weights(tmp_path).found

    def read(folder: Path) -> Package:
        manifest = Manifest.model_construct(artefacts=(1, 2, 3))
        return Package(folder, "ann/lumbar-weights", manifest, "0123456789abcdef", {"a": 2_000_000, "b": 500_000})

    monkeypatch.setattr(checks, "read_package", read)
    finding = checks.check_weights(tmp_path)
    assert finding.mark is Mark.OK
    assert finding.found == ("ann/lumbar-weights: 3 networks, 2.5 MB in 2 files (at most 50), manifest 0123456789ab")


def test_without_any_user_name_nothing_can_be_shipped():
    nameless = ClientAnswer("kaggle", 0, "- username: None", "")
    assert doctor.read_user(nameless, OWNER_PLACEHOLDER).mark is Mark.FAIL
    assert doctor.read_user(nameless, "ann").mark is Mark.WARN


def test_weights_that_no_step_would_take_fail(package, tmp_path):
    damaged = Path(shutil.copytree(package, tmp_path / "damaged"))
    (damaged / "weights-0.bin").write_bytes(b"short")
    finding = checks.check_weights(damaged)
    assert finding.mark is Mark.FAIL and "is no whole package" in finding.found and finding.remedy == "make package"
    nobodys = Path(shutil.copytree(package, tmp_path / "nobodys"))
    path = nobodys / "dataset-metadata.json"
    path.write_text(path.read_text().replace("ann/", f"{OWNER_PLACEHOLDER}/"))
    finding = checks.check_weights(nobodys)
    assert finding.mark is Mark.FAIL and finding.remedy == "make package OWNER=<your Kaggle name>"
    assert checks.check_weights(package).mark is Mark.OK


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe"])
def test_a_byte_order_mark_is_a_matter_of_the_credentials(kaggle, monkeypatch, mark):
    monkeypatch.setenv("KAGGLE_KEY", "")
    token = Path.home() / ".kaggle" / "access_token"
    token.parent.mkdir()
    token.write_bytes(mark + b"KGAT_0123456789abcdef")
    found = ask()
    assert failed(found) == [doctor.CREDENTIALS] and "byte order mark" in found[doctor.CREDENTIALS].found
    assert str(token) in found[doctor.CREDENTIALS].found and kaggle.requests == []


def test_characters_that_no_token_has_are_a_matter_of_the_credentials():
    printed = "'latin-1' codec can't encode character '\\ufeff' in position 7: ordinal not in range(256)"
    found = access.access_of(ClientAnswer("kaggle", 1, "", printed), ["KAGGLE_API_TOKEN"])
    assert found.problem == doctor.CREDENTIALS and "KAGGLE_API_TOKEN" in found.found
