"""What was sent to Kaggle, and what is about to be: SHIP/state.json, so that an interrupted chain resumes.

An intention is written before each call that changes something.  Where its answer is lost, the next run knows what to
look for on Kaggle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from kernels.locks import hold
from kernels.lumbar.run.submission import replace_json

from .client import KaggleError

STATE_FILE = "state.json"
Ref = Annotated[str, StringConstraints(pattern=r"^[\w-]+/[\w-]+$")]


class Facts(BaseModel):
    """Facts of a step, of exactly these types."""

    model_config = ConfigDict(frozen=True, strict=True)


class SentDataset(Facts):
    """The version of the weights that was sent last, or is being sent."""

    ref: Ref
    digest: str
    version: int


class SentNotebook(Facts):
    """A notebook that was pushed."""

    ref: Ref
    version: int | None = None
    """None: it is being pushed, or the answer was lost."""
    after: int = 0
    """The version before, which this one must exceed."""


class SentKernel(SentNotebook):
    """The inference notebook that was pushed last."""

    sha256: str
    manifest_sha256: str


class KernelRun(Facts):
    """The run of that notebook."""

    usable: bool
    seen: bool = False


class SentSubmission(Facts):
    """The submission of that notebook."""

    ref: Ref
    version: int
    message: str
    listed: bool = True
    """False: it is being sent, or Kaggle has not listed it yet."""


class SentTraining(SentNotebook):
    """The last training session."""

    going: bool
    chosen: tuple[list[str], str, list[int]]
    """Recipes, profile, folds."""
    sha256: str = ""
    done: bool = False
    """All of it is trained."""


def last_version(known: SentNotebook | None, ref: str) -> int:
    """The last version of a notebook that is known, which a new one exceeds; 0 = none."""
    return 0 if known is None or known.ref != ref else (known.version or known.after)


class Sent(BaseModel):
    """All that is known; a step that is not known is None."""

    model_config = ConfigDict(frozen=True)

    dataset: SentDataset | None = None
    kernel: SentKernel | None = None
    run: KernelRun | None = None
    submission: SentSubmission | None = None
    training: SentTraining | None = None


class ShipState:
    """Facts by step, written to disk at once; shipping and training may write at the same time."""

    def __init__(self, folder: Path) -> None:
        """Raises KaggleError where the file is damaged or not ours."""
        self.path = folder / STATE_FILE
        self.sent = self._read()

    def put(self, **steps: Facts | None) -> None:
        """Replace these steps; None removes one."""
        with hold(self.path.with_name(f".{STATE_FILE}.lock")):
            self.sent = self._read().model_copy(update=steps)
            replace_json(self.path, self.sent.model_dump(mode="json", exclude_none=True))

    def _read(self) -> Sent:
        if not self.path.is_file():
            return Sent()
        try:
            return Sent.model_validate_json(self.path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        except OSError as error:
            reason = str(error)
        raise KaggleError(
            f"{self.path} cannot be read ({reason}): remove it and push again; what Kaggle has is recognised there"
        )
