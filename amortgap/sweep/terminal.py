"""A running sweep and its terminal: progress on stderr, and interrupts that let running cells finish."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import tqdm
import tqdm.contrib.logging

# Between two lines of progress where there is no terminal.
TELL_SECONDS = 30.0


class Interrupts:
    """Context in which the first SIGINT or SIGTERM sets `requested`, and the second raises KeyboardInterrupt."""

    requested = False

    def __enter__(self) -> None:
        in_main_thread = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        self._previous = {number: signal.signal(number, self._on_signal) for number in signals}

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after the running cells; once more to stop now. Finished cells are kept.", file=sys.stderr)


@contextlib.contextmanager
def show_progress(total: int, status: Mapping[str, str]) -> Iterator[Callable[[str], None]]:
    """Show cells done and failed on stderr: a live line on a terminal, otherwise a line every half minute."""
    live = sys.stderr.isatty()
    loggers = [logging.getLogger("amortgap")] if live else []
    bar = tqdm.tqdm(total=total, initial=len(status), unit="cell", disable=not live, dynamic_ncols=True)
    failed = sum(value == "failed" for value in status.values())
    done, ended, began = len(status), threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(TELL_SECONDS):
            print(
                f"{done} of {total} cells done, {failed} failed, {(time.monotonic() - began) / 60:.1f} minutes",
                file=sys.stderr,
                flush=True,
            )

    def step(outcome: str) -> None:
        nonlocal done, failed
        done, failed = done + 1, failed + (outcome == "failed")
        bar.set_postfix(failed=failed, refresh=False)
        bar.update()

    if not live:
        threading.Thread(target=tell, daemon=True).start()
    try:
        with bar, tqdm.contrib.logging.logging_redirect_tqdm(loggers):
            bar.set_postfix(failed=failed)
            yield step
    finally:
        ended.set()
