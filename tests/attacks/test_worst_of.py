"""Several attacks as one, against the same attacks run apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluate, sets
from jaxrobust.attacks.compose.worst_of import worst_of
from jaxrobust.attacks.core import engine
from jaxrobust.attacks.queries.search import worst_of_k
from jaxrobust.sets.one_of import OneOf
from jaxrobust.sets.spatial import RotationTranslation
from jaxrobust.types import Misclassified
from tests import tiny

KEY = jax.random.key(0)
MIXED = (
    attacks.pgd(sets.Linf(0.03), steps=3),
    worst_of_k(RotationTranslation(), samples=5, chunk=3),
    attacks.pgd(sets.L2(0.3), steps=2),
)


@pytest.fixture(scope="module")
def problem():
    network = tiny.dense_classifier(3)
    images, labels = tiny.images_and_labels(network, 10)
    return network, images, labels


@pytest.fixture(scope="module")
def apart(problem):
    return [attacks.run(attack, *problem, key=KEY) for attack in MIXED]


@pytest.fixture(scope="module")
def together(problem):
    return attacks.run(worst_of(*MIXED), *problem, key=KEY)


@pytest.mark.slow
def test_it_is_the_elementwise_worst(apart, together):
    """The same images as the worst of separate runs, with the counts of all."""
    success = np.stack([found.success for found in apart])
    loss = np.stack([found.loss for found in apart])
    worst = np.where(success == success.any(0)[None], loss, -np.inf).argmax(0)
    assert len(set(worst[:-1].tolist())) > 1
    np.testing.assert_array_equal(together.success, success.any(0))
    for i, which in enumerate(worst[:-1]):
        np.testing.assert_allclose(together.loss[i], loss[which, i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(together.images[i], apart[which].images[i], atol=1e-5)
        assert together.forwards[i] == 1 + sum(int(found.forwards[i]) - 1 for found in apart)
        assert together.backwards[i] == sum(int(found.backwards[i]) for found in apart)


@pytest.mark.slow
def test_results_are_members_of_one_of_the_sets(problem, together):
    _, images, _ = problem
    union = worst_of(*MIXED).set
    assert isinstance(union, OneOf)
    assert jax.vmap(union.contains)(jnp.asarray(images), together.parameters).all()
    np.testing.assert_allclose(
        jax.vmap(union.apply)(jnp.asarray(images), together.parameters), together.images, atol=1e-6
    )
    assert (np.asarray(together.size) <= 1 + 1e-5).all()
    assert (np.asarray(together.size[:-1]) > 0.5).any()


@pytest.mark.slow
def test_with_radius_scales_all_sets(problem):
    half = worst_of(*MIXED).with_radius(0.5)
    halves = worst_of(*(attack.with_radius(attack.set.radius / 2) for attack in MIXED))
    ours, theirs = (attacks.run(made, *problem, key=KEY) for made in (half, halves))
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-5)
    assert (np.asarray(ours.size) <= 0.5 + 1e-5).all()


@pytest.mark.slow
def test_restarts_are_those_of_the_attacks(problem):
    pair = [attacks.pgd(sets.Linf(0.03), steps=2, restarts=3, loss=loss) for loss in ("cross_entropy", "margin")]
    found = attacks.run(worst_of(*pair), *problem, key=KEY)
    single = attacks.run(pair[0], *problem, key=KEY)
    assert (np.asarray(found.forwards[:-1]) == 1 + 2 * 3 * 3).all()
    assert (np.asarray(found.success) >= np.asarray(single.success)).all()
    assert (found.success & ~single.success | (np.asarray(found.loss) >= np.asarray(single.loss) - 1e-5)).all()


@pytest.mark.slow
def test_one_loss_ranks_whatever_the_attacks_ascend(problem):
    network, _, labels = problem
    margins = worst_of(attacks.pgd(sets.Linf(0.03), steps=3, loss="margin"), attacks.pgd(sets.L2(0.2), steps=3))
    found = attacks.run(margins, *problem, key=KEY)
    expected = -jax.nn.log_softmax(network(found.images))[np.arange(10), labels]
    np.testing.assert_allclose(found.loss[:-1], expected[:-1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_lanes_and_training_agree(problem, together):
    network, images, labels = problem
    lanes = evaluate.run_lanes(worst_of(*MIXED), *problem, key=KEY, lanes=4, early_stop=False, progress=False)
    np.testing.assert_allclose(lanes.result.images, together.images, atol=1e-5)
    np.testing.assert_array_equal(lanes.result.forwards, together.forwards)
    keys = attacks.example_keys(KEY, np.arange(10))
    goal = Misclassified(jnp.asarray(labels))
    last = engine.last_iterate(worst_of(*MIXED), network, jnp.asarray(images), goal, keys)
    np.testing.assert_allclose(last[:-1], together.images[:-1], atol=1e-5)


def test_one_common_set_keeps_its_own_terms(problem):
    ball = sets.Linf(0.03)
    made = worst_of(attacks.pgd(ball, steps=2), attacks.fgsm(sets.Linf(0.03)))
    assert made.set == ball
    assert float(made.with_radius(0.01).attacks[1].set.radius) == 0.01
    assert worst_of(made, attacks.pgd(sets.L2(1.0), steps=2)).radius == 1.0


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (worst_of, ValueError, "attacks must hold at least one attack; got none"),
        (lambda: worst_of(attacks.pgd), TypeError, "attacks must be attacks such as|Type-check error"),
    ],
)
def test_bad_attacks_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
