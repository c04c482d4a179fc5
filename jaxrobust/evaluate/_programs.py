"""What the lanes run on devices: the compiled programs, and forward passes over many images."""

from __future__ import annotations

import dataclasses
import functools
import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrobust import _borrow, _checks, _compile, _inputs
from jaxrobust.attacks import Attack, Best
from jaxrobust.attacks.core import engine
from jaxrobust.evaluate import _hosts
from jaxrobust.evaluate.host import HostModel
from jaxrobust.types import Classifier, Criterion, Key, Misclassified

# of all that is computed, over what is asked for: how much of it may be padding
PADDING = 1.25
ASKED_AGAIN = 4  # images that a host model is asked about twice, then beside dim negatives
# the fields of `Best`, each with one entry an example; of its parameters whether they are `inside` the set
Books = dict[str, Any]


class Programs(NamedTuple):
    """The compiled programs of the lanes, shared by all runs of one layout over devices."""

    fresh: Callable[..., Any]
    fill: Callable[..., Any]
    refill: Callable[..., Any]
    ask: Callable[..., Any]
    followed: Callable[..., Any]
    tell: Callable[..., Any]
    step: Callable[..., Any]
    harvest: Callable[..., Any]


def programs(lanes: NamedSharding, model: Any) -> Programs:
    """The programs of lanes that are split over devices in this way, for a borrowed model; see `_borrow`."""
    owner = _borrow.owner(model)
    if owner is None:
        return _shared(lanes)
    own = _of_owner.setdefault(owner, {})
    if lanes not in own:
        own[lanes] = _shared(lanes)._replace(step=_stepping(lanes))
    return own[lanes]


_of_owner: Any = weakref.WeakKeyDictionary()


def _jit(lanes: NamedSharding) -> Any:
    # straight to JAX: the host calls these at every step, and never inside another program
    return functools.partial(jax.jit, compiler_options=_compile.compiler_options(lanes.mesh.devices.flat[0].platform))


def _stepping(lanes: NamedSharding) -> Callable[..., Any]:
    everywhere = NamedSharding(lanes.mesh, PartitionSpec())

    @functools.partial(
        _jit(lanes), out_shardings=(lanes, everywhere), donate_argnames="states", static_argnames=("stop", "gradient")
    )
    def step(attack: Attack, model: Classifier, states: Any, *, stop: engine.Stop, gradient: bool) -> tuple[Any, Any]:
        return _with_finished(attack, engine.advance(attack, model, states, stop=stop, gradient=gradient), stop)

    return step


def _with_finished(attack: Attack, states: Any, stop: engine.Stop) -> tuple[Any, Any]:
    return states, engine.each(attack, functools.partial(engine.is_finished, stop=stop), states)


@functools.lru_cache(maxsize=16)
def _shared(lanes: NamedSharding) -> Programs:
    everywhere, jit = NamedSharding(lanes.mesh, PartitionSpec()), _jit(lanes)

    @functools.partial(jit, out_shardings=everywhere)
    def fresh(attack: Attack, images: Any, goal: Criterion, key: Key, indices: Any, restarts: Any, logits: Any) -> Any:
        return engine.begin(attack, images, goal, engine.example_keys(key, indices), logits, restarts)

    @functools.partial(jit, out_shardings=lanes)
    def fill(rows: Any, new: Any) -> Any:
        return rows_of(new, rows)

    @functools.partial(jit, out_shardings=lanes, donate_argnames="states")
    def refill(states: Any, slots: Any, new: Any) -> Any:
        return jax.tree.map(lambda old, new: old.at[slots].set(new, mode="drop"), states, new)

    @functools.partial(jit, out_shardings=everywhere)
    def ask(attack: Attack, states: Any) -> tuple[Any, Any]:
        return engine.each(attack, "ask", states), engine.each(attack, "meant", states)

    followed = jit(_hosts.followed, out_shardings=everywhere, static_argnames="stop")

    @functools.partial(jit, out_shardings=(lanes, everywhere), donate_argnames="states", static_argnames="stop")
    def tell(attack: Attack, states: Any, logits: Any, gradients: Any, *, stop: engine.Stop) -> tuple[Any, Any]:
        return _with_finished(attack, engine.tell(attack, states, logits, gradients, stop=stop), stop)

    @functools.partial(jit, out_shardings=everywhere, static_argnames="stop")
    def harvest(
        attack: Attack, states: Any, slots: Any, images: Any, known: Books | None, *, stop: engine.Stop
    ) -> Books:
        best = engine.each(attack, "best", rows_of(states, slots))
        # not the parameters, which may be of any shape, but what they are needed for; nor the logits
        best = dataclasses.replace(best, parameters=engine.contained(attack, images, best), logits=None)
        if known is not None:
            best = engine.merge(_best(known), best, stop=stop)
        fields = {"inside" if name == "parameters" else name: values for name, values in vars(best).items()}
        return {name: values for name, values in fields.items() if values is not None}

    return Programs(fresh, fill, refill, ask, followed, tell, _stepping(lanes), harvest)


def _best(books: Books) -> Best:
    return Best(**{"parameters" if name == "inside" else name: values for name, values in books.items()})


@_compile.jit
def met(goal: Criterion, logits: Any) -> Any:
    """Which of N examples meet their criterion, from logits (N, K)."""
    return jax.vmap(lambda goal, logits: goal.met(logits))(goal, logits)


def rows_of(tree: Any, rows: Any) -> Any:
    """Some rows of every leaf."""
    return jax.tree.map(operator.itemgetter(rows), tree)


def meets(goal: Criterion, logits: np.ndarray) -> np.ndarray:
    """`met` on the host; of misclassification, which nearly all ask for, without a program."""
    if type(goal) is Misclassified:
        return (logits.argmax(-1) != goal.label) & np.isfinite(logits).all(-1)
    return np.asarray(met(goal, logits))


def replicated(devices: Sequence[Any] | None) -> NamedSharding:
    """The layout of what every device of the lanes needs whole.

    Args:
        devices: the devices, at least one; None takes all local ones.

    Returns:
        The sharding, over a mesh of one axis.

    Raises:
        TypeError: what is no sequence of devices.
        ValueError: no devices.
    """
    if devices is not None and (isinstance(devices, str) or not isinstance(devices, Iterable)):
        raise TypeError(f"devices must be a list of devices such as jax.local_devices(); got {_checks.told(devices)}")
    devices = tuple(jax.local_devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices must hold at least one device; got none")
    for place, device in enumerate(devices):
        if not isinstance(device, jax.Device):
            raise TypeError(f"devices[{place}] must be a device, one of jax.devices(); got {_checks.told(device)}")
    mesh = jax.make_mesh((len(devices),), ("lanes",), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec())


def fitting(count: int, most: int, split: int = 1, restarts: int = 1) -> int:
    """How many examples to take at once, so that little is padding and few sizes, each a program, ever occur.

    As many turns as the widest size needs, but of equal length; sizes are 1 to 8 and then four an octave, so that at
    most a quarter of what is computed beside the examples is padding.

    Args:
        count: examples, ≥ 0.
        most: the largest number at once, ≥ 1; rounded up to a multiple of `split`.
        split: equal parts into which it is split, one a device.
        restarts: how often each example comes, never twice at once.

    Returns:
        The number, a multiple of `split`.
    """
    each, jobs = -(-most // split), max(count, 1) * restarts
    turns = -(-jobs // (each * split))
    if turns > 1 and count >= each * split and turns * each * split <= PADDING * jobs:
        return each * split  # the size that all large data sets share
    needed = -(-max(min(-(-jobs // turns), count), 1) // split)
    step = 1 << max(needed.bit_length() - 3, 0)
    return split * min(-(-needed // step) * step, each)


@_checks.off_mesh
def predict(model: Classifier | HostModel, images: Any, *, batch_size: int = 128) -> np.ndarray:
    """Logits of many images, in batches of one shape, the last one padded to it.

    Args:
        model: the classifier, or a host model, to which nothing is padded.
        images: (N, H, W, C) in [0, 1].
        batch_size: images a forward pass at most, ≥ 1; fewer where the last batch would else be mostly padding.

    Returns:
        (N, K) logits, NumPy.

    Raises:
        TypeError: images that are not floating point.
        ValueError: images of another rank, none at all, or batch_size below 1.
    """
    _inputs.image_shape(images)
    _checks.count("batch_size", batch_size)
    if not isinstance(model, HostModel):
        _inputs.classifier(model)
    size = batch_size if isinstance(model, HostModel) else fitting(len(images), batch_size)
    return forward(model, images, np.arange(len(images)), size)


def forward(model: Classifier | HostModel, images: Any, rows: np.ndarray, size: int) -> np.ndarray:
    """Logits of some images, at least one, `size` at a time; only so many are ever copied."""
    pieces = []
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        # rows that follow each other are a view
        piece = np.asarray(images[some[0] : some[-1] + 1] if some[-1] - some[0] == len(some) - 1 else images[some])
        piece = _inputs.widened(piece)
        if not isinstance(model, HostModel):
            piece = pad(piece, size)
        answers = model(piece) if isinstance(model, HostModel) else _compile.forward(model, piece)
        pieces.append(np.asarray(answers)[: len(some)])
    return np.concatenate(pieces)


def clean_logits(model: Classifier | HostModel, images: Any, *, batch_size: int) -> np.ndarray:
    """`predict`; a host model is asked about up to four images once more, beside dim negatives of them.

    Raises:
        ValueError: it then answers otherwise.
    """
    logits = predict(model, images, batch_size=batch_size)
    if isinstance(model, HostModel):
        images = np.asarray(images[::2][:ASKED_AGAIN])
        # of no data have these both the mean and the spread
        again = model(np.concatenate([(1 - images) / 2, images]))[-len(images) :]
        _inputs.same_logits(logits[::2][:ASKED_AGAIN], again)
    return logits


def pad(rows: np.ndarray, size: int, fill: int | None = None) -> np.ndarray:
    """Rows repeated (the first one), or filled, up to a fixed size."""
    if len(rows) == size:
        return rows
    tail = np.broadcast_to(
        rows[:1] if fill is None else np.full_like(rows[:1], fill), (size - len(rows), *rows.shape[1:])
    )
    return np.concatenate([rows, tail])
