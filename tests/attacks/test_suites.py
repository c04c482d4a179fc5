"""Suites: what is in them, and at which radius."""

import pytest

from jaxrobust import attacks
from jaxrobust.attacks.suites import SUITES


@pytest.mark.parametrize("name", sorted(SUITES))
def test_one_radius_for_all(name):
    radius = 0.25
    for attack in attacks.suite(name, radius=radius).values():
        assert attack.set.radius == radius
        assert type(attack.set).__name__.lower() == name.rsplit("-", 1)[1]


def test_standard_is_the_published_one():
    ce, targeted, fab, square = attacks.suite("autoattack-l2").values()
    assert (ce.steps, ce.restarts, ce.loss, ce.targets) == (100, 1, "cross_entropy", 0)
    assert (targeted.steps, targeted.restarts, targeted.loss, targeted.targets) == (100, 9, "dlr", 9)
    assert (fab.steps, fab.restarts, fab.targets) == (100, 9, 9)
    assert (square.budget, square.p, square.loss, square.rescale_schedule) == (5000, 0.8, "margin", False)
    ce, targeted, _, _ = attacks.suite("autoattack-l1").values()
    assert (ce.restarts, ce.large_radii, targeted.targets, targeted.large_radii) == (5, True, 5, True)


def test_minimal_measures_in_every_norm():
    assert {type(attack.set).__name__ for attack in attacks.suite("minimal").values()} == {"L0", "L1", "L2", "Linf"}
    with pytest.raises(ValueError, match="radius must be None"):
        attacks.suite("minimal", radius=1.0)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="name must be one of"):
        attacks.suite("autoattack")
