"""What every training objective promises: laws of an objective and a small network, run by `check_objective`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxrobust.data import Batch
from jaxrobust.models.trainable import Trainable
from jaxrobust.testing._laws import Laws, chosen, hold, law, near, same
from jaxrobust.training import Learner, TrainState, first_memory, standard, train_step
from jaxrobust.training.objectives.core import warmed_up

__all__ = ["OBJECTIVE_LAWS", "ObjectiveCase", "check_objective"]

# the laws of an objective
OBJECTIVE_LAWS: Laws = {}

# one object, since a step is compiled for it
SGD = optax.sgd(0.1)


class Mlp(nnx.Module):
    """Two layers, with batch statistics between them where asked for; tells whenever it is traced."""

    def __init__(self, size: int, classes: int, *, norm: bool = False, traced: Callable[[], Any] = int):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(size, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs) if norm else None
        self.second = nnx.Linear(16, classes, rngs=rngs)
        self.traced = traced

    def __call__(self, images: Any) -> Any:
        """Logits (N, K)."""
        self.traced()
        hidden = nnx.silu(self.first(images.reshape(images.shape[0], -1)))
        return self.second(hidden if self.norm is None else self.norm(hidden))


@dataclasses.dataclass(frozen=True, eq=False)
class ObjectiveCase:
    """An objective, and the small network and batch on which its laws are tried.

    Args:
        objective: the objective.
        shape: (H, W, C) of the 8 images.
        classes: K of the network.
        alone: whether an example's loss is said to be its own, whatever else is in the batch.
        clean: whether at radius 0 it is said to be standard training, bit for bit.
    """

    objective: Any
    shape: tuple[int, ...] = (4, 4, 1)
    classes: int = 3
    alone: bool = True
    clean: bool = False

    def learner(self, **options: Any) -> Any:
        """A network in the middle of its training."""
        trainable, params, state = Trainable.from_nnx(Mlp(int(np.prod(self.shape)), self.classes, **options))
        memory = first_memory(self.objective, trainable, params, state, self.batch())
        return Learner(trainable, params, state, memory=memory)

    def step(self, batch: Batch | None = None, *, devices: int = 1, parts: int = 1, norm: bool = False) -> Any:
        """State and metrics after two steps from the same start, on so many devices, each of which takes its rows in
        so many parts.
        """
        learner, optimizer = self.learner(norm=norm), SGD
        batch = self.batch() if batch is None else batch
        state = TrainState.create(learner.params, learner.state, optimizer, memory=learner.memory)
        for _ in range(2):
            state, metrics = _step(self.objective, learner.trainable, optimizer, state, batch, devices, parts)
        return state, metrics

    def batch(self, seed: int = 0, *, extreme: bool = False) -> Batch:
        """Random images and labels, or black and white images."""
        rng = np.random.default_rng(seed)
        images = rng.uniform(0, 1, (8, *self.shape)).astype(np.float32)
        if extreme:
            images = np.round(images.mean((1, 2, 3), keepdims=True)) * np.ones_like(images)
        labels = rng.integers(0, self.classes, 8).astype(np.int32)
        return jax.tree.map(jnp.asarray, Batch(images, labels, np.ones(8, bool), np.arange(8, dtype=np.int32)))

    @functools.cached_property
    def result(self) -> Any:
        """Losses and aux of the network without batch statistics."""
        return self.run(self.learner(), self.batch())

    def run(self, learner: Any, batch: Batch, seed: int = 0) -> Any:
        """Losses and aux."""
        return _gradient(self.objective, jax.random.key(seed), learner, batch)[1]

    def __str__(self) -> str:
        return f"{type(self.objective).__name__} on {self.classes} classes of shape {self.shape}"


@jax.jit
def _gradient(objective: Any, key: Any, learner: Any, batch: Any) -> Any:
    def loss(params: Any) -> Any:
        losses, aux = objective(key, dataclasses.replace(learner, params=params), batch)
        return losses.mean(), (losses, aux)

    return jax.grad(loss, has_aux=True)(learner.params)


@functools.partial(jax.jit, static_argnames=("optimizer", "devices", "parts"))
def _step(
    objective: Any, trainable: Any, optimizer: Any, state: Any, batch: Any, devices: int = 1, parts: int = 1
) -> Any:
    key = jax.random.fold_in(jax.random.key(0), state.step)
    if devices == 1:
        return train_step(objective, trainable, optimizer, state, batch, key, accumulate=parts)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:devices])

    def shard(objective: Any, state: Any, batch: Any, key: Any) -> Any:
        return train_step(objective, trainable, optimizer, state, batch, key, axis_name="data", accumulate=parts)

    rows = (P(), P(), P("data"), P())
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=rows, out_specs=P(), check_vma=False)
    return mapped(objective, state, batch, key)


def check_objective(
    objective: Any, *, shape: tuple[int, int, int] = (4, 4, 1), classes: int = 3, laws: Iterable[str] | None = None
) -> None:
    """Run the laws of objectives on one: losses are each example's own, the step is pure, nothing retraces.

    It trains a small network for a step or two. Takes seconds, nearly all of it compilation.

    Args:
        objective: `(key, learner, batch) -> (losses, Aux)`, a pytree; see `training.Objective`.
        shape: (H, W, C) of the images.
        classes: K ≥ 2.
        laws: names of `OBJECTIVE_LAWS`; by default all.

    Raises:
        AssertionError: a law does not hold; says which, of what class, and the numbers.
        TypeError: `objective` is no function.
        ValueError: there is no such law.

    Example:
        >>> check_objective(jr.training.standard(), laws=["gradients_are_finite"])
    """
    if not callable(objective):
        raise TypeError(f"objective must be callable with (key, learner, batch); got {objective!r}")
    case = ObjectiveCase(objective, tuple(shape), classes)
    for one in chosen(OBJECTIVE_LAWS, laws):
        one(case)


@law(OBJECTIVE_LAWS)
def is_a_pytree_of_numbers(case: ObjectiveCase) -> None:
    """An objective is a pytree, not a leaf of one, whose leaves are numbers and arrays."""
    leaves = jax.tree.leaves(case.objective)
    hold(not any(leaf is case.objective for leaf in leaves), "it is no pytree; decorate its class with types.pytree")
    wrong = [leaf for leaf in leaves if not isinstance(leaf, (int, float, np.ndarray, np.generic, jax.Array))]
    hold(not wrong, f"leaves that are no numbers: {wrong!r}")


@law(OBJECTIVE_LAWS)
def losses_and_metrics_are_an_example_each(case: ObjectiveCase) -> None:
    """One float32 loss an example; means a number, counts a truth an example; the state keeps its structure."""
    for norm in (False, True):
        learner = case.learner(norm=norm)
        losses, aux = jax.eval_shape(case.objective, jax.random.key(0), learner, case.batch())
        row = jax.ShapeDtypeStruct((8,), jnp.float32)
        same(losses, row, "the losses")
        for name, metric in aux.means.items():
            same(metric, row, f"the mean {name!r}")
        for name, metric in aux.counts.items():
            same(metric, jax.ShapeDtypeStruct((8,), jnp.bool_), f"the count {name!r}")
        same(aux.state, learner.state, "the state")


@law(OBJECTIVE_LAWS)
def gradients_are_finite(case: ObjectiveCase) -> None:
    """Losses, metrics and gradients are finite, on black and white images too, and some gradient is not 0."""
    for batch in (case.batch(), case.batch(extreme=True)):
        gradient, (losses, aux) = _gradient(case.objective, jax.random.key(0), case.learner(), batch)
        hold(np.isfinite(losses), f"losses {np.asarray(losses).tolist()}")
        for name, values in aux.means.items():
            hold(np.isfinite(values), f"the mean {name!r} is {np.asarray(values).tolist()}")
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
        hold(all(np.isfinite(leaf).all() for leaf in leaves), "the gradient has NaN or infinities")
        hold(any(leaf.any() for leaf in leaves), "the gradient is 0")


@law(OBJECTIVE_LAWS)
def same_key_gives_the_same(case: ObjectiveCase) -> None:
    """Traced anew, with the same key, it gives the same losses: nothing is remembered or drawn aside."""
    learner, batch = case.learner(), case.batch()
    again = jax.jit(lambda *args: case.objective(*args))(jax.random.key(0), learner, batch)
    near(again[0], case.result[0], "losses of the same key", rtol=1e-6)


@law(OBJECTIVE_LAWS)
def neighbours_do_not_matter(case: ObjectiveCase) -> None:
    """An example has the same loss alone as in a batch, if the network has no batch statistics."""
    if not case.alone:
        return
    order = np.array([5])
    part = jax.tree.map(lambda leaf: leaf[order], case.batch())
    losses, aux = case.run(case.learner(), part)
    near(losses, case.result[0][order], "losses in another batch", atol=1e-5, rtol=1e-5)
    near(aux.means, jax.tree.map(lambda leaf: leaf[order], dict(case.result[1].means)), "means", atol=1e-4)


@law(OBJECTIVE_LAWS)
def numbers_never_retrace(case: ObjectiveCase) -> None:
    """Other numbers, images, parameters and keys are no other program."""
    traces = 0

    def traced() -> None:
        nonlocal traces
        traces += 1

    learner = case.learner(traced=traced)
    call = jax.jit(lambda objective, *args: objective(*args))
    call(case.objective, jax.random.key(0), learner, case.batch())
    first = traces
    fields = dataclasses.fields(case.objective) if dataclasses.is_dataclass(case.objective) else ()
    numbers = {field.name: getattr(case.objective, field.name) for field in fields}
    lowered = {name: 0.9 * value for name, value in numbers.items() if isinstance(value, float)}
    objective = dataclasses.replace(case.objective, **lowered) if lowered else case.objective
    objective = jax.tree.map(lambda leaf: 0.9 * leaf if isinstance(leaf, float) else leaf, objective)
    other = dataclasses.replace(learner, params=jax.tree.map(lambda leaf: 0.5 * leaf, learner.params))
    call(objective, jax.random.key(1), other, case.batch(1))
    hold(traces == first, f"the network is traced {first} times at first and {traces - first} times more later")


@law(OBJECTIVE_LAWS)
def step_is_pure(case: ObjectiveCase) -> None:
    """Two compiled steps from one state are bit-equal, leave it as it was and change the parameters."""
    learner, optimizer = case.learner(), SGD
    state = TrainState.create(learner.params, learner.state, optimizer, memory=learner.memory)
    before = jax.tree.map(np.array, state)
    first, second = (_step(case.objective, learner.trainable, optimizer, state, case.batch()) for _ in range(2))
    near(second, first, "the second step from one state")
    near(jax.tree.map(np.asarray, state), before, "the state after a step from it")
    still = [
        np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (first[0].params, before.params)), strict=True)
    ]
    hold(not all(still), "the parameters are as they were")


@law(OBJECTIVE_LAWS)
def padding_does_not_matter(case: ObjectiveCase) -> None:
    """What stands in a batch's padding changes neither parameters, nor metrics, nor the memory."""
    batch, mask = case.batch(), np.arange(8) < 5
    found = []
    for filling in (0.2, 0.9):
        images = jnp.where(mask[:, None, None, None], batch.images, filling)
        labels = jnp.where(mask, batch.labels, int(filling > 0.5))
        found.append(case.step(batch._replace(images=images, labels=labels, mask=jnp.asarray(mask))))
    near(found[1], found[0], "with another padding, ", atol=1e-6)


@law(OBJECTIVE_LAWS)
def devices_make_the_step_of_one(case: ObjectiveCase) -> None:
    """Shards of the batch on several devices, if there are, each of them in two parts one after another if an example's
    loss is its own, give the parameters, metrics and memory of one.
    """
    devices, parts = max(n for n in (1, 2, 4) if n <= jax.local_device_count()), 2 if case.alone else 1
    alone, together = case.step(), case.step(devices=devices, parts=parts)
    # signs of an attack may turn by rounding
    near(together, alone, f"on {devices} devices, in {parts} parts each, ", atol=2e-4, rtol=2e-5)


@law(OBJECTIVE_LAWS)
def radius_zero_is_standard_training(case: ObjectiveCase) -> None:
    """With nothing to gain for an adversary, the step of clean training bit for bit, if it is said to be."""
    if not case.clean:
        return
    objectives = warmed_up(case.objective, np.float32(0)), standard()
    found, due = (dataclasses.replace(case, objective=objective).step() for objective in objectives)
    near(found[0].params, due[0].params, "at radius 0, ")
    near(found[1]["loss"], due[1]["loss"], "the loss at radius 0")
