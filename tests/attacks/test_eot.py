"""EOT: what it tells the attack, what it counts, and that only the mean of random classifiers is taken."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluate, sets
from jaxrobust.attacks.compose.eot import EOT, RandomClassifier, autoattack_rand, eot, mean_prediction
from jaxrobust.losses import log_odds
from jaxrobust.types import Classifier, Code, Misclassified
from tests import tiny

KEY = jax.random.key(3)
NOISE = 0.2


def shift(key, image):
    return image + NOISE * jax.random.normal(key, image.shape, image.dtype)


@pytest.fixture(scope="module")
def defence():
    return RandomClassifier.transformed(tiny.dense_classifier(), shift)


@pytest.fixture(scope="module")
def problem(defence):
    model = defence.mean(KEY, samples=6)
    return model, tiny.images_and_labels(model, 8)


def test_the_gradient_is_the_mean_of_the_samples_and_draws_are_fresh(defence, problem):
    model, (images, labels) = problem
    attack = eot(attacks.pgd(sets.Linf(0.1), steps=3, random_start=False), samples=4)
    image, label = jnp.asarray(images[0]), jnp.asarray(labels[0])

    @jax.jit
    def first_step(image, label):
        logits = jnp.zeros(tiny.CLASSES)
        state = attack.init(jax.random.key(1), image, Misclassified(label), logits)
        pairs = attack.ask(state)
        found, pull = jax.vjp(model, pairs)
        gradients = pull(attack.cotangents(state, found)[:, 0])[0]
        state = attack.tell(state, found, gradients[:, None])
        return pairs, gradients[:, 0], state, attack.ask(state)

    @jax.jit
    def mean_gradient(image, label, marks):
        def loss(image):
            keys = jax.vmap(lambda mark: jax.random.fold_in(KEY, mark))(marks)
            draws = defence.apply(defence.params, keys, jnp.broadcast_to(image, (4, *image.shape)))
            return jnp.mean(jax.vmap(lambda z: log_odds(z, label))(draws))

        return jax.grad(loss)(image)

    pairs, gradients, state, later = first_step(image, label)
    assert pairs.shape == (4, 2, *tiny.SHAPE)
    np.testing.assert_array_equal(pairs[:, 0], np.broadcast_to(images[0], (4, *tiny.SHAPE)))
    marks = np.asarray(pairs[:, 1, 0, 0, 0])
    expected = mean_gradient(image, label, marks.astype(np.uint32))
    np.testing.assert_allclose(gradients.mean(0), expected, atol=1e-5)
    assert np.abs(gradients[0] - gradients[1]).max() > 1e-4
    step = np.clip(0.25 / 3 * np.sign(expected), -images[0], 1 - images[0])
    np.testing.assert_allclose(state.state.theta, step, atol=1e-6)
    assert len(np.unique(np.append(marks, later[:, 1, 0, 0, 0]))) == 8


@pytest.mark.slow
def test_it_books_the_mean_prediction_and_counts_every_draw(problem):
    model, (images, labels) = problem
    attack = eot(attacks.pgd(sets.Linf(0.15), steps=3), samples=5)
    found = attacks.run(attack, model, images, labels, key=KEY)
    assert found.code[-1] == Code.ALREADY
    assert (np.asarray(found.forwards[:-1]) == 1 + 5 * 5).all()
    assert (np.asarray(found.backwards[:-1]) == 5 * 3).all()
    assert float(np.abs(np.asarray(found.images) - images).max()) <= 0.15 + 1e-6
    wrong = np.asarray(jax.jit(model)(found.images)).argmax(-1) != labels
    assert wrong[np.asarray(found.success)].all()
    assert found.success[:-1].any()


@pytest.mark.slow
def test_it_runs_in_the_lanes_alone_as_in_company(problem):
    model, (images, labels) = problem
    attack = eot(attacks.pgd(sets.Linf(0.15), steps=3), samples=5)
    options = {"key": KEY, "lanes": 4, "early_stop": False, "devices": jax.local_devices()[:1]}
    together = evaluate.run_lanes(attack, model, images, labels, **options).result
    some = np.array([5, 2])
    alone = evaluate.run_lanes(attack, model, images[some], labels[some], indices=some, **options).result
    np.testing.assert_allclose(alone.images, together.images[some], atol=2e-5)
    np.testing.assert_array_equal(alone.success, together.success[some])


def test_the_mean_of_one_certain_model_is_the_model(problem):
    _, (images, _) = problem
    network = tiny.dense_classifier()
    mean = RandomClassifier.transformed(network, lambda key, image: image).mean(KEY, samples=3)
    np.testing.assert_allclose(jax.jit(mean)(images), jax.nn.log_softmax(network(images)), atol=1e-5)
    rows = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    np.testing.assert_allclose(jnp.exp(mean_prediction(rows)), [0.375, 0.625], rtol=1e-5)


@pytest.mark.slow
def test_attacks_without_gradients_and_other_radii(problem):
    model, (images, labels) = problem
    attack = eot(attacks.worst_of_k(sets.Linf(0.1), samples=4, chunk=3), samples=2)
    assert (attack.width, attack.asks, attack.gradients) == (6, 3, 0)
    found = attacks.run(attack, model, images, labels, key=KEY)
    assert (np.asarray(found.forwards[:-1]) == 1 + 2 * 4 + 2).all()
    wide = attack.with_radius(0.3)
    assert isinstance(wide, EOT)
    assert float(wide.set.radius) == 0.3


@pytest.mark.slow
def test_without_randomness_it_is_the_attack_itself(problem):
    _, (images, labels) = problem
    network = tiny.dense_classifier()
    mean = RandomClassifier.transformed(network, lambda key, image: image).mean(KEY, samples=2)
    attack = attacks.pgd(sets.Linf(0.05), steps=3, random_start=False)
    plain = attacks.run(attack, network, images, labels, key=KEY)
    found = attacks.run(eot(attack, samples=2), mean, images, labels, key=KEY)
    np.testing.assert_allclose(found.images, plain.images, atol=1e-6)
    np.testing.assert_array_equal(found.success, plain.success)
    np.testing.assert_allclose(found.loss, plain.loss, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_autoattack_rand_breaks_a_noisy_model(problem):
    model, data = problem
    suite = autoattack_rand(sets.Linf(0.3), samples=6, steps=10)
    assert list(suite) == ["apgd-ce", "apgd-dlr"]
    found = evaluate.autoattack(model, data, attacks=suite, key=KEY, progress=False)
    assert found.union.accuracy < 0.3
    assert not (found.outcomes["apgd-ce"].code == Code.DISAGREED).any()


def test_runs_from_the_clean_image_differ_by_their_draws():
    assert attacks.restarts(eot(attacks.bim(sets.Linf(0.1))), 3).restarts == 3
    with pytest.raises(ValueError, match="n must be 1 for an attack of which nothing is random"):
        attacks.restarts(attacks.bim(sets.Linf(0.1)), 3)


def test_bad_input_is_refused(problem):
    _, (images, labels) = problem
    plain = tiny.dense_classifier()
    attack = eot(attacks.pgd(sets.Linf(0.1), steps=2), samples=2)
    with pytest.raises(ValueError, match="model must be a RandomClassifier's mean"):
        attacks.run(attack, plain, images, labels, key=KEY)
    with pytest.raises(TypeError, match="attack"):
        eot(attacks.pgd)
    with pytest.raises(ValueError, match="samples must be >= 1; got 0"):
        eot(attack.attack, samples=0)
    with pytest.raises(TypeError, match="key"):
        RandomClassifier(lambda p, k, x: x, ()).mean(0)
    assert dataclasses.replace(attack, samples=3).width == 3
    assert isinstance(RandomClassifier(plain.apply, plain.params).mean(KEY), Classifier)
