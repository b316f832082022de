"""A scheduler and the requests that it gets."""

import pytest

from tests.support.scheduler_desk import Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()
