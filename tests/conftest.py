"""Shared by all tests: where the reference data lies, which is absent on a user's machine."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # networks as small as the tests' are fastest so
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference values; a test that needs it is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference data in ../shared")
    return SHARED
