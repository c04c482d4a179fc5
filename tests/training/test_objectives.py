"""What the objectives compute, told apart from the step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrobust import attacks, sets
from jaxrobust.models.trainable import Trainable
from jaxrobust.sets import Linf
from jaxrobust.training import Learner, adversarial, mixed, several, standard
from tests.training import tiny
from tests.training.tiny import Mlp, assert_equal, start, take_steps

PGD = attacks.pgd(Linf(0.1), steps=2, random_start=False)
RANDOM = attacks.rs_fgsm(Linf(0.1))


def make_batch(**options):
    return jax.tree.map(jnp.asarray, tiny.make_batch(**options))


def learner(network):
    trainable, _, state = start(network)
    return Learner(trainable, state.params, state.state)


def test_label_smoothing_is_cross_entropy_with_a_smoothed_target():
    subject, batch = learner(Mlp(16, 3, nnx.Rngs(0))), make_batch()
    losses, _ = jax.jit(standard(label_smoothing=0.3).__call__)(jax.random.key(0), subject, batch)
    logits, _ = subject.train(batch.images, jax.random.key(0))
    target = 0.7 * np.eye(3)[np.asarray(batch.labels)] + 0.1
    np.testing.assert_allclose(losses, optax.softmax_cross_entropy(logits, jnp.asarray(target, jnp.float32)), rtol=1e-5)


def test_mixed_is_the_weighted_sum():
    subject, batch, key = learner(Mlp(16, 3, nnx.Rngs(0))), make_batch(), jax.random.key(0)
    (clean, _), (robust, _), (both, aux) = jax.jit(
        lambda *args: [objective(*args) for objective in (standard(), adversarial(PGD), mixed(PGD, weight=0.25))]
    )(key, subject, batch)
    np.testing.assert_allclose(both, 0.25 * clean + 0.75 * robust, rtol=1e-6)
    assert set(aux.means) == {"adv_acc", "clean_acc", "delta_linf", "delta_l2"}


def test_both_passes_of_mixed_drop_units_of_their_own():
    subject, batch, key = learner(Mlp(16, 3, nnx.Rngs(0), dropout=0.5)), make_batch(), jax.random.key(0)
    still = attacks.fgsm(sets.Linf(0.0))
    first, second = (jax.jit(mixed(still, weight=weight).__call__)(key, subject, batch)[0] for weight in (0.0, 1.0))
    assert (np.abs(first - second) > 1e-3).mean() > 0.5


L2 = attacks.pgd(sets.L2(0.5), steps=2, random_start=False)


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["max", "average", "random"])
def test_several_of_one_attack_is_that_attack(combine):
    subject, batch, key = learner(Mlp(16, 3, nnx.Rngs(0), norm=True)), make_batch(), jax.random.key(0)
    one, aux = jax.jit(adversarial(PGD).__call__)(key, subject, batch)
    same, same_aux = jax.jit(several(PGD, combine=combine).__call__)(key, subject, batch)
    np.testing.assert_allclose(same, one, rtol=1e-5)
    np.testing.assert_allclose(same_aux.means.pop("chose_0"), 1)
    assert jax.tree.structure(same_aux) == jax.tree.structure(aux)
    for other, this in zip(jax.tree.leaves(same_aux), jax.tree.leaves(aux), strict=True):
        np.testing.assert_allclose(other, this, atol=1e-6)


@pytest.mark.slow
def test_several_attacks_are_combined_as_they_say():
    """Without batch statistics: the maximum and the mean of the single losses, and either one of them."""
    subject, batch, key = learner(Mlp(16, 3, nnx.Rngs(0))), make_batch(), jax.random.key(0)
    single = np.stack([jax.jit(adversarial(attack).__call__)(key, subject, batch)[0] for attack in (PGD, L2)])
    assert not np.allclose(*single)
    for combine, expected in {"max": single.max(0), "average": single.mean(0)}.items():
        losses, _ = jax.jit(several(PGD, L2, combine=combine).__call__)(key, subject, batch)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
    draw = jax.jit(several(PGD, L2, combine="random").__call__)
    drawn = [np.asarray(draw(jax.random.key(seed), subject, batch)[0]) for seed in range(8)]
    places = [[np.allclose(losses, one, rtol=1e-5) for one in single].index(True) for losses in drawn]
    assert set(places) == {0, 1}


@dataclasses.dataclass(frozen=True)
class Watched(Trainable):
    """A trainable that remembers what it was last trained on."""

    network: Trainable
    seen: list = dataclasses.field(default_factory=list, hash=False, compare=False)

    def train(self, params, state, images, key, axis_name=None):
        self.seen.append(images)
        return self.network.train(params, state, images, key, axis_name)

    def classifier(self, params, state):
        return self.network.classifier(params, state)


@functools.partial(jax.jit, static_argnames="mode")
def watch(subject, batch, key, mode="eval"):
    """The adversarial images that the objective trains on, and the state it leaves."""
    watched = Watched(subject.trainable)
    learner = Learner(watched, subject.params, subject.state)
    _, aux = adversarial(RANDOM, craft_bn=mode)(key, learner, batch)
    return watched.seen[-1], aux.state


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_crafting_does_not_move_the_running_averages(mode):
    subject, batch, key = learner(Mlp(16, 3, nnx.Rngs(0), norm=True)), make_batch(), jax.random.key(0)
    images, state = watch(subject, batch, key, mode)
    _, after = subject.train(images, key)
    np.testing.assert_allclose(state["norm"]["mean"], after.state["norm"]["mean"], atol=1e-6)


def test_crafting_mode_matters_and_stays_in_the_set():
    subject, batch, key = learner(Mlp(16, 3, nnx.Rngs(0), norm=True)), make_batch(), jax.random.key(0)
    in_eval, in_batch = (watch(subject, batch, key, mode)[0] for mode in ("eval", "batch"))
    assert not np.array_equal(in_eval, in_batch)
    for images in (in_eval, in_batch):
        assert np.abs(np.asarray(images) - batch.images).max() <= 0.1 + 1e-6


def test_noise_is_each_examples_own():
    """An example's adversarial image does not depend on the batch in which it comes."""
    subject, batch, key = learner(Mlp(16, 3, nnx.Rngs(0))), make_batch(), jax.random.key(0)
    order = np.array([5, 2, 7])
    part = jax.tree.map(lambda x: x[order], batch)
    whole, _ = watch(subject, batch, key)
    np.testing.assert_allclose(whole[order], watch(subject, part, key)[0], atol=1e-7)


class Broken(attacks.PGD):
    """An attack whose last iterate is NaN in the first row of pixels."""

    def last(self, state):
        return super().last(state).at[0].set(jnp.nan)


def test_nan_perturbations_are_replaced_and_counted():
    broken = jax.tree_util.register_dataclass(
        Broken,
        data_fields=["set", "step_size", "relative_step_size", "start_size", "momentum"],
        meta_fields=["steps", "restarts", "start", "loss", "aim"],
    )(**vars(PGD))
    network, batch = Mlp(16, 3, nnx.Rngs(0)), make_batch(mask=np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32))
    subject = learner(network)
    losses, aux = jax.jit(adversarial(broken).__call__)(jax.random.key(0), subject, batch)
    assert np.isfinite(np.asarray(losses)).all()
    assert aux.counts["nan_delta"].all()
    _, metrics = take_steps(adversarial(broken), network, batch)
    assert metrics["nan_delta"] == 6
    assert metrics["nan_delta"].dtype == jnp.int32
    assert np.isfinite(metrics["loss"])


def test_without_the_clean_metric_no_clean_accuracy():
    objective, subject = adversarial(PGD, clean_metric=False), learner(Mlp(16, 3, nnx.Rngs(0)))
    _, aux = jax.eval_shape(objective, jax.random.key(0), subject, make_batch())
    assert "clean_acc" not in aux.means


def test_the_adversarial_image_is_constant():
    """The gradient is that of the loss at a fixed image (Danskin), not through the attack."""
    subject, batch, key = learner(Mlp(16, 3, nnx.Rngs(0))), make_batch(), jax.random.key(0)
    images, _ = watch(subject, batch, key)

    @jax.jit
    @jax.grad
    def gradient(params, objective, batch):
        return objective(key, dataclasses.replace(subject, params=params), batch)[0].mean()

    through = gradient(subject.params, adversarial(RANDOM), batch)
    fixed = gradient(subject.params, standard(), batch._replace(images=images))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), through, fixed)


def test_objectives_are_pytrees_of_numbers():
    objective = adversarial(PGD, label_smoothing=0.1)
    assert 0.1 in jax.tree.leaves(objective)
    assert_equal(jax.tree.map(lambda x: x, objective), objective)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: standard(label_smoothing=1.5), r"label_smoothing must be finite and in \[0, 1\]; got 1.5"),
        (lambda: adversarial(PGD, label_smoothing=-0.1), "label_smoothing must be"),
        (lambda: adversarial(PGD, craft_bn="train"), "craft_bn"),
        (lambda: mixed(PGD, weight=float("nan")), "weight must be"),
        (several, "attacks must hold at least one attack; got none"),
        (lambda: several(PGD, combine="mean"), "combine"),
        (lambda: several(PGD, Linf(0.1)), "attack must be an Attack"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_an_attack_is_wanted():
    with pytest.raises(TypeError, match=r"attack must be an Attack.*Linf"):
        adversarial(Linf(0.1))
