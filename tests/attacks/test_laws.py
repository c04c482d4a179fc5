"""Laws that hold for every registered attack on every registered set."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.types import Classifier, Code, Misclassified, Targeted
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
KEY = jax.random.key(7)


@functools.cache
def model(attack, perturbation_set):
    """A classifier that the attack takes."""
    return attacks.REGISTRY[attack].model(tiny.dense_classifier(shape=sets.REGISTRY[perturbation_set].shapes[0]))


@functools.cache
def batch(perturbation_set):
    return tiny.images_and_labels(model("pgd", perturbation_set), shape=sets.REGISTRY[perturbation_set].shapes[0])


def make(attack, perturbation_set):
    """A registered attack, at most three steps of it."""
    made = attacks.REGISTRY[attack](sets.REGISTRY[perturbation_set]())
    return dataclasses.replace(made, steps=min(made.steps, 3)) if hasattr(made, "steps") else made


@functools.cache
def result(attack, perturbation_set):
    return attacks.run(
        make(attack, perturbation_set), model(attack, perturbation_set), *batch(perturbation_set), key=KEY
    )


@jax.jit
def measured(perturbation_set, images, thetas):
    """Whether parameters are members, their images and their sizes, apart from any attack."""
    methods = (perturbation_set.contains, perturbation_set.apply, perturbation_set.size)
    return [jax.vmap(method)(images, thetas) for method in methods]


def assert_equal(left, right, atol=0.0):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("attack", "perturbation_set"), CASES)
def test_results_are_members_and_confirmed(attack, perturbation_set):
    made, found, (images, labels) = (
        make(attack, perturbation_set),
        result(attack, perturbation_set),
        batch(perturbation_set),
    )
    inside, applied, sizes = measured(made.set, images, found.parameters)
    assert inside.all()
    assert found.images.shape == images.shape
    assert found.images.dtype == images.dtype
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1
    moved = (np.asarray(found.images) != images).any(axis=(1, 2, 3)) | made.set.contains_clean
    np.testing.assert_allclose(applied[moved], found.images[moved], atol=2e-5)
    np.testing.assert_allclose(sizes[moved], found.size[moved], rtol=1e-5)
    np.testing.assert_array_equal(model(attack, perturbation_set)(found.images).argmax(-1) != labels, found.success)


@pytest.mark.parametrize(("attack", "perturbation_set"), FEW)
def test_the_best_point_is_at_least_as_good_as_the_clean_image(attack, perturbation_set):
    made, found, (images, labels) = (
        make(attack, perturbation_set),
        result(attack, perturbation_set),
        batch(perturbation_set),
    )
    keys = attacks.example_keys(KEY, np.arange(len(images)))
    start = jax.vmap(made.init)(
        keys, images, Misclassified(jnp.asarray(labels)), model(attack, perturbation_set)(images)
    )
    clean = jax.vmap(made.best)(start)
    assert (np.asarray(found.success) >= np.asarray(clean.success)).all()
    gained = np.asarray(found.success) & ~np.asarray(clean.success)
    # two programs, and so two roundings of the same logits
    assert (gained | (np.asarray(found.loss) >= np.asarray(clean.loss) - 1e-5)).all()


@pytest.mark.parametrize(("attack", "perturbation_set"), CASES)
def test_a_misclassified_image_comes_back_unchanged(attack, perturbation_set):
    found, (images, _) = result(attack, perturbation_set), batch(perturbation_set)
    assert found.code[-1] == Code.ALREADY
    assert found.success[-1]
    assert found.size[-1] == 0
    np.testing.assert_allclose(found.images[-1], images[-1], atol=1e-6)
    assert (int(found.forwards[-1]), int(found.backwards[-1])) == (1, 0)
    assert (np.asarray(found.code[:-1]) == Code.RAN).all()


@pytest.mark.parametrize(("attack", "perturbation_set"), CASES)
def test_counts_are_the_schedule(attack, perturbation_set):
    made, found = make(attack, perturbation_set), result(attack, perturbation_set)
    schedule = (1 + made.width * made.asks * made.restarts, made.gradients * made.restarts)
    for counts, most in zip((found.forwards, found.backwards), schedule, strict=True):
        counts = np.asarray(counts[:-1])
        assert ((counts > 0) & (counts <= most) if made.ends_early and most else counts == most).all()


@pytest.mark.parametrize(("attack", "perturbation_set"), CASES)
def test_radius_zero_returns_the_clean_image(attack, perturbation_set):
    images, labels = batch(perturbation_set)
    if not make(attack, perturbation_set).set.contains_clean:
        return
    found = attacks.run(
        make(attack, perturbation_set).with_radius(0.0), model(attack, perturbation_set), images, labels, key=KEY
    )
    np.testing.assert_allclose(found.images, images, atol=1e-6)
    np.testing.assert_array_equal(found.success, np.arange(len(images)) == len(images) - 1)


@pytest.mark.parametrize(("attack", "perturbation_set"), CASES)
def test_neighbours_and_order_do_not_matter(attack, perturbation_set):
    (images, labels), found = batch(perturbation_set), result(attack, perturbation_set)
    order = np.array([3, 0, 5, 1, 1, 1, 6, 2])  # others left out, one three times
    again = attacks.run(
        make(attack, perturbation_set),
        model(attack, perturbation_set),
        images[order],
        labels[order],
        key=KEY,
        indices=order,
    )
    assert_equal(again, jax.tree.map(lambda leaf: leaf[order], found))


# one image is a shape of its own: its law differs from that of neighbours where the engine does, not the attack
@pytest.mark.parametrize(("attack", "perturbation_set"), [case for case in FEW if case.values[0] in {"pgd", *KINDS}])
def test_one_image_alone(attack, perturbation_set):
    (images, labels), found = batch(perturbation_set), result(attack, perturbation_set)
    alone = attacks.run(
        make(attack, perturbation_set),
        model(attack, perturbation_set),
        images[2:3],
        labels[2:3],
        key=KEY,
        indices=np.array([2]),
    )
    assert_equal(alone, jax.tree.map(lambda leaf: leaf[2:3], found), atol=2e-4)


@pytest.mark.parametrize(("attack", "perturbation_set"), FEW)
def test_the_key_decides(attack, perturbation_set):
    made, found = make(attack, perturbation_set), result(attack, perturbation_set)
    assert_equal(attacks.run(made, model(attack, perturbation_set), *batch(perturbation_set), key=KEY), found)
    if made.random:
        other = attacks.run(made, model(attack, perturbation_set), *batch(perturbation_set), key=jax.random.key(8))
        assert not np.array_equal(other.images, found.images)


@pytest.mark.parametrize(("attack", "perturbation_set"), FEW)
def test_nothing_is_traced_twice(attack, perturbation_set):
    traces = 0

    def counting(params, images):
        nonlocal traces
        traces += 1
        return tiny.dense_net(params, images)

    entry = attacks.REGISTRY[attack]
    made, (images, labels) = make(attack, perturbation_set), batch(perturbation_set)
    params, others = (tiny.dense_params(seed, shape=images.shape[1:]) for seed in (0, 1))
    attacks.run(made, entry.model(Classifier(counting, params)), images, labels, key=KEY)
    first = traces
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    lowered = {name: 0.9 * value for name, value in values.items() if isinstance(value, float)}
    typical = float(made.set.radius)
    for radius in (0.3 * typical, np.float32(0.4 * typical), 1, jnp.asarray(0.5 * typical)):
        again = dataclasses.replace(made, **lowered).with_radius(radius)
        attacks.run(again, entry.model(Classifier(counting, others)), 1 - images, 1 - labels % 2, key=jax.random.key(1))
    assert traces == first


@pytest.mark.parametrize(("attack", "perturbation_set"), FEW)
def test_radii_map(attack, perturbation_set):
    """vmap over the radius equals one radius after the other."""
    made, (images, labels) = make(attack, perturbation_set), batch(perturbation_set)
    radii = float(made.set.radius) * np.array([0.1, 0.5, 1.0], np.float32)

    network = model(attack, perturbation_set)

    @jax.jit
    def mapped(radii):
        return jax.vmap(lambda r: attacks.run(made.with_radius(r), network, images, labels, key=KEY))(radii)

    together = mapped(radii)
    for i, radius in enumerate(radii):
        single = attacks.run(made.with_radius(radius), model(attack, perturbation_set), images, labels, key=KEY)
        assert_equal(jax.tree.map(lambda leaf, i=i: leaf[i], together), single, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["fgsm", "mi_fgsm", "rs_fgsm"])
def test_compiled_equals_uncompiled(attack):
    made, (images, labels) = make(attack, "linf"), batch("linf")
    made = dataclasses.replace(made, steps=min(made.steps, 2))
    compiled = attacks.run(made, model(attack, "linf"), images[:2], labels[:2], key=KEY)
    with jax.disable_jit():
        plain = attacks.run(made, model(attack, "linf"), images[:2], labels[:2], key=KEY)
    assert_equal(compiled, plain, atol=2e-4)


HOSTILE = {
    "saturated": lambda z: 1e4 * z,
    "huge": lambda z: 1e30 * z,
    "constant": lambda z: jnp.zeros_like(z) * z.sum(),
    "quantised": lambda z: jnp.round(z * 3),
    "ties": lambda z: jnp.ones_like(z) * z.sum(1, keepdims=True),
}


def _hostile(classes, which, images):
    return jax.lax.switch(which, list(HOSTILE.values()), images.reshape(images.shape[0], -1)[:, :classes])


@pytest.fixture(scope="module", params=[3, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 4))])
def hostile_models(request):
    forward = functools.partial(_hostile, request.param)
    return {name: Classifier(forward, jnp.asarray(i)) for i, name in enumerate(HOSTILE)}


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


BROKEN = HOSTILE | {
    "nan": lambda z: z * jnp.nan,
    # finite at clean images, whose pixels are multiples of 1/64, and NaN at all others
    "nan_around": lambda z: jnp.where(jnp.all(z * 64 == jnp.round(z * 64), 1, keepdims=True), z, jnp.nan),
}


def _broken(classes, which, images):
    z = images.reshape(images.shape[0], -1)
    return jax.lax.switch(which, [lambda z, f=f: f(z)[:, :classes] for f in BROKEN.values()], z)


# two classes for all, three for those that rank classes; by default one
RANKING = {"apgd_dlr", "apgd_t", "deepfool", "fab_t", "jsma", "least_likely"}
BROKEN_CASES = [(name, 2) for name in sorted(attacks.REGISTRY)] + [(name, 3) for name in sorted(RANKING)]
BROKEN_CASES = [pytest.param(*case, marks=[] if case == ("square", 2) else [pytest.mark.slow]) for case in BROKEN_CASES]


@pytest.mark.parametrize(("attack", "classes"), BROKEN_CASES)
def test_every_attack_survives_every_broken_model(attack, classes):
    """Without gradients, of two and three classes, constant, with ties, and NaN: finite members, no false success."""
    made, shape = make(attack, attacks.REGISTRY[attack].on), sets.REGISTRY[attacks.REGISTRY[attack].on].shapes[0]
    images = np.stack([np.zeros(shape), np.ones(shape), np.random.default_rng(0).integers(0, 65, shape) / 64])
    images, labels = images.astype(np.float32), np.array([0, 1, 0], np.int32)
    forward = functools.partial(_broken, classes)
    for i, name in enumerate(BROKEN):
        network = attacks.REGISTRY[attack].model(Classifier(forward, jnp.asarray(i)))
        found = attacks.run(made, network, images, labels, key=KEY, check=False)
        fresh, clean = (np.asarray(network(x)) for x in (found.images, images))
        assert np.isfinite(found.images).all(), name
        assert float(found.images.min()) >= 0, name
        assert float(found.images.max()) <= 1, name
        assert np.isfinite(found.size).all(), name
        assert measured(made.set, images, found.parameters)[0].all(), name
        success, code = np.asarray(found.success), np.asarray(found.code)
        sound = np.isfinite(fresh).all(1) & (fresh.argmax(-1) != labels)
        np.testing.assert_array_equal(success, sound, err_msg=name)
        np.testing.assert_array_equal(
            code == Code.ALREADY, np.isfinite(clean).all(1) & (clean.argmax(-1) != labels), name
        )
        if name in ("constant", "ties"):  # the first class, wherever one goes
            np.testing.assert_array_equal(success, labels != 0, err_msg=name)
        if name == "nan":
            assert (code == Code.NON_FINITE).all()
            np.testing.assert_array_equal(found.images, images)


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
