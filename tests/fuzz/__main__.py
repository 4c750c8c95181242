"""The command line of the fuzzer."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import __doc__ as about
from tests.fuzz.hunt import Hunt, Tally, again

PROGRESS_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=about.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (1)")
    parser.add_argument("--seed", type=int, default=0, help="which cases (0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of the seed (0)")
    parser.add_argument("--count", type=int, help="how many cases at most")
    parser.add_argument("--out", type=Path, default=Path("fuzzed"), help="where finds are kept (fuzzed)")
    parser.add_argument("--again", type=Path, help="read one find that was kept, and nothing else")
    options = parser.parse_args(argv)
    if options.again:
        return _again(options.again)
    started = said = time.monotonic()
    numbers = itertools.islice(itertools.count(options.first), options.count)
    with Hunt(options.out, options.seed) as hunt:
        tally = hunt.tally
        for number in numbers:
            if time.monotonic() - started > 60 * options.minutes:
                break
            known = len(tally.kept)
            hunt.one(number)
            for kept in tally.kept[known:]:
                _say_find(*kept)
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                rate = tally.cases / (said - started)
                print(f"{tally.cases} cases, {rate:.0f} a second, {tally.finds.total()} finds", flush=True)
        _summarise(tally, time.monotonic() - started)
    return 1 if tally.finds else 0


def _again(folder: Path) -> int:
    answer = again(folder)
    print(f"{answer['outcome']}: {answer.get('signature', 'no find')}\n{answer.get('text', '')}")
    return 1 if "signature" in answer else 0


def _say_find(signature: str, folder: Path, text: str) -> None:
    indented = "".join(f"    {line}\n" for line in text.splitlines()[-12:])
    print(f"find: {signature}\n{indented}    again: python -m tests.fuzz --again {folder}", flush=True)


def _summarise(tally: Tally, seconds: float) -> None:
    rate = tally.cases / max(seconds, 1e-9)
    print(
        f"\n{tally.cases} cases in {seconds:.0f} s, {rate:.0f} a second; the slowest {tally.slowest_s:.2f} s, ", end=""
    )
    print(f"the largest {tally.largest_bytes / 1e6:.0f} MB")
    for (target, outcome), count in sorted(tally.outcomes.items()):
        print(f"  {target}, {outcome}: {count}")
    print("mutations: " + ", ".join(f"{name} {count}" for name, count in tally.mutations.most_common()))
    for signature, count in tally.finds.most_common():
        print(f"find, {count} times: {signature}")
    print(f"{tally.finds.total()} finds of {len(tally.finds)} kinds")


if __name__ == "__main__":
    sys.exit(main())
