"""The first minute: what stands in the way is one sentence with its remedy, before anything is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT

TOOLS = ("sh", "make", "awk", "sed", "grep", "tail", "mkdir", "rm", "touch", "cat", "cp", "nproc", "test")
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")

# A Python that answers what install.sh asks, and leaves a file where it is told to install.
STUB = """#!/bin/sh
case "$*" in
*version_info*) echo {version}; exit {unsuitable} ;;
*"import {lacks}"*) exit 1 ;;
"-c "*) exit 0 ;;
"-m venv"*) {venv}
    for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
*"pip install"*) {pip}
    echo "$0 $*" >> installed.txt ;;
esac
"""
DF = 'echo "Filesystem 1024-blocks Used Available Capacity Mounted on"; echo "/dev/x 9 9 {kb} 9% /"'
NO_NETWORK = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError: Failed to establish a new "
    "connection: [Errno -3] Temporary failure in name resolution': /simple/setuptools/\n"
    "ERROR: Could not find a version that satisfies the requirement setuptools (from versions: none)\n"
    "ERROR: No matching distribution found for setuptools"
)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """The files that installing needs, in a folder with a space in its name, and a PATH of its own."""
    folder = tmp_path / "my kit"
    folder.mkdir()
    for name in ("Makefile", "install.sh", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    tools = folder / "bin"
    tools.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    program(tools / "df", f"#!/bin/sh\n{DF.format(kb=90_000_000)}\n")
    return folder


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def python(kit: Path, name: str, version: str, lacks: str = "nothing", venv: str = ":", pip: str = ":") -> None:
    """Put a Python into PATH; `venv` and `pip` are what it does before it makes an environment, or installs."""
    suitable = (3, 11) <= tuple(int(part) for part in version.split(".")[:2]) <= (3, 14)
    stub = STUB.format(version=version, unsuitable=int(not suitable), lacks=lacks, venv=venv, pip=pip)
    program(kit / "bin" / name, stub)


def fails(text: str) -> str:
    """Shell commands that print this and fail."""
    return f"cat <<'END'\n{text}\nEND\n    exit 1"


def install(kit: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(kit / "bin"), "TMPDIR": str(kit)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("LD_")}
    command = [str(kit / "bin" / "make"), "--no-print-directory", "install", *words]
    return subprocess.run(command, cwd=kit, env=environment, capture_output=True, text=True, check=False)


def installed(kit: Path) -> list[str]:
    """The commands of pip that were run."""
    path = kit / "installed.txt"
    return path.read_text().splitlines() if path.is_file() else []


def old(kit: Path) -> None:
    python(kit, "python3", "3.9.18")


def no_venv(kit: Path) -> None:
    python(kit, "python3", "3.12.3", lacks="venv")


def no_ensurepip(kit: Path) -> None:
    python(kit, "python3", "3.12.3", lacks="ensurepip")


def full_disk(kit: Path) -> None:
    python(kit, "python3", "3.12.3")
    program(kit / "bin" / "df", f"#!/bin/sh\n{DF.format(kb=500_000)}\n")


def full_before_pip(kit: Path) -> None:
    python(kit, "python3", "3.12.3", venv=fails("OSError: [Errno 28] No space left on device"))


def full_in_pip(kit: Path) -> None:
    python(kit, "python3", "3.12.3", pip=fails("ERROR: Could not install packages: No space left on device"))


def no_network(kit: Path) -> None:
    python(kit, "python3", "3.12.3", pip=fails(NO_NETWORK))


def no_certificate(kit: Path) -> None:
    python(kit, "python3", "3.12.3", pip=fails("SSLError(SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED)"))


def no_build(kit: Path) -> None:
    versions = ", ".join(f"1.{number}" for number in range(80))
    text = (
        f"ERROR: Could not find a version (from versions: {versions})\nERROR: No matching distribution found for torch"
    )
    python(kit, "python3", "3.12.3", pip=fails(text))


STOPS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "old": (
        old,
        "Python 3.11 to 3.14 is needed and PATH has python3 (3.9.18)",
        "PYTHON=/path/to/python3.12 to the command",
    ),
    "none": (lambda kit: None, "PATH has none", "https://www.python.org/downloads"),
    "no venv": (no_venv, "python3 (3.12.3) has no module venv", "apt install python3.12-venv"),
    "no ensurepip": (no_ensurepip, "has no module ensurepip", "apt install python3.12-venv"),
    "full disk": (full_disk, "this disk has 488 MB free", "move the folder to another disk"),
    "full before pip": (full_before_pip, "the disk is full", "the same command resumes"),
    "full in pip": (full_in_pip, "the disk is full", "the same command resumes"),
    "no network": (no_network, "the package index cannot be reached (https://pypi.org/simple", "https_proxy"),
    "no certificate": (no_certificate, "certificate of the package index is not accepted", "PIP_CERT"),
    "no build": (no_build, "No matching distribution found for torch under Python 3.12.3", "add PYTHON=python3.12"),
}


@pytest.mark.parametrize("name", STOPS)
def test_what_stands_in_the_way_is_one_sentence_with_its_remedy(kit, name):
    prepare, sentence, remedy = STOPS[name]
    prepare(kit)
    done = install(kit)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode != 0 and len(lines) == 1, done
    assert lines[0].startswith("install stopped: ") and sentence in lines[0] and remedy in lines[0]
    assert installed(kit) == [] and not (kit / ".venv" / "installed").exists()


def test_a_newer_python_beside_an_old_one_is_found(kit):
    old(kit)
    python(kit, "python3.12", "3.12.3")
    python(kit, "python3.11", "3.11.7")
    done = install(kit)
    assert done.returncode == 0, done
    assert "python3 (3.9.18) is not suitable; Python 3.12.3 is taken: python3.12" in done.stdout
    assert len(installed(kit)) == 2 and (kit / ".venv" / "installed").is_file()


def test_a_shim_without_a_python_behind_it_is_passed_over(kit):
    program(kit / "bin" / "python3", "#!/bin/sh\necho 'pyenv: python3: command not found' >&2\nexit 127\n")
    python(kit, "python3.13", "3.13.1")
    assert install(kit).returncode == 0


def test_the_python_that_is_named_is_taken(kit):
    python(kit, "python3", "3.12.3")
    python(kit, "mine", "3.11.7")
    done = install(kit, "PYTHON=mine")
    assert done.returncode == 0 and "Python 3.11.7: installing" in done.stdout
    python(kit, "ancient", "2.7.18")
    for named, sentence in (("ancient", "PYTHON=ancient is Python 2.7.18"), ("none", "there is no PYTHON=none")):
        done = install(kit, f"PYTHON={named}", "--always-make")
        assert done.returncode != 0 and sentence in done.stderr and "leave PYTHON= out" in done.stderr


def test_an_environment_that_is_there_is_used_again(kit):
    python(kit, "python3", "3.12.3")
    assert install(kit).returncode == 0
    python(kit, "python3", "3.13.1", venv=fails("made anew"))
    done = install(kit, "--always-make")
    assert done.returncode == 0 and "Python 3.12.3: installing" in done.stdout


def test_other_makes_are_told_to_use_gnu_make():
    """For them the condition is a rule and the next line a directive; GNU make skips both (every other test here)."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    start = lines.index('ifeq "make:" ""')
    assert lines[start + 1].startswith(".error ") and "gmake" in lines[start + 1] and lines[start + 2] == "endif"
    assert not any(line and not line.startswith("#") for line in lines[:start])
    other = shutil.which("bmake")
    if other is None:
        pytest.skip("there is no bmake")
    done = subprocess.run([other, "help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "use `gmake`" in done.stderr and len(done.stderr.splitlines()) == 1
