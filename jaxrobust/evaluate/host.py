"""Models that JAX does not trace: a remote service, a scikit-learn pipeline, any function on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _checks
from jaxrobust.types import pytree

__all__ = ["HostModel"]


@pytree()
class HostModel:
    """A model given as a function on NumPy arrays, attacked in the lanes; with a pullback by every attack.

    `robustness`, `curve`, `autoattack`, `masking`, `transfer`, `run_lanes` and `predict` take it where they take a
    `Classifier`. The function is called on the clean images, on up to four of them once more beside dim negatives of
    them, to see that it answers alike, then on the points that the examples still in search mean to ask, never
    on padding, and on the points that are claimed, with a pullback also when these are rounded to 8 bits; so where
    queries cost money, `forwards` says how many were bought but for these few.
    A run that saves asks 16 points more, each time it starts, to see that it is the same model still. The function is
    given arrays of its own, in which it may work, and so is the pullback.

    With s(x) the scores of one image, the pullback gives Σ_k c_k ∂s_k/∂x for a cotangent c, which is the gradient of
    c·s. It is called once for each direction that an attack follows, on the images that follow it, so at most
    `backwards` images are sent; an attack of n steps thus evaluates function and pullback n times in turn. A pullback
    that is not the function's own is believed, which makes of it the stand-in of BPDA; `evaluate.masking` tells a wrong
    one. For PyTorch there is `TorchModel`.

    Args:
        function: `images (n, H, W, C), 1 ≤ n -> scores (n, K)`, in the images' floating dtype, [0, 1]; n varies. Scores
            are logits, log-probabilities or, for losses that compare classes, probabilities; a function that gives
            labels (n,), integer, will do for decision-based attacks. It must be deterministic and treat every image
            alone.
        classes: K ≥ 2.
        pullback: `(images (n, H, W, C), cotangents (n, K)) -> gradients (n, H, W, C)`, both given in the images' dtype;
            None for attacks that use no gradients.

    Raises:
        TypeError: function or pullback is no function, classes no integer.
        ValueError: classes below 2.

    Example:
        >>> weights = np.ones((16, 3), np.float32)
        >>> model = HostModel(
        ...     lambda images: images.reshape(len(images), -1) @ weights,
        ...     classes=3,
        ...     pullback=lambda images, cotangents: (cotangents @ weights.T).reshape(images.shape),
        ... )
        >>> model(np.zeros((2, 4, 4, 1), np.float32)).shape
        (2, 3)
    """

    function: Callable[[np.ndarray], Any]
    classes: int
    pullback: Callable[[np.ndarray, np.ndarray], Any] | None = None

    # nothing of it is on a device
    params = ()

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must map images to scores; got {self.function!r}")
        if not (self.pullback is None or callable(self.pullback)):
            raise TypeError(f"pullback must map (images, cotangents) to gradients; got {self.pullback!r}")
        _checks.count("classes", self.classes, low=2)

    @property
    def differentiable(self) -> bool:
        """Whether it has gradients to give."""
        return self.pullback is not None

    def classes_on(self, images: Any) -> int:
        """The number of classes K, for images of this kind."""
        return self.classes

    def __call__(self, images: Any) -> np.ndarray:
        """Scores (n, K) of images (n, H, W, C), n ≥ 0; labels become scores of 0 and 1.

        Raises:
            TypeError: the images are traced by JAX, or the function gives no numbers.
            ValueError: it gives the wrong shape, or labels outside of [0, K).
        """
        images = _concrete(images)
        if not len(images):
            return np.zeros((0, self.classes or 0), images.dtype)
        return self._checked(self._scores(images), images)

    def linearised(self, images: Any) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Scores and what pulls directions back, as `jax.vjp`; the model must be `differentiable`.

        Args:
            images: (n, H, W, C), n ≥ 1.

        Returns:
            The scores (n, K), and `cotangents (n, m, K) -> gradients (n, m, H, W, C)`: m directions at each image; a
            direction of zeros has a gradient of zeros, for which nothing is called.

        Raises:
            TypeError: as when called, or the pullback gives no floating numbers.
            ValueError: as when called, or the pullback gives the wrong shape.
        """
        images = _concrete(images)
        scores, pull = self._vjp(images)

        def pulled(cotangents: np.ndarray) -> np.ndarray:
            found = np.zeros((*cotangents.shape[:2], *images.shape[1:]), images.dtype)
            for place in range(cotangents.shape[1]):
                rows = np.flatnonzero(cotangents[:, place].any(-1))
                if len(rows):
                    found[rows, place] = _gradients(pull(rows, cotangents[rows, place]), len(rows), images)
            return found

        return self._checked(scores, images), pulled

    def _scores(self, images: np.ndarray) -> Any:
        return self.function(images)

    def _vjp(self, images: np.ndarray) -> tuple[Any, Callable[[np.ndarray, np.ndarray], Any]]:
        """Scores, and what pulls cotangents (r, K) at some rows of the images back to gradients (r, H, W, C)."""
        pullback: Any = self.pullback
        return self._scores(images.copy()), lambda rows, cotangents: pullback(images[rows], cotangents)

    def _checked(self, scores: Any, images: np.ndarray) -> np.ndarray:
        scores = _array("function", "scores (n, K) or labels (n,)", scores)
        classes = scores.shape[-1] if self.classes is None else self.classes
        if scores.ndim == 1 and np.issubdtype(scores.dtype, np.integer):
            if scores.min() < 0 or scores.max() >= classes:
                raise ValueError(
                    f"labels must lie in [0, {classes}), the model's classes; got values in "
                    f"[{scores.min()}, {scores.max()}]"
                )
            scores = np.eye(classes)[scores]
        if not jnp.issubdtype(scores.dtype, jnp.floating):  # which knows bfloat16
            raise TypeError(f"function must return floating scores or integer labels; got dtype {scores.dtype}")
        if scores.shape != (len(images), classes):
            raise ValueError(
                f"function must return scores of shape {(len(images), classes)} or labels of shape "
                f"{(len(images),)}; got {scores.shape}"
            )
        return scores.astype(images.dtype)


def _concrete(images: Any) -> np.ndarray:
    """A copy of images that are numbers."""
    if isinstance(images, jax.core.Tracer):
        raise TypeError("a HostModel cannot be traced: attack it by evaluate.robustness or evaluate.run_lanes")
    return np.array(images)


def _array(name: str, kind: str, found: Any) -> np.ndarray:
    """What a function of the user's gave, if it is one array."""
    try:
        return np.asarray(found)
    except Exception as error:
        raise TypeError(f"{name} must return one array of {kind}; got {_checks.told(found)} ({error})") from error


def _gradients(found: Any, count: int, images: np.ndarray) -> np.ndarray:
    """What a pullback gave, if it can be gradients of so many images."""
    found, wanted = _array("pullback", "gradients (n, H, W, C)", found), (count, *images.shape[1:])
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise TypeError(f"pullback must return floating gradients; got dtype {found.dtype}")
    if found.shape != wanted:
        raise ValueError(f"pullback must return gradients of the images' shape, {wanted}; got {found.shape}")
    return found
