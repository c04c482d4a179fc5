"""The door and the loops of the in-jit engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import _checks, attacks, sets
from jaxrobust.attacks import engine
from jaxrobust.models import SmallCNN
from jaxrobust.types import Classifier, Misclassified, Targeted
from tests import tiny

KEY = jax.random.key(0)
ATTACK = attacks.pgd(sets.Linf(0.1), steps=3)


def good():
    network = tiny.dense_classifier()
    return network, *tiny.images_and_labels(network, 4)


def run(network=None, images=None, labels=None, attack=ATTACK):
    given = (network, images, labels)
    chosen = (d if g is None else g for d, g in zip(good(), given, strict=True))
    return attacks.run(attack, *chosen, key=KEY)


X = np.full((4, *tiny.SHAPE), 0.5, np.float32)
ZEROS = np.zeros(4, int)


def function(forward):
    """The arguments of a bad model."""
    return {"network": Classifier.from_function(forward), "labels": ZEROS}


BAD_INPUT = {
    "too bright": ({"images": X * 3}, ValueError, r"images must lie in \[0, 1\].*got values in \[1.5, 1.5\]"),
    "negative": ({"images": -X}, ValueError, r"images must lie in \[0, 1\]"),
    "NaN image": ({"images": X * np.nan}, ValueError, r"images must lie in \[0, 1\]"),
    "bytes": ({"images": (X * 255).astype(np.uint8)}, TypeError, "images must be floating.*got dtype uint8"),
    "rank 3": ({"images": X[0]}, ValueError, r"shape \(N, H, W, C\); got \(6, 5, 2\).*images\[None\]"),
    "empty": ({"images": X[:0], "labels": ZEROS[:0]}, ValueError, r"at least one image.*\(0, 6, 5, 2\)"),
    "a list": ({"images": [[1.0]]}, TypeError, "images must be an array; got list"),
    "float labels": ({"labels": np.zeros(4)}, TypeError, "labels must be an array of integers; got float64"),
    "few labels": ({"labels": ZEROS[:3]}, ValueError, r"labels must have shape \(4,\).*got \(3,\)"),
    "label too large": ({"labels": np.array([0, 1, 2, 4])}, ValueError, r"labels must lie in \[0, 4\).*\[0, 4\]"),
    "label negative": ({"labels": np.array([0, 1, 2, -1])}, ValueError, r"labels must lie in \[0, 4\)"),
    "target too large": ({"labels": Targeted(np.full(4, 9))}, ValueError, r"targets must lie in \[0, 4\)"),
    "own target": (
        {"labels": Targeted(np.array([1, 0, 2, 3]), np.array([1, 1, 2, 0]))},
        ValueError,
        "targets must be other classes than the labels; got 2 of 4 images",
    ),
    "probabilities": (
        function(lambda x: jax.nn.softmax(x.reshape(len(x), -1)[:, :3])),
        ValueError,
        "what look like probabilities",
    ),
    "one class": (function(lambda x: x.sum((1, 2, 3))[:, None]), ValueError, "at least 2 classes"),
    "no batch axis": (function(lambda x: x.sum((0, 1, 2))), ValueError, r"logits of shape \(4, K\); got \(2,\)"),
    "integer logits": (function(lambda x: x.sum((1, 2)).astype(jnp.int32)), TypeError, "floating logits"),
    "NaN model": (function(lambda x: x.sum((1, 2)) * jnp.nan), ValueError, "only NaN or infinity"),
    "NaN weights": (
        {"network": Classifier(tiny.conv_net, tiny.conv_params() | {"flat": jnp.full((150, 4), jnp.nan)})},
        ValueError,
        r"model.params must be finite.*\['flat'\]",
    ),
    "array radius": (
        {"attack": ATTACK.with_radius(jnp.asarray(-0.1))},
        ValueError,
        "radius must be finite and >= 0; got",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused(case):
    arguments, error, message = BAD_INPUT[case]
    with pytest.raises(error, match=message):
        run(**arguments)


def test_an_attack_is_an_attack():
    with pytest.raises(TypeError, match="attack must be an Attack such as"):
        engine.check_attack(attacks.pgd)


@pytest.mark.parametrize("key", [0, np.zeros(2, np.uint32), jnp.zeros(2, jnp.uint32), jax.random.split(KEY)])
def test_a_key_is_a_typed_key(key):
    with pytest.raises(TypeError, match=r"key must be one typed key such as jax.random.key\(0\); got"):
        _checks.key(key)


def test_a_key_that_does_not_map_is_refused():
    with pytest.raises(ValueError, match="its numbers change under vmap"):
        _checks.key(jax.random.key(0, impl="rbg"))


def test_a_random_model_is_refused():
    keys = iter(range(100))

    def noisy(images):
        seed = jax.pure_callback(lambda: np.int32(next(keys)), jax.ShapeDtypeStruct((), jnp.int32))
        return images.sum((1, 2)) + jax.random.normal(jax.random.key(seed), (images.shape[0], 2))

    with pytest.raises(ValueError, match="must be deterministic; got different logits"):
        run(network=Classifier.from_function(noisy), labels=np.zeros(4, int))


def test_an_nchw_model_is_told_so():
    def wants_channels_first(images):
        kernel = jnp.ones((3, 3, 3, 2))
        dims = ("NCHW", "HWIO", "NCHW")
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dims).mean((2, 3))

    images = np.full((4, 8, 8, 3), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"NCHW, here \(4, 3, 8, 8\), needs a transpose"):
        run(network=Classifier.from_function(wants_channels_first), images=images)


def test_checks_can_be_left_out():
    network = Classifier.from_function(lambda x: jax.nn.softmax(x.reshape(len(x), -1)[:, :3]))
    images, labels = tiny.images_and_labels(network, 4)
    assert attacks.run(ATTACK, network, images, labels, key=KEY, check=False).images.shape == images.shape


def test_run_inside_jit_and_over_stacked_models():
    """Two models of one architecture in one compiled call, each as if alone."""
    images, labels = tiny.images_and_labels(tiny.dense_classifier(), 4)
    both = jax.tree.map(lambda *p: jnp.stack(p), tiny.dense_params(0), tiny.dense_params(1))

    @jax.jit
    def attack_both(params):
        def one(params):
            return attacks.run(ATTACK, Classifier(tiny.dense_net, params), images, labels, key=KEY)

        return jax.vmap(one)(params)

    together = attack_both(both)
    for seed in (0, 1):
        alone = attacks.run(ATTACK, tiny.dense_classifier(seed), images, labels, key=KEY)
        np.testing.assert_allclose(together.images[seed], alone.images, atol=1e-4)
        np.testing.assert_array_equal(together.success[seed], alone.success)


@pytest.mark.slow
def test_ways_to_loop_agree(monkeypatch):
    """Unrolled, scanned and stepped from the host give the same result."""
    network = tiny.conv_classifier()
    images, labels = tiny.images_and_labels(network, 4)
    made = attacks.pgd(sets.Linf(0.1), steps=4)
    goal, keys = Misclassified(jnp.asarray(labels)), attacks.example_keys(KEY, np.arange(4))
    arguments = (made, network, jnp.asarray(images), goal, keys)
    scanned = engine._search(*arguments, stop="clean", unroll=False)
    unrolled = engine._search(*arguments, stop="clean", unroll=True)
    stepped = engine._stepped(*arguments, stop="clean")
    for other in (unrolled, stepped):
        for left, right in zip(jax.tree.leaves(scanned), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)


def test_slow_loops_are_recognised():
    """The usual convolution's gradient is not in the form that XLA:CPU runs well inside a loop; our layer's is."""

    def loops_well(model, images):
        goal = Misclassified(jnp.zeros(len(images), jnp.int32))
        return engine._loops_well(attacks.pgd(sets.Linf(0.1)), model, images, goal)

    images = jnp.zeros((2, *tiny.SHAPE))
    assert not loops_well(tiny.conv_classifier(), images)
    assert loops_well(tiny.linear_classifier(np.random.default_rng(0)), images)
    ours = Classifier.from_nnx(SmallCNN(channels=2, rngs=nnx.Rngs(0)))
    assert loops_well(ours, jnp.zeros((2, 8, 8, 2)))


def test_training_follows_every_example_to_the_last_iterate():
    """`last_iterate` neither freezes what is misclassified already nor goes back to the best."""
    network, images, labels = good()
    wrong = Misclassified(jnp.asarray((labels + 1) % tiny.CLASSES))
    keys = attacks.example_keys(KEY, np.arange(4))
    made = attacks.pgd(sets.Linf(0.05), steps=8)
    last = engine.last_iterate(made, network, jnp.asarray(images), wrong, keys)
    assert float(jnp.abs(last - images).max((1, 2, 3)).min()) > 0.04


def test_last_iterate_stops_gradients():
    _, images, labels = good()
    keys = attacks.example_keys(KEY, np.arange(4))

    def outer(params):
        model = Classifier(tiny.dense_net, params)
        return engine.last_iterate(ATTACK, model, jnp.asarray(images), Misclassified(jnp.asarray(labels)), keys).sum()

    gradient = jax.grad(outer)(tiny.dense_params())
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradient))


def test_trajectory_starts_at_the_start_and_rises():
    network, images, labels = good()
    losses = attacks.trajectory(
        attacks.pgd(sets.Linf(0.1), steps=5, random_start=False), network, images, labels, key=KEY
    )
    assert losses.shape == (6, 4)
    clean = -jax.nn.log_softmax(network(images))[np.arange(4), labels]
    np.testing.assert_allclose(losses[0], clean, rtol=1e-4, atol=1e-6)
    assert losses[-1, :3].mean() > losses[0, :3].mean()
