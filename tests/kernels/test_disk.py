"""Room is that of the disk on which a folder will lie."""

from __future__ import annotations

import shutil
from collections import namedtuple

from kernels.disk import free_bytes


def test_a_folder_that_is_still_to_be_made_has_the_room_of_the_one_above_it(tmp_path, monkeypatch):
    asked = []
    usage = namedtuple("Usage", "total used free")(10, 3, 7)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or usage)
    assert free_bytes(tmp_path / "runs" / "cache") == 7 and free_bytes(tmp_path) == 7
    assert asked == [tmp_path, tmp_path]
