"""The Makefile: what it runs with -m is there."""

from __future__ import annotations

import re
from importlib.util import find_spec

from tests.support import ROOT


def test_every_module_that_a_target_runs_exists_and_can_be_run():
    modules = set(re.findall(r"(?<=\s-m )[A-Za-z_][\w.]*", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert len(modules) > 15
    for name in sorted(modules):
        spec = find_spec(name)
        assert spec is not None, f"the Makefile runs {name}, which is no module"
        if spec.submodule_search_locations is not None:
            assert find_spec(f"{name}.__main__") is not None, f"{name} is a package without __main__"
