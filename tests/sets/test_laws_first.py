"""The laws of `laws.py` over one half of the registered sets."""

import pytest

from tests.sets.laws import *  # noqa: F403
from tests.sets.laws import share


@pytest.fixture(params=share(0), scope="module")
def name(request):
    return request.param
