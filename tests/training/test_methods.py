"""What each method of the field says, by closed forms and identities."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrobust import attacks, training
from jaxrobust.losses import kl_divergence
from jaxrobust.models.trainable import Trainable
from jaxrobust.sets import L2, Linf, Perceptual
from jaxrobust.testing import objectives as smooth
from jaxrobust.training import Learner, first_memory
from jaxrobust.training.objectives.core import warmed_up
from jaxrobust.training.objectives.distributions import priced
from jaxrobust.training.objectives.several import chances
from jaxrobust.training.objectives.weights import _move
from jaxrobust.types import Classifier
from tests.training.tiny import Linear, Mlp, compiled_step, make_batch, start

PGD = attacks.pgd(Linf(0.1), steps=2)
FGSM = attacks.fgsm(Linf(0.1))


def learner_of(network, objective=None, batch=None, step=0):
    trainable, params, state = Trainable.from_nnx(network)
    memory = None if objective is None else first_memory(objective, trainable, params, state, batch)
    return Learner(trainable, params, state, memory=memory, step=jnp.int32(step))


@jax.jit
def evaluated(objective, learner, batch):
    """Losses, metrics and the gradient of the mean loss."""

    def loss(params):
        losses, aux = objective(jax.random.key(0), dataclasses.replace(learner, params=params), batch)
        return losses.mean(), (losses, aux)

    gradient, (losses, aux) = jax.grad(loss, has_aux=True)(learner.params)
    return losses, aux, gradient


def asked(objective, network, batch, **options):
    batch = jax.tree.map(jnp.asarray, batch)
    return jax.tree.map(np.asarray, evaluated(objective, learner_of(network, objective, batch, **options), batch))


def two_classes(seed=0):
    """A linear network of two classes: its batch, the margins (8,) and v = w_rival − w_label (8, 16)."""
    network, batch = Linear(16, 2, nnx.Rngs(seed)), make_batch(classes=2)
    kernel, bias = np.asarray(network.dense.kernel[...], np.float64), np.asarray(network.dense.bias[...], np.float64)
    logits = batch.images.reshape(8, -1) @ kernel + bias
    sign = np.where(batch.labels == 1, 1, -1)
    return network, batch, sign * (logits[:, 1] - logits[:, 0]), -sign[:, None] * (kernel[:, 1] - kernel[:, 0])[None]


def begun(objective, network, batch, **options):
    """(trainable, optimizer, state) before the first step, the objective's memory in it."""
    trainable, optimizer, state = start(network, **options)
    memory = first_memory(objective, trainable, state.params, state.state, batch)
    return trainable, optimizer, dataclasses.replace(state, memory=memory)


def same_step(first, second, network=None, atol=1e-7):
    """Two objectives make the same step, whatever metrics they report."""
    network, batch = network or Mlp(16, 3, nnx.Rngs(0)), make_batch()
    states = []
    for objective in (first, second):
        trainable, optimizer, state = begun(objective, network, batch)
        states.append(compiled_step(objective, trainable, optimizer, state, batch, jax.random.key(0))[0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), *states)


def test_trades_without_weight_is_standard_training():
    same_step(training.trades(PGD, beta=0.0), training.standard())


def test_trades_leaves_x_by_its_noise_alone():
    z = jnp.array([1.0, -2.0, 0.5])
    assert np.abs(jax.jit(jax.grad(kl_divergence))(z, z)).max() < 1e-6
    _, aux, _ = asked(training.trades(PGD), Mlp(16, 3, nnx.Rngs(0)), make_batch())
    assert (aux.means["delta_linf"] > 0.05).all()
    assert (aux.means["kl"] > 0).all()


def test_mart_is_finite_at_saturated_logits_and_weighs_by_doubt():
    network, batch, *_ = two_classes()
    network.dense.kernel[...] = network.dense.kernel[...] * 1e3
    losses, aux, gradient = asked(training.mart(PGD), network, batch)
    assert np.isfinite(losses).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    plain, _, _ = asked(training.mart(PGD, weight=0.0), network, batch)
    right = aux.means["clean_acc"] > 0
    # p_y(x) = 1: what is left of the weight is 1e-7
    np.testing.assert_allclose(losses[right], plain[right], atol=5e-5 * (1 + aux.means["kl"][right].max()))


def test_weights_move_by_their_own_length_and_biases_stay(rng):
    weights, ascent = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    moved = np.asarray(_move(jnp.asarray(weights, jnp.float32), jnp.asarray(ascent, jnp.float32), jnp.float32(0.01)))
    np.testing.assert_allclose(np.linalg.norm(moved), 0.01 * np.linalg.norm(weights), rtol=1e-5)
    np.testing.assert_allclose(moved / np.linalg.norm(moved), ascent / np.linalg.norm(ascent), atol=1e-6)
    assert not np.asarray(_move(jnp.ones(3), jnp.ones(3), jnp.float32(0.01))).any()
    assert not np.asarray(_move(jnp.ones((3, 3)), jnp.zeros((3, 3)), jnp.float32(0.01))).any()


def test_weight_perturbation_of_nothing_or_not_yet_is_none():
    inner = training.adversarial(PGD)
    for objective in (training.awp(inner, gamma=0.0), training.awp(inner, gamma=0.01, start=5)):
        same_step(objective, inner)


def test_weight_perturbation_raises_the_loss():
    inner = training.adversarial(PGD)
    plain, _, _ = asked(inner, Mlp(16, 3, nnx.Rngs(0)), make_batch())
    moved, _, _ = asked(training.awp(inner, gamma=0.05), Mlp(16, 3, nnx.Rngs(0)), make_batch())
    assert moved.mean() > plain.mean() + 1e-3
    with pytest.raises(TypeError, match="objective must be one that crafts and has no memory"):
        training.awp(training.standard())


def test_free_training_starts_as_standard_and_its_perturbation_stays_in_the_ball():
    same_step(training.free(0.1), training.standard())
    batch, objective = make_batch(), training.free(0.1)
    trainable, optimizer, state = begun(objective, Mlp(16, 3, nnx.Rngs(0)), batch)
    _, _, gradient = evaluated_images(trainable, state, batch)
    state, _ = compiled_step(objective, trainable, optimizer, state, batch, jax.random.key(0))
    np.testing.assert_allclose(state.memory, 0.1 * np.sign(gradient), atol=1e-7)
    for number in range(100):
        state, metrics = compiled_step(
            objective, trainable, optimizer, state, make_batch(number), jax.random.key(number)
        )
    assert np.abs(state.memory).max() <= np.float32(0.1)
    assert 0 < metrics["delta_linf"] <= np.float32(0.1) + 1e-6
    assert metrics["nan_delta"] == 0
    broken = objective.remember(state.memory, None, jnp.ones_like(state.memory).at[:2, 0].set(jnp.nan))
    state = dataclasses.replace(state, memory=broken)
    state, metrics = compiled_step(objective, trainable, optimizer, state, batch, jax.random.key(0))
    assert metrics["nan_delta"] == 2
    assert np.isfinite(state.memory).all()


def evaluated_images(trainable, state, batch):
    model = trainable.classifier(state.params, state.state)
    loss = jax.jit(
        jax.grad(lambda x: training.objectives.core.cross_entropies(model(x), jnp.asarray(batch.labels)).sum())
    )
    return model, batch, np.asarray(loss(jnp.asarray(batch.images)))


def test_gradients_of_a_linear_network_are_aligned():
    network, batch, *_ = two_classes()
    losses, aux, _ = asked(training.grad_align(0.1), network, batch)
    np.testing.assert_allclose(aux.means["turned"], 0, atol=1e-6)
    network.dense.kernel[...] = 0 * network.dense.kernel[...]
    losses, aux, gradient = asked(training.grad_align(0.1), network, batch)
    assert np.isfinite(losses).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert float(training.grad_align(16 / 255).weight) == pytest.approx(2.0)


@pytest.mark.parametrize("combine", ["average", "random", "alternate", "errors"])
def test_one_attack_is_one_whatever_the_combination(combine):
    same_step(training.several(PGD, combine=combine), training.several(PGD, combine="max"), atol=1e-6)


def test_attacks_take_turns_and_the_log_says_which():
    objective = training.several(FGSM, attacks.fgsm(L2(0.5)), combine="alternate")
    for step in (0, 1, 2):
        _, aux, _ = asked(objective, Mlp(16, 3, nnx.Rngs(0)), make_batch(), step=step)
        assert [aux.means[f"chose_{i}"].mean() for i in (0, 1)] == [1 - step % 2, step % 2]


def test_attacks_are_drawn_as_often_as_they_succeed():
    memory = {"tried": jnp.array([100.0, 50.0, 10.0]), "right": jnp.array([90.0, 30.0, 7.0])}
    np.testing.assert_allclose(chances(memory), np.array([0.1, 0.4, 0.3]) / 0.8, rtol=1e-6)
    untried = {"tried": jnp.array([100.0, 0.0]), "right": jnp.array([90.0, 0.0])}
    np.testing.assert_allclose(chances(untried), 0.5)
    perfect = {"tried": jnp.array([9.0, 9.0]), "right": jnp.array([9.0, 9.0])}
    np.testing.assert_allclose(chances(perfect), 0.5)
    batch, objective = make_batch(), training.several(FGSM, attacks.fgsm(L2(0.01)), combine="errors")
    trainable, optimizer, state = begun(objective, Mlp(16, 3, nnx.Rngs(0)), batch, optimizer=optax.sgd(0.0))
    drawn = []
    for number in range(60):
        state, metrics = compiled_step(objective, trainable, optimizer, state, batch, jax.random.key(number))
        drawn.append(float(metrics["chose_0"]))
    tried, right = (np.asarray(state.memory[name]) for name in ("tried", "right"))
    assert tried.sum() == 60 * 8
    assert tried[0] == 8 * sum(drawn)
    errors = 1 - right / tried
    assert abs(np.mean(drawn) - errors[0] / errors.sum()) < 0.2


def test_every_image_has_a_strength_and_a_wrong_class_of_its_own():
    objective = training.random_strength(attacks.pgd(Linf(0.1), steps=5, random_start=False))
    _, aux, _ = asked(objective, Linear(16, 3, nnx.Rngs(0)), make_batch(count=64))
    sizes = aux.means["delta_linf"]
    assert sizes.max() <= 0.1 + 1e-6
    assert abs(sizes.mean() - 0.05) < 0.02
    assert len(np.unique(sizes)) == 64


def test_misclassified_images_stay_where_only_right_ones_are_attacked():
    network, batch = Mlp(16, 3, nnx.Rngs(0)), make_batch(count=32)
    _, aux, _ = asked(training.adversarial(FGSM, only_attack_correct=True), network, batch)
    right = aux.means["clean_acc"] > 0
    assert right.any()
    assert not right.all()
    np.testing.assert_array_equal(aux.means["delta_linf"] > 0, right)


class Mapped(Mlp):
    """With feature maps, as perceptual sets want them."""

    def activations(self, images):
        return (nnx.silu(images @ self.first.kernel[...][: images.shape[-1]]),)


def test_perceptual_training_is_bounded_by_the_network_that_trains():
    objective = training.adversarial(attacks.fast_lpa(Perceptual(0.5), steps=3), only_attack_correct=True)
    losses, aux, _ = asked(objective, Mapped(16, 3, nnx.Rngs(0)), make_batch(count=32))
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(aux.means["delta_l2"] > 0, aux.means["clean_acc"] > 0)
    assert aux.means["adv_acc"].mean() < aux.means["clean_acc"].mean()


def test_gradient_penalty_of_a_linear_network_in_closed_form():
    network, batch, margin, v = two_classes()
    error = 1 / (1 + np.exp(margin))
    for norm, size in (("l2", error**2 * (v**2).sum(1)), ("l1", error * np.abs(v).sum(1))):
        losses, aux, _ = asked(training.gradient_penalty(0.7, norm=norm), network, batch)
        np.testing.assert_allclose(aux.means["penalty"], size, rtol=1e-4)
        np.testing.assert_allclose(losses, np.logaddexp(0, -margin) + 0.7 * size, rtol=1e-4)
    # against the uniform distribution: ∇ = (p_1 − 1/2) (w_1 − w_0)
    _, aux, _ = asked(training.gradient_penalty(0.7, against="uniform"), network, batch)
    np.testing.assert_allclose(aux.means["penalty"], (error - 0.5) ** 2 * (v**2).sum(1), rtol=1e-3, atol=1e-6)


def test_gradient_penalty_is_differentiated_twice():
    batch = jax.tree.map(jnp.asarray, make_batch())
    objective, learner = training.gradient_penalty(2.0), learner_of(smooth.Mlp(16, 3))
    _, _, gradient = evaluated(objective, learner, batch)
    step = jax.tree.map(lambda leaf: 1e-2 * jnp.ones_like(leaf), learner.params)

    def moved(times):
        params = jax.tree.map(lambda p, s: p + times * s, learner.params, step)
        return evaluated(objective, dataclasses.replace(learner, params=params), batch)[0].mean()

    near, far = (float(moved(times) - moved(-times)) / (2 * times) for times in (1, 2))
    along = sum(float(jnp.vdot(g, s)) for g, s in zip(*map(jax.tree.leaves, (gradient, step)), strict=True))
    assert (4 * near - far) / 3 == pytest.approx(along, rel=1e-3)


def test_curvature_of_a_linear_network_in_closed_form():
    network, batch, margin, v = two_classes()
    for variant, h in (("code", 3.0), ("paper", 1.5)):
        there = margin - h * np.abs(v).sum(1) / np.sqrt(v.shape[1])
        size = np.abs(1 / (1 + np.exp(there)) - 1 / (1 + np.exp(margin))) * np.linalg.norm(v, axis=1)
        size = size**2 if variant == "paper" else size
        losses, aux, _ = asked(training.cure(variant=variant), network, batch)
        np.testing.assert_allclose(aux.means["curvature"], size, rtol=2e-3)
        np.testing.assert_allclose(losses, np.logaddexp(0, -margin) + 4 * size, rtol=2e-3)


def test_a_constant_loss_is_linear_and_a_bent_one_is_not():
    network, batch, margin, _ = two_classes()
    losses, aux, _ = asked(training.llr(Linf(0.1)), network, batch)
    # the margin moves by the rise over its slope, up or down
    slope, found = 1 / (1 + np.exp(margin)), aux.means
    moved = np.array([[1], [-1]]) * found["rise"] / slope
    apart = np.abs(np.logaddexp(0, moved - margin) - np.logaddexp(0, -margin) - slope * moved)
    assert (np.abs(apart - found["apart"]).min(0) < 1e-5).all()
    assert found["apart"].min() > 1e-4
    np.testing.assert_allclose(losses, np.logaddexp(0, -margin) + 4 * found["apart"] + 3 * found["rise"], rtol=1e-4)
    # of a smooth loss what is not linear is of second order: ½ δᵀHδ
    _, small, _ = asked(training.llr(Linf(0.01)), network, batch)
    bent = (1 - slope) / slope * small.means["rise"] ** 2 / 2
    np.testing.assert_allclose(small.means["apart"], bent, rtol=0.05, atol=1e-6)
    network.dense.kernel[...] = 0 * network.dense.kernel[...]
    _, aux, _ = asked(training.llr(Linf(0.1)), network, batch)
    np.testing.assert_allclose(aux.means["apart"], 0, atol=1e-7)
    np.testing.assert_allclose(aux.means["rise"], 0, atol=1e-7)


@pytest.mark.parametrize("kind", ["sls", "als", "bals", "sbls"])
def test_smoothed_labels(kind, rng):
    logits, labels = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 5, 40)
    soft = np.asarray(training.soft_labels(jnp.asarray(logits), jnp.asarray(labels), kind, temperature=0.1))
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    if kind != "als":
        assert not soft[np.arange(40), labels].any()
    # CE(q, z) = CE(e_y, z) + a (z_y − Σ s_k z_k), by a network whose logits are its images
    identity = Linear(5, 5, nnx.Rngs(0))
    identity.dense.kernel[...], identity.dense.bias[...] = jnp.eye(5), jnp.zeros(5)
    batch = make_batch(count=40, shape=(1, 5, 1), classes=5)._replace(
        images=logits.reshape(40, 1, 5, 1), labels=labels.astype(np.int32)
    )
    losses, _, _ = asked(training.label_smoothing(0.3, kind=kind, temperature=0.1), identity, batch)
    hard, _, _ = asked(training.standard(), identity, batch)
    np.testing.assert_allclose(
        losses, hard + 0.3 * (logits[np.arange(40), labels] - (soft * logits).sum(1)), rtol=1e-5, atol=1e-5
    )


def test_a_sure_teacher_at_temperature_one_gives_labels():
    batch = make_batch()
    sure = Classifier(lambda labels, images: 1e4 * jax.nn.one_hot(labels, 3), jnp.asarray(batch.labels))
    same_step(training.distilled(sure, temperature=1.0), training.standard(), atol=1e-6)


def test_singular_values_go_to_one_and_weights_into_their_bound(rng):
    weights = jnp.asarray(rng.normal(size=(12, 6)) / 4, jnp.float32)
    left, _, right = np.linalg.svd(weights, full_matrices=False)
    weights = jnp.asarray(left * np.linspace(0.5, 1.5, 6) @ right, jnp.float32)
    rule, gaps = training.parseval(beta=0.1), []
    step = jax.jit(lambda w: optax.apply_updates(w, rule.update(jnp.zeros_like(w), rule.init(w), w)[0]))
    for _ in range(60):
        gaps.append(np.linalg.norm(np.asarray(weights).T @ np.asarray(weights) - np.eye(6)))
        values = np.linalg.svd(weights, compute_uv=False)
        weights = step(weights)
        np.testing.assert_allclose(
            np.linalg.svd(weights, compute_uv=False), np.sort(values * (1.1 - 0.1 * values**2))[::-1], rtol=1e-4
        )
    assert (np.diff(gaps) <= 1e-6).all()
    assert gaps[-1] < 1e-3
    rule = optax.chain(optax.sgd(1.0), training.clip_weights(bound=0.05))
    updates, _ = rule.update({"w": jnp.ones(3)}, rule.init({"w": jnp.ones(3)}), {"w": jnp.array([0.5, 1.02, 2.0])})
    np.testing.assert_allclose(
        optax.apply_updates({"w": jnp.array([0.5, 1.02, 2.0])}, updates)["w"], [-0.05, 0.02, 0.05], atol=1e-6
    )
    weights = jnp.asarray(np.random.default_rng(0).normal(size=10_000), jnp.float32)
    for bound in (0.01, 0.3, 1 / 3):
        rule = training.clip_weights(bound=bound)
        moved = optax.apply_updates(weights, rule.update(0.1 * weights, rule.init(weights), weights)[0])
        assert np.float32(bound) * (1 - 1e-5) < jnp.abs(moved).max() <= np.float32(bound)


def test_an_average_classifies_clean_images_once():
    sizes = []

    def apply(params, images):
        sizes.append(len(images))
        return images.reshape(len(images), -1)[:, :3] * params

    trainable, params, state = Trainable.from_function(apply, jnp.ones(()))
    batch = jax.tree.map(jnp.asarray, make_batch())
    learner, objective = Learner(trainable, params, state), training.several(FGSM, FGSM, combine="average")
    _, aux = jax.eval_shape(objective, jax.random.key(0), learner, batch)
    assert sizes.count(16) == 1  # the adversarial images of both, in training
    assert set(aux.means) == {"adv_acc", "clean_acc", "delta_linf", "delta_l2"}


class Normalised(nnx.Module):
    """Two layers under spectral normalisation, whose weights are far too large as they are."""

    def __init__(self, rngs):
        layers = nnx.Linear(16, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        for layer in layers:
            layer.kernel[...] = 5 * layer.kernel[...]
        self.first, self.second = (nnx.SpectralNorm(layer, rngs=rngs) for layer in layers)

    def __call__(self, images):
        return self.second(nnx.relu(self.first(images.reshape(len(images), -1))))


def test_spectral_normalisation_holds_after_every_step():
    batch, (trainable, optimizer, state) = make_batch(), start(Normalised(nnx.Rngs(0)))
    for number in range(21):
        state, _ = compiled_step(training.standard(), trainable, optimizer, state, batch, jax.random.key(number))
        if number % 10:
            continue
        network = trainable.merge(state.params, state.state)
        kernels = network.first.layer_instance.kernel, network.second.layer_instance.kernel
        before = [np.linalg.norm(kernel[...], 2) for kernel in kernels]
        network(jnp.asarray(batch.images))  # leaves the weights that it used
        after = [np.linalg.norm(kernel[...], 2) for kernel in kernels]
        assert min(before) > 3
        # one power iteration a step, of which the estimate is from below
        assert 1 - 1e-5 < min(after) <= max(after) < (1.02 if number else 2)


def test_priced_perturbations_are_where_their_price_balances_the_gradient():
    network, batch, *_ = two_classes()
    _, aux, _ = asked(training.wrm(gamma=2.0, steps=200), network, batch)
    assert (aux.means["rest"] < 0.02 * np.sqrt(aux.means["cost"])).all()
    assert (aux.means["cost"] > 0).all()
    _, dearer, _ = asked(training.wrm(gamma=20.0, steps=200), network, batch)
    np.testing.assert_allclose(aux.means["cost"] / dearer.means["cost"], 100, rtol=0.5)


def test_worst_distributions_in_closed_form(rng):
    """Of wᵀx, of ½(wᵀx)², and of squared errors: sup {E_Q (wᵀx − y)² : W(Q, P) ≤ ρ} = (√MSE + √ρ ‖w‖)²."""
    w, x, y = jnp.asarray(rng.normal(size=4), jnp.float32), rng.uniform(size=(6, 2, 2, 1)), rng.normal(size=6)
    x = jnp.asarray(x, jnp.float32)

    def linear(images):
        return images.reshape(len(images), -1) @ w

    moved, rest = jax.jit(lambda x: priced(linear, x, 2.0, 50))(x)
    np.testing.assert_allclose(moved - x, jnp.broadcast_to(w.reshape(2, 2, 1) / 4, x.shape), atol=1e-6)
    np.testing.assert_allclose(rest, 0, atol=1e-6)
    square, before = float(w @ w), np.asarray(linear(x), np.float64)
    search = jax.jit(lambda x, y, gamma: priced(lambda images: jnp.square(linear(images) - y) / 2, x, gamma, 200)[0])
    gammas = square * np.array([0.75, 1.0, 1.5, 2.0, 3.0, 5.0])
    bounds, budget = [], 0.3
    for gamma in gammas:
        for target in (0 * y, y):
            moved = search(x, jnp.asarray(target, jnp.float32), jnp.float32(gamma))
            value = np.square(np.asarray(linear(moved)) - target) / 2 - gamma * np.square(moved - x).sum((1, 2, 3))
            np.testing.assert_allclose(
                value, np.square(before - target) * gamma / (2 * gamma - square), rtol=1e-3, atol=1e-5
            )
        bounds.append(gamma * budget + value.mean())
    error = np.sqrt(np.square(before - y).mean())
    closed = (error + np.sqrt(budget * square)) ** 2 / 2
    best = (square + error * np.sqrt(square / budget)) / 2  # where the derivative in γ is 0
    assert min(bounds) > closed - 1e-3
    moved = search(x, jnp.asarray(y, jnp.float32), jnp.float32(best))
    value = np.square(np.asarray(linear(moved)) - y) / 2 - best * np.square(moved - x).sum((1, 2, 3))
    assert best * budget + value.mean() == pytest.approx(closed, rel=1e-3)


def test_the_bound_of_one_price_holds_for_what_others_reach():
    network, batch, *_ = two_classes()
    search = functools.partial(training.wasserstein_bound, Classifier.from_nnx(network), *map(jnp.asarray, batch[:2]))
    found = {gamma: search(gamma=gamma, steps=100) for gamma in (0.5, 1.0, 2.0)}
    bound = found[1.0]
    assert bound.rest.max() < 1e-2
    for other in found.values():
        assert other.losses.mean() <= bound.at(other.costs.mean()) + 1e-4
    assert bound.at(bound.costs.mean()) == pytest.approx(bound.losses.mean())
    _, aux, _ = asked(training.wrm(gamma=1.0, steps=100), network, batch)
    assert {"delta_linf", "delta_l2"} <= set(aux.means)
    assert set(aux.counts) == {"nan_delta"}
    np.testing.assert_allclose(aux.means["cost"], bound.costs, rtol=1e-4)
    with pytest.raises(ValueError, match="budget must be finite and >= 0"):
        bound.at(-1.0)


def test_radii_outside_of_attacks_warm_up_too():
    share = np.float32(0.5)
    assert warmed_up(training.cure(), share).step == 1.5
    assert warmed_up(training.free(0.5), share).radius == 0.25
    assert warmed_up(training.llr(Linf(0.5)), share).set.radius == 0.25


def worst_mean(kind, amount, losses):
    """By definition, in NumPy."""
    if kind == "kl":
        above = losses - losses.max()  # whose exponentials do not overflow
        return losses.max() + amount * np.log1p(np.mean(np.expm1(above / amount)))
    if kind == "chi2":
        return losses.mean() + np.sqrt(2 * amount * losses.var() / len(losses))
    return min(eta + np.maximum(losses - eta, 0).mean() / amount for eta in losses)


@pytest.mark.parametrize(("kind", "amount"), [("cvar", 0.3), ("cvar", 1.0), ("kl", 0.2), ("chi2", 0.5)])
def test_worst_reweightings_by_definition(kind, amount):
    network, batch = Mlp(16, 3, nnx.Rngs(0)), make_batch(count=16)
    objective = training.reweighted(kind, amount)
    losses, aux, gradient = asked(objective, network, batch)
    each = aux.means["mean_loss"].astype(np.float64)
    np.testing.assert_allclose(losses, worst_mean(kind, amount, each), rtol=1e-5)
    # as those of a part that only fills the batch; the loss of a filler, however high, is nobody's
    nothing, _, _ = asked(objective, network, batch._replace(mask=np.zeros(16, np.float32)))
    assert np.isfinite(nothing).all()
    worst_of = jax.jit(lambda losses, mask: objective._worst(losses, batch._replace(mask=mask), None))
    for scale in (1e-12, 1e-8, 1e6):
        rows, mask = np.float32(scale * np.append(each, 1e6)), np.arange(17) < 16
        weights, value = worst_of(rows, mask)
        np.testing.assert_allclose(value, worst_mean(kind, amount, rows[:16].astype(np.float64)), rtol=1e-4)
        np.testing.assert_allclose(weights[:16].mean(), 1, rtol=1e-4)
        assert np.isfinite(weights).all()
    learner = learner_of(network)

    def worst(params):
        logits = learner.trainable.classifier(params, learner.state)(jnp.asarray(batch.images))
        values = training.objectives.core.cross_entropies(logits, jnp.asarray(batch.labels))
        if kind == "kl":
            return amount * jnp.log(jnp.mean(jnp.exp(values / amount)))
        if kind == "chi2":
            return values.mean() + jnp.sqrt(2 * amount * values.var() / len(values))
        return jnp.min(jax.vmap(lambda eta: eta + jnp.maximum(values - eta, 0).mean() / amount)(values))

    expected = jax.jit(jax.grad(worst))(learner.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, expected)


def test_one_group_is_plain_training_and_the_worse_group_gains_weight():
    batch = make_batch()
    same_step(training.group_dro(np.zeros(8, int)), training.standard())
    objective = training.group_dro(np.arange(8) % 2, rate=1.0)
    trainable, optimizer, state = begun(objective, Mlp(16, 3, nnx.Rngs(0)), batch)
    np.testing.assert_allclose(state.memory, 0.5)
    state, _ = compiled_step(objective, trainable, optimizer, state, batch, jax.random.key(0))
    _, aux, _ = asked(training.group_dro(np.arange(8) % 2), Mlp(16, 3, nnx.Rngs(0)), batch)
    means = np.array([aux.means["mean_loss"][g::2].mean() for g in (0, 1)])
    np.testing.assert_allclose(state.memory, np.exp(means) / np.exp(means).sum(), rtol=1e-5)
    equal = objective.remember(jnp.full(2, 0.5), {"loss": jnp.array([3.0, 9.0]), "member": jnp.array([1.0, 3.0])}, None)
    np.testing.assert_allclose(equal, 0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: training.trades(attacks.apgd(Linf(0.1))), TypeError, "attack must be a gradient ascent"),
        (lambda: training.trades(PGD, beta=-1.0), ValueError, "beta must be finite and >= 0"),
        (lambda: training.mart(0.1), TypeError, "attack must be an Attack"),
        (lambda: training.several(PGD, combine="msd"), ValueError, "combine must be one of"),
        (lambda: training.free(0.1, replays=0), ValueError, "replays must be >= 1"),
        (lambda: training.grad_align(-0.1), ValueError, "radius must be finite and >= 0"),
        (lambda: training.gradient_penalty(1.0, norm="linf"), ValueError, "norm must be one of"),
        (lambda: training.cure(variant="mine"), ValueError, "variant must be one of"),
        (lambda: training.llr(0.1), TypeError, "set must be a perturbation set"),
        (lambda: training.label_smoothing(1.5), ValueError, "amount must be finite and in"),
        (lambda: training.label_smoothing(0.1, temperature=0.0), ValueError, "temperature must be > 0"),
        (lambda: training.distilled(None), TypeError, "teacher must be a Classifier"),
        (lambda: training.wrm(gamma=0.0), ValueError, "gamma must be > 0"),
        (lambda: training.wasserstein_bound(None, None, None), TypeError, "model must be a Classifier"),
        (lambda: training.reweighted("cvar", 1.5), ValueError, "amount must be finite and in"),
        (lambda: training.group_dro([0.5]), TypeError, "groups must be integers"),
        (lambda: training.group_dro([-1, 0]), ValueError, "groups must be numbers from 0"),
        (lambda: training.parseval(beta=0.0), ValueError, "beta must be > 0"),
        (lambda: training.register("trades", training.trades, training.trades, cost="", use=""), ValueError, "again"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises((error, TypeError), match=f"{message}|Type-check error"):  # which the default run has besides
        call()
