import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Different thread counts give different bits; the tests compare bits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
