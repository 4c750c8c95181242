"""`python -m training.benchmarks.gpu --out DIR`: all that only a GPU can show, in so many minutes.

Parts run in their order of value, each in a process of its own with a time limit; results are printed as each one ends
and are kept in DIR/gpu.json.  Exit code 1: a part failed, or found a fault.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from kernels.lumbar.run.submission import replace_json

from .parts import PARTS, PartResult, Setting, run_parts
from .prepare import prepare


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for gpu.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which everything is ended (8)")
    parser.add_argument("--parts", default="", help=f"some, with commas between: {', '.join(p.name for p in PARTS)}")
    parser.add_argument("--without", default="", help="leave these out")
    parser.add_argument("--device", default="", choices=["", "cuda", "cpu"], help="default: cuda where there is one")
    parser.add_argument("--small", action="store_true", help="least studies and networks: shows that it runs")
    parser.add_argument("--foreign", type=Path, help="a package that another machine exported, for parity")
    parser.add_argument("--work", type=Path, help="folder that is kept and used again; default: a temporary one")
    parser.add_argument("--prepare", type=Path, help="only fill this folder with what a machine without network needs")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, work: Path) -> list[PartResult]:
    """Run the parts; print and keep their results."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(work=work, device=device, small=options.small, foreign=options.foreign)
    chosen = set(options.parts.split(",")) if options.parts else {part.name for part in PARTS}
    # What others need is made for every choice of parts.
    parts = [p for p in PARTS if (p.name in chosen or p.stage == "first") and p.name not in options.without.split(",")]
    results: list[PartResult] = []

    def report(one: PartResult) -> None:
        results.append(one)
        print(one.text(), flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            replace_json(options.out / "gpu.json", {one.name: one.record() for one in results})

    return run_parts(parts, setting, time.monotonic() + 60 * options.minutes, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    options = parse(argv)
    if options.prepare:
        print(prepare(options.prepare))
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-bench-") as scratch:
        results = measure(options, options.work or Path(scratch))
    bad = [one.name for one in results if not one.is_good]
    good = [f"{one.name} {one.seconds:.0f} s" for one in results if one.is_good]
    print(f"good: {', '.join(good)}\nnot good: {', '.join(bad) or 'none'}; {time.monotonic() - started:.0f} s in all")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
