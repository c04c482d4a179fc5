"""The gradient family against closed forms, written-out references and the papers' constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import _checks, attacks, sets
from jaxrobust.attacks.core import engine
from jaxrobust.testing.attacks import answers
from jaxrobust.types import Classifier, Misclassified, Targeted
from tests import tiny
from tests.compiled import compiled

KEY = jax.random.key(0)
NORMS = {"linf": (sets.Linf, 1), "l2": (sets.L2, 2), "l1": (sets.L1, np.inf)}


def binary(rng, scale=1.0):
    """Two classes, logits (0, w·x + b): the margin changes by exactly radius·‖w‖_dual where no pixel meets the box."""
    weights = (rng.normal(size=int(np.prod(tiny.SHAPE))) * scale).astype(np.float32)
    columns = np.stack([np.zeros_like(weights), weights], 1)
    return Classifier(tiny.linear, (columns, np.zeros(2, np.float32))), weights


@compiled
def last_iterate(attack, model, images, goal):
    keys = attacks.example_keys(KEY, np.arange(len(images)))
    return engine.last_iterate(attack, model, images, goal, keys)


def log_softmax(logits):
    """In float64."""
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_linear_model_in_closed_form(rng, norm, attack):
    network, weights = binary(rng)
    images = np.full((1, *tiny.SHAPE), 0.5, np.float32)
    kind, dual = NORMS[norm]
    ball = sets.L1(0.2, quantile=1.0) if norm == "l1" else kind(0.2)
    many = attacks.pgd(ball, steps=40, step_size=0.1, loss="margin")
    made = attacks.fgsm(ball, loss="margin") if attack == "fgsm" else many
    goal = Misclassified(jnp.array([1]))
    found = attacks.run(made, network, images, goal, key=KEY)
    clean = -float(np.sum(weights * 0.5))
    gained = 0.2 * np.linalg.norm(weights, dual)
    np.testing.assert_allclose(found.loss[0], clean + gained, rtol=1e-4, atol=1e-4 * gained)


def test_pgd_equals_a_written_out_loop(rng):
    """PGD from the clean image, iterate by iterate, against NumPy in float64."""
    with jax.enable_x64(True):
        network = tiny.linear_classifier(rng)
        weights = np.asarray(network.params[0], np.float64)
        network = Classifier(tiny.linear, (weights, np.zeros(tiny.CLASSES)))
        images = rng.random((3, *tiny.SHAPE))
        labels = answers(network, images).argmax(-1)
        made = attacks.pgd(sets.L2(0.5), steps=6, step_size=0.2, random_start=False)
        ours = last_iterate(made, network, images, Misclassified(labels))
        for image, label, last in zip(images, labels, ours, strict=True):
            x = image.copy()
            for _ in range(6):
                logits = x.ravel() @ weights
                p = np.exp(logits - logits.max())
                g = (weights @ (p / p.sum() - np.eye(tiny.CLASSES)[label])).reshape(x.shape)
                delta = x + 0.2 * g / np.linalg.norm(g) - image
                scale = np.array([0.0, 1.0])
                if np.linalg.norm(np.clip(delta, -image, 1 - image)) > 0.5:
                    for _ in range(200):
                        middle = scale.mean()
                        inside = np.linalg.norm(np.clip(middle * delta, -image, 1 - image)) <= 0.5
                        scale[0 if inside else 1] = middle
                else:
                    scale[0] = 1
                x = image + np.clip(scale[0] * delta, -image, 1 - image)
            np.testing.assert_allclose(last, x, atol=1e-10)


@pytest.mark.slow
def test_momentum_accumulates_normalised_gradients(rng):
    """MI-FGSM against its recursion g ← μ g + ∇/‖∇‖₁."""
    network = tiny.dense_classifier()
    image = jnp.asarray(rng.random((1, *tiny.SHAPE)), jnp.float32)
    label = jnp.argmax(network(image), -1)
    made = attacks.mi_fgsm(sets.Linf(0.1), steps=4, momentum=0.7)

    def loss(x):
        return -jax.nn.log_softmax(network(x))[0, label[0]]

    x, g = image, jnp.zeros_like(image)
    for _ in range(4):
        gradient = jax.grad(loss)(x)
        g = 0.7 * g + gradient / jnp.abs(gradient).sum()
        x = jnp.clip(jnp.clip(x + 0.025 * jnp.sign(g), image - 0.1, image + 0.1), 0, 1)
    ours = last_iterate(made, network, image, Misclassified(label))
    np.testing.assert_allclose(ours, x, atol=1e-6)


def test_least_likely_aims_at_the_clean_images_last_class(rng):
    network = tiny.linear_classifier(rng)
    images = np.random.default_rng(1).random((6, *tiny.SHAPE)).astype(np.float32)
    clean = answers(network, images)
    labels, last = clean.argmax(-1), clean.argmin(-1)
    made = attacks.least_likely(sets.Linf(0.5), steps=30, step_size=0.05)
    found = attacks.run(made, network, images, labels, key=KEY)
    moved = answers(network, found.images)
    assert np.all(found.success)
    # the best point is the success of highest targeted loss, so it is the least likely class where that is reached
    assert (moved.argmax(-1) == last).mean() > 0.5
    before, now = (np.take_along_axis(log_softmax(logits), last[:, None], 1) for logits in (clean, moved))
    assert (now > before).all()


def test_targeted_success_is_the_target(rng):
    network = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(network, 8)
    targets = (labels + 2) % tiny.CLASSES
    for loss in ("cross_entropy", "margin", "dlr"):
        made = attacks.pgd(sets.Linf(0.5), steps=20, loss=loss)
        found = attacks.run(made, network, images, Targeted(targets, labels), key=KEY)
        np.testing.assert_array_equal(found.success, answers(network, found.images).argmax(-1) == targets)
        assert np.mean(found.success) > 0.5


def test_r_fgsm_splits_the_radius(rng):
    """From the noise point, the step left is ε − α, so no pixel moves by less than ε − 2α or more than ε."""
    network, _ = binary(rng)
    image = np.full((1, *tiny.SHAPE), 0.5, np.float32)
    made = attacks.r_fgsm(sets.Linf(0.2), relative_start_size=0.25)
    last = last_iterate(made, network, image, Misclassified(np.array([1])))
    moved = np.abs(last - image)
    np.testing.assert_allclose(np.unique(np.round(moved, 5)), [0.1, 0.2], atol=1e-5)


def test_rs_fgsm_reaches_the_faces_with_twice_the_radius(rng):
    network, _ = binary(rng)
    image = np.full((1, *tiny.SHAPE), 0.5, np.float32)
    made = attacks.rs_fgsm(sets.Linf(0.2), relative_step_size=2.0)
    last = last_iterate(made, network, image, Misclassified(np.array([1])))
    np.testing.assert_allclose(np.abs(last - image), 0.2, atol=1e-6)


@pytest.mark.slow
def test_more_restarts_and_larger_radii_never_help_the_defender(rng):
    network = tiny.dense_classifier(3)
    images, labels = tiny.images_and_labels(network, 32)
    losses = []
    for restarts in (1, 2, 4):
        made = attacks.pgd(sets.Linf(0.05), steps=3, restarts=restarts, loss="margin")
        found = attacks.run(made, network, images, labels, key=KEY)
        losses.append(np.asarray(found.loss))
        assert (np.asarray(found.forwards[:-1]) == 1 + 4 * restarts).all()
        assert (np.asarray(found.backwards[:-1]) == 3 * restarts).all()
    assert (losses[1] >= losses[0]).all()
    assert (losses[2] >= losses[1]).all()
    assert (losses[2] > losses[0]).any()


@pytest.mark.slow
def test_early_stop_keeps_the_first_success():
    network = tiny.dense_classifier(3)
    images, labels = tiny.images_and_labels(network, 16)
    made = attacks.pgd(sets.Linf(0.2), steps=8, restarts=3)
    plain = attacks.run(made, network, images, labels, key=KEY)
    early = attacks.run(made, network, images, labels, key=KEY, early_stop=True)
    np.testing.assert_array_equal(early.success, plain.success)
    fooled = np.asarray(plain.success)
    assert fooled.sum() > 4
    assert (np.asarray(early.forwards)[fooled] <= np.asarray(plain.forwards)[fooled]).all()
    assert np.asarray(early.forwards).sum() < np.asarray(plain.forwards).sum()
    np.testing.assert_array_equal(early.forwards[~fooled], plain.forwards[~fooled])


def test_paper_defaults():
    assert attacks.bim(sets.Linf(8 / 255)).steps == 10  # min(8 + 4, 10)
    assert attacks.bim(sets.Linf(32 / 255)).steps == 36  # min(32 + 4, 40)
    assert float(attacks.bim(sets.Linf(8 / 255)).relative_step_size) * 8 == pytest.approx(1)
    assert float(attacks.rs_fgsm(sets.Linf(0.1)).relative_step_size) == 1.25
    assert float(attacks.r_fgsm(sets.Linf(0.1)).start_size) == 0.5
    momentum = attacks.mi_fgsm(sets.Linf(16 / 255))
    assert (momentum.steps, float(momentum.momentum), float(momentum.relative_step_size)) == (10, 1.0, 0.1)
    assert float(attacks.pgd(sets.Linf(0.1), steps=5).relative_step_size) == 0.5


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: attacks.pgd(sets.Linf(0.1), steps=0), ValueError, "steps must be >= 1; got 0"),
        (lambda: _checks.count("steps", 2.5), TypeError, "steps must be an integer; got 2.5"),
        (lambda: _checks.count("steps", True), TypeError, "steps must be an integer; got True"),
        (lambda: attacks.pgd(sets.Linf(0.1), restarts=0), ValueError, "restarts must be >= 1; got 0"),
        (lambda: attacks.pgd(sets.Linf(0.1), step_size=-1), ValueError, "step_size must be finite and >= 0; got -1"),
        (lambda: attacks.pgd(sets.Linf(0.1), step_size=1, relative_step_size=1), ValueError, "exclude each other"),
        (lambda: attacks.pgd(sets.Linf(0.1), restarts=2, random_start=False), ValueError, "equal runs"),
        (lambda: attacks.PGD(sets.Linf, 3), TypeError, "set must be a perturbation set|Type-check error"),
        (lambda: attacks.r_fgsm(sets.Linf(0.1), relative_start_size=2), ValueError, r"in \[0, 1\]; got 2"),
        (lambda: sets.L1(1.0, quantile=1.5), ValueError, r"quantile must be finite and in \[0, 1\]; got 1.5"),
    ],
)
def test_bad_settings_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
