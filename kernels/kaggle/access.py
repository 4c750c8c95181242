"""Access to Kaggle: network, credentials, accepted rules of the competition."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kernels.build_notebook import COMPETITION

from .client import ClientAnswer, KaggleError, call, user_in

RULES_LINK = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
TOKEN_REMEDY = (
    "create a token at https://www.kaggle.com/settings (API) and save it as ~/.kaggle/access_token, "
    "or run `kaggle auth login`"
)
NETWORK_REMEDY = "check the network, or the proxy in https_proxy, with `curl -I https://www.kaggle.com`"
# The smallest file of the competition.
SMALL_FILE = "sample_submission.csv"
QUERY_TIMEOUT_S = 60.0
NAME_TIMEOUT_S = 20.0
NETWORK, CREDENTIALS, RULES = "network", "Kaggle credentials", "competition rules"
# What some editors put before a text: the client sends it as a part of the token.
BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Access:
    """Result of requesting a small file of the competition."""

    problem: str = ""
    """What failed: NETWORK, CREDENTIALS or RULES; empty where access is granted."""
    found: str = ""
    remedy: str = ""

    def check(self) -> None:
        """Raises KaggleError unless access is granted."""
        if self.problem:
            raise KaggleError(f"{self.found}: {self.remedy}")


def credential_sources() -> list[str]:
    """Environment variables and files in which the client finds credentials; their values are not read."""
    home, settings = Path.home() / ".kaggle", os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    folders = [Path(os.environ.get("KAGGLE_CONFIG_DIR") or home), Path(settings) / "kaggle"]
    files = [home / "access_token", home / "access_token.txt", home / "credentials.json"]
    files += [folder / "kaggle.json" for folder in folders]
    sources = ["KAGGLE_API_TOKEN"] if os.environ.get("KAGGLE_API_TOKEN") else []
    if os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"):
        sources.append("KAGGLE_USERNAME and KAGGLE_KEY")
    return sources + [str(path) for path in files if path.is_file()]


def marked_files(sources: list[str]) -> list[str]:
    """Credential files that begin with a byte order mark; only their first bytes are read."""
    found = []
    for name in sources:
        with suppress(OSError), open(name, "rb") as file:
            if file.read(3).startswith(BYTE_ORDER_MARKS):
                found.append(name)
    return found


def own_name(timeout_s: float = NAME_TIMEOUT_S) -> str | None:
    """The client's own user name, which a token's users need not write anywhere; None where it has none."""
    if not credential_sources():
        return None
    try:
        return user_in(call("config", "view", timeout_s=timeout_s))
    except KaggleError:
        return None


def request_access(timeout_s: float = QUERY_TIMEOUT_S) -> Access:
    """Request a small file of the competition, which requires credentials and accepted rules."""
    sources = credential_sources()
    if not sources:
        return Access(CREDENTIALS, "there are no Kaggle credentials", TOKEN_REMEDY)
    if marked := marked_files(sources):
        found = f"{marked[0]} begins with a byte order mark, which is no part of it"
        return Access(CREDENTIALS, found, f"save it as plain UTF-8 without one, or {TOKEN_REMEDY}")
    with tempfile.TemporaryDirectory(prefix="lumbar_access_") as scratch:
        arguments = ("competitions", "download", COMPETITION, "-f", SMALL_FILE, "-p", scratch, "-q")
        try:
            return access_of(call(*arguments, timeout_s=timeout_s), sources)
        except KaggleError:
            found = f"Kaggle did not answer within {timeout_s:.0f} s"
            return Access(NETWORK, found, NETWORK_REMEDY)


def access_of(answer: ClientAnswer, sources: list[str]) -> Access:
    """The failure by the client's output; its message decides before the status, which it may not print."""
    text = answer.text
    if answer.code == 0:
        return Access()
    if "codec can't" in text:
        found = f"the credentials of {' or of '.join(sources)} hold characters that none of Kaggle's has"
        return Access(CREDENTIALS, found, TOKEN_REMEDY)
    if answer.status == 401:
        found = f"Kaggle refuses the credentials of {' and of '.join(sources)}"
        return Access(CREDENTIALS, found, f"they may have expired: {TOKEN_REMEDY}")
    if "requests.exceptions." in text or answer.connection_failed:
        return Access(NETWORK, "Kaggle cannot be reached", NETWORK_REMEDY)
    if "rule" in answer.words[0].lower():
        return Access(RULES, "the competition's rules are not accepted", f"accept them at {RULES_LINK}")
    if answer.status == 403:
        found = f"Kaggle refuses the competition's data ({answer.words[0]})"
        return Access(RULES, found, f"unless they are accepted: accept them at {RULES_LINK}")
    return Access(NETWORK, str(answer.error()), "try again in a few minutes")
