"""Walkers over the masks of a large and of a small vocabulary."""

import pytest

from tests.support.grammar_cases import PADDING
from tests.support.grammar_walks import Walker, byte_walker


@pytest.fixture(scope="module")
def demo(demo_model_dir):
    walker = Walker(demo_model_dir, 49152 + PADDING)
    yield walker
    walker.grammars.close()


@pytest.fixture(scope="module")
def byte(tmp_path_factory):
    walker = byte_walker(tmp_path_factory.mktemp("bytes"))
    yield walker
    walker.grammars.close()


@pytest.fixture(params=["demo", "byte"])
def walker(request):
    return request.getfixturevalue(request.param)
