"""A pytest plug-in for tests on a GPU: after a test that broke the device, the others do not fail for it.

An illegal access breaks every later call of its process. Where tests run side by side, the process leaves and the plug-in that
runs them begins another; else the run ends there.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

from .errors import BROKEN


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Wait for the device, so that an error belongs to the test that caused it."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        message = f"{item.nodeid} broke the device: {error}"
        if "PYTEST_XDIST_WORKER" in os.environ:
            print(message, file=sys.stderr, flush=True)
            os._exit(BROKEN)  # the interpreter's own end would wait for the device
        pytest.exit(f"{message}; the tests after it were not run", returncode=1)
