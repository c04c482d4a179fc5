"""Frank–Wolfe: its rate, its gap, and what its averages are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.core import engine
from jaxrobust.attacks.gradient.frank_wolfe import frank_wolfe
from jaxrobust.sets.one_of import OneOf
from jaxrobust.sets.sparse import L0
from jaxrobust.types import Classifier, Misclassified
from tests import tiny

KEY = jax.random.key(0)
BALLS = {"linf": sets.Linf(0.1), "l2": sets.L2(0.5), "l1": sets.L1(1.5)}


def quadratic(centre, images):
    """Logits whose first is the concave −½‖x − c‖²."""
    value = -0.5 * jnp.sum(jnp.square(images - centre[None]), (1, 2, 3))
    return jnp.stack([value, jnp.zeros_like(value)], 1)


def first_logit(logits, goal):
    return logits[0]


@pytest.fixture(scope="module", params=BALLS)
def problem(request):
    rng = np.random.default_rng(3)
    images = rng.uniform(0.2, 0.8, tiny.SHAPE) + rng.uniform(-0.01, 0.01, (4, *tiny.SHAPE))
    images = jnp.asarray(images, jnp.float32)
    # the optimum on faces and edges of the polytopes, and inside of the l2 ball: where the rate is no better
    far = 0.05 if request.param == "l2" else 0.2
    centre = images[0] + jnp.asarray(rng.uniform(-far, far, tiny.SHAPE), jnp.float32)
    ball = BALLS[request.param]
    nearest = jax.vmap(ball.project)(images, centre[None] - images)
    optimum = np.asarray(quadratic(centre, images + nearest)[:, 0], np.float64)
    return ball, Classifier(quadratic, centre), images, optimum


def test_rate_is_one_over_t_and_the_gap_bounds_the_error(problem):
    """f* − f_t ≤ 2 C/(t + 2), C the squared diameter; fitted from step 10 on, and gap ≥ f* − f_t ≥ 0."""
    ball, network, images, optimum = problem
    steps = 200
    made = frank_wolfe(ball, steps=steps, loss=first_logit)
    goal = Misclassified(jnp.ones(len(images), jnp.int32))
    keys = attacks.example_keys(KEY, np.arange(len(images)))
    states = engine.begin(made, images, goal, keys, network(images), 0)

    def step(states, _):
        states = engine.advance(made, network, states, stop="never")
        return states, (states.loss, jax.vmap(made.gap)(states), jax.vmap(ball.contains)(images, states.theta))

    _, (loss, gap, inside) = jax.jit(lambda s: jax.lax.scan(step, s, length=steps))(states)
    error = optimum[None] - np.asarray(loss, np.float64)
    assert inside.all()
    assert (error > -1e-4).all()
    assert (gap >= error - 1e-4).all()
    radius = float(ball.radius)
    diameter = {"Linf": images[0].size * (2 * radius) ** 2}.get(type(ball).__name__, (2 * radius) ** 2)
    when = np.arange(steps)
    assert (error[1:] <= 2 * diameter / (when[1:, None] + 2) + 1e-4).all()
    late = slice(10, steps)
    visible = np.maximum(error[late], 1e-7).mean(1)
    slope = np.polyfit(np.log(when[late]), np.log(visible), 1)[0]
    assert slope < -0.8, slope


@pytest.mark.parametrize(("averaging", "weights"), [("1/(t+1)", np.ones(5)), ("2/(t+2)", np.arange(1.0, 6.0))])
def test_iterates_are_means_of_maximisers(rng, averaging, weights):
    """1/(t+1) is the plain mean; with 2/(t+2) weights grow as 1, 2, 3, …"""
    x = jnp.asarray(rng.random(tiny.SHAPE), jnp.float32)
    ball, logits = sets.L1(2.0), jnp.zeros(tiny.CLASSES)
    made = frank_wolfe(ball, steps=5, averaging=averaging)
    state = made.init(KEY, x, Misclassified(jnp.asarray(0)), logits)
    gradients = [jnp.asarray(rng.normal(size=tiny.SHAPE), jnp.float32) for _ in range(5)]
    tell = jax.jit(made.tell)
    for gradient in gradients:
        state = tell(state, logits[None], gradient[None, None])
    corners = np.stack([ball.maximise(x, gradient) for gradient in gradients])
    np.testing.assert_allclose(state.theta, np.average(corners, 0, weights), atol=1e-6)


def test_one_step_is_exact_for_a_linear_model(rng):
    weights = rng.normal(size=int(np.prod(tiny.SHAPE))).astype(np.float32)
    columns = jnp.stack([jnp.zeros_like(weights), jnp.asarray(weights)], 1)
    network = Classifier(tiny.linear, (columns, jnp.zeros(2)))
    images = np.full((1, *tiny.SHAPE), 0.5, np.float32)
    found = attacks.run(
        frank_wolfe(sets.L2(0.2), steps=1, loss="margin"), network, images, Misclassified(jnp.array([1])), key=KEY
    )
    gained = 0.2 * np.linalg.norm(weights)
    np.testing.assert_allclose(found.loss[0], -weights.sum() / 2 + gained, rtol=1e-4, atol=1e-4 * gained)


def test_only_members_are_booked_where_the_set_is_not_convex():
    network = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(network, 4)
    found = attacks.run(frank_wolfe(L0(3), steps=4), network, images, labels, key=KEY)
    assert ((np.abs(found.parameters) > 0).any(-1).sum((1, 2)) <= 3).all()
    assert (np.asarray(found.size[:-1]) > 0).any()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: frank_wolfe(OneOf((sets.Linf(0.1),))), TypeError, "linear maximiser"),
        (lambda: frank_wolfe(sets.Linf(0.1), averaging="1/t"), (ValueError, TypeError), "averaging|Type-check error"),
        (lambda: frank_wolfe(sets.Linf(0.1), steps=0), ValueError, "steps must be >= 1; got 0"),
    ],
)
def test_bad_settings_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
