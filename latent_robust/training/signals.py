"""SIGTERM and Ctrl-C: finish the current step, save, and stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
from accelerate import Accelerator


class StopRequest:
    """A context that records the first signal. A second one has its usual effect."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}  # signal -> handler before this context

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, accelerator: Accelerator) -> bool:
        """True on all ranks once any rank has received a signal. Called on all ranks."""
        if accelerator.num_processes == 1:
            return self.received
        flag = torch.tensor(float(self.received), device=accelerator.device)
        return accelerator.reduce(flag, "sum").item() > 0

    def _record(self, number: int, frame: object) -> None:
        self.received = True
        signal.signal(number, self._previous[number])
