"""Silence library messages that a user cannot act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import huggingface_hub
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Hide the progress bars and warnings of diffusers and transformers inside. What matters among
    them is checked by this package and reported with a remedy. The Hub's download bars stay."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    hub = huggingface_hub.utils.logging
    hub_verbosity = hub.get_verbosity()
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in libraries]
    try:
        for log in libraries:
            # CRITICAL, because transformers lists missing weights in a table of warnings, and
            # diffusers logs an error before it tries a pickle.
            log.set_verbosity(log.CRITICAL)
            _show_bars(log, False)
        hub.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            _show_bars(log, bars)
        hub.set_verbosity(hub_verbosity)


def _show_bars(log, shown: bool) -> None:
    """Show or hide a library's progress bars. The switch of transformers also hides the Hub's bars,
    so that gigabytes would be downloaded unseen: those are shown again."""
    hub = not are_progress_bars_disabled()
    (log.enable_progress_bar if shown else log.disable_progress_bar)()
    if hub and are_progress_bars_disabled():
        enable_progress_bars()
