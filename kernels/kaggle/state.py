"""Progress of shipping: SHIP/state.json, so that an interrupted chain resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kernels.lumbar.run.submission import replace_json

from .client import KaggleError

STATE_FILE = "state.json"
# Required facts of each step, with their types.
FACTS: dict[str, dict[str, type]] = {
    "kernel": {"ref": str, "version": int, "sha256": str, "manifest_sha256": str},
    "run": {"usable": bool},
    "submission": {"ref": str, "version": int, "message": str},
    "training": {"ref": str, "version": int, "going": bool, "chosen": list},
}


class ShipState:
    """Facts by step, written to disk at once."""

    def __init__(self, folder: Path) -> None:
        """Raises KaggleError where the file is damaged or not ours."""
        self.path = folder / STATE_FILE
        self._facts: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            try:
                self._facts = json.loads(self.path.read_text())
                for step, facts in self._facts.items():
                    for name, kind in FACTS.get(step, {}).items():
                        if not isinstance(facts[name], kind):
                            raise ValueError(f"{step}.{name} is {facts[name]!r}")
            except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
                raise KaggleError(f"{self.path} cannot be read ({error}): remove it and push again") from error

    def get(self, step: str) -> dict[str, Any]:
        """Facts of a step, or none."""
        return dict(self._facts.get(step, {}))

    def put(self, step: str, **facts: Any) -> None:
        """Replace the facts of a step."""
        self._facts[step] = facts
        self._write()

    def drop(self, *steps: str) -> None:
        """Remove steps that no longer hold."""
        for step in steps:
            self._facts.pop(step, None)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(self.path, self._facts)
