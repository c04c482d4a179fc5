"""The registry, and what the face of a set answers unless said otherwise."""

import pytest

from jaxrobust import sets


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="'linf' again"):
        sets.register("linf", lambda: sets.Linf(0.1))
