"""Digests of code: what it does counts, what is said of it does not."""

from __future__ import annotations

import ast
import itertools

from training import digests


def test_code_counts_and_what_is_said_of_it_does_not():
    def meaning(text):
        return digests.meaning(ast.parse(text))

    assert meaning('"""Said."""\ndef f():\n    """More."""\n    return 1  # why') == meaning("def f():\n\n    return 1")
    assert meaning("def f():\n    return 1") != meaning("def f():\n    return 2")


def test_a_change_of_any_module_that_is_imported_is_another_digest(monkeypatch):
    code_digest, whole, found = digests.code_digest.__wrapped__, digests.meaning, set()
    given = ("training.data.cache.decode",), ("kernels.lumbar.", "training.data.")
    before = code_digest(*given)
    for changed in (1, 3, 99):
        number = itertools.count(1)

        def spoilt(tree, number=number, changed=changed):
            return whole(tree) + ("changed" if next(number) == changed else "")

        monkeypatch.setattr(digests, "meaning", spoilt)
        found.add(code_digest(*given))
    assert len(found) == 3 and before in found and next(number) > 10
