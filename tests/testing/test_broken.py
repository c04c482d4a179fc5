"""Every law of `jaxrobust.testing` can fail: sets, attacks and objectives, each with one thing broken."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets, testing, training
from jaxrobust.attacks.gradient.pgd import PGD
from jaxrobust.testing.objectives import ObjectiveCase, radius_zero_is_standard_training
from jaxrobust.testing.sets import SetCase
from jaxrobust.types import pytree


def broken(base, *data, **methods):
    """A class with some methods of another replaced."""
    fields = data or ("radius",)
    return pytree(*fields)(type("Broken", (base,), {"__annotations__": {}, **methods}))


def ball(**methods):
    return broken(sets.Linf, **methods)(0.1)


def plus(number, method):
    """The method's answer, so much larger."""
    return lambda self, *args: jax.tree.map(lambda leaf: leaf + number, getattr(sets.Linf, method)(self, *args))


def never(self, *args):
    return jnp.zeros((), bool)


def always(self, *args):
    return jnp.ones((), bool)


def frozen(self, radius):
    return self


SETS = {
    "identity_changes_nothing": ball(init=plus(0.01, "init")),
    "same_parameters_give_the_same": ball(apply=lambda self, x, theta: x + theta - 1e-3 * next(counter)),
    "samples_are_members": ball(sample=plus(0.2, "sample")),
    "samples_differ": ball(sample=lambda self, key, x: jnp.zeros_like(x)),
    "projection_is_a_member_and_idempotent": ball(project=lambda self, x, theta: theta),
    "projection_holds_at_any_scale": ball(project=lambda self, x, theta: 0 * theta),
    "projection_keeps_members": ball(project=lambda self, x, theta: 0.5 * sets.Linf.project(self, x, theta)),
    "size_and_contains_agree": ball(contains=always),
    "gradients_are_finite": ball(pullback=lambda self, x, theta, gradient: gradient / jnp.sign(theta)),
    "zero_gradient_moves_nothing": ball(ascend=plus(0.01, "ascend")),
    "radius_zero_is_the_clean_image": ball(
        project=lambda self, x, theta: jnp.clip(theta, jnp.maximum(-0.1, -x), jnp.minimum(0.1, 1 - x))
    ),
    "huge_radius_stays_in_the_box": ball(
        project=lambda self, x, theta: jnp.clip(theta, -self._radius(x), self._radius(x))
    ),
    "small_steps_ascend": ball(ascend=lambda self, x, theta, gradient, size: theta - size * jnp.sign(gradient)),
    "maximise_beats_every_sample": ball(maximise=lambda self, x, gradient: 0 * gradient),
    "distance_is_a_size": ball(distance=lambda self, x, theta, other: self.size(x, other) + 0.01),
    "structure_and_dtype_are_kept": ball(sample=lambda self, key, x: sets.Linf.sample(self, key, x)[:1]),
    "text_names_the_radius": ball(__str__=lambda self: "a ball"),
    "bad_radii_are_refused": ball(with_radius=frozen),
}


def by_value(self, x, theta):
    """A projection that is compiled for its radius."""
    return jnp.clip(theta, -float(self.radius), float(self.radius))


def test_sets():
    assert set(SETS) | {"radius_is_traced_and_maps"} == set(testing.SET_LAWS)


@pytest.mark.parametrize("law", SETS)
def test_a_broken_set_is_found(law):
    with pytest.raises(AssertionError, match=rf"^(Broken\(0.1\)|a ball) on a \w+ image of .* breaks the law {law}: "):
        testing.SET_LAWS[law](SetCase(SETS[law], (4, 5, 1), "white" if law.startswith("huge") else "random"))


def test_a_radius_that_is_not_traced_is_found():
    @dataclasses.dataclass(frozen=True)
    class Static(sets.Linf):
        """A ball whose radius is structure."""

        def __hash__(self):
            return hash(float(self.radius))

    jax.tree_util.register_static(Static)
    with pytest.raises(AssertionError, match="radius_is_traced_and_maps: 5 traces of five radii"):
        testing.check_set(Static(0.1), shapes=((4, 5, 1),), laws=["radius_is_traced_and_maps"])


def test_a_set_that_is_no_pytree_is_found():
    class NoPytree(sets.Linf):
        """A class that inherits from a pytree, but is none."""

    with pytest.raises(AssertionError, match="is no pytree; decorate its class"):
        testing.check_set(NoPytree(0.1), laws=["samples_differ"])


def test_what_a_method_raises_says_when():
    with pytest.raises(jax.errors.ConcretizationTypeError) as caught:
        testing.check_set(ball(project=by_value), shapes=((4, 5, 1),), laws=["projection_keeps_members"])
    assert "the law projection_keeps_members was tried on Broken(0.1)" in "".join(caught.value.__notes__)


DATA = ("set", "step_size", "relative_step_size", "start_size", "momentum")


def ascent(data=DATA, radius=0.1, step=1.0, **methods):
    return broken(PGD, *data, **methods)(sets.Linf(radius), steps=1, relative_step_size=step)


def replaced(method, **change):
    """A PGD whose state or booking is changed after a method."""

    def changed(self, *args):
        found = getattr(PGD, method)(self, *args)
        return dataclasses.replace(found, **{name: make(found) for name, make in change.items()})

    return ascent(**{method: changed})


counter = itertools.count()


def drawn_aside(self, key, x, goal, logits):
    """A start from a key that is new whenever a program is traced."""
    return PGD.init(self, jax.random.key(next(counter)), x, goal, logits)


def drawn_by_the_host(self, key, x):
    """A start from the host's own randomness."""
    shape = jax.ShapeDtypeStruct((), np.float32)
    drawn = jax.pure_callback(lambda: np.float32(next(counter) % 7 / 100), shape, vmap_method="sequential")
    return jnp.clip(jnp.full_like(x, drawn), -x, 1 - x)


def untargeted(self, logits, aim):
    """A loss that flees the target."""
    return -logits[aim.target] if aim.targeted else -logits[aim.label]


ATTACKS = {
    "results_are_members_and_confirmed": replaced("best", success=lambda best: jnp.ones((), bool)),
    "best_point_is_at_least_as_good_as_the_clean_image": replaced(
        "best", loss=lambda best: best.loss - jnp.where(best.forwards > 0, 10.0, 0.0)
    ),
    "misclassified_image_comes_back_unchanged": replaced("init", success=lambda state: jnp.zeros((), bool)),
    "counts_are_the_schedule": replaced("best", forwards=lambda best: best.forwards - 1),
    "radius_zero_returns_the_clean_image": ascent(with_radius=frozen),
    "neighbours_and_order_do_not_matter": ascent(_first=drawn_by_the_host),
    "one_image_alone_is_the_same": ascent(init=drawn_aside, step=0.6),
    "nothing_is_traced_twice": ascent(data=("set",)),
    "radii_map": ascent(init=drawn_aside, step=0.6),
    "every_example_has_its_own_radius": ascent(init=drawn_aside, step=0.6),
    "survives_broken_models": replaced("best", size=lambda best: jnp.where(best.non_finite, jnp.nan, best.size)),
    "key_decides": ascent(_first=lambda self, key, x: self.set.init(x)),
    "targeted_runs_go_towards_the_target": ascent(_loss=untargeted, radius=0.02),
}


def test_attacks():
    assert set(ATTACKS) == set(testing.ATTACK_LAWS)


@pytest.mark.parametrize("law", ATTACKS)
def test_a_broken_attack_is_found(law):
    with pytest.raises(AssertionError, match=rf"^Broken \(gradient ascent in .*\) on 3 classes .* the law {law}: "):
        testing.check_attack(ATTACKS[law], shape=(4, 3, 1), classes=3, laws=[law])


def objective(name, loss=None, *, numbers=(), **changes):
    """Standard training whose losses or aux are changed."""

    def call(self, key, learner, batch):
        losses, aux = training.Standard.__call__(self, key, learner, batch)
        losses = losses if loss is None else loss(self, losses, key, learner, batch)
        return losses, aux._replace(**{field: make(aux) for field, make in changes.items()})

    return pytree(*numbers)(type("Broken", (training.Standard,), {"__call__": call, "__annotations__": {}}))(0.5)


class NoPytree(training.Standard):
    """A class that inherits from a pytree, but is none."""


OBJECTIVES = {
    "losses_and_metrics_are_an_example_each": objective("mean", lambda _, losses, *rest: losses.mean()),
    "gradients_are_finite": objective("root", lambda _, losses, *rest: jnp.sqrt(losses - losses)),
    "same_key_gives_the_same": objective("aside", lambda _, losses, *rest: losses + next(counter)),
    "neighbours_do_not_matter": objective("mixed", lambda _, losses, *rest: losses - losses.mean(keepdims=True)),
    "numbers_never_retrace": objective("static"),
    "padding_does_not_matter": objective(
        "full", lambda _, losses, *rest: losses * jax.lax.stop_gradient(losses.mean())
    ),
    "devices_make_the_step_of_one": objective(
        "shard", lambda _, losses, *rest: losses * jax.lax.stop_gradient(losses.mean())
    ),
    "step_is_pure": objective("still", lambda _, losses, *rest: jax.lax.stop_gradient(losses)),
}


def test_objectives():
    others = {"is_a_pytree_of_numbers", "radius_zero_is_standard_training"}  # each has a test of its own
    assert set(OBJECTIVES) | others == set(testing.OBJECTIVE_LAWS)


@pytest.mark.parametrize("law", OBJECTIVES)
def test_a_broken_objective_is_found(law):
    with pytest.raises(AssertionError, match=rf"^Broken on 2 classes of shape \(3, 2, 1\) breaks the law {law}: "):
        testing.check_objective(OBJECTIVES[law], shape=(3, 2, 1), classes=2, laws=[law])


def test_an_objective_that_is_said_to_be_standard_training_and_is_not_is_found():
    case = ObjectiveCase(objective("more", lambda _, losses, *rest: 2 * losses), clean=True)
    with pytest.raises(AssertionError, match="at radius 0, "):
        radius_zero_is_standard_training(case)


def test_an_objective_that_is_no_pytree_is_found():
    with pytest.raises(AssertionError, match=r"NoPytree .* is_a_pytree_of_numbers: it is no pytree"):
        testing.check_objective(NoPytree(), laws=["is_a_pytree_of_numbers"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: testing.check_set(0.1), TypeError, "set must be a PerturbationSet; got 0.1"),
        (lambda: testing.check_set(sets.Linf(0.0)), ValueError, "set must have a typical radius > 0"),
        (lambda: testing.check_set(sets.Linf(np.full(8, 0.1))), ValueError, "radius must be one number here"),
        (
            lambda: testing.check_attack(attacks.pgd(sets.Linf(np.full(8, 0.1)))),
            ValueError,
            "radius must be one number",
        ),
        (lambda: testing.check_attack(attacks.pgd), TypeError, "attack must be an Attack"),
        (lambda: testing.check_objective(0.1), TypeError, "objective must be callable"),
        (lambda: testing.check_set(sets.Linf(0.1), shapes=()), ValueError, "shapes must hold at least one"),
        (lambda: testing.check_set(sets.Linf(0.1), shapes=(6, 5, 3)), TypeError, "shapes must be a collection of im"),
        (lambda: testing.check_set(sets.Linf(0.1), laws=[]), ValueError, "laws must name at least one law; got none"),
        (lambda: testing.check_set(sets.Linf(0.1), laws=["sample"]), ValueError, "laws must be one of"),
        (lambda: testing.check_set(sets.Linf(0.1), laws="sample"), TypeError, "laws must be a collection of names"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_laws_hold_for_few_classes_and_pixels():
    few = attacks.apgd_t(sets.Linf(0.1), steps=2, targets=3)
    testing.check_attack(few, shape=(2, 2, 1), classes=2, laws=["counts_are_the_schedule"])
    testing.check_attack(attacks.pgd(sets.Linf(0.1), steps=2), shape=(2, 2, 1), classes=2, laws=["key_decides"])


def test_laws_of_a_ball_hold_under_x64():
    with jax.enable_x64(True):
        laws = ["projection_is_a_member_and_idempotent", "small_steps_ascend"]
        testing.check_set(sets.L1(0.5), shapes=((3, 2, 1),), laws=laws)
