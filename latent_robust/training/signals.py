"""SIGTERM and Ctrl-C mean: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading

import torch
from accelerate import Accelerator


class StopRequest:
    """While active, the first signal is remembered and the second one acts as usual."""

    def __init__(self):
        self.received = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, accelerator: Accelerator) -> bool:
        """True on every rank once any rank has received a signal."""
        if accelerator.num_processes == 1:
            return self.received
        flag = torch.tensor(float(self.received), device=accelerator.device)
        return accelerator.reduce(flag, "sum").item() > 0

    def _remember(self, number: int, frame) -> None:
        self.received = True
        signal.signal(number, self._previous[number])
