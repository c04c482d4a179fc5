"""Small models and images that the tests share."""

import jax
import numpy as np

from jaxrobust.testing.attacks import answers, dense_net
from jaxrobust.testing.attacks import dense_params as _dense_params
from jaxrobust.types import Classifier

SHAPE = (6, 5, 2)  # height and width differ on purpose
CLASSES = 4


def conv_net(params, images):
    """A small convolutional network with a smooth nonlinearity."""
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.nn.silu(jax.lax.conv_general_dilated(images, params["conv"], (1, 1), "SAME", dimension_numbers=dims))
    return x.mean((1, 2)) @ params["dense"] + x.reshape(x.shape[0], -1) @ params["flat"]


def conv_params(seed=0, shape=SHAPE, classes=CLASSES):
    """Random parameters of `conv_net`."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    return {
        "conv": jax.device_put(rng.normal(size=(3, 3, channels, 5)).astype(np.float32)),
        "dense": jax.device_put(rng.normal(size=(5, classes)).astype(np.float32)),
        "flat": jax.device_put((rng.normal(size=(height * width * 5, classes)) / 4).astype(np.float32)),
    }


def conv_classifier(seed=0, shape=SHAPE, classes=CLASSES):
    """A classifier with random weights."""
    return Classifier(conv_net, conv_params(seed, shape, classes))


def dense_params(seed=0, shape=SHAPE, classes=CLASSES):
    """Random parameters of `dense_net`."""
    return _dense_params(seed, shape, classes)


def dense_classifier(seed=0, shape=SHAPE, classes=CLASSES):
    """A classifier with random weights."""
    return Classifier(dense_net, dense_params(seed, shape, classes))


def linear(params, images):
    """Logits x·w + b."""
    weights, bias = params
    return images.reshape(images.shape[0], -1) @ weights + bias[None]


def linear_classifier(rng, shape=SHAPE, classes=CLASSES, scale=1.0):
    """A linear classifier with random weights."""
    size = int(np.prod(shape))
    weights = rng.normal(size=(size, classes)) * scale
    return Classifier(
        linear, (jax.device_put(weights.astype(np.float32)), jax.device_put(np.zeros(classes, np.float32)))
    )


def images_and_labels(model, count=8, seed=1, shape=SHAPE):
    """Random images, labelled by the model but for the last, which is labelled wrongly."""
    rng = np.random.default_rng(seed)
    images = rng.random((count, *shape)).astype(np.float32)
    logits = answers(model, images) if isinstance(model, Classifier) else np.asarray(model(images))
    labels = logits.argmax(-1).astype(np.int32)
    labels[-1] = (labels[-1] + 1) % logits.shape[-1]
    return images, labels
