"""Success that may be luck: attacks that see draws of a random model, and what is around them, against the truth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluate, sets
from jaxrobust.attacks.compose.eot import EOT, RandomClassifier, eot, mean_prediction
from jaxrobust.losses import cross_entropy
from jaxrobust.types import Classifier, Misclassified
from tests import tiny

KEY = jax.random.key(5)
RADIUS, COUNT, SHAPE = 0.05, 80, (2, 2, 2)
BALL = sets.Linf(RADIUS)
STEEP = 20.0
WALK = attacks.pgd(BALL, steps=4)


def linear(weights, images):
    """Two classes, with logits ±w·(x − ½)."""
    heights = (images - 0.5).reshape(len(images), -1) @ weights
    return jnp.stack([heights, -heights], 1)


def shake(key, image):
    """Noise that in logits is as large as what the radius can change."""
    return image + 0.1 * jax.random.normal(key, image.shape, image.dtype)


@pytest.fixture(scope="module")
def noisy():
    """A random model whose noise is symmetric, so that its mean prediction is that without noise: half of the images
    are robust, those whose height exceeds r‖w‖₁.
    """
    rng = np.random.default_rng(0)
    weights = rng.choice([-1.0, 1.0], int(np.prod(SHAPE)))
    heights = np.linspace(0.02, 1.98, COUNT) * RADIUS * len(weights)
    rough = rng.uniform(-0.1, 0.1, (COUNT, len(weights)))
    rough -= np.outer(rough @ weights, weights) / len(weights)
    images = 0.5 + rough + np.outer(heights, weights) / len(weights)
    network = Classifier(linear, jnp.asarray(STEEP * weights, jnp.float32))
    defence = RandomClassifier.transformed(network, shake)
    images = images.reshape(COUNT, *SHAPE).astype(np.float32)
    return defence.mean(KEY, samples=40), (images, np.zeros(COUNT, np.int32)), defence


AROUND = {
    "eot": lambda a: eot(a, samples=10),
    "restarts(eot)": lambda a: attacks.restarts(eot(a, samples=10), 3),
    "eot(restarts)": lambda a: eot(attacks.restarts(a, 3), samples=10),
    "worst_of(eot)": lambda a: attacks.worst_of(eot(a, samples=10), eot(attacks.bim(BALL), samples=10)),
    "worst_of(restarts(eot))": lambda a: attacks.worst_of(attacks.restarts(eot(a, samples=10), 2), eot(a, samples=10)),
    "worst_of(eot), until success": lambda a: attacks.worst_of(
        eot(a, samples=10), attacks.restarts(eot(a, samples=10), 2), until_success=True
    ),
    "targeted_each(eot)": lambda a: attacks.targeted_each(eot(a, samples=10), targets=1),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "eot" else [pytest.mark.slow]) for name in AROUND]
)
def test_the_robust_accuracy_of_a_random_model_is_near_the_true_one(name, noisy):
    """Whoever evaluates, and however often luck is tried."""
    model, data, _ = noisy
    attack = AROUND[name](WALK)
    options = {"key": KEY, "progress": False, "devices": jax.local_devices()[:1]}
    reported = evaluate.robustness(model, data, {"a": attack}, **options).outcomes["a"]
    assert abs(reported.robust.mean() - 0.5) <= 0.1
    if name == "eot":
        found = evaluate.autoattack(model, data, attacks={"a": attack}, early_stop=True, **options)
        assert found.union.accuracy == reported.robust.mean()


@pytest.mark.parametrize("name", AROUND)
def test_no_first_success_under_randomness_is_final(name):
    attack = AROUND[name](WALK)
    assert attack.sees_draws
    assert not attack.first_success_is_final
    assert attacks.engine.stop_of(attack, True) == "clean"


def test_whether_a_first_success_is_final_is_the_attack_s_to_say():
    for entry in attacks.REGISTRY.values():
        made = entry(sets.REGISTRY[entry.on]())
        assert made.first_success_is_final == (not (made.minimum_norm or made.sees_draws))
        for around in (attacks.targeted_each(made), attacks.restarts(made, 1)):
            assert around.first_success_is_final == made.first_success_is_final
        assert attacks.worst_of(made).first_success_is_final == (not made.sees_draws)
        if not made.sees_draws:
            assert not attacks.minimal(made).first_success_is_final


def test_expectation_goes_to_the_innermost_attacks():
    around = eot(attacks.worst_of(attacks.fgsm(BALL), attacks.restarts(WALK, 2), until_success=True), samples=3)
    first, second = around.attacks
    assert isinstance(first, EOT)
    assert isinstance(second.attack.attack, EOT)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: eot(attacks.fmn(sets.L2(1.0))), "attack must not be a minimum-norm one under eot.*got FMN"),
        (lambda: eot(attacks.restarts(attacks.boundary(sets.L2(1.0)), 2)), "minimum-norm"),
        (lambda: eot(attacks.minimal(WALK)), "attack must not be around eot: the smallest success"),
        (
            lambda: attacks.minimal(attacks.restarts(eot(WALK), 2)),
            "attack must not be around eot: the smallest success",
        ),
        (lambda: eot(eot(WALK)), "attack must not be around eot already; got"),
        (lambda: attacks.worst_of(eot(WALK), WALK), "attacks must all be around eot or none"),
    ],
)
def test_what_cannot_work_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.slow
def test_what_is_booked_is_a_fresh_estimate(noisy):
    """Not the luckiest of all iterates, nor of all runs: booked losses are on average those of many draws."""
    model, (images, labels), defence = noisy
    images, labels = images[-24:], labels[-24:]
    found = attacks.run(eot(attacks.restarts(WALK, 2), samples=10), model, images, labels, key=KEY)

    @jax.jit
    def fresh(images):
        keys = jax.random.split(jax.random.key(9), 400)
        draws = jax.vmap(lambda key: defence.apply(defence.params, jax.random.split(key, len(images)), images))(keys)
        return jnp.mean(jax.vmap(lambda rows: jax.vmap(cross_entropy)(rows, jnp.asarray(labels)))(draws), 0)

    gap = np.asarray(found.loss) - np.asarray(fresh(found.images))
    assert abs(gap.mean()) <= 3 * gap.std() / np.sqrt(len(gap)) + 0.02


def test_apgd_goes_by_the_mean_of_the_draws_losses():
    attack = attacks.apgd(BALL, steps=3)
    x, goal = jnp.full(SHAPE, 0.5), Misclassified(jnp.asarray(0))
    draws = jnp.asarray([[4.0, 0.0], [0.0, 2.0]])

    @jax.jit
    def told(draws):
        state = attack.begin(KEY, x, goal, draws[0], jnp.zeros((), jnp.int32))
        gradients = jnp.ones((1, 1, *SHAPE))
        return attack.loss_of(attack.tell_draws(state, mean_prediction(draws)[None], draws[None], gradients))

    # in the form that is followed, the log-odds of an error: −4 and 2
    assert abs(float(told(draws)) - float(jax.nn.softplus(-1.0))) < 1e-5


@pytest.mark.slow
def test_the_worst_of_attacks_is_ranked_by_the_logits_of_its_point():
    network = tiny.dense_classifier(3)
    images, labels = tiny.images_and_labels(network, 6)
    ball = sets.Linf(0.02)
    pair = attacks.worst_of(attacks.pgd(ball, steps=2, loss="margin"), attacks.square(ball, queries=4))
    found = attacks.run(pair, network, images, labels, key=KEY)
    expected = -jax.nn.log_softmax(network(found.images))[np.arange(6), labels]
    np.testing.assert_allclose(found.loss, expected, rtol=1e-3, atol=1e-5)


@functools.cache
def three_classes():
    network = tiny.dense_classifier(classes=3)
    return network, *tiny.images_and_labels(network, 3)


IDLE = {
    "apgd_t": lambda targets: attacks.apgd_t(BALL, steps=1, targets=targets),
    "targeted_each": lambda targets: attacks.targeted_each(attacks.fgsm(BALL), targets=targets),
}
WRAPS = {
    "alone": lambda a: a,
    "restarts": lambda a: attacks.restarts(a, 2) if a.random else a,
    "minimal": lambda a: attacks.minimal(a, steps=2),
    "worst_of, until success": lambda a: attacks.worst_of(attacks.fgsm(BALL), a, until_success=True),
    "worst_of, of different restarts": lambda a: attacks.worst_of(attacks.pgd(BALL, steps=1, restarts=5), a),
}


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        pytest.param(name, wrap, marks=[] if (name, wrap) == ("apgd_t", "minimal") else [pytest.mark.slow])
        for name in IDLE
        for wrap in WRAPS
    ],
)
def test_runs_that_have_nothing_to_do_cost_nothing(name, wrap):
    """Targets beyond the other classes: neither a count, nor an ask, nor a different result."""
    asked = []

    def counting(params, images):
        jax.debug.callback(lambda n: asked.append(int(n)), len(images))
        return tiny.dense_net(params, images)

    network, images, labels = three_classes()
    model = Classifier(counting, network.params)
    results, asks = [], []
    for targets in (2, 9):
        asked.clear()
        results.append(attacks.run(WRAPS[wrap](IDLE[name](targets)), model, images, labels, key=KEY, check=False))
        jax.block_until_ready(results[-1])
        jax.effects_barrier()
        asks.append(sum(asked))
    few, many = results
    np.testing.assert_array_equal(few.forwards, many.forwards)
    np.testing.assert_array_equal(few.backwards, many.backwards)
    np.testing.assert_allclose(few.images, many.images, atol=1e-6)
    assert asks[1] <= asks[0] + len(images)
