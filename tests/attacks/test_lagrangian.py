"""The Lagrangian attacks against written-out loops, and membership measured outside of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import attacks, perceptual, sets
from jaxrobust.attacks.core import engine
from jaxrobust.attacks.gradient.lagrangian import Lagrangian, fast_lpa, lpa
from jaxrobust.models import MnistNet
from jaxrobust.sets.perceptual import Perceptual
from jaxrobust.types import Classifier, Misclassified
from tests import tiny

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def linear():
    """Two classes, of which the second is right: the margin's gradient is −w everywhere."""
    weights = np.random.default_rng(0).normal(size=int(np.prod(tiny.SHAPE))).astype(np.float32)
    columns = jnp.stack([jnp.zeros_like(weights), jnp.asarray(weights)], 1)
    return Classifier(tiny.linear, (columns, jnp.zeros(2))), weights


IMAGE = np.full((1, *tiny.SHAPE), 0.5, np.float32)
GOAL = Misclassified(jnp.array([1]))
KEYS = attacks.example_keys(KEY, np.arange(1))


def last(made, network):
    return np.asarray(jax.jit(engine.last_iterate)(made, network, jnp.asarray(IMAGE), GOAL, KEYS))[0].reshape(-1) - 0.5


def written_out(weights, radius, steps, rounds, price, guard):
    """δ ← δ + η_t/(1 + guard) · (−w − λ 1[‖δ‖ > ε] δ/‖δ‖)/‖·‖ in the box; for l2 the local metric is one."""
    delta, multiplier = np.zeros_like(weights, float), 0.01
    for round_ in range(rounds):
        for t in range(steps):
            size = np.linalg.norm(delta)
            if t == 0 and round_ and size >= radius:
                multiplier *= 10
            now = price(t) if price else multiplier
            g = -weights - (now * delta / size if size > radius else 0)
            delta = delta + radius * 0.1 ** (t / steps) / (1 + guard) * g / np.linalg.norm(g)
            delta = np.clip(delta, -0.5, 0.5)
    return delta


def test_fast_lpa_is_its_recursion(linear):
    network, weights = linear
    made = fast_lpa(sets.L2(0.6), steps=6, random_start=False)
    ours = last(made, network)
    theirs = written_out(weights, 0.6, 6, 1, lambda t: 10 * 0.1 ** (1 - t / 6), 1e-4)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.linalg.norm(ours) > 0.7  # soft: the last iterate is outside


def test_lpa_is_its_recursion(linear):
    """With λ tenfold after rounds that end outside, to the last step, which is projected."""
    network, weights = linear
    weak = Classifier(tiny.linear, jax.tree.map(lambda leaf: leaf / 30, network.params))
    made = lpa(sets.L2(0.6), steps=4, rounds=4, random_start=False, confidence=None)
    theirs = written_out(weights / 30, 0.6, 4, 4, None, 1e-8)
    free = Lagrangian(sets.L2(0.6), 4, 4, project=False, start="clean")
    np.testing.assert_allclose(last(free, weak), theirs, atol=1e-5)
    assert np.linalg.norm(theirs) > 0.6
    ours = last(made, weak)
    np.testing.assert_allclose(ours, theirs * 0.6 / np.linalg.norm(theirs), atol=1e-5)


def test_the_multiplier_grows_only_outside():
    goal = Misclassified(jnp.asarray(1))

    def multipliers(scale):
        made = Lagrangian(sets.L2(0.1), 3, 4, start="clean")
        state = made.init(KEY, jnp.asarray(IMAGE[0]), goal, jnp.zeros(2))
        gradient = scale * jnp.ones((1, 1, *tiny.SHAPE))
        tell, found = jax.jit(made.tell), []
        for _ in range(made.asks - 1):
            state = tell(state, jnp.zeros((1, 2)), gradient)
            found.append(float(state.memory))
        return found

    np.testing.assert_allclose(multipliers(0.0), 0.01)
    np.testing.assert_allclose(multipliers(1e3)[::3], [0.01, 0.1, 1, 10], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ball", [sets.L2(0.2), sets.Linf(0.05)], ids=str)
def test_lpa_is_as_strong_as_the_exact_attack_on_a_linear_model(linear, ball):
    """Of one l2 step to the boundary, the best there is for l2, it gains all but its own last step, an eighth of ε."""
    network, weights = linear
    made = lpa(ball, steps=20, confidence=None)
    found = attacks.run(made, network, IMAGE, GOAL, key=KEY)
    step = -weights.reshape(1, *tiny.SHAPE)
    scale = float(ball.radius) / float(ball.size(jnp.asarray(IMAGE[0]), jnp.asarray(step[0])))
    plain = np.sum(-weights * (0.5 + scale * step.reshape(-1)))
    gained = plain - np.sum(-weights * 0.5)
    assert float(found.loss[0]) >= plain - 0.13 * gained
    if isinstance(ball, sets.L2):
        pgd = attacks.run(attacks.pgd(ball, steps=40, loss="margin"), network, IMAGE, GOAL, key=KEY)
        assert float(found.loss[0]) >= float(pgd.loss[0]) - 0.13 * gained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "ball"),
    [
        pytest.param(lpa, sets.L2(0.4), id="lpa-l2", marks=pytest.mark.slow),
        pytest.param(fast_lpa, sets.L1(2.0), id="fast_lpa-l1", marks=pytest.mark.slow),
        pytest.param(lpa, Perceptual(0.3, perceptual.filter_bank()), id="lpa-perceptual"),
        pytest.param(lpa, sets.Linf(0.05), id="lpa-linf", marks=pytest.mark.slow),
        pytest.param(fast_lpa, Perceptual(0.3, perceptual.filter_bank()), id="fast-perceptual", marks=pytest.mark.slow),
    ],
)
def test_what_is_returned_was_measured_to_be_inside(make, ball):
    network = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(network, 6)
    made = make(ball, steps=4)
    found = attacks.run(made, network, images, labels, key=KEY)
    delta = np.asarray(found.images, np.float64) - images
    size = jax.vmap(ball.size)(jnp.asarray(images), jnp.asarray(delta, jnp.float32))
    assert (np.asarray(size) <= float(ball.radius) * (1 + 2e-5)).all()
    np.testing.assert_array_equal(network(found.images).argmax(-1) != labels, found.success)
    steps = 4 * made.rounds
    assert (np.asarray(found.forwards[:-1]) == 1 + steps + 1).all()
    assert (np.asarray(found.backwards[:-1]) == steps).all()


@pytest.mark.slow
def test_lpa_fools_where_pgd_does():
    network = tiny.dense_classifier(3)
    images, labels = tiny.images_and_labels(network, 24)
    ball = sets.L2(0.3)
    pgd = attacks.run(attacks.pgd(ball, steps=20, loss="margin"), network, images, labels, key=KEY)
    found = attacks.run(lpa(ball, steps=20), network, images, labels, key=KEY)
    assert 4 < pgd.success.sum() < 24
    assert found.success.sum() >= pgd.success.sum()


def test_one_pass_serves_loss_and_distance():
    """Where the set measures with the attacked network; the same network beside it takes passes of its own."""
    network = MnistNet(size=8, rngs=nnx.Rngs(0))
    model = Classifier.from_nnx(network)
    images = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (3, 8, 8, 1)).astype(np.float32))
    goal, keys = Misclassified(jnp.arange(3)), attacks.example_keys(KEY, np.arange(3))

    def crafted(own):
        beside = None if own else Classifier(model.apply, model.params, model.activations)
        made = fast_lpa(Perceptual(0.1, beside), steps=4)
        program = jax.jit(lambda images: engine.last_iterate(made, model, images, goal, keys)).trace(images)
        return program.lower().compile()(images), str(program.jaxpr).count("conv_general_dilated")

    (joint, passes), (apart, more) = crafted(True), crafted(False)
    np.testing.assert_allclose(joint, apart, atol=1e-6)
    assert np.abs(np.asarray(joint) - images).max() > 0.01
    assert passes < more


def test_logits_and_activations_are_those_of_two_passes():
    class Apart(MnistNet):
        """Which computes its logits otherwise than by what it shows."""

        def activations(self, images):
            return (images,)

        def __call__(self, images):
            return self.dense2(nnx.relu(self.dense1(super().activations(images)[-1].reshape(len(images), -1))))

    images = jnp.full((2, 8, 8, 1), 0.3)
    for kind in (MnistNet, Apart):
        model = Classifier.from_nnx(kind(size=8, rngs=nnx.Rngs(0)))
        logits, maps = model.with_activations(images)
        np.testing.assert_allclose(logits, model(images), atol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, maps, model.activations(model.params, images))
    with pytest.raises(ValueError, match="activations must be a function of"):
        Classifier.from_function(lambda images: images[:, 0, 0]).with_activations(images)


def test_published_constants():
    made = lpa(sets.L2(0.5))
    assert (made.rounds, made.steps, made.asks) == (5, 40, 201)
    values = (made.multiplier, made.growth, made.step_decay, made.probe, made.confidence)
    assert tuple(map(float, values)) == (0.01, 10, 0.1, 0.1, 1)
    fast = fast_lpa(sets.L2(0.5))
    assert (fast.steps, fast.project, fast.confidence, float(fast.guard)) == (20, False, None, 1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: lpa(sets.L2(0.5), rounds=0), "rounds must be >= 1; got 0"),
        (lambda: lpa(sets.L2(0.5), confidence=-1), "confidence must be finite and >= 0; got -1"),
        (lambda: lpa(sets.L2(0.5), restarts=2, random_start=False), "restarts must be 1"),
        (lambda: fast_lpa(sets.L2(0.5), steps=0), "steps must be >= 1; got 0"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
