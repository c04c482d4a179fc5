"""PyTorch modules, attacked as they are: forward on their own device, directions pulled back by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrobust import _checks
from jaxrobust.evaluate.host import HostModel
from jaxrobust.types import pytree

__all__ = ["TorchModel"]


@pytree()
class TorchModel(HostModel):
    """A PyTorch module as a `HostModel` that every attack takes, white-box ones too; needs the extra `torch`.

    The module sees images as PyTorch has them, (n, C, H, W) in [0, 1], on the device and in the dtype of its first
    floating parameter; normalisation belongs inside. A step of an attack is one forward pass and one backward pass for
    each direction that it follows, on the examples still in search, as many at a time as there are `lanes`. Nothing of
    the module changes: no gradients of parameters are computed or kept, and threads may share it. A run that saves
    knows the module by its class and code, its parameters, buffers and other attributes.

    Args:
        function: the module, `images (n, C, H, W) -> logits (n, K)`, in evaluation mode: deterministic, every image
            treated alone.
        classes: K ≥ 2; by default it is asked for one image's logits.

    Raises:
        TypeError: `function` is no `torch.nn.Module`; when called, it returns something else than one tensor.
        ValueError: the module, or a part of it, is in training mode; when called, as a `HostModel`, or no gradient
            comes back to its images.

    Example:
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()  # doctest: +SKIP
        >>> print(autoattack(TorchModel(module), (x, y), radius=0.1, key=key))  # doctest: +SKIP

        The models of RobustBench are modules that normalise inside, and so are torchvision's behind a `Normalize`:

        >>> module = robustbench.load_model("Carmon2019Unlabeled", threat_model="Linf").eval()  # doctest: +SKIP
        >>> report = autoattack(TorchModel(module.cuda()), data.load("cifar10", "test"), key=key)  # doctest: +SKIP
        >>> normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        ... # doctest: +SKIP
        >>> model = TorchModel(torch.nn.Sequential(normalize, resnet50(weights=weights)).eval())  # doctest: +SKIP
    """

    function: Any
    classes: int | None = None  # type: ignore[assignment]
    pullback: None = None

    def __post_init__(self) -> None:
        module = self.function
        if not isinstance(module, _torch().nn.Module):
            raise TypeError(f"function must be a torch.nn.Module; got {_checks.told(module)}")
        if self.pullback is not None:
            raise TypeError(f"pullback must be None, since a module has its own; got {self.pullback!r}")
        if self.classes is not None:
            _checks.count("classes", self.classes, low=2)
        self._check_mode()

    @property
    def differentiable(self) -> bool:
        """It is."""
        return True

    def classes_on(self, images: Any) -> int:
        """The number of classes, if need be from the first image's logits."""
        return self.classes or self(images[:1]).shape[1]

    def _scores(self, images: np.ndarray) -> np.ndarray:
        self._check_mode()
        torch = _torch()
        # not `inference_mode`, in which a defence could take no gradients of its own
        with torch.inference_mode(False), torch.no_grad():
            return _numbers(self._logits(self._tensor(images)))

    def _vjp(self, images: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
        self._check_mode()
        torch = _torch()
        # whatever modes the caller is in
        with torch.inference_mode(False), torch.enable_grad():
            leaf = self._tensor(images).requires_grad_()
            logits = self._logits(leaf.clone())  # in which the module may work

        def pull(rows: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
            whole = np.zeros(logits.shape, np.float32)
            whole[rows] = cotangents
            with torch.inference_mode(False):
                directions = torch.from_numpy(whole).to(logits.device, logits.dtype)
                found = None
                if logits.requires_grad:
                    # of the images alone: autograd then computes no gradients of parameters
                    (found,) = torch.autograd.grad(logits, leaf, directions, retain_graph=True, allow_unused=True)
            if found is None:
                raise ValueError(
                    "the module must be differentiable for attacks with gradients; none comes back to its images "
                    "(torch.no_grad() or detach() inside?)"
                )
            return _numbers(found.permute(0, 2, 3, 1))[rows]

        return _numbers(logits), pull

    def _logits(self, tensor: Any) -> Any:
        found = self.function(tensor)
        if not isinstance(found, _torch().Tensor):
            raise TypeError(
                f"the module must return one tensor of logits (n, K); got {_checks.told(found)} (wrap it in a module "
                "that returns its logits)"
            )
        shape = tuple(found.shape)
        if len(shape) != 2 or shape[0] != len(tensor) or shape[1] < 2 or not found.is_floating_point():
            raise ValueError(
                f"the module must return floating logits of shape ({len(tensor)}, K), K >= 2, for images of shape "
                f"{tuple(tensor.shape)}; got {found.dtype} of shape {shape}"
            )
        return found

    def _tensor(self, images: np.ndarray) -> Any:
        """Images as the module wants them; a leaf of autograd's graphs."""
        torch = _torch()
        tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        like = next((own for own in self.function.parameters() if own.is_floating_point()), None)
        return tensor if like is None else tensor.to(like.device, like.dtype)

    def _check_mode(self) -> None:
        part = next((name for name, part in self.function.named_modules() if part.training), None)
        if part is not None:
            where = f" of its part {part!r}" if part else ""
            raise ValueError(f"the module must be in evaluation mode; got training mode{where} (call .eval() first)")


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("TorchModel needs PyTorch: pip install 'jaxrobust[torch]'") from error
    return torch


def _numbers(tensor: Any) -> np.ndarray:
    """A tensor on the host, of a dtype that NumPy knows."""
    found = tensor.detach()
    return (found.float() if found.itemsize < 4 else found).cpu().numpy()
