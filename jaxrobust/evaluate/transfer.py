"""Transfer: points crafted on some models, scored on others that gave no feedback."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _checks, _inputs
from jaxrobust.attacks import Attack
from jaxrobust.evaluate._programs import clean_logits, predict, replicated
from jaxrobust.evaluate.door import enter
from jaxrobust.evaluate.host import HostModel
from jaxrobust.evaluate.lanes import drive
from jaxrobust.types import Classifier, Key

__all__ = ["Transfer", "ensemble", "transfer"]


@dataclasses.dataclass(frozen=True)
class _Mean:
    applies: tuple[Callable[..., Any], ...]

    def __call__(self, params: tuple[Any, ...], images: Any) -> Any:
        return jnp.mean(jnp.stack([apply(p, images) for apply, p in zip(self.applies, params, strict=True)]), 0)


def ensemble(models: Sequence[Classifier]) -> Classifier:
    """The classifier whose logits are the mean of several models', a surrogate that transfers better than each.

    Args:
        models: at least one, of equal numbers of classes.

    Returns:
        The classifier.

    Raises:
        TypeError: a model that is no classifier.
        ValueError: no models.

    Reference:
        Dong et al., 2018, arXiv:1710.06081.
    """
    models = tuple(models)
    if not models:
        raise ValueError("models must hold at least one classifier; got none")
    for place, model in enumerate(models):
        _inputs.classifier(model, name=f"models[{place}]")
    return Classifier(_Mean(tuple(model.apply for model in models)), tuple(model.params for model in models))


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What points crafted on each source do to each target, per example. Printing it gives a table.

    Args:
        attack: the attack.
        success: source -> (N,) whether the attack fooled the source itself, of examples it had right.
        clean: model -> (N,) whether it is right on the clean image, for sources and targets.
        right: (source, target) -> (N,) whether the target is right on the source's points.
        images: source -> (N, H, W, C), the points.
    """

    attack: Attack
    success: dict[str, np.ndarray]
    clean: dict[str, np.ndarray]
    right: dict[tuple[str, str], np.ndarray]
    images: dict[str, np.ndarray]

    def surrogate_rate(self, source: str) -> float:
        """The share of the examples that the source has right on which the attack fools the source; NaN of none."""
        return _share(self.success[source], self.clean[source])

    def rate(self, source: str, target: str) -> float:
        """The share of the examples that both have right on which the source's points fool the target; NaN of none."""
        return _share(~self.right[source, target], self.clean[source] & self.clean[target])

    def accuracy(self, source: str, target: str) -> float:
        """The target's accuracy, clean and on the source's points, in [0, 1]: an upper bound of its robust accuracy."""
        return float((self.clean[target] & self.right[source, target]).mean())

    @property
    def stronger_than_white_box(self) -> list[tuple[str, str]]:
        """Pairs (source, target) in which a target that is a source too does worse on another's points than on its
        own: a sign that its gradients are masked.
        """
        return [
            (source, target)
            for source, target in self.right
            if (target, target) in self.right and self.accuracy(source, target) < self.accuracy(target, target)
        ]

    def summary(self) -> dict[str, Any]:
        """The numbers of a results file."""
        return {
            "attack": str(self.attack),
            "surrogate_rate": {source: self.surrogate_rate(source) for source in self.success},
            "transfer": [
                {
                    "source": source,
                    "target": target,
                    "rate": self.rate(source, target),
                    "accuracy": self.accuracy(source, target),
                }
                for source, target in self.right
            ],
            "stronger_than_white_box": self.stronger_than_white_box,
        }

    def __str__(self) -> str:
        width = max(len(name) for name in self.clean)
        lines = [f"transfer of {self.attack}, in % of {len(next(iter(self.clean.values())))} examples"]
        for source, target in self.right:
            lines.append(
                f"  {source:<{width}} -> {target:<{width}}  fools the source {100 * self.surrogate_rate(source):5.1f}, "
                f"the target {100 * self.rate(source, target):5.1f}; "
                f"accuracy left {100 * self.accuracy(source, target):5.1f}"
            )
        pairs = self.stronger_than_white_box
        lines += [f"warning: {t} does worse on the points of {s} than on its own: masked gradients?" for s, t in pairs]
        return "\n".join(lines)


@_checks.off_mesh
def transfer(
    sources: Mapping[str, Classifier | HostModel],
    targets: Mapping[str, Classifier | HostModel],
    data: Any,
    attack: Attack,
    *,
    key: Key,
    lanes: int = 128,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> Transfer:
    """Craft on every source, score on every target, without any feedback from it.

    The source's search does not end with its first success, so that points of high loss are transferred; they are
    those that the attack would return, also where the source itself was not fooled. What a source has wrong on the
    clean image is scored as it is.

    Cost: of each source one attack, of each target one forward pass an example and source, and the clean ones.

    Args:
        sources: name -> surrogate; `ensemble` makes one of several. White-box attacks want host models with a pullback.
        targets: name -> model, host models too. Models that are in both, under one name, give the white-box figures.
        data: images (N, H, W, C) in [0, 1] and labels (N,).
        attack: the attack, `mi_fgsm` being the usual one.
        key: makes all randomness, as in `run_lanes`.
        lanes: as in `robustness`.
        devices: as in `robustness`.
        progress: whether to show a progress bar for each source.

    Returns:
        The result.

    Raises:
        TypeError: as `robustness`.
        ValueError: as `robustness`, or no sources or targets, or different models under one name.

    Example:
        >>> found = transfer({"mine": mine}, {"theirs": theirs}, (x, y), jr.attacks.mi_fgsm(ball), key=key)
        ... # doctest: +SKIP

    Reference:
        Papernot et al., 2016, arXiv:1605.07277; Dong et al., 2018, arXiv:1710.06081.
    """
    images, labels = _inputs.pair(data)
    for name, models in (("sources", sources), ("targets", targets)):
        if not isinstance(models, Mapping) or not models:
            raise ValueError(f"{name} must be a dictionary from names to models, at least one; got {models!r}")
    different = [name for name in sources if name in targets and targets[name] is not sources[name]]
    if different:
        raise ValueError(f"a name in sources and targets must stand for one model; got two called {different[0]!r}")
    _checks.count("lanes", lanes)
    everywhere = replicated(devices)
    logits, clean, success, points = {}, {}, {}, {}
    for source in sources.values():
        checked = enter([attack], source, images, labels, key=key)
    for name, model in {**targets, **sources}.items():
        logits[name] = clean_logits(model, images, batch_size=lanes)
        clean[name] = _right(logits[name], labels)
    for name, model in sources.items():
        found = drive(
            attack,
            jax.device_put(model, everywhere),
            checked.images,
            checked.goal,
            key=key,
            indices=checked.indices,
            logits=logits[name],
            lanes=lanes,
            early_stop=False,
            everywhere=everywhere,
            progress=f"craft | {name}" if progress else False,
        ).result
        points[name], success[name] = np.asarray(found.images), np.asarray(found.success) & clean[name]
    right = {
        (source, target): _right(predict(model, points[source], batch_size=lanes), labels)
        for source in sources
        for target, model in targets.items()
    }
    return Transfer(attack, success, clean, right, points)


def _right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (logits.argmax(-1) == labels) & np.isfinite(logits).all(-1)


def _share(hits: np.ndarray, among: np.ndarray) -> float:
    return float(hits[among].mean()) if among.any() else float("nan")
