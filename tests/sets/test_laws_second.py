"""The laws of `laws.py` over the other half of the registered sets."""

import pytest

from tests.sets.laws import *  # noqa: F403
from tests.sets.laws import share


@pytest.fixture(params=share(1), scope="module")
def name(request):
    return request.param
