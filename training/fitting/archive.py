"""TorchScript files whose bytes depend on the network alone.

As torch writes them they also hold how many networks the process had traced before, in the names of classes, and the
call stack of the export with the paths of the machine.  Neither is needed to load or to run them.
"""

from __future__ import annotations

import io
import re
import zipfile

# Where a line of code came from; and a digest over all of the file, which nobody checks.
NEEDLESS = (".debug_pkl", ".data/serialization_id")
NUMBERED = re.compile(rb"___torch_mangle_(\d+)")
# Tensors lie in archive/data/ and archive/constants/: their bytes say nothing of names.
NAMING = re.compile(r"^[^/]+/(code/.*\.py|data\.pkl|constants\.pkl)$")


def canonical(archive: bytes) -> bytes:
    """The same network in a file without these traces: numbered names are numbered anew, as they come."""
    numbers: dict[bytes, bytes] = {}

    def renumbered(content: bytes) -> bytes:
        # In pickles, too, names end with a line, and are not preceded by their length.
        return NUMBERED.sub(
            lambda found: b"___torch_mangle_" + numbers.setdefault(found[1], b"%d" % len(numbers)), content
        )

    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            if entry.filename.endswith(NEEDLESS):
                continue
            name, content = renumbered(entry.filename.encode()).decode(), old.read(entry)
            # With its default date, 1980: the same at any time.
            new.writestr(zipfile.ZipInfo(name), renumbered(content) if NAMING.match(name) else content)
    return written.getvalue()
