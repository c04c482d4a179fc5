"""The local Wasserstein ball, measured by linear programs rather than by its own plans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.sets import Wasserstein, WassersteinOTT, WassersteinSinkhorn
from jaxrobust.transport import allowed, identity, offsets, windows
from tests.compiled import call, compiled, mapped
from tests.published import published
from tests.references import transport as reference
from tests.tiny import images_and_labels, linear_classifier

NUMBER = {tuple(offset): j for j, offset in enumerate(offsets(3).tolist())}


SHAPE = (5, 4, 2)  # that tests share, since a program takes seconds to compile
GREY = np.full((3, 4, 1), 0.5, np.float32)


@compiled
def stepped(ball, x, noise, share):
    """A step of so many radii from the identity, projected."""
    far = ball.ascend(x, ball.init(x), windows(noise, ball.kernel), share * ball.radius)
    return ball.project(x, far)


@compiled
def maximise(ball, x, noise):
    return ball.maximise(x, windows(noise, ball.kernel))


@compiled
def measured(ball, x, theta):
    """Whether it is a member, its image and its size."""
    return ball.contains(x, theta), ball.apply(x, theta), ball.size(x, theta)


def normal(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def trials(ball, x, seed):
    """Members by every way there is: projected from near and far, best in two directions, between them."""
    noise = normal((2, *x.shape), seed)
    best = [maximise(ball, x, n) for n in noise]
    return [*(stepped(ball, x, noise[0], np.float32(share)) for share in (0.1, 100)), *best, (best[0] + best[1]) / 2]


def moved(x, source, offset, mass, plan=None):
    """A plan, by default the identity, that moves some more mass of one pixel."""
    plan = still(x) if plan is None else plan.copy()
    plan[4, *source, 0] -= mass
    plan[NUMBER[offset], *source, 0] += mass
    return plan


def still(x):
    """The plan that moves nothing."""
    return np.array(_identity(x, 3))


_identity = compiled(identity, static_argnums=1)


@pytest.mark.parametrize("p", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("full", [pytest.param(0.0, marks=pytest.mark.slow), 0.4])
def test_images_lie_in_the_ball_by_linear_programming(p, full):
    for seed, radius in enumerate([0.02, 0.1, 0.5]):
        rng = np.random.default_rng(seed)
        x = np.where(rng.random(SHAPE) < full, 1, rng.random(SHAPE)).astype(np.float32)
        ball = Wasserstein(radius, p=p, kernel=3)
        for theta in trials(ball, x, seed):
            inside, image, size = measured(ball, x, theta)
            assert inside
            np.testing.assert_allclose(image.sum((0, 1)), x.sum((0, 1)), rtol=1e-5)
            true = reference.distance(x, image, p, 3)
            assert true <= radius * (1 + 1e-4) + 1e-6
            assert true <= size * (1 + 1e-4) + 1e-6
            assert reference.distance(x, image, p) <= true * (1 + 1e-4) + 1e-6


def test_best_member_spends_the_radius():
    x = (np.random.default_rng(0).random(SHAPE) / 2).astype(np.float32)
    ball = Wasserstein(0.05, kernel=3)
    best = maximise(ball, x, normal(x.shape, 0))
    np.testing.assert_allclose(reference.distance(x, measured(ball, x, best)[1], 1, 3), 0.05, rtol=1e-3)


@pytest.mark.parametrize(
    ("offset", "p", "cost"), [((0, 1), 1, 1), ((0, 1), 2, 1), ((1, 1), 1, 2**0.5), ((1, 1), 2, 2), ((-1, 0), 2, 1)]
)
def test_size_of_a_move(offset, p, cost):
    ball = Wasserstein(0.1, p=p, kernel=3)
    _, image, size = measured(ball, GREY, moved(GREY, (1, 1), offset, 0.3))
    np.testing.assert_allclose(size, cost * 0.3 / 6, rtol=1e-6)
    np.testing.assert_allclose(reference.distance(GREY, image, p, 3), cost * 0.3 / 6, rtol=1e-5)


def test_contains_measures_every_limit():
    x, ball = GREY, Wasserstein(0.1, kernel=3)  # 0.6 of mass by one pixel

    def contains(theta, x=x):
        return measured(ball, x, theta)[0]

    assert contains(moved(x, (1, 1), (0, 1), 0.5))
    assert contains(moved(x, (1, 1), (0, 1), 0.1))
    assert not contains(moved(x, (0, 0), (0, 1), 0.4, moved(x, (2, 2), (0, -1), 0.4)))  # too far
    assert not contains(moved(x, (0, 0), (-1, 0), 0.1))  # out of the image
    assert not contains(moved(x, (1, 1), (0, 1), -0.1))  # negative
    assert not contains(moved(x, (1, 1), (0, 1), 0.55))  # more than there is
    more = still(x)
    more[4, 0, 0, 0] += 0.01
    assert not contains(more)  # out of nothing
    bright = np.full_like(x, 0.9)
    assert not contains(moved(bright, (1, 1), (0, 1), 0.2), bright)  # above 1


def test_black_and_full_images_cannot_change():
    ball = Wasserstein(0.5, kernel=3)
    for x in (np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32)):
        for theta in trials(ball, x, 0):
            inside, image, _ = measured(ball, x, theta)
            assert inside
            np.testing.assert_allclose(image, x, atol=2e-6)


def test_channels_keep_their_mass_but_share_the_budget():
    x = np.zeros(SHAPE, np.float32)
    x[..., 0] = 0.5
    ball = Wasserstein(0.2, kernel=3)
    for theta in trials(ball, x, 1):
        image = measured(ball, x, theta)[1]
        assert float(image[..., 1].max()) == 0
        np.testing.assert_allclose(image[..., 0].sum(), 10, rtol=1e-5)


def test_steps_are_measured_against_a_full_pixel():
    """The steepest move gains stride · size/radius; gradients at pixels without mass do not count."""
    x, gradient = GREY.copy(), np.ones((9, *GREY.shape), np.float32)
    x[0, 0], gradient[0, 0, 0], gradient[3, 1, 1] = 0, 1e6, -4
    for radius in (0.01, 0.1):
        ball = Wasserstein(radius, kernel=3, stride=2.0)
        step = call(ball, "ascend", x, still(x), gradient, np.float32(radius / 4)) - still(x)
        np.testing.assert_allclose(step[3, 1, 1, 0], -0.5, rtol=1e-6)
        np.testing.assert_allclose(step[2, 1, 1, 0], 0.125, rtol=1e-6)


def test_distance_counts_what_is_moved_differently():
    x, ball = GREY, Wasserstein(0.1, kernel=3)
    right, down = moved(x, (1, 1), (0, 1), 0.3), moved(x, (1, 1), (1, 0), 0.2)
    np.testing.assert_allclose(call(ball, "distance", x, right, down), 0.5 / 6, rtol=1e-6)
    assert reference.distance(*(measured(ball, x, theta)[1] for theta in (right, down)), 1) <= 0.5 / 6


@pytest.mark.slow
def test_attacks_lower_the_margin_of_a_linear_model(rng):
    """Where the loss is linear in the image, PGD, Frank–Wolfe and one full step find nearly the same point."""
    model = linear_classifier(rng, shape=(6, 5, 2))
    images, labels = images_and_labels(model, count=4)
    labels[-1] = int(np.asarray(model(images))[-1].argmax())
    ball = Wasserstein(0.05, kernel=3)
    losses = []
    for attack in (
        jr.attacks.pgd(ball, steps=20, loss="margin", random_start=False),
        jr.attacks.fgsm(ball, loss="margin"),
        jr.attacks.frank_wolfe(ball, steps=20, loss="margin"),
    ):
        result = jr.attacks.run(attack, model, jnp.asarray(images), jnp.asarray(labels), key=jax.random.key(0))
        assert mapped(ball, "contains", 0, images, result.parameters).all()
        losses.append(np.asarray(result.loss))
    clean = np.sort(np.asarray(model(images)), 1)
    assert (losses[0] > (clean[:, -2] - clean[:, -1])).all()
    np.testing.assert_allclose(losses[0], losses[1], atol=0.5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"p": 3}, ValueError, r"p must be one of \[1, 2\]; got 3"),
        ({"kernel": 4}, ValueError, "kernel must be odd; got 4"),
        ({"rounds": -1}, ValueError, "rounds must be >= 0; got -1"),
        ({"rounds": True}, TypeError, "rounds must be an integer; got True"),
        ({"sharpness": float("inf")}, ValueError, "sharpness must be finite and >= 0; got inf"),
        ({"stride": -1.0}, ValueError, "stride must be finite and >= 0; got -1.0"),
    ],
)
def test_bad_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Wasserstein(0.1, **settings)


@pytest.mark.realdata
def test_attacks_on_mnist_conserve_mass_and_fool():
    """16 digits, p = 1, 5 × 5, radius 0.2: measured, both attacks leave the undefended network 5 to 10 % of 40."""
    from flax import nnx

    network = jr.models.load_npz(published("mnist_vanilla.npz"), jr.models.MnistNet(rngs=nnx.Rngs(0)))
    model = jr.Classifier.from_nnx(network)
    images, labels = (jnp.asarray(a) for a in jr.data.load("mnist", split="test[:16]"))
    ball = Wasserstein(0.2)
    for attack in (jr.attacks.pgd(ball, steps=40, random_start=False), jr.attacks.frank_wolfe(ball, steps=40)):
        result = jr.attacks.run(attack, model, images, labels, key=jax.random.key(0))
        assert jax.vmap(ball.contains)(images, result.parameters).all()
        np.testing.assert_allclose(result.images.sum((1, 2, 3)), images.sum((1, 2, 3)), rtol=1e-5)
        assert float(result.size.max()) <= 0.2 * (1 + 1e-4)
        assert 1 - float(result.success.mean()) <= 0.2


@pytest.mark.parametrize("ball", [Wasserstein, WassersteinSinkhorn, WassersteinOTT])
def test_what_is_sent_less_than_nothing_is_no_refund(ball):
    """A plan may have entries of −1e-6 by rounding: many of them would pay for a tenth of the radius here."""
    found = ball(0.002, p=2, kernel=5)
    x = np.full((10, 10, 1), 0.5, np.float32)
    inside = np.broadcast_to(allowed(x.shape, 5), (25, 10, 10, 1))
    plan = np.where(inside, np.float32(-9e-7), 0)
    plan[13] = np.where(inside[13], 1.1 * 0.002 * 50 / 90, 0)  # to the right
    plan[12] = x - np.delete(plan, 12, 0).sum(0)
    contained, _, size = measured(found, x, plan)
    assert float(size) >= 1.1 * 0.002
    assert not contained
    honest = np.maximum(plan, 0)
    honest[12] = x - np.delete(honest, 12, 0).sum(0)
    assert measured(found.with_radius(1.11 * 0.002), x, honest)[0]
