"""Sequences, unions and affine sums against finite differences, enumeration of parts, and closed forms."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust import attacks
from jaxrobust.sets import L1, L2, Linf
from jaxrobust.sets.affine import Affine, simplex_weights, weighted_sum
from jaxrobust.sets.combine import Sequence, Union, convex_hull_l2_radius, scaled, sequence
from jaxrobust.sets.masks import Masked
from jaxrobust.sets.sparse import L0
from jaxrobust.sets.spatial import Flow, RotationTranslation
from tests import tiny
from tests.compiled import call, compiled, mapped

SHAPE = (4, 5, 1)
PARTS = (Linf(0.1), L2(0.8), L1(2.0))


ZEROS = np.zeros(SHAPE, np.float32)
GREY = np.full(SHAPE, 0.5, np.float32)


def image(seed=0):
    return np.random.default_rng(seed).random(SHAPE).astype(np.float32)


def noise(seed, scale=1.0, shape=SHAPE):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def spike(place, value):
    """An image that is black but for one row of channels."""
    theta = ZEROS.copy()
    theta[place] = value
    return theta


@compiled
def _project(s, x, theta):
    near = s.project(x, theta)
    return near, s.contains(x, near), s.apply(x, near)


@compiled
def _measure(s, x, theta):
    return s.size(x, theta), s.contains(x, theta)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chain",
    [sequence(Linf(0.05), Flow(0.3), L2(0.5)), sequence(Flow(0.3), RotationTranslation(), Linf(0.05))],
    ids=str,
)
def test_sequence_pullback_equals_finite_differences(chain):
    """In double precision, away from the kinks of bilinear sampling and from the box."""
    with jax.enable_x64(True):
        x = 0.3 + 0.4 * jnp.asarray(np.random.default_rng(0).random(SHAPE))
        theta = call(chain.with_radius(0.3), "sample", jax.random.key(1), x)
        weight = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE))
        flat, unravel = jax.flatten_util.ravel_pytree(theta)
        pulled = jax.flatten_util.ravel_pytree(jax.jit(chain.pullback)(x, theta, weight))[0]
        value = jax.jit(jax.vmap(lambda v: jnp.vdot(weight, chain.apply(x, unravel(v)))))
        steps = 1e-6 * jnp.eye(flat.size)
        slopes = (value(flat[None] + steps) - value(flat[None] - steps)) / 2e-6
        np.testing.assert_allclose(pulled, slopes, atol=2e-7 * float(jnp.abs(slopes).max()) + 1e-8)


def test_additive_parts_pass_the_gradient_on_past_the_box():
    """At a white image the guard of `apply` has no derivative; descent from there must still be possible."""
    x = np.ones(SHAPE, np.float32)
    both = sequence(Linf(0.1), L2(0.5))
    for gradient in call(both, "pullback", x, call(both, "init", x), noise(0)):
        np.testing.assert_array_equal(gradient, noise(0))


def test_each_part_sees_the_image_before_it():
    """The second ball's box is relative to the image that the first one left."""
    x, ones = np.full(SHAPE, 0.85, np.float32), np.ones(SHAPE, np.float32)
    both = sequence(Linf(0.1), Linf(0.1))
    (first, second), inside, moved = _project(both, x, (ones, ones))
    np.testing.assert_allclose(first, 0.1, atol=1e-6)
    np.testing.assert_allclose(second, 0.05, atol=1e-6)
    assert inside
    np.testing.assert_allclose(moved, 1.0, atol=1e-6)


def test_sequence_measures_fractions_of_the_parts():
    both = sequence(Linf(0.2), L1(4.0))
    theta = (spike((0, 0), 0.1), spike((1, 1), 0.4))
    assert float(_measure(both, GREY, theta)[0]) == pytest.approx(0.5)
    assert float(_measure(both, GREY, (ZEROS, theta[1]))[0]) == pytest.approx(0.1)
    assert _measure(both.with_radius(0.5), GREY, theta)[1]
    assert not _measure(both.with_radius(0.49), GREY, theta)[1]
    still = sequence(Linf(0.0), L1(4.0))
    assert float(_measure(still, GREY, (ZEROS, theta[1]))[0]) == pytest.approx(0.1)
    assert np.isinf(_measure(still, GREY, theta)[0])


def test_sequence_steps_are_fractions_of_the_parts():
    g = noise(0)
    both = Sequence((Linf(0.2), L2(2.0)), radius=0.5)
    first, second = call(both, "ascend", GREY, call(both, "init", GREY), (g, g), np.float32(0.1))
    np.testing.assert_allclose(np.abs(first), 0.02, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(second.ravel()), 0.2, rtol=1e-5)


@pytest.mark.parametrize("part", [0, 1])
def test_one_part_ascends_alone_with_a_traced_index(part):
    x, g = GREY, noise(0)
    affine = Affine((Linf(0.2), L2(2.0)))
    theta = call(affine, "init", x)
    pulled = call(affine, "pullback", x, theta, g)
    weights, moved = call(affine, "ascend_part", x, theta, pulled, np.float32(0.1), part)
    np.testing.assert_array_equal(weights, [0.5, 0.5])
    np.testing.assert_array_equal(moved[1 - part], 0)
    expected = call(affine, "ascend", x, theta, pulled, np.float32(0.1))[1][part]
    np.testing.assert_allclose(moved[part], expected, rtol=1e-6)
    assert np.abs(moved[part]).max() > 0


def test_sequence_adds_penalties():
    x = image()
    flow = Flow(0.3)
    theta = noise(3, 0.05, (4, 5, 2))
    both = sequence(Linf(0.1), flow)
    apart = call(flow, "penalty", x, theta)
    assert float(apart) > 0
    np.testing.assert_allclose(call(both, "penalty", x, (ZEROS, theta)), apart, rtol=1e-6)


def test_sequence_binds_its_parts_to_the_model():
    class Bound(Linf):
        def bound_to(self, model):
            return Linf(0.3)

    both = sequence(Bound(0.1), L2(1.0)).bound_to(tiny.dense_classifier())
    assert [str(part) for part in both.parts] == ["Linf(0.3)", "L2(1)"]


@pytest.mark.parametrize("combination", [Union(PARTS), Union((L0(3), Linf(0.05)), radius=0.7)], ids=str)
def test_union_projects_on_the_nearest_part(combination):
    x = image()
    chosen = set()
    for seed in range(24):
        z = noise(seed, 10.0 ** np.random.default_rng(seed).uniform(-1.5, 1))
        near, inside, _ = _project(combination, x, z)
        apart = [_project(part, x, z) for part in combination.scaled_parts()]
        gaps = [float(np.sum(np.square(theta - z))) for theta, _, _ in apart]
        assert inside
        np.testing.assert_allclose(np.sum(np.square(near - z)), min(gaps), rtol=1e-6)
        chosen.add(int(np.argmin(gaps)))
    assert len(chosen) > 1  # the choice was a choice


def test_union_membership_and_size():
    union = Union((Linf(0.1), L1(1.0)))
    wide = np.full(SHAPE, 0.1, np.float32)  # on the l∞ ball, l1 norm 2
    narrow = spike((0, 0), 0.45)
    sizes, inside = zip(*(_measure(union, GREY, theta) for theta in (wide, narrow)), strict=True)
    assert all(inside)
    assert not _measure(union, GREY, wide + narrow)[1]
    assert list(map(float, sizes)) == [pytest.approx(1.0), pytest.approx(0.45)]
    assert not _measure(union.with_radius(0.4), GREY, narrow)[1]


def test_union_candidates_are_the_parts_own_steps():
    x, g = image(), noise(1)
    union = Union(PARTS)
    theta = _project(union, x, noise(2, 0.1))[0]
    sizes = np.float32([0.01, 0.1, 0.05])
    found = call(union, "candidates", x, theta, g, sizes)
    for i, part in enumerate(PARTS):
        np.testing.assert_allclose(
            found[i], _project(part, x, call(part, "ascend", x, theta, g, sizes[i]))[0], atol=1e-6
        )
        assert _measure(part, x, found[i])[1]


def test_union_ascends_along_the_candidate_that_gains_most():
    x, g = image(), noise(1)
    union = Union(PARTS)
    moved = call(union, "ascend", x, ZEROS, g, np.float32(0.2))
    found = call(union, "candidates", x, ZEROS, g, np.float32([0.02, 0.16, 0.4]))
    gains = np.sum(g[None] * found, (1, 2, 3))
    np.testing.assert_allclose(np.vdot(g, moved), gains.max(), rtol=1e-5)
    assert _measure(union, x, moved)[1]


def test_union_maximiser_is_the_best_of_the_parts():
    x, g = image(), noise(1)
    best = call(Union(PARTS), "maximise", x, g)
    np.testing.assert_allclose(np.vdot(g, best), max(np.vdot(g, call(p, "maximise", x, g)) for p in PARTS), rtol=1e-5)


def test_union_starts_come_from_every_part():
    theta = mapped(Union((Linf(0.01), L0(2))), "sample", (0, None), jax.random.split(jax.random.key(0), 100), GREY)
    sparse = (np.abs(theta) > 0.02).any((1, 2, 3))
    assert 25 < sparse.sum() < 75


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), weight=st.floats(0, 1))
def test_weighted_sums_are_feasible(seed, scale, weight):
    """Every part in its share of the budget, the sum in the box: measured without the set's own `contains`."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.random(SHAPE), rng.integers(0, 3)).astype(np.float32)
    both = weighted_sum((Linf(0.3), L1(4.0)), (np.float32(weight), np.float32(1 - weight)))
    theta = tuple((rng.normal(size=SHAPE) * scale).astype(np.float32) for _ in range(2))
    (first, second), _, moved = _project(both, x, theta)
    assert float(np.abs(first).max()) <= 0.3 * weight + 1e-6
    assert float(np.abs(second).sum()) <= 4 * (1 - weight) + 1e-4
    total = x + first + second
    assert total.min() >= -1e-6
    assert total.max() <= 1 + 1e-6
    np.testing.assert_allclose(moved, total, atol=2e-6)


def test_order_in_the_box_costs_no_image():
    """Shrinking what pulls against each other keeps x' and makes every partial sum a point of the box."""
    rng = np.random.default_rng(0)
    x = rng.random(SHAPE)
    first, second = rng.uniform(-0.3, 0.3, SHAPE), rng.normal(size=SHAPE) * 0.2
    second = np.clip(x + first + second, 0, 1) - x - first  # only the sum respects the box
    assert ((x + first < 0) | (x + first > 1)).any()
    opposed = np.sign(first) != np.sign(second)
    less = np.where(opposed, np.minimum(np.abs(first), np.abs(second)), 0)
    small = [part - np.sign(part) * less for part in (first, second)]
    parts = (Linf(np.abs(first).max()), L1(np.abs(second).sum()))
    both, theta = weighted_sum(parts, (1.0, 1.0)), tuple(part.astype(np.float32) for part in small)
    x = x.astype(np.float32)
    assert call(both, "contains", x, theta)
    np.testing.assert_allclose(call(both, "apply", x, theta), x + first + second, atol=1e-6)


def test_the_transform_comes_after_the_noise():
    """A quarter turn of the noisy image is the noisy image, turned."""
    x = np.random.default_rng(0).random((5, 5, 1)).astype(np.float32)
    both = weighted_sum((Linf(0.4), RotationTranslation(rotation=180.0)), (0.5, 0.5))
    delta = call(both.parts[0], "project", x, noise(1, 1.0, (5, 5, 1)))
    turn = jax.tree.map(np.zeros_like, call(both.parts[1], "init", x))
    assert float(both.parts[0].radius) == pytest.approx(0.2)
    np.testing.assert_allclose(call(both, "apply", x, (delta, turn)), x + delta, atol=1e-6)
    turned = call(both.parts[1], "sample", jax.random.key(0), x)
    expected = call(both.parts[1], "apply", x + delta, turned)
    np.testing.assert_allclose(call(both, "apply", x, (delta, turned)), expected, atol=1e-6)


def test_affine_weights_are_drawn_and_kept():
    x = image()
    affine = Affine(PARTS)
    theta, other = (call(affine, "sample", jax.random.key(seed), x) for seed in (0, 1))
    assert not np.allclose(theta[0], other[0])
    pulled = call(affine, "pullback", x, theta, noise(0))
    moved = call(affine, "ascend", x, theta, pulled, np.float32(5.0))
    (weights, deltas), inside, _ = _project(affine, x, moved)
    np.testing.assert_allclose(weights, theta[0], rtol=1e-6)
    assert inside
    for weight, part, delta in zip(weights, PARTS, deltas, strict=True):
        assert float(_measure(part, x, delta)[0]) <= float(weight) * part.radius * (1 + 1e-5)


def test_affine_size_is_the_smallest_radius_with_weights():
    affine = Affine((Linf(0.2), L1(4.0)))
    deltas = (spike((0, 0), 0.1), spike((1, 1), 0.4))  # halves and tenths
    assert float(_measure(affine, GREY, (np.float32([0.5, 0.5]), deltas))[0]) == pytest.approx(0.6)
    just = (np.float32([0.5 / 0.6, 0.1 / 0.6]), deltas)
    assert _measure(affine.with_radius(0.6001), GREY, just)[1]
    assert not _measure(affine.with_radius(0.599), GREY, just)[1]
    assert not _measure(affine, GREY, (np.float32([0.9, 0.4]), deltas))[1]  # weights off the simplex


def test_simplex_weights_are_uniform():
    """Every weight of a uniform point of the simplex of m corners has mean 1/m and variance (m−1)/(m²(m+1))."""
    draw = compiled(jax.vmap(lambda key: simplex_weights(key, 3)))
    weights = draw(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert weights.min() > 0
    np.testing.assert_allclose(weights.mean(0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(weights.var(0), 1 / 18, rtol=0.1)


@pytest.mark.parametrize(
    ("l1", "linf", "radius"),
    [(2.0, 1.0, np.sqrt(2)), (2.5, 1.0, 5 / 3), (0.5, 1.0, 1.0), (12.0, 0.03, None), (7.3, 1.1, None), (0.0, 0.0, 0.0)],
)
def test_convex_hull_radius_is_the_least_of_the_support_function(l1, linf, radius):
    """Over unit vectors with j equal entries and one smaller, among which the least is, and over random ones."""
    found = convex_hull_l2_radius(l1, linf)
    if radius is not None:
        assert found == pytest.approx(radius)
    size = 500
    rng = np.random.default_rng(0)
    vectors = [np.abs(rng.normal(size=size)) ** power for power in (0.2, 1, 3, 8) for _ in range(50)]
    for count in range(1, size):
        for rest in np.linspace(0, 1, 21):
            vectors.append(np.concatenate([np.ones(count), [rest], np.zeros(size - count - 1)]))
    units = np.stack(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    support = np.maximum(l1 * units.max(1), linf * units.sum(1))
    assert support.min() >= found - 1e-9
    assert support.min() <= found * (1 + 2e-3)


def test_convex_hull_radius_in_few_dimensions():
    assert convex_hull_l2_radius(10.0, 0.1, dimension=9) == pytest.approx(10 / 3)
    assert convex_hull_l2_radius(2.5, 1.0, dimension=9) == pytest.approx(5 / 3)
    assert convex_hull_l2_radius(3.0, 0.0) == 0
    assert convex_hull_l2_radius(3.0, 0.0, dimension=4) == pytest.approx(1.5)


def test_scaled_multiplies_the_radius():
    assert scaled(L2(2.0), 0.25).radius == 0.5
    traced = jax.jit(lambda w: scaled(L2(2.0), w).radius)(0.25)
    assert float(traced) == 0.5
    with jax.enable_x64(True):
        assert float(jax.jit(lambda w: scaled(L2(2.0), w).radius)(jnp.float32(0.25))) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "combination",
    [
        sequence(Linf(0.2), Flow(0.3)),
        Union((Linf(0.2), L0(5))),
        Affine((L2(1.0), L1(4.0), RotationTranslation())),
        sequence(Masked(Linf(0.5), np.ones((6, 5, 1), bool)), L2(0.5)),
    ],
    ids=str,
)
def test_attacks_run_on_combinations(combination):
    network = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(network)
    found = attacks.run(attacks.pgd(combination, steps=3), network, images, labels, key=jax.random.key(0))
    assert mapped(combination, "contains", 0, images, found.parameters).all()
    assert found.success[:-1].any()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: sequence(), ValueError, "parts must hold at least one set; got none"),
        (lambda: Union((Linf(0.1), Linf)), TypeError, "parts must be additive sets; got <class"),
        (lambda: Union((Linf(0.1), Flow())), TypeError, "parts must be additive sets; got 'Flow'"),
        (lambda: Union((Linf(0.1),), -1), ValueError, "radius must be finite and >= 0; got -1"),
        (lambda: Affine((RotationTranslation(), Linf(0.1))), ValueError, "parts must name additive sets first"),
        (
            lambda: weighted_sum((Linf(0.1), L2(1.0)), (1.0,)),
            ValueError,
            "weights must hold one number a part, 2; got 1",
        ),
        (lambda: weighted_sum((Linf(0.1),), (-1.0,)), ValueError, "weight must be finite and >= 0"),
        (lambda: scaled(Linf(0.1), "half"), TypeError, "weight must be a real number"),
        (lambda: convex_hull_l2_radius(-1.0, 1.0), ValueError, "l1 must be finite and >= 0"),
        (lambda: convex_hull_l2_radius(1.0, 1.0, dimension=0), ValueError, "dimension must be >= 1"),
        (lambda: simplex_weights(jax.random.key(0), 0), ValueError, "count must be >= 1; got 0"),
    ],
)
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_text():
    assert str(Union((Linf(0.3), L1(10.0)))) == "Linf(0.3) or L1(10), scale (1)"
    assert str(sequence(Linf(0.3), L1(10.0)).with_radius(0.5)) == "Linf(0.3) then L1(10), scale (0.5)"
    assert str(Affine((Linf(0.3), L1(10.0)))) == "affine Linf(0.3) and L1(10), scale (1)"
