"""Where the processor time of a message goes.

    python -m benchmarks.hotspots CASE [--driver amb] [--seconds S] [--lines] [--top N] [ARGUMENT ...]

A case of a driver in ``benchmarks/_drivers``, sampled by a timer that counts processor time: nothing is slowed down,
and others on the machine do not show. What a function spends in C code is its own. Own time first; "with callees" is
what would be saved if the function did not exist.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import FrameType

from benchmarks._drivers._child import Case

_EVERY = 0.001
_Place = tuple[str, int, str]


def main() -> None:
    parser = argparse.ArgumentParser(description="where the processor time of a message goes")
    parser.add_argument("case", help='a case of the driver: "one at a time", pump, request, requests, ...')
    parser.add_argument("--driver", default="amb", help="a module in benchmarks/_drivers (amb)")
    parser.add_argument("--seconds", type=float, default=6.0, help="processor time to sample (6)")
    parser.add_argument("--count", type=int, default=5_000, help="messages in one run (5000)")
    parser.add_argument("--lines", action="store_true", help="by line instead of by function")
    parser.add_argument("--top", type=int, default=25, help="places shown (25)")
    parser.add_argument("arguments", nargs="*", help="given to the driver")
    options = parser.parse_args()
    sys.argv[1:] = options.arguments
    cases: dict[str, Case] = import_module(f"benchmarks._drivers.{options.driver}").CASES
    if options.case not in cases:
        parser.error(f"no case {options.case!r}: one of {', '.join(cases)}")
    asyncio.run(cases[options.case](options.count))  # what is loaded and cached the first time is not asked for
    sampler = Sampler(options.lines)
    messages, seconds = 0, 0.0
    while seconds < options.seconds:
        seconds += sampler.sample(cases[options.case], options.count)
        messages += options.count
    sampler.show(seconds / messages * 1e6, options.top)


class Sampler:
    """Counts where the process is, every millisecond that it works."""

    def __init__(self, by_line: bool) -> None:
        self._by_line = by_line
        self._own: Counter[_Place] = Counter()
        self._below: Counter[_Place] = Counter()

    def sample(self, case: Case, count: int) -> float:
        """Run the case; returns the seconds of processor time."""
        begin = time.process_time()
        previous = signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, _EVERY, _EVERY)
        try:
            asyncio.run(case(count))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)
        return time.process_time() - begin

    def _take(self, _: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self._own[self._place(frame)] += 1
        seen = set[_Place]()
        above: FrameType | None = frame
        while above is not None:
            seen.add(self._place(above))
            above = above.f_back
        self._below.update(seen)

    def _place(self, frame: FrameType) -> _Place:
        code = frame.f_code
        return code.co_filename, frame.f_lineno if self._by_line else code.co_firstlineno, code.co_qualname

    def show(self, each: float, top: int) -> None:
        """Print the table, scaled to `each` µs for a message."""
        samples = self._own.total()
        print(f"{each:.1f} µs of processor time per message, {samples} samples")
        print(f"{'own µs':>8} {'with callees':>12}")
        for place, own in self._own.most_common(top):
            file, line, name = place
            where = f"{'/'.join(Path(file).parts[-2:])}:{line}"
            print(f"{own / samples * each:8.2f} {self._below[place] / samples * each:12.2f}  {name}  ({where})")


if __name__ == "__main__":
    main()
