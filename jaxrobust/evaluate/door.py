"""The door of the lanes: what comes in is checked once, and a whole data set is attacked."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrobust import _checks, _inputs
from jaxrobust.attacks import Attack
from jaxrobust.attacks.core import engine
from jaxrobust.evaluate import _hosts, _saved
from jaxrobust.evaluate._programs import clean_logits, replicated
from jaxrobust.evaluate.host import HostModel
from jaxrobust.evaluate.lanes import LaneResult, drive, unwatched
from jaxrobust.types import Classifier, Criterion, Key

__all__ = ["enter", "labelled", "run_lanes"]


@_checks.off_mesh
def run_lanes(
    attack: Attack,
    model: Classifier | HostModel,
    images: Any,
    labels: Any,
    *,
    key: Key,
    indices: Any = None,
    logits: Any = None,
    lanes: int = 128,
    early_stop: bool = True,
    devices: Sequence[Any] | None = None,
    save: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    progress: bool | str = False,
) -> LaneResult:
    """Attack a whole data set, as `attacks.run` would but without wasting a step; see `evaluate.lanes`.

    Args:
        attack: the attack, of one radius or one an image; for a host model without a pullback one without gradients.
        model: the classifier, or a `HostModel`.
        images: (N, H, W, C) floating point in [0, 1], held on the host.
        labels: (N,) true labels, or a criterion.
        key: makes all randomness; example i uses fold_in(key, indices[i]).
        indices: (N,) integers ≥ 0, by default 0 … N−1.
        logits: (N, K) clean logits, computed here if not given.
        lanes: examples in flight at once at most, ≥ 1, rounded up to a multiple of the number of devices; fewer where
            there are not so many, or where the last turn would else be mostly idle.
        early_stop: whether an example's first success frees its lane; never that of an attack under randomness.
        devices: where to run; by default all local devices, the lanes split evenly among them.
        save: a file to which finished examples and the lanes' state are saved, from time to time and whenever an
            exception or Ctrl-C ends the run; a run that finds the file of an unfinished run of the same attack, model,
            data and key goes on from there, one that finds another's raises. A model is known by its code, its
            parameters and what it answers: a `HostModel` is asked about 16 more points for that.
        run_id: a name of your own for the run, by which its file is known where functions or objects in the model or
            the attack cannot be read (a connection, a lock), or change as they are used (a count of calls). All such
            functions and objects of yours are then known by their names alone, and you vouch for them.
        progress: whether to show a progress bar, on standard error; a string is its label.

    Returns:
        The result and its costs.

    Raises:
        TypeError: as `attacks.run`; a `save` that is no path.
        ValueError: as `attacks.run`, or the save file belongs to a different run or is damaged, or something in the
            model or the attack cannot be identified, or the clean pass has changed it, and there is no `run_id`.
        BlockingIOError: another run is saving to the file.
    """
    _checks.saving("save", save, run_id)
    # before the model is first asked, since some functions count their calls
    known = {} if save is None else _saved.of_model(model, run_id)
    everywhere = replicated(devices)
    _checks.count("lanes", lanes)
    if _checks.explicit_mesh(images, labels) is not None:
        images, labels = jax.device_get((images, labels))  # of which slices can be taken
    checked = enter([attack], model, images, labels, key=key, indices=indices, ask=logits is None)
    wanted, given = (len(checked.images), checked.classes), model
    if logits is not None and np.shape(logits) != wanted:
        raise ValueError(f"logits must have shape {wanted}; got {np.shape(logits)}")
    files = [] if save is None else [_checks.path("save", save)]
    with _saved.held(files):
        model = jax.device_put(model, everywhere)
        if logits is None:
            logits = clean_logits(model, checked.images, batch_size=lanes)
        if files and run_id is None:
            _saved.check_unchanged(known, given)
        return drive(
            attack,
            model,
            checked.images,
            checked.goal,
            key=key,
            indices=checked.indices,
            logits=np.asarray(logits),
            lanes=lanes,
            early_stop=early_stop,
            everywhere=everywhere,
            progress=progress,
            watch=_saved.kept(files[0], attack, known, run_id) if files else unwatched,
        )


def labelled(data: Any) -> tuple[np.ndarray, Any]:
    """Images, and labels or a criterion that has them."""
    images, labels = _inputs.pair(data, criteria=True)
    if getattr(labels, "label", labels) is None:
        raise ValueError(
            f"a criterion must have the true labels, which are reported; got {type(labels).__name__} without"
        )
    return images, labels


class Entered(NamedTuple):
    """What has passed the door.

    Args:
        images: (N, H, W, C) in [0, 1], in the type in which they are attacked.
        goal: the criterion, one of all its numbers an image.
        indices: (N,) unsigned.
        classes: the number of the model's.
    """

    images: np.ndarray
    goal: Criterion
    indices: np.ndarray
    classes: int


def enter(
    attacks: Collection[Any],
    model: Classifier | HostModel,
    images: Any,
    labels: Any,
    *,
    key: Any,
    indices: Any = None,
    ask: bool = True,
) -> Entered:
    """All checks at the door of the lanes, the cheap ones first; behind it nothing is checked.

    Args:
        attacks: the attacks.
        model: the classifier, or a `HostModel`.
        images: (N, H, W, C).
        labels: (N,) labels, or a criterion.
        key: the random key.
        indices: (N,) integers, or None for 0 … N−1.
        ask: whether the model is run on a few images; False where that was done.

    Returns:
        What the lanes are given, in NumPy arrays.

    Raises:
        TypeError: as `attacks.run`.
        ValueError: as `attacks.run`, indices that are negative or not one an image, or an attack that wants more of a
            host model than it gives.
    """
    for attack in attacks:
        engine.check_attack(attack)
    _checks.key(key)
    images, goal = _inputs.batch(images, labels)
    for attack in attacks:
        engine.check_radii(attack, images)
    indices = np.asarray(np.arange(len(images)) if indices is None else indices)
    _inputs.label_shape("indices", indices, images)
    if indices.min() < 0 or indices.max() >= 2**32:
        raise ValueError(f"indices must lie in [0, 2**32); got values in [{indices.min()}, {indices.max()}]")
    if isinstance(model, HostModel):
        for attack in attacks:
            _hosts.check_attack(attack, model)
        classes = model.classes_on(images)
    else:
        # of the shape at which the values are checked too, so that the model is traced once for both
        classes = _inputs.logits_shape(model, images[:8])
    for attack in attacks:
        engine.check_numbers(attack)
    _inputs.image_values(images)
    _inputs.label_values(goal, classes)
    if not isinstance(model, HostModel):
        _inputs.finite_params(model)
        if ask:
            _inputs.model_values(model, np.clip(np.asarray(images[:8]), 0, 1))
    images = np.asarray(images, jax.dtypes.canonicalize_dtype(images.dtype))
    if images.min() < 0 or images.max() > 1:
        images = np.clip(images, 0, 1)
    return Entered(images, jax.tree.map(np.asarray, goal), indices.astype(np.uint32), classes)
