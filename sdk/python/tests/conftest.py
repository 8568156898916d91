"""What the tests share.

The tests with the mark `market` need a running market: `tests/tests/machines/python.rs` starts one and runs them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import gpubnb

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def client() -> Iterator[gpubnb.Client]:
    with gpubnb.Client() as client:
        yield client


@pytest.fixture
def image() -> str:
    """An image with the Python of these tests, which the market's machines have."""
    return os.environ["GPUBNB_TEST_IMAGE"]
