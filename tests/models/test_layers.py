"""Conv must be nnx.Conv in every respect but speed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust.models.layers import Conv, Normalise, nonlinearity

# (image size, kernel size, further arguments)
CASES = {
    "same": ((6, 6), (3, 3), {}),
    "valid": ((7, 6), (3, 2), {"padding": "VALID"}),
    "strided same, odd": ((7, 5), (3, 3), {"strides": 2}),
    "strided, padded by hand": ((8, 8), (4, 4), {"strides": (2, 2), "padding": ((1, 1), (1, 1))}),
    "strided, padding one number": ((9, 8), (7, 7), {"strides": (2, 3), "padding": 3}),
    "pointwise strided": ((5, 4), (1, 1), {"strides": 2, "padding": "VALID", "use_bias": False}),
    "dilations": ((4, 5), (3, 3), {"input_dilation": 2, "kernel_dilation": 2, "padding": 2}),
    "circular": ((6, 6), (3, 3), {"padding": "CIRCULAR"}),
    "groups": ((6, 6), (3, 3), {"feature_group_count": 2}),
    "one dimension": ((9,), (3,), {"strides": 2}),
    "strided further than the kernel": ((8, 7), (2, 2), {"strides": 3}),
}
# the same, and input and output channels of which the patches are no wider than the outputs
FEW = {
    "one channel": ((7, 6), (3, 2), {}, (1, 12)),
    "one channel, strided": ((9, 8), (4, 4), {"strides": 2, "padding": ((1, 1), (1, 1))}, (1, 16)),
    "one channel, wide window": ((8, 8), (3, 3), {"strides": 2}, (1, 12)),
    "one channel, dilated": ((9, 8), (3, 3), {"kernel_dilation": 2}, (1, 16)),
    "few channels": ((5, 6), (3, 3), {"padding": "VALID"}, (2, 20)),
    "few channels, strided": ((7, 7), (3, 3), {"strides": (1, 2)}, (2, 40)),
}


def pair(case):
    size, kernel, options, channels = (*CASES[case], (4, 6)) if case in CASES else FEW[case]
    plain, ours = (kind(*channels, kernel, rngs=nnx.Rngs(0), **options) for kind in (nnx.Conv, Conv))
    return size, plain, ours


def function(layer):
    """The layer as a function of its kernel and images."""
    graphdef, state = nnx.split(layer)
    rest = nnx.to_pure_dict(state)
    return lambda kernel, images: nnx.merge(graphdef, rest | {"kernel": kernel})(images)


QUICK = ("strided same, odd", "strided, padded by hand", "dilations", "groups", "one channel, strided")


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES | FEW]
)
def test_values_and_all_derivatives_are_those_of_nnx_conv(case, rng):
    size, plain, ours = pair(case)
    kernel = plain.kernel[...]
    np.testing.assert_array_equal(kernel, ours.kernel[...])
    shape = (3, *size, plain.in_features)
    images, other = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    bump = jnp.asarray(rng.normal(size=kernel.shape), jnp.float32)

    def everything(layer):
        f = function(layer)

        def loss(kernel, images):
            return jnp.sum(jnp.sin(f(kernel, images)))

        in_images = jax.grad(loss, 1)
        return {
            "value": f(kernel, images),
            "gradients": jax.grad(loss, (0, 1))(kernel, images),
            "forward": jax.jvp(f, (kernel, images), (bump, other))[1],
            "forward in images": jax.jvp(lambda x: f(kernel, x), (images,), (other,))[1],
            "forward in kernel": jax.jvp(lambda k: f(k, images), (kernel,), (bump,))[1],
            "vmap": jax.vmap(in_images)(jnp.stack([kernel, bump]), jnp.stack([images, other])),
            "second order": jax.grad(lambda k: jnp.sum(in_images(k, images) * other))(kernel),
        }

    expected, found = jax.jit(everything, static_argnums=0)(plain), jax.jit(everything, static_argnums=0)(ours)
    for name in expected:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5, err_msg=name),
            expected[name],
            found[name],
        )


def convolutions(jaxpr):
    """What a jaxpr convolves: the channel order of each kernel, and whether zeros are inserted into the inputs."""
    orders = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            spec = equation.params["dimension_numbers"].rhs_spec
            order = "plain" if spec[0] > spec[1] else "swapped"
            orders.append(order + " dilated" * (max(equation.params["lhs_dilation"]) > 1))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                orders += convolutions(getattr(inner, "jaxpr", inner))
    return orders


@pytest.mark.parametrize(
    ("case", "usual", "expected"),
    [
        ("same", ["plain", "swapped"], ["plain", "plain"]),
        ("strided, padded by hand", ["plain", "swapped dilated"], ["plain", "plain"]),
        ("few channels", ["plain", "swapped"], ["plain"]),
        ("few channels, strided", ["plain", "swapped dilated"], ["plain"]),
        ("one channel", ["plain", "swapped"], []),
        ("one channel, wide window", ["plain", "swapped dilated"], ["plain", "plain"]),
        ("one channel, dilated", ["plain", "swapped"], ["plain", "plain"]),
    ],
)
def test_the_input_gradient_is_one_plain_convolution_or_a_matrix_product(case, usual, expected):
    size, plain, ours = pair(case)
    images = jnp.ones((2, *size, plain.in_features))
    kernel = plain.kernel[...]

    def found(layer):
        # The sum is linear, so that the forward pass is not needed and only the pullback remains.
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(function(layer)(kernel, x))))
        return gradient.trace(images).jaxpr.jaxpr

    assert convolutions(found(plain)) == usual
    assert convolutions(found(ours)) == expected


def test_a_forward_derivative_in_the_images_runs_no_convolution_for_the_kernel():
    size, _, ours = pair("same")
    images = jnp.ones((2, *size, 4))
    jaxpr = jax.make_jaxpr(lambda x: jax.jvp(ours, (x,), (x,)))(images)
    assert len(convolutions(jaxpr.jaxpr)) == 2


def test_normalise():
    images = jnp.full((2, 3, 3, 2), 0.5)
    np.testing.assert_allclose(Normalise((0.5, 0.25), (1.0, 0.5), channels=2)(images)[1, 2, 2], [0, 0.5])
    assert Normalise((), (), channels=2)(images) is images


@pytest.mark.parametrize(
    ("mean", "std", "rule"),
    [
        ((0.5,), (), "hold 1 numbers"),
        ((), (0.5,), "hold 1 numbers"),
        ((0.5, 0.5), (0.5, 0.5), "hold 1 numbers"),
        ((0.5,), (0.0,), "std must be positive"),
        ((0.5,), (float("nan"),), "std must be positive"),
    ],
)
def test_normalise_refuses(mean, std, rule):
    with pytest.raises(ValueError, match=rule):
        Normalise(mean, std, channels=1)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 8, 8, 3), (2, 9, 9, 1)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \(N, H, W, C\).*got shape"):
        Normalise((), (), channels=1, size=8)(jnp.zeros(shape))


def test_an_unknown_nonlinearity_is_refused():
    with pytest.raises(ValueError, match=r"activation must be one of .*got 'tanh'"):
        nonlinearity("tanh")
