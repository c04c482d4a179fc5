"""Suites: what is in them, and at which radius."""

import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.suites import SUITES, UNFORESEEN
from jaxrobust.types import Classifier

NETWORK = Classifier(lambda w, x: x, None, activations=lambda w, x: (x,))


@pytest.mark.parametrize("name", sorted(SUITES))
def test_one_radius_for_all(name):
    radius = 0.25
    for attack in attacks.suite(name, radius=radius).values():
        assert attack.set.radius == radius
        assert type(attack.set).__name__.lower() == name.rsplit("-", 1)[1]


def test_standard_is_the_published_one():
    ce, targeted, fab, square = attacks.suite("autoattack-l2").values()
    assert (ce.steps, ce.restarts, ce.loss) == (100, 1, "cross_entropy")
    assert (targeted.attack.steps, targeted.restarts, targeted.attack.loss, targeted.targets) == (100, 9, "dlr", 9)
    assert (fab.steps, fab.restarts, fab.targets) == (100, 9, 9)
    assert (square.budget, square.p, square.loss, square.rescale_schedule) == (5000, 0.8, "margin", False)
    ce, targeted, _, _ = attacks.suite("autoattack-l1").values()
    assert (ce.restarts, ce.large_radii, targeted.targets, targeted.attack.large_radii) == (5, True, 5, True)


@pytest.mark.parametrize("name", [*sorted(SUITES), *UNFORESEEN, "minimal", "pat-cifar10"])
def test_cheapened_suites_say_so(name):
    whole, less = attacks.suite(name), attacks.suite(name, steps=3)
    assert whole.cheapened is None
    assert less.cheapened.startswith("3 steps of ")
    assert less.cheapened.endswith("; not the standard suite")
    assert less.keys() == whole.keys()
    for cheap, attack in zip(less.values(), whole.values(), strict=True):
        assert cheap.gradients < attack.gradients or (cheap == attack and not attack.gradients)
    most = attacks.suite(name, steps=200 if name in UNFORESEEN else 100)
    assert most.cheapened is None
    assert str(most) == str(whole)


def test_a_cheapened_suite_is_one_with_more_attacks_too():
    less, more = attacks.suite("autoattack-linf", steps=3), {"fgsm": attacks.fgsm(sets.Linf(0.1))}
    for made in (less | more, more | less, less.copy(), less | attacks.suite("minimal")):
        assert made.cheapened == less.cheapened
    assert (attacks.suite("minimal") | more).cheapened is None


def test_how_suites_are_cheapened():
    made = attacks.suite("autoattack-linf", steps=20, queries=500)
    assert made.cheapened == "20 steps of 100, 500 queries of 5,000; not the standard suite"
    assert [getattr(getattr(attack, "attack", attack), "steps", 0) for attack in made.values()] == [20, 20, 20, 0]
    assert made["square"].budget == 500
    assert attacks.suite("minimal", steps=40).cheapened == "40 steps of 50 or 100; not the standard suite"
    assert attacks.suite("minimal", steps=70)["deepfool-l2"].steps == 50
    assert attacks.suite("minimal", steps=70).cheapened == "70 steps of 100; not the standard suite"


@pytest.mark.parametrize(
    ("name", "option", "error", "message"),
    [
        ("autoattack-linf", {"steps": 101}, ValueError, "steps must be at most 100, as the suite"),
        ("autoattack-linf", {"queries": 0}, ValueError, "queries must be >= 1; got 0"),
        ("autoattack-linf", {"steps": True}, TypeError, "steps must be an integer; got True"),
        ("autoattack-rand-l2", {"queries": 9}, ValueError, "queries must be None for the suite 'autoattack-rand-l2'"),
    ],
)
def test_what_cannot_be_cheapened_is_refused(name, option, error, message):
    with pytest.raises(error, match=message):
        attacks.suite(name, **option)


def test_minimal_measures_in_every_norm():
    assert {type(attack.set).__name__ for attack in attacks.suite("minimal").values()} == {"L0", "L1", "L2", "Linf"}
    with pytest.raises(ValueError, match="radius must be None"):
        attacks.suite("minimal", radius=1.0)


def test_rand_is_the_published_one():
    ce, dlr = attacks.suite("autoattack-rand-linf").values()
    assert (ce.samples, ce.attack.steps, ce.attack.restarts, ce.attack.loss) == (20, 100, 1, "cross_entropy")
    assert (dlr.samples, dlr.attack.steps, dlr.attack.restarts, dlr.attack.loss) == (20, 100, 1, "dlr")


def test_pat_has_the_published_bounds_and_steps():
    made = attacks.suite("pat-cifar10")
    bounds = {name: (type(attack.set).__name__, float(attack.set.radius)) for name, attack in made.items()}
    lp = ("apgd-ce", "apgd-t", "fab-t", "square")
    assert bounds == {
        **{f"linf-{name}": ("Linf", pytest.approx(8 / 255)) for name in lp},
        **{f"l2-{name}": ("L2", 1.0) for name in lp},
        "stadv": ("Flow", 0.05),
        "recoloradv": ("ReColor", 0.06),
        "ppgd": ("Perceptual", 0.5),
        "lpa": ("Perceptual", 0.5),
    }
    assert (made["stadv"].steps, made["recoloradv"].steps, made["ppgd"].steps, made["lpa"].steps) == (100, 100, 40, 40)
    # the attacked model measures, unless another network is given
    assert made["lpa"].set.network is None
    made = attacks.suite("pat-cifar10", network=NETWORK)
    assert made["lpa"].set.network is NETWORK
    assert made["ppgd"].set.network is NETWORK


@pytest.mark.parametrize("name", UNFORESEEN)
def test_unforeseen_takes_one_rung_of_every_ladder(name):
    ladders = attacks.LADDERS[UNFORESEEN[name]]
    for level in range(1, 7):
        made = attacks.suite(name, level=level)
        assert list(made) == list(ladders)
        for attack, sizes in ladders.items():
            share = 255 if attack in ("linf", "l2", "l1") else 1
            assert made[attack].set.radius == pytest.approx(sizes[level - 1] / share)
            assert made[attack].steps == 200
    assert attacks.suite(name)["linf"].set == sets.Linf(8 / 255)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attacks.suite("unforeseen", level=7), "level must be at most 6; got 7"),
        (lambda: attacks.suite("unforeseen", level=0), "level must be >= 1; got 0"),
        (lambda: attacks.suite("unforeseen", radius=0.1), "radius must be None for the suite 'unforeseen'"),
        (lambda: attacks.suite("pat-cifar10", radius=0.1), "radius must be None for the suite 'pat-cifar10'"),
        (lambda: attacks.suite("autoattack-linf", level=3), "level must be None for the suite 'autoattack-linf'"),
        (lambda: attacks.suite("minimal", network=NETWORK), "network must be None for the suite 'minimal'"),
    ],
)
def test_what_a_suite_does_not_have_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="name must be one of"):
        attacks.suite("autoattack")
