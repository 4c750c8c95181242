"""Command lines: expected errors end them with one sentence."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

# As a shell says of a command that Ctrl-C ended.
INTERRUPTED = 130
Main = Callable[[Sequence[str] | None], int]


def ends_with_a_sentence(start: str, *errors: type[Exception]) -> Callable[[Main], Callable[..., int]]:
    """Decorates a command's main(argv): one of `errors` is printed as "start: reason", with exit code 1; Ctrl-C gives
    130."""

    def decorate(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv)
            except KeyboardInterrupt:
                sys.stderr.write(f"{start}: interrupted\n")
                return INTERRUPTED
            except errors as error:
                sys.stderr.write(f"{start}: {error}\n")
                return 1

        return guarded

    return decorate
