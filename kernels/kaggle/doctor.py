"""Checks that this machine and its access to Kaggle are ready for `make ship`, and prints remedies.

    python -m kernels.kaggle.doctor [--data DIR] [--weights DIR] [--owner NAME]

A line a check.  Exit code 1 only where something stops `make ship`; other shortcomings are warnings.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kernels.build_notebook import OWNER_PLACEHOLDER, kaggle_owner

from .access import (
    CREDENTIALS,
    NETWORK,
    NETWORK_REMEDY,
    QUERY_TIMEOUT_S,
    RULES,
    Access,
    credential_sources,
    request_access,
)
from .checks import PIP, Finding, Mark, check_data, check_disk, check_gpu, check_packages, check_torch, check_weights
from .client import ClientAnswer, KaggleError, call, user_in

OLDEST_CLIENT = (2, 2, 5)
CLIENT_REMEDY = f"{PIP} 'kaggle>=2.2.5,<3' six"
CLIENT, USER = "kaggle client", "Kaggle user name"
# Errors of a broken package, file or driver.
BREAKDOWNS = (OSError, ValueError, RuntimeError, LookupError, ImportError, TypeError, AttributeError)


def read_version(answer: ClientAnswer) -> Finding:
    """The client's version by its output of --version."""
    found = re.search(r"^Kaggle CLI (\d+)\.(\d+)\.(\d+)\S*", answer.text, re.MULTILINE)
    if not found:
        reason = (answer.text.splitlines() or ["it printed nothing"])[-1]
        return Finding(CLIENT, Mark.FAIL, f"does not start: {reason}", CLIENT_REMEDY)
    version = found.group().removeprefix("Kaggle CLI ")
    if tuple(map(int, found.groups())) < OLDEST_CLIENT:
        oldest = ".".join(map(str, OLDEST_CLIENT))
        return Finding(CLIENT, Mark.FAIL, f"{version} is older than {oldest}", CLIENT_REMEDY)
    return Finding(CLIENT, Mark.OK, version)


def read_user(answer: ClientAnswer, owner: str) -> Finding:
    """Whether the client's user is the owner that the kit writes: OWNER or KAGGLE_USERNAME, else the client's user."""
    user = user_in(answer)
    if user is None:
        mark = Mark.FAIL if owner == OWNER_PLACEHOLDER else Mark.WARN
        return Finding(USER, mark, "the client has none", "export KAGGLE_USERNAME=<your Kaggle name>")
    if owner not in (OWNER_PLACEHOLDER, user) and owner.lower() != user.lower():
        found = f"{user} by the credentials, but {owner} by OWNER or KAGGLE_USERNAME"
        return Finding(USER, Mark.FAIL, found, f"export KAGGLE_USERNAME={user}   (or OWNER={user} after each make)")
    return Finding(USER, Mark.OK, user)


def access_findings(access: Access) -> list[Finding]:
    """Network, credentials and rules, as far as one request shows them."""
    problem = access.problem
    good = {
        NETWORK: "Kaggle answers",
        CREDENTIALS: f"{' and '.join(credential_sources())}, accepted",
        RULES: "accepted",
    }
    order = list(good)
    passed = order
    if problem:
        # Without credentials nothing was requested; otherwise everything before the problem was passed.
        passed = order[: order.index(problem)] if credential_sources() else []
    found = [Finding(name, Mark.OK, good[name]) for name in passed]
    if problem:
        found.append(Finding(problem, Mark.FAIL, access.found, access.remedy))
        found += unknown(problem, [name for name in order if name != problem and name not in passed])
    return found


def unknown(problem: str, names: Sequence[str]) -> list[Finding]:
    """Checks that a problem prevented."""
    return [Finding(name, Mark.WARN, f"not known: see {problem}", "make doctor, after that") for name in names]


def check_kaggle(owner: str) -> list[Finding]:
    """Client, network, credentials, rules and user; every query has a timeout."""
    try:
        client = read_version(call("--version", timeout_s=QUERY_TIMEOUT_S))
    except KaggleError as error:  # with a token the client connects to Kaggle first
        client = Finding(CLIENT, Mark.FAIL, str(error), NETWORK_REMEDY)
    if client.mark is Mark.FAIL:
        return [client, *unknown(CLIENT, (NETWORK, CREDENTIALS, RULES, USER))]
    access = request_access()
    findings = [client, *access_findings(access)]
    if access.problem in (NETWORK, CREDENTIALS):
        return findings + unknown(access.problem, [USER])
    return findings + guarded(USER, lambda: [read_user(call("config", "view", timeout_s=QUERY_TIMEOUT_S), owner)])


def guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """A check's findings, or its own failure as a finding."""
    try:
        return check()
    except (KaggleError, *BREAKDOWNS) as error:
        return [Finding(name, Mark.WARN, f"could not be checked: {type(error).__name__}: {error}", "make install")]


def examine(data: Path | None, weights: Path | None, owner: str) -> list[Finding]:
    """Run every check, printing its findings at once; returns all."""
    checks: dict[str, Callable[[], list[Finding]]] = {
        "Kaggle": lambda: check_kaggle(owner),
        "disk": lambda: [check_disk(data)],
        "GPU": lambda: [check_gpu()],
        "torch": lambda: [check_torch()],
        "kernel's packages": lambda: [check_packages()],
        "competition data": lambda: [check_data(data)],
        "weights": lambda: [check_weights(weights)],
    }
    found: list[Finding] = []
    for name, check in checks.items():
        new = guarded(name, check)
        print(*new, sep="\n", flush=True)
        found += new
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.kaggle.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the competition's data")
    parser.add_argument("--weights", type=Path, help="folder made by build_dataset.py")
    parser.add_argument("--owner", default=kaggle_owner(), help="Kaggle user name (environment KAGGLE_USERNAME)")
    options = parser.parse_args(argv)
    marks = [finding.mark for finding in examine(options.data, options.weights, options.owner)]
    failed, warned = marks.count(Mark.FAIL), marks.count(Mark.WARN)
    verdict = f"{failed} problem(s) stop `make ship`" if failed else "nothing stops `make ship`"
    print(f"\n{verdict}, {warned} warning(s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
