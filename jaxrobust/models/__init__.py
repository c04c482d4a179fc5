"""Networks in Flax NNX, their weights in files, and the adapters that make them pure functions."""

from jaxrobust import _public
from jaxrobust.models.adapters import from_equinox, from_haiku, from_linen, from_nnx
from jaxrobust.models.alexnet import AlexNet
from jaxrobust.models.layers import Conv
from jaxrobust.models.mnist import MnistNet, SmallCNN
from jaxrobust.models.resnet import PreActResNet, ResNet, WideResNet
from jaxrobust.models.trainable import Trainable
from jaxrobust.models.vgg import VGG
from jaxrobust.models.weights import load_lpips, load_npz, load_torchvision, save_npz

__all__ = [
    "VGG",
    "AlexNet",
    "Conv",
    "MnistNet",
    "PreActResNet",
    "ResNet",
    "SmallCNN",
    "Trainable",
    "WideResNet",
    "from_equinox",
    "from_haiku",
    "from_linen",
    "from_nnx",
    "load_lpips",
    "load_npz",
    "load_torchvision",
    "save_npz",
]


def __dir__() -> list[str]:
    return _public.names(globals())
