"""Libraries that keep to themselves what the user cannot use."""

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
    """No progress bars and no warnings of diffusers and transformers: what matters among them is
    checked and said by us, with a remedy. The hub's download bars are left alone."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    hub = huggingface_hub.utils.logging
    hub_verbosity = hub.get_verbosity()
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in libraries]
    try:
        for log in libraries:
            # CRITICAL, because transformers reports missing weights as a table of warnings and
            # diffusers logs an error when it goes on to try a pickle.
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
    """The switch of transformers is also the hub's, which hides gigabytes of downloading."""
    hub = not are_progress_bars_disabled()
    (log.enable_progress_bar if shown else log.disable_progress_bar)()
    if hub and are_progress_bars_disabled():
        enable_progress_bars()
