"""The schedules and sizes of Kang et al."""

import jax
import pytest

from jaxrobust import attacks
from jaxrobust.attacks.gradient.frank_wolfe import FrankWolfe
from jaxrobust.attacks.gradient.unforeseen import LADDERS, kang, unforeseen_sets
from jaxrobust.evaluate import ATA
from jaxrobust.sets import L1, L2, Linf
from jaxrobust.sets.jpeg import JPEG
from jaxrobust.sets.weather import Fog, Gabor, Snow
from tests import tiny


def test_sizes_are_the_published_ones_in_our_units():
    cifar, imagenet = unforeseen_sets("cifar10"), unforeseen_sets("imagenet100")
    assert set(imagenet) - set(cifar) == {"fog", "gabor", "snow"}
    assert [float(s.radius) for s in cifar["linf"]] == pytest.approx([2**k / 255 for k in range(6)])
    assert [float(s.radius) for s in imagenet["fog"]] == [128, 256, 512, 2048, 4096, 8192]
    # the l1 attack is published per coordinate, ε · H · W · 3 in all
    assert float(cifar["l1"][0].radius) == pytest.approx(0.0634766 * 32 * 32 * 3 / 255, rel=1e-5)
    assert float(imagenet["l1"][5].radius) == pytest.approx(4.065689 * 224 * 224 * 3 / 255, rel=1e-5)
    assert {type(s).__name__ for s in imagenet["jpeg_l2"]} == {"JPEG"}
    assert {s.norm for s in imagenet["jpeg_l1"]} == {"l1"}
    for dataset, ladders in LADDERS.items():
        assert {name: len(sizes) for name, sizes in ladders.items()} == dict.fromkeys(ATA[dataset], 6)
        assert all(list(sizes) == sorted(set(sizes)) for sizes in ladders.values())


def test_unknown_data_sets_are_refused():
    with pytest.raises(ValueError, match="dataset must be one of"):
        unforeseen_sets("mnist")


@pytest.mark.parametrize("perturbation_set", [Linf(0.1), L2(1.0), JPEG(0.5), JPEG(8.0, norm="l2")], ids=str)
def test_steps_shrink_with_the_root_of_their_number(perturbation_set):
    assert kang(perturbation_set).relative_step_size == pytest.approx(0.0707107, rel=1e-5)
    assert kang(perturbation_set, steps=25).relative_step_size == pytest.approx(0.2)
    assert kang(perturbation_set).start == "random"


@pytest.mark.parametrize("perturbation_set", [Fog(512.0), Gabor(25.0), Snow(0.25)], ids=str)
def test_weather_has_steps_of_its_own(perturbation_set):
    assert kang(perturbation_set).relative_step_size == pytest.approx(0.002236, rel=1e-3)


@pytest.mark.parametrize("perturbation_set", [L1(10.0), JPEG(64.0, norm="l1")], ids=["l1", "jpeg_l1"])
def test_l1_is_frank_wolfe(perturbation_set):
    made = kang(perturbation_set, steps=7)
    assert isinstance(made, FrankWolfe)
    assert (made.steps, made.averaging, made.start) == (7, "1/(t+1)", "random")


def test_bad_arguments():
    with pytest.raises(ValueError, match="steps must be >= 1; got 0"):
        kang(Fog(1.0), steps=0)


@pytest.mark.parametrize(
    "name",
    ["jpeg_linf", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fog", "gabor", "snow", "jpeg_l1"))],
)
def test_searches_climb(name):
    """The loss at the last of forty points is higher than at the first, a random member."""
    shape = (16, 16, 1)
    model = tiny.dense_classifier(shape=shape)
    images, labels = tiny.images_and_labels(model, shape=shape)
    made = kang(unforeseen_sets("imagenet100")[name][2], steps=40)
    losses = attacks.trajectory(made, model, images, labels, key=jax.random.key(0))[:, :-1]
    assert losses[-1].mean() > losses[0].mean() + 0.01
    assert (losses[-1] >= losses[0] - 1e-3).mean() > 0.7
