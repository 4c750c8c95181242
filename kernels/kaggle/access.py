"""Access to Kaggle: network, credentials, accepted rules of the competition."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kernels.build_notebook import COMPETITION

from .client import ClientAnswer, KaggleError, call

RULES_LINK = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
TOKEN_REMEDY = (
    "create a token at https://www.kaggle.com/settings (API) and save it as ~/.kaggle/access_token, "
    "or run `kaggle auth login`"
)
NETWORK_REMEDY = "check the network, or the proxy in https_proxy, with `curl -I https://www.kaggle.com`"
# The smallest file of the competition.
SMALL_FILE = "sample_submission.csv"
QUERY_TIMEOUT_S = 60.0
NETWORK, CREDENTIALS, RULES = "network", "Kaggle credentials", "competition rules"


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


def request_access(timeout_s: float = QUERY_TIMEOUT_S) -> Access:
    """Request a small file of the competition, which requires credentials and accepted rules."""
    sources = credential_sources()
    if not sources:
        return Access(CREDENTIALS, "there are no Kaggle credentials", TOKEN_REMEDY)
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
    if answer.status == 401:
        found = f"Kaggle refuses the credentials of {' and of '.join(sources)}"
        return Access(CREDENTIALS, found, f"they may have expired: {TOKEN_REMEDY}")
    if "requests.exceptions." in text or answer.connection_failed:
        return Access(NETWORK, "Kaggle cannot be reached", NETWORK_REMEDY)
    if "rules" in text.lower() or answer.status == 403:
        return Access(RULES, "the competition's rules are not accepted", f"accept them at {RULES_LINK}")
    return Access(NETWORK, str(answer.error()), "try again in a few minutes")
