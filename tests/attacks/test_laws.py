"""The laws of `jaxrobust.testing` over every registered attack and set, and what is particular to some."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.testing.attacks import ATTACK_LAWS, HOSTILE, AttackCase, broken_model, measured
from jaxrobust.types import Classifier, Code, Targeted
from tests import tiny

# PGD on every set, and every attack on a set that suits it
PAIRS = [("pgd", name) for name in sorted(sets.REGISTRY)]
PAIRS += [(name, entry.on) for name, entry in sorted(attacks.REGISTRY.items()) if name != "pgd"]
# by default PGD on few sets, and for laws that compile programs of their own few attacks
SETS = {"linf", "l2", "l1", "flow"}
ATTACKS = {"pgd-linf", "fgsm-linf", "frank_wolfe-linf"}


def cases(default, pairs=PAIRS):
    """Pairs, those that the default run leaves out marked."""
    found = []
    for attack, name in pairs:
        marks = [] if default(attack, name) else [pytest.mark.slow]
        found.append(pytest.param(attack, name, id=f"{attack}-{name}", marks=marks))
    return found


# one attack of each kind, for the default run
KINDS = {
    "adam",
    "apgd_t",
    "cw",
    "eot",
    "fgsm",
    "fmn",
    "frank_wolfe",
    "grid_search",
    "hop_skip_jump",
    "lpa",
    "rs_fgsm",
    "square",
}
KINDS |= {"sparse_rs_patch", "worst_of"}
CASES = cases(lambda attack, name: name in SETS if attack == "pgd" else attack in KINDS)
# laws about how an attack is run, for which one set says as much as another
FEW = cases(lambda attack, name: f"{attack}-{name}" in ATTACKS, [p for p in PAIRS if p[0] != "pgd" or p[1] in SETS])
# and one image is a shape of its own: its law differs from that of neighbours where the engine does, not the attack
FEWER = [case for case in FEW if case.values[0] in {"pgd", *KINDS}]
LAWS = {
    "results_are_members_and_confirmed": CASES,
    "misclassified_image_comes_back_unchanged": CASES,
    "counts_are_the_schedule": CASES,
    "radius_zero_returns_the_clean_image": CASES,
    "neighbours_and_order_do_not_matter": CASES,
    "best_point_is_at_least_as_good_as_the_clean_image": FEW,
    "key_decides": FEW,
    "nothing_is_traced_twice": FEW,
    "every_example_has_its_own_radius": FEW,
    "radii_map": FEWER,
    "one_image_alone_is_the_same": FEWER,
    "targeted_runs_go_towards_the_target": FEWER,
}
KEY = jax.random.key(7)


def make(attack, perturbation_set):
    """A registered attack, at most three steps of it."""
    made = attacks.REGISTRY[attack](sets.REGISTRY[perturbation_set]())
    return dataclasses.replace(made, steps=min(made.steps, 3)) if hasattr(made, "steps") else made


@functools.cache
def case(attack, perturbation_set, classes=tiny.CLASSES):
    """A registered attack and the network of its laws."""
    shape = sets.REGISTRY[perturbation_set].shapes[0]
    return AttackCase(make(attack, perturbation_set), shape, classes, attacks.REGISTRY[attack].model)


def assert_equal(left, right, atol=0.0):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=jax.tree_util.keystr(path))


# all laws of a pair one after another, so that programs given back between pairs are not made again
LAWS_OF_PAIRS = [
    pytest.param(*one.values, law, id=f"{law}-{one.id}", marks=one.marks)
    for law, those in LAWS.items()
    for one in those
]
LAWS_OF_PAIRS.sort(key=lambda one: PAIRS.index(one.values[:2]))


@pytest.mark.parametrize(("attack", "perturbation_set", "law"), LAWS_OF_PAIRS)
def test_law(law, attack, perturbation_set):
    ATTACK_LAWS[law](case(attack, perturbation_set))


def test_all_laws_are_run():
    assert set(LAWS) | {"survives_broken_models"} == set(ATTACK_LAWS)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["fgsm", "mi_fgsm", "rs_fgsm"])
def test_compiled_equals_uncompiled(attack):
    problem = case(attack, "linf")
    made = dataclasses.replace(problem.attack, steps=min(problem.attack.steps, 2))
    compiled = problem.run([0, 1], attack=made)
    with jax.disable_jit():
        plain = problem.run([0, 1], attack=made)
    assert_equal(compiled, plain, atol=2e-4)


@pytest.fixture(scope="module", params=[3, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 4))])
def hostile_models(request):
    return {name: broken_model(name, request.param) for name in HOSTILE}


EXTREME = np.stack([np.zeros(tiny.SHAPE), np.ones(tiny.SHAPE), np.random.default_rng(0).random(tiny.SHAPE)])
EXTREME = EXTREME.astype(np.float32)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("loss", "perturbation_set"),
    [("dlr", "linf")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (("cross_entropy", "linf"), ("margin", "linf"), ("cross_entropy", "l2"), ("cross_entropy", "l1"))
    ],
)
def test_hostile_models_give_finite_members(hostile_models, loss, perturbation_set, targeted):
    made = attacks.pgd(sets.REGISTRY[perturbation_set](), steps=2, loss=loss)
    labels, targets = np.array([0, 1, 0]), np.array([1, 0, 1])
    goal = Targeted(targets, labels) if targeted else labels
    for name, network in hostile_models.items():
        found = attacks.run(made, network, EXTREME, goal, key=KEY)
        assert np.isfinite(found.images).all(), name
        assert np.isfinite(found.size).all(), name
        assert measured(made.set, EXTREME, found.parameters)[0].all(), name
        fresh = np.asarray(network(found.images)).argmax(-1)
        np.testing.assert_array_equal(found.success, fresh == targets if targeted else fresh != labels, err_msg=name)


# two classes for all, three for those that rank classes; by default one
RANKING = {"apgd_dlr", "apgd_t", "deepfool", "fab_t", "jsma", "least_likely"}
BROKEN_CASES = [(name, 2) for name in sorted(attacks.REGISTRY)] + [(name, 3) for name in sorted(RANKING)]
BROKEN_CASES = [pytest.param(*case, marks=[] if case == ("square", 2) else [pytest.mark.slow]) for case in BROKEN_CASES]


@pytest.mark.parametrize(("attack", "classes"), BROKEN_CASES)
def test_every_attack_survives_every_broken_model(attack, classes):
    ATTACK_LAWS["survives_broken_models"](case(attack, attacks.REGISTRY[attack].on, classes))


@pytest.mark.parametrize("shape", [(6, 5, 2), pytest.param((3, 8, 1), marks=pytest.mark.slow)])
def test_any_image_shape(shape):
    network = tiny.dense_classifier(shape=shape, classes=2)
    images, labels = tiny.images_and_labels(network, 1, shape=shape)
    found = attacks.run(attacks.pgd(sets.Linf(0.1), steps=2), network, images, labels, key=KEY)
    assert found.images.shape == (1, *shape)


@pytest.mark.parametrize("early_stop", [False, True])
def test_nan_logits_are_neither_robust_nor_a_success(early_stop):
    def breaks(x):
        logits = x.reshape(x.shape[0], -1)[:, :3] * 5
        return jnp.where(x.mean((1, 2, 3), keepdims=True)[:, :, 0, 0] > 0.5, jnp.nan, logits)

    rng = np.random.default_rng(0)
    images = np.stack([rng.random(tiny.SHAPE) * scale for scale in (0.2, 0.98, 2.0)]).astype(np.float32).clip(0, 1)
    network = Classifier.from_function(breaks)
    labels = np.asarray(network(images).argmax(-1))
    margin = attacks.pgd(sets.Linf(0.05), steps=4, loss="margin")
    found = attacks.run(margin, network, images, labels, key=KEY, early_stop=early_stop, check=False)
    assert found.code[2] == Code.NON_FINITE  # NaN from the start
    assert not found.success[2]
    assert np.isfinite(found.images).all()
    assert all(found.code[i] == Code.NON_FINITE or found.success[i] or found.code[i] == Code.RAN for i in range(3))


def test_registry_refuses_a_taken_name():
    with pytest.raises(ValueError, match="'pgd' again"):
        attacks.register("pgd", attacks.pgd)


# how many steps they take by default depends on the radius, and is static
BY_RADIUS = {"bim", "least_likely"}


@pytest.mark.parametrize("name", sorted(attacks.REGISTRY))
def test_another_radius_is_that_of_another_set(name):
    """Steps go with the radius, so that a curve over radii is one of the method itself."""
    entry = attacks.REGISTRY[name]
    perturbation_set = sets.REGISTRY[entry.on]()
    made, radius = entry(perturbation_set), float(perturbation_set.radius) / 2
    steps = {"steps": made.steps} if name in BY_RADIUS else {}
    expected = entry.make(perturbation_set.with_radius(radius), **steps)
    changed = made.with_radius(radius)
    assert jax.tree.structure(changed) == jax.tree.structure(expected)
    assert_equal(changed, expected, atol=1e-7)
