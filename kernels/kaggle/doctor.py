"""Says what on this machine, and between it and Kaggle, is ready for `make ship`, and how to put right what is not.

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

from .access import NETWORK_REMEDY, QUESTION_TIMEOUT_S, Access, Admission, ask_admission, credential_sources
from .checks import PIP, Finding, Mark, check_data, check_disk, check_gpu, check_packages, check_torch, check_weights
from .client import ClientAnswer, KaggleError, call, user_in

OLDEST_CLIENT = (2, 2, 4)
CLIENT_REMEDY = f"{PIP} 'kaggle>=2.2.4,<3' six"
CLIENT, NETWORK = "kaggle client", "network"
CREDENTIALS, USER, RULES = "Kaggle credentials", "Kaggle user name", "competition rules"
PROBLEMS = {
    Access.UNREACHED: NETWORK,
    Access.UNKNOWN: NETWORK,
    Access.NO_CREDENTIALS: CREDENTIALS,
    Access.REFUSED: CREDENTIALS,
    Access.RULES: RULES,
}
# What a broken package, file or driver raises.
BREAKDOWNS = (OSError, ValueError, RuntimeError, LookupError, ImportError, TypeError, AttributeError)


def read_version(answer: ClientAnswer) -> Finding:
    """What the client's answer to --version says of it."""
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
    """Whether the client's user is the one whose name the kit writes into its metadata."""
    user = user_in(answer)
    if user is None:
        return Finding(USER, Mark.WARN, "the client does not know it", "kaggle config view")
    remedy = f"export KAGGLE_USERNAME={user}   (or OWNER={user} after each make)"
    if owner == OWNER_PLACEHOLDER:
        return Finding(USER, Mark.WARN, f"{user}, which the kit was not told", remedy)
    if owner.lower() != user.lower():
        return Finding(USER, Mark.WARN, f"{user} by the credentials, but {owner} by OWNER or KAGGLE_USERNAME", remedy)
    return Finding(USER, Mark.OK, user)


def read_admission(admission: Admission) -> list[Finding]:
    """Network, credentials and rules, as far as the answer to one question shows them."""
    problem = PROBLEMS.get(admission.access)
    good = {
        NETWORK: "Kaggle answers",
        CREDENTIALS: f"{' and '.join(credential_sources())}, accepted",
        RULES: "accepted",
    }
    if problem is None:
        return [Finding(name, Mark.OK, good[name]) for name in good]
    failed = Finding(problem, Mark.FAIL, admission.found, admission.remedy)
    order = (NETWORK, CREDENTIALS, RULES)
    # Without credentials nothing was asked; otherwise all that comes before the problem was passed.
    passed = () if admission.access is Access.NO_CREDENTIALS else order[: order.index(problem)]
    fine = [Finding(name, Mark.OK, good[name]) for name in passed]
    return [*fine, failed, *unknown(problem, [name for name in order if name != problem and name not in passed])]


def unknown(problem: str, names: Sequence[str]) -> list[Finding]:
    """What could not be asked because of a problem."""
    return [Finding(name, Mark.WARN, f"not known: see {problem}", "make doctor, after that") for name in names]


def check_kaggle(owner: str) -> list[Finding]:
    """The client, the way to Kaggle, and what Kaggle allows; every question is bounded in time."""
    try:
        client = read_version(call("--version", timeout_s=QUESTION_TIMEOUT_S))
    except KaggleError as error:  # with a token the client asks Kaggle before it does anything else
        client = Finding(CLIENT, Mark.FAIL, str(error), NETWORK_REMEDY)
    if client.mark is Mark.FAIL:
        return [client, *unknown(CLIENT, (NETWORK, CREDENTIALS, RULES, USER))]
    admission = ask_admission()
    findings = [client, *read_admission(admission)]
    if admission.access not in (Access.GRANTED, Access.RULES):
        return findings + unknown(PROBLEMS[admission.access], [USER])
    return findings + guarded(USER, lambda: [read_user(call("config", "view", timeout_s=QUESTION_TIMEOUT_S), owner)])


def guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """A check's findings; where it broke down itself, that is the finding."""
    try:
        return check()
    except (KaggleError, *BREAKDOWNS) as error:
        return [Finding(name, Mark.WARN, f"could not be checked: {type(error).__name__}: {error}", "make install")]


def examine(data: Path | None, weights: Path | None, owner: str) -> list[Finding]:
    """Run every check, print what each finds as it comes, and return all."""
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
