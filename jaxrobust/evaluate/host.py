"""Models that JAX does not trace: a remote service, a scikit-learn pipeline, any function on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrobust import _checks
from jaxrobust.types import pytree

__all__ = ["HostModel"]


@pytree()
class HostModel:
    """A model given as a function on NumPy arrays, attacked in the lanes by attacks that use no gradients.

    `robustness`, `curve`, `run_lanes` and `predict` take it where they take a `Classifier`. The function is called on
    the clean images, on up to eight of them once more to see that it answers alike (on a single one beside its
    negative), then on the points that the examples still in search mean to ask, never on padding, and on the points
    that are claimed; so where queries cost money, `forwards` says how many were bought. A run that saves asks 16 points
    more, each time it starts, to see that it is the same model still. The function is given arrays of its own, in which
    it may work.

    Args:
        function: `images (n, H, W, C), 1 ≤ n -> scores (n, K)`, in the images' floating dtype, [0, 1]; n varies. Scores
            are logits, log-probabilities or, for losses that compare classes, probabilities; a function that gives
            labels (n,), integer, will do for decision-based attacks. It must be deterministic and treat every image
            alone.
        classes: K ≥ 2.

    Example:
        >>> model = HostModel(lambda images: images.reshape(len(images), -1)[:, :3], classes=3)
        >>> model(np.zeros((2, 4, 4, 1), np.float32)).shape
        (2, 3)
    """

    function: Callable[[np.ndarray], Any]
    classes: int

    # nothing of it is on a device
    params = ()

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must map images to scores; got {self.function!r}")
        _checks.count("classes", self.classes, low=2)

    def __call__(self, images: Any) -> np.ndarray:
        """Scores (n, K) of images (n, H, W, C), n ≥ 0; labels become scores of 0 and 1.

        Raises:
            TypeError: the images are traced by JAX, or the function gives no numbers.
            ValueError: it gives the wrong shape, or labels outside of [0, K).
        """
        if isinstance(images, jax.core.Tracer):
            raise TypeError("a HostModel cannot be traced: attack it by evaluate.robustness or evaluate.run_lanes")
        images = np.array(images)
        if not len(images):
            return np.zeros((0, self.classes), images.dtype)
        scores = np.asarray(self.function(images))
        if scores.ndim == 1 and np.issubdtype(scores.dtype, np.integer):
            if scores.min() < 0 or scores.max() >= self.classes:
                raise ValueError(
                    f"labels must lie in [0, {self.classes}), the model's classes; got values in "
                    f"[{scores.min()}, {scores.max()}]"
                )
            scores = np.eye(self.classes)[scores]
        if not np.issubdtype(scores.dtype, np.floating):
            raise TypeError(f"function must return floating scores or integer labels; got dtype {scores.dtype}")
        if scores.shape != (len(images), self.classes):
            raise ValueError(
                f"function must return scores of shape {(len(images), self.classes)} or labels of shape "
                f"{(len(images),)}; got {scores.shape}"
            )
        return scores.astype(images.dtype)
