"""The laws of `laws.py` over one half of the registered sets."""

import pytest

from jaxrobust import sets
from tests.sets.laws import *  # noqa: F403


@pytest.fixture(params=sorted(sets.REGISTRY)[0::2])
def name(request):
    return request.param
