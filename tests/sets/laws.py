"""Laws that hold for every registered perturbation set.

The files `test_laws_*.py` run them, each over a share of the registry, so that two workers can do it at the same time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import sets

KINDS = {
    "random": lambda shape: np.random.default_rng(0).random(shape),
    "binary": lambda shape: np.random.default_rng(1).random(shape) > 0.5,
    "black": np.zeros,
    "white": np.ones,
}
# every kind of image in the set's first shape; in the second, which compiles everything again, only two
IMAGES = [pytest.param((kind, 0), id=kind) for kind in sorted(KINDS)]
IMAGES += [pytest.param((kind, -1), id=f"{kind}-other", marks=pytest.mark.slow) for kind in ("random", "black")]

# sets that take long to compile, or whose family is in the default run already
SLOW = {
    "affine",
    "gabor",
    "group_l20",
    "group_l21",
    "jpeg_l1",
    "jpeg_l2",
    "l0_coordinate",
    "l0_linf",
    "masked",
    "one_of",
    "recolor_official",
    "snow",
    "wasserstein_ott",
    "wasserstein_sinkhorn",
}


def share(first):
    """Every second registered set, from this place on."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in sorted(sets.REGISTRY)[first::2]]


@pytest.fixture
def perturbation_set(name):
    return sets.REGISTRY[name]()


@pytest.fixture(params=IMAGES)
def image(request, name):
    kind, place = request.param
    return jnp.asarray(KINDS[kind](sets.REGISTRY[name].shapes[place]), jnp.float32)


@pytest.fixture
def random_image(name):
    return jnp.asarray(KINDS["random"](sets.REGISTRY[name].shapes[0]), jnp.float32)


@functools.partial(jax.jit, static_argnums=1)
def call(perturbation_set, method, *arguments):
    """A compiled method: one program a set, method and shape, whatever the radius."""
    return getattr(perturbation_set, method)(*arguments)


@functools.partial(jax.jit, static_argnums=1)
def mapped(perturbation_set, method, image, theta):
    """A compiled method of many θ of one image."""
    return jax.vmap(getattr(perturbation_set, method), (None, 0))(image, theta)


@jax.jit
def members(perturbation_set, image):
    keys = jax.random.split(jax.random.key(3), 40)
    return jax.vmap(perturbation_set.sample, (0, None))(keys, image)


def test_identity_changes_nothing(perturbation_set, image):
    theta = perturbation_set.init(image)
    if perturbation_set.contains_clean:
        np.testing.assert_allclose(call(perturbation_set, "apply", image, theta), image, atol=1e-6)
        assert call(perturbation_set, "size", image, theta) == 0
    assert call(perturbation_set, "contains", image, theta)


def test_samples_are_members(perturbation_set, image):
    theta = members(perturbation_set, image)
    assert mapped(perturbation_set, "contains", image, theta).all()
    images = mapped(perturbation_set, "apply", image, theta)
    assert images.shape == (40, *image.shape)
    assert images.dtype == image.dtype
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1


def test_samples_differ(perturbation_set, random_image):
    images = mapped(perturbation_set, "apply", random_image, members(perturbation_set, random_image))
    assert len(np.unique(np.asarray(images).reshape(40, -1), axis=0)) == 40


@pytest.mark.parametrize("size", [0.1, 3.0, 1e4])
def test_projection_is_a_member_and_idempotent(perturbation_set, image, size):
    gradient = jax.random.normal(jax.random.key(1), image.shape)
    theta = perturbation_set.init(image)
    pulled = call(perturbation_set, "pullback", image, theta, gradient)
    far = call(perturbation_set, "ascend", image, theta, pulled, jnp.asarray(size * float(perturbation_set.radius)))
    near = call(perturbation_set, "project", image, far)
    assert call(perturbation_set, "contains", image, near)
    twice = call(perturbation_set, "project", image, near)
    for once, again in zip(jax.tree.leaves(near), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(again, once, atol=3e-6)


def test_projection_holds_at_any_scale(perturbation_set, random_image):
    """From 1e-10 to 1e20 times a step: what is projected is a member, and not nothing."""
    image, start = random_image, perturbation_set.init(random_image)
    pulled = call(perturbation_set, "pullback", image, start, jax.random.normal(jax.random.key(1), image.shape))
    end = call(perturbation_set, "ascend", image, start, pulled, jnp.asarray(float(perturbation_set.radius)))
    scales = jnp.asarray(np.geomspace(1e-10, 1e20, 40), jnp.float32)
    along = jax.vmap(lambda scale: jax.tree.map(lambda a, b: a + scale * (b - a), start, end))(scales)
    near = mapped(perturbation_set, "project", image, along)
    assert mapped(perturbation_set, "contains", image, near).all()
    leaves = list(zip(jax.tree.leaves(near), jax.tree.leaves(start), strict=True))
    assert all(np.isfinite(leaf).all() for leaf, _ in leaves)
    moved = np.any([(leaf != rest[None]).reshape(40, -1).any(1) for leaf, rest in leaves], 0)
    additive = not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(start))
    # elsewhere a step of 1e-8 is rounding
    assert moved[scales >= (0 if additive else 0.5)].all()


def test_projection_keeps_members(perturbation_set, image):
    theta = members(perturbation_set, image)
    kept = mapped(perturbation_set, "project", image, theta)
    for before, after in zip(jax.tree.leaves(theta), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(after, before, atol=3e-6)


def test_zero_gradient_moves_nothing(perturbation_set, image):
    theta = perturbation_set.init(image)
    zero = jax.tree.map(jnp.zeros_like, theta)
    moved = call(perturbation_set, "ascend", image, theta, zero, jnp.asarray(0.5))
    for before, after in zip(jax.tree.leaves(theta), jax.tree.leaves(moved), strict=True):
        np.testing.assert_array_equal(after, before)


def test_radius_zero_is_the_clean_image(perturbation_set, image):
    if not perturbation_set.contains_clean:
        return
    nothing = perturbation_set.with_radius(0.0)
    theta = call(nothing, "sample", jax.random.key(0), image)
    far = call(nothing, "ascend", image, theta, jax.tree.map(jnp.ones_like, theta), jnp.asarray(1.0))
    for parameters in (theta, call(nothing, "project", image, far)):
        np.testing.assert_allclose(call(nothing, "apply", image, parameters), image, atol=1e-6)


def test_huge_radius_stays_in_the_box(perturbation_set, image):
    wide = perturbation_set.with_radius(1e6)
    theta = call(wide, "project", image, call(wide, "sample", jax.random.key(0), image))
    assert call(wide, "contains", image, theta)


def test_small_steps_ascend(perturbation_set, random_image):
    """From a point where the set's map is smooth, a small projected step along a linear loss does not lower it."""
    gradient = jax.random.normal(jax.random.key(2), random_image.shape)
    theta = call(perturbation_set.with_radius(0.3 * perturbation_set.radius), "sample", jax.random.key(5), random_image)
    pulled = call(perturbation_set, "pullback", random_image, theta, gradient)
    step = jnp.asarray(1e-3 * float(perturbation_set.radius))
    moved = call(perturbation_set, "ascend", random_image, theta, pulled, step)
    moved = call(perturbation_set, "project", random_image, moved)
    before, after = (call(perturbation_set, "apply", random_image, t) for t in (theta, moved))
    assert float(jnp.sum(gradient * (after - before))) >= -1e-5


def test_maximise_beats_every_sample(perturbation_set, image):
    """The linear maximiser on the parameters, against <gradient, ·> of members."""
    if not hasattr(perturbation_set, "maximise"):
        return
    theta = perturbation_set.init(image)
    gradient = jax.random.normal(jax.random.key(2), image.shape)
    gradient = call(perturbation_set, "pullback", image, theta, gradient)
    best = call(perturbation_set, "maximise", image, gradient)
    assert call(perturbation_set, "contains", image, best)

    def value(theta):
        return sum(jnp.vdot(g, t) for g, t in zip(jax.tree.leaves(gradient), jax.tree.leaves(theta), strict=True))

    others = jax.jit(jax.vmap(value))(members(perturbation_set, image))
    assert float(others.max()) <= float(value(best)) + 1e-4


def test_distance_is_a_size(perturbation_set, random_image):
    identity = perturbation_set.init(random_image)
    theta = call(perturbation_set, "sample", jax.random.key(5), random_image)
    assert call(perturbation_set, "distance", random_image, theta, theta) <= 1e-6 * float(perturbation_set.radius)
    if perturbation_set.contains_clean:
        apart = call(perturbation_set, "distance", random_image, theta, identity)
        np.testing.assert_allclose(apart, call(perturbation_set, "size", random_image, theta), rtol=1e-4)


def test_radius_is_traced_and_maps(perturbation_set, random_image):
    image, typical = random_image, float(perturbation_set.radius)
    traces = 0

    @jax.jit
    def project(perturbation_set, theta):
        nonlocal traces
        traces += 1
        return perturbation_set.project(image, theta)

    theta = call(perturbation_set.with_radius(2 * typical), "sample", jax.random.key(3), image)
    radii = [np.float64(0.2 * typical), np.float32(0.4 * typical), jnp.asarray(0.7 * typical), typical]
    one_by_one = [project(perturbation_set.with_radius(r), theta) for r in radii]
    assert traces == 1
    project(perturbation_set.with_radius(1), theta)  # an int too
    assert traces == 1

    @jax.jit
    def mapped(radii):
        return jax.vmap(lambda r: perturbation_set.with_radius(r).project(image, theta))(radii)

    together = mapped(jnp.asarray(radii, jnp.float32))
    for i, single in enumerate(one_by_one):
        for left, right in zip(jax.tree.leaves(together), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(left[i], right, atol=2e-6 * max(1.0, typical))


def test_structure_and_dtype_are_kept(perturbation_set, random_image):
    image = random_image
    theta = perturbation_set.init(image)
    key = jax.random.key(0)
    gradient = jax.tree.map(jnp.ones_like, theta)
    for other in (
        call(perturbation_set, "sample", key, image),
        call(perturbation_set, "project", image, theta),
        call(perturbation_set, "ascend", image, theta, gradient, jnp.asarray(0.1)),
        call(perturbation_set, "pullback", image, theta, image),
    ):
        assert jax.tree.structure(other) == jax.tree.structure(theta)
        for left, right in zip(jax.tree.leaves(other), jax.tree.leaves(theta), strict=True):
            assert (left.shape, left.dtype) == (right.shape, right.dtype)


def test_text_names_the_radius(perturbation_set):
    assert f"{float(perturbation_set.radius):g}" in str(perturbation_set)
    assert str(perturbation_set.with_radius(jnp.asarray(0.25))).endswith("(0.25)")


@pytest.mark.parametrize("radius", [-1, -1e-9, float("nan"), float("inf"), np.float32(-2)])
def test_bad_radius_is_refused(perturbation_set, radius):
    with pytest.raises(ValueError, match="radius must be finite and >= 0; got"):
        perturbation_set.with_radius(radius)


@pytest.mark.parametrize("radius", ["0.1", True, 1j])
def test_radius_that_is_no_number_is_refused(perturbation_set, radius):
    with pytest.raises(TypeError, match="radius must be a real number; got"):
        perturbation_set.with_radius(radius)
