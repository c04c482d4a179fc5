"""The door and the loops of the in-jit engine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from jaxrobust import _checks, attacks, evaluate, sets
from jaxrobust.attacks.core import engine
from jaxrobust.models import SmallCNN
from jaxrobust.testing.attacks import answers
from jaxrobust.types import Classifier, Misclassified, Targeted
from tests import tiny
from tests.compiled import compiled

KEY = jax.random.key(0)
ATTACK = attacks.pgd(sets.Linf(0.1), steps=3)


@functools.cache
def good():
    network = tiny.dense_classifier()
    return network, *tiny.images_and_labels(network, 4)


def run(network=None, images=None, labels=None, attack=ATTACK):
    given = (network, images, labels)
    chosen = (d if g is None else g for d, g in zip(good(), given, strict=True))
    return attacks.run(attack, *chosen, key=KEY)


X = np.full((4, *tiny.SHAPE), 0.5, np.float32)
ZEROS = np.zeros(4, int)


def function(forward):
    """The arguments of a bad model."""
    return {"network": Classifier.from_function(forward), "labels": ZEROS}


BAD_INPUT = {
    "too bright": ({"images": X * 3}, ValueError, r"images must lie in \[0, 1\].*got values in \[1.5, 1.5\]"),
    "negative": ({"images": -X}, ValueError, r"images must lie in \[0, 1\]"),
    "NaN image": ({"images": X * np.nan}, ValueError, r"images must lie in \[0, 1\]"),
    "bytes": ({"images": (X * 255).astype(np.uint8)}, TypeError, "images must be floating.*got dtype uint8"),
    "rank 3": ({"images": X[0]}, ValueError, r"shape \(N, H, W, C\); got \(6, 5, 2\).*images\["),
    "empty": ({"images": X[:0], "labels": ZEROS[:0]}, ValueError, r"at least one image.*\(0, 6, 5, 2\)"),
    "a list": ({"images": [[1.0]]}, TypeError, "images must be an array; got list"),
    "float labels": ({"labels": np.zeros(4)}, TypeError, "labels must be an array of integers; got float64"),
    "few labels": ({"labels": ZEROS[:3]}, ValueError, r"labels must have shape \(4,\).*got \(3,\)"),
    "label too large": ({"labels": np.array([0, 1, 2, 4])}, ValueError, r"labels must lie in \[0, 4\).*\[0, 4\]"),
    "label negative": ({"labels": np.array([0, 1, 2, -1])}, ValueError, r"labels must lie in \[0, 4\)"),
    "target too large": ({"labels": Targeted(np.full(4, 9))}, ValueError, r"targets must lie in \[0, 4\)"),
    "own target": (
        {"labels": Targeted(np.array([1, 0, 2, 3]), np.array([1, 1, 2, 0]))},
        ValueError,
        "targets must be other classes than the labels; got 2 of 4 images",
    ),
    "probabilities": (
        function(lambda x: jax.nn.softmax(x.reshape(len(x), -1)[:, :3])),
        ValueError,
        "what look like probabilities",
    ),
    "one class": (function(lambda x: x.sum((1, 2, 3))[:, None]), ValueError, "at least 2 classes"),
    "no batch axis": (function(lambda x: x.sum((0, 1, 2))), ValueError, r"logits of shape \(4, K\); got \(2,\)"),
    "integer logits": (function(lambda x: x.sum((1, 2)).astype(jnp.int32)), TypeError, "floating logits"),
    "NaN model": (function(lambda x: x.sum((1, 2)) * jnp.nan), ValueError, "only NaN or infinity"),
    "NaN weights": (
        {"network": Classifier(tiny.conv_net, tiny.conv_params() | {"flat": np.full((150, 4), np.nan, np.float32)})},
        ValueError,
        r"model.params must be finite.*\['flat'\]",
    ),
    "array radius": (
        {"attack": ATTACK.with_radius(jnp.asarray(-0.1))},
        ValueError,
        "radius must be finite and >= 0; got",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused(case):
    arguments, error, message = BAD_INPUT[case]
    with pytest.raises(error, match=message):
        run(**arguments)


def test_an_attack_is_an_attack():
    with pytest.raises(TypeError, match="attack must be an Attack such as"):
        engine.check_attack(attacks.pgd)


@pytest.mark.parametrize("key", [0, np.zeros(2, np.uint32), jnp.asarray(np.zeros(2, np.uint32)), jax.random.split(KEY)])
def test_a_key_is_a_typed_key(key):
    with pytest.raises(TypeError, match=r"key must be one typed key such as jax.random.key\(0\); got"):
        _checks.key(key)


def test_a_key_that_does_not_map_is_refused():
    with pytest.raises(ValueError, match="its numbers change under vmap"):
        _checks.key(jax.random.key(0, impl="rbg"))


def test_a_random_model_is_refused():
    keys = iter(range(100))

    def noisy(images):
        seed = jax.pure_callback(lambda: np.int32(next(keys)), jax.ShapeDtypeStruct((), jnp.int32))
        return images.sum((1, 2)) + jax.random.normal(jax.random.key(seed), (images.shape[0], 2))

    with pytest.raises(ValueError, match="must be deterministic; got different logits"):
        run(network=Classifier.from_function(noisy), labels=np.zeros(4, int))


def test_an_nchw_model_is_told_so():
    def wants_channels_first(images):
        kernel = jnp.ones((3, 3, 3, 2))
        dims = ("NCHW", "HWIO", "NCHW")
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dims).mean((2, 3))

    images = np.full((4, 8, 8, 3), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"it takes \(4, 3, 8, 8\), and a model that wants NCHW needs a transpose"):
        run(network=Classifier.from_function(wants_channels_first), images=images)


def test_checks_can_be_left_out():
    network = Classifier.from_function(lambda x: jax.nn.softmax(x.reshape(len(x), -1)[:, :3]))
    images, labels = tiny.images_and_labels(network, 4)
    assert attacks.run(ATTACK, network, images, labels, key=KEY, check=False).images.shape == images.shape


def test_run_inside_jit_and_over_stacked_models():
    """Two models of one architecture in one compiled call, each as if alone."""
    images, labels = tiny.images_and_labels(tiny.dense_classifier(), 4)
    both = jax.tree.map(lambda *p: np.stack(p), tiny.dense_params(0), tiny.dense_params(1))

    @jax.jit
    def attack_both(params):
        def one(params):
            return attacks.run(ATTACK, Classifier(tiny.dense_net, params), images, labels, key=KEY)

        return jax.vmap(one)(params)

    together = attack_both(both)
    for seed in (0, 1):
        alone = attacks.run(ATTACK, tiny.dense_classifier(seed), images, labels, key=KEY)
        np.testing.assert_allclose(np.asarray(together.images)[seed], alone.images, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(together.success)[seed], alone.success)


def test_run_inside_shard_map():
    """As its docstring says; each device attacks its own examples."""
    network, images, labels = good()
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    rows = PartitionSpec("devices")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    def sharded(images, labels, indices):
        return attacks.run(ATTACK, network, images, labels, key=KEY, indices=indices)

    found, plain = jax.jit(sharded)(images, labels, np.arange(4)), run()
    np.testing.assert_allclose(found.images, plain.images, atol=1e-6)
    assert (np.asarray(found.success) == np.asarray(plain.success)).all()


@pytest.mark.slow
def test_ways_to_loop_agree(monkeypatch):
    """Unrolled, scanned and stepped from the host give the same result."""
    network = tiny.conv_classifier()
    images, labels = tiny.images_and_labels(network, 4)
    made = attacks.pgd(sets.Linf(0.1), steps=4)
    goal, keys = Misclassified(jnp.asarray(labels)), attacks.example_keys(KEY, np.arange(4))
    arguments = (made, network, jnp.asarray(images), goal, keys)
    scanned = engine._search(*arguments, stop="clean", unroll=False)
    unrolled = engine._search(*arguments, stop="clean", unroll=True)
    stepped = engine._stepped(*arguments, stop="clean")
    for other in (unrolled, stepped):
        for left, right in zip(jax.tree.leaves(scanned), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)


def test_slow_loops_are_recognised():
    """The usual convolution's gradient is not in the form that XLA:CPU runs well inside a loop; our layer's is."""

    def loops_well(model, images):
        goal = Misclassified(np.zeros(len(images), np.int32))
        return engine._loops_well(attacks.pgd(sets.Linf(0.1)), model, images, goal)

    images = jnp.asarray(X[:2])
    assert not loops_well(tiny.conv_classifier(), images)
    assert loops_well(tiny.linear_classifier(np.random.default_rng(0)), images)
    ours = Classifier.from_nnx(SmallCNN(channels=2, rngs=nnx.Rngs(0)))
    assert loops_well(ours, jnp.asarray(np.zeros((2, 8, 8, 2), np.float32)))


def test_training_follows_every_example_to_the_last_iterate():
    """`last_iterate` neither freezes what is misclassified already nor goes back to the best."""
    network, images, labels = good()
    wrong = Misclassified(jnp.asarray((labels + 1) % tiny.CLASSES))
    keys = attacks.example_keys(KEY, np.arange(4))
    made = attacks.pgd(sets.Linf(0.05), steps=8)
    last = compiled(engine.last_iterate)(made, network, images, wrong, keys)
    assert float(np.abs(last - images).max((1, 2, 3)).min()) > 0.04


def test_last_iterate_stops_gradients():
    _, images, labels = good()
    keys = attacks.example_keys(KEY, np.arange(4))

    def outer(params):
        model = Classifier(tiny.dense_net, params)
        return engine.last_iterate(ATTACK, model, jnp.asarray(images), Misclassified(jnp.asarray(labels)), keys).sum()

    gradient = jax.jit(jax.grad(outer))(tiny.dense_params())
    assert all(float(np.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradient))


def test_trajectory_starts_at_the_start_and_rises():
    network, images, labels = good()
    made = attacks.pgd(sets.Linf(0.1), steps=5, random_start=False)
    losses = np.asarray(attacks.trajectory(made, network, images, labels, key=KEY))
    assert losses.shape == (6, 4)
    logits = answers(network, images).astype(np.float64)
    clean = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), labels]
    np.testing.assert_allclose(losses[0], clean, rtol=1e-4, atol=1e-6)
    assert losses[-1, :3].mean() > losses[0, :3].mean()


def test_a_loop_ends_when_all_is_done_and_finds_the_same(monkeypatch):
    """A fraction of the asks, and bit-equal results; also under a map, and inside of what is differentiated."""
    asked = []

    def counting(params, images):
        jax.debug.callback(lambda: asked.append(1))
        return tiny.dense_net(params, images)

    network, images, labels = good()
    images, goal, keys = jnp.asarray(images), Misclassified(jnp.asarray(labels)), attacks.example_keys(KEY, range(4))
    made = attacks.deepfool(sets.L2(10.0), steps=50)
    results, counts = [], []
    for may_end in (engine._may_end, lambda attack, stop: False):
        monkeypatch.setattr(engine, "_may_end", may_end)
        asked.clear()
        model = Classifier(counting, network.params)
        search = jax.jit(
            lambda images, model=model: engine.search(made, model, images, goal, keys, stop="clean", unroll=False)
        )
        results.append(jax.block_until_ready(search(images)))
        jax.effects_barrier()
        counts.append(len(asked))
    for left, right in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(left, right)
    assert counts[1] >= made.asks > 2 * counts[0]
    monkeypatch.undo()

    @jax.jit
    @jax.value_and_grad
    def outer(params):
        last = engine.last_iterate(made, Classifier(tiny.dense_net, params), images, goal, keys)
        return tiny.dense_net(params, last).sum()

    value, gradient = outer(network.params)
    assert np.isfinite(value)
    assert any(float(np.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_the_host_s_loop_ends_too():
    network, images, labels = good()
    images, goal, keys = jnp.asarray(images), Misclassified(jnp.asarray(labels)), attacks.example_keys(KEY, range(4))
    made = attacks.deepfool(sets.L2(10.0), steps=50)
    stepped = engine._stepped(made, network, images, goal, keys, stop="clean")
    looped = engine._search(made, network, images, goal, keys, stop="clean", unroll=False)
    for left, right in zip(jax.tree.leaves(stepped), jax.tree.leaves(looped), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


@pytest.mark.parametrize(
    "made",
    [
        attacks.square(sets.Linf(0.1), queries=3),
        pytest.param(attacks.hop_skip_jump(sets.L2(5.0), queries=20, chunk=1), marks=pytest.mark.slow),
    ],
    ids=["scores", "decisions"],
)
def test_what_uses_no_gradients_does_not_differentiate(made):
    """A model that calls the host has no gradient; in `attacks.run` and in the lanes."""
    weights = np.asarray(tiny.linear_classifier(np.random.default_rng(0)).params[0])

    def calls_the_host(images):
        def answer(images):
            return np.asarray(images).reshape(len(images), -1) @ weights

        shape = jax.ShapeDtypeStruct((len(images), weights.shape[1]), images.dtype)
        return jax.pure_callback(answer, shape, images, vmap_method="sequential")

    network = Classifier.from_function(calls_the_host)
    images, labels = tiny.images_and_labels(network, 3)
    found = attacks.run(made, network, images, labels, key=KEY)
    lanes = evaluate.run_lanes(
        made, network, images, labels, key=KEY, early_stop=False, devices=jax.local_devices()[:1]
    )
    np.testing.assert_allclose(lanes.result.images, found.images, atol=1e-5)
    assert found.success[-1]


@pytest.mark.slow
def test_an_ask_is_as_wide_as_what_is_meant():
    """The points that the machine looks at are those of the attacks, not the widest attack's at every ask."""
    asked = []

    def counting(params, images):
        jax.debug.callback(lambda n: asked.append(int(n)), len(images))
        return tiny.dense_net(params, images)

    network, images, labels = good()
    ball = sets.Linf(1e-4)
    made = attacks.worst_of(attacks.pgd(ball, steps=12), attacks.worst_of_k(ball, samples=20, chunk=10))
    found = attacks.run(made, Classifier(counting, network.params), images, labels, key=KEY, check=False)
    jax.block_until_ready(found)
    jax.effects_barrier()
    # the clean and the confirming pass; 13 asks of one point, 2 of ten
    assert sum(asked) == 4 * (2 + 13 + 20)
    np.testing.assert_array_equal(found.forwards[:-1], 1 + 13 + 20)
