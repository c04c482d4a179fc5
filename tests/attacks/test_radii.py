"""Radii of shape (N,), one an example; that each attack takes them is a law, see `jaxrobust.testing`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.core import engine
from jaxrobust.types import Misclassified
from tests import tiny

KEY = jax.random.key(7)

COMBINED = {
    "union": lambda radii: sets.Union((sets.Linf(radii), sets.L2(1.0)), 0.5 * radii / radii.mean()),
    "sequence": lambda radii: sets.sequence(sets.L2(radii), sets.Linf(0.02)),
    "affine": lambda radii: sets.Affine((sets.Linf(radii), sets.L2(radii))),
    "masked": lambda radii: sets.Masked(sets.Linf(radii), np.arange(30).reshape(6, 5, 1) % 3 > 0),
    "scaled": lambda radii: sets.scaled(sets.Linf(radii), 0.5),
}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "union" else [pytest.mark.slow]) for k in COMBINED])
def test_parts_may_have_radii_of_their_own(kind):
    classifier = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(classifier)
    radii = np.resize([0.05, 0.1], len(images))
    attack = attacks.pgd(COMBINED[kind](radii), steps=3)
    found = attacks.run(attack, classifier, images, labels, key=KEY)
    for i in (0, 1):
        own = engine.of_examples(attack, i)
        assert all(jnp.ndim(leaf) != 1 for leaf in jax.tree.leaves(own))
        alone = attacks.run(own, classifier, images, labels, key=KEY)
        np.testing.assert_array_equal(np.asarray(found.images)[i], np.asarray(alone.images)[i])


def test_inside_jit_and_under_vmap():
    classifier = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(classifier)
    radii = np.linspace(0.01, 0.1, len(images))
    attack = attacks.pgd(sets.Linf(0.1), steps=2)

    @jax.jit
    def ladder(scales):
        def sizes(scale):
            return attacks.run(attack.with_radius(radii * scale), classifier, images, labels, key=KEY).size

        return jax.vmap(sizes)(scales)

    sizes = np.asarray(ladder(jnp.array([0.5, 1.0])))
    assert sizes.shape == (2, len(images))
    assert (sizes <= np.array([[0.5], [1.0]]) * radii + 1e-6).all()
    assert sizes[1, 1] > 0.5 * radii[1]


def test_radii_of_other_lengths_are_refused():
    classifier = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(classifier)
    keys = engine.example_keys(KEY, jnp.arange(8))
    for radii in (np.full(3, 0.1), np.full((len(images), 1), 0.1), np.zeros(0)):
        attack = attacks.worst_of(attacks.pgd(sets.Linf(radii), steps=2), attacks.pgd(sets.L2(0.5), steps=2))
        with pytest.raises(ValueError, match=r"radius must be one number or have shape \(8,\), one an image; got"):
            attacks.run(attack, classifier, images, labels, key=KEY)
        with pytest.raises(ValueError, match="radius must be one number or"):
            attacks.trajectory(attack, classifier, images, labels, key=KEY)
        with pytest.raises(ValueError, match="radius must be one number or"):
            engine.last_iterate(attack, classifier, jnp.asarray(images), Misclassified(labels), keys)
    with pytest.raises(ValueError, match="radius must be one number here"):
        attacks.universal_perturbation(classifier, images, sets.Linf(np.full(8, 0.1)), key=KEY)
    with pytest.raises(ValueError, match="radius must be finite and >= 0"):
        sets.Linf(np.array([0.1, -0.1]))
    attack = attacks.fgsm(sets.Union((sets.Linf(jnp.full(8, -0.1)), sets.L2(0.3))))
    with pytest.raises(ValueError, match="radius must be finite and >= 0"):
        attacks.run(attack, classifier, images, labels, key=KEY)


def test_how_they_are_written():
    assert str(sets.Linf(np.array([8 / 255, 0.1, 0.3]))) == "Linf(8/255 to 0.3)"
    assert str(sets.Linf(jnp.array([0.1, 0.5]))) == "Linf(0.1 to 0.5)"
