"""The pure train step of one device: crafting, forward, backward, update; alone or under a named axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust.data.augment import to_float
from jaxrobust.models.trainable import Trainable
from jaxrobust.training.objectives.core import Aux, Learner, Objective
from jaxrobust.training.objectives.core import total as total_of
from jaxrobust.types import Key, pytree

__all__ = ["TrainState", "first_memory", "train_step"]

Augment = Callable[..., Any]


@pytree("params", "state", "opt_state", "ema", "step", "memory")
class TrainState:
    """Everything that changes from step to step.

    Args:
        params: the network's parameters.
        state: its batch statistics.
        opt_state: the optimiser's state.
        ema: the exponential moving average of (params, state), or None where none is kept.
        step: how many updates were made, int32.
        memory: what the objective remembers, see `Objective`; None if nothing.
    """

    params: Any
    state: Any
    opt_state: Any
    ema: Any
    step: Any
    memory: Any = None

    @staticmethod
    def create(
        params: Any,
        state: Any,
        optimizer: optax.GradientTransformation,
        *,
        with_ema: bool = False,
        memory: Any = None,
    ) -> TrainState:
        """The state before the first step; every array is a copy, so that it may be donated.

        Args:
            params: the network's parameters.
            state: its batch statistics.
            optimizer: makes the optimiser's state.
            with_ema: whether to keep an average, started from the parameters themselves.
            memory: the first memory of an objective that has one, see `first_memory`.

        Returns:
            The state.
        """
        ema = (params, state) if with_ema else None
        opt_state = jax.jit(optimizer.init)(params)
        return jax.tree.map(jnp.array, TrainState(params, state, opt_state, ema, jnp.int32(0), memory))

    @property
    def evaluated(self) -> tuple[Any, Any]:
        """The (params, state) to evaluate: the average where there is one."""
        return (self.params, self.state) if self.ema is None else self.ema


def first_memory(objective: Objective, trainable: Trainable, params: Any, state: Any, batch: Any) -> Any:
    """What an objective remembers before the first step; None for one without a memory.

    Args:
        objective: see `Objective`.
        trainable: the network's structure.
        params: its parameters.
        state: its batch statistics.
        batch: the first batch, of all devices together.

    Returns:
        A pytree of arrays, for `TrainState.create`.
    """
    init = getattr(objective, "init", None)
    batch = jax.tree.map(jnp.asarray, batch)
    batch = batch._replace(images=to_float(batch.images))
    return None if init is None else init(Learner(trainable, params, state), batch)


def train_step(
    objective: Objective,
    trainable: Trainable,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Any,
    key: Key,
    *,
    axis_name: str | None = None,
    augment: Augment | None = None,
    ema_decay: Any = 0.0,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, Any]]:
    """One update of the parameters, as a pure function of what it is given.

    θ ← opt(θ, ∇ Σ_i m_i ℓ_i / Σ_i m_i) over the unpadded examples (m_i = 1) of the whole batch. With `axis_name` it is
    the function of one device, to be mapped over shards of the batch by `jax.shard_map` (with `check_vma=False`, since
    the loops of attacks start from constants): losses, gradients and metrics are summed over the axis, each device
    weighing as much as it has unpadded examples, batch statistics are averaged, and every device makes the same update.
    Noise is each example's own (its index folded into the key), so the split over devices does not change it; dropout
    alone differs by device.

    Args:
        objective: see `Objective`; its numbers are traced.
        trainable: the network's structure.
        optimizer: an Optax transformation, its schedule inside.
        state: the state before the step.
        batch: `images` (N, H, W, C), float32 in [0, 1] or uint8; `labels` (N,) integer; `mask` (N,), False for padding
            (finite images, such as repeats of others), or None; `index` (N,) int32, the places in the data set.
        key: the step's key, equal on all devices.
        axis_name: the mapped axis, or None on a single device.
        augment: `(key, images, index) -> images`, or None; it comes before the attack.
        ema_decay: τ of the moving average; at update t the decay is min(τ, (1+t)/(10+t)). Unused without an average.
        accumulate: into how many parts, one after another, each device takes its rows, so that only a part's
            activations are held. Losses and gradients are added up and the update is that of the whole, where a loss is
            an example's own. What the rows of a batch share they share within a part: batch statistics, the weights of
            `reweighted` and `group_dro`, the move of `awp`, and the examples over which `grad_align` takes its mean.

    Returns:
        The new state, and metrics as scalars: `loss`, `grad_norm` (the norm of the mean gradient) and those of the
        objective, means as float32 and counts as int32.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxrobust.data import Batch
        >>> from jaxrobust.models import SmallCNN
        >>> from jaxrobust.training import standard
        >>> trainable, params, state = Trainable.from_nnx(SmallCNN(rngs=nnx.Rngs(0)))
        >>> optimizer = optax.adam(1e-3)
        >>> batch = Batch(np.zeros((4, 8, 8, 1), np.float32), np.arange(4), np.ones(4), np.arange(4))
        >>> state = TrainState.create(params, state, optimizer)
        >>> step = jax.jit(train_step, static_argnames="optimizer")
        >>> state, metrics = step(standard(), trainable, optimizer, state, batch, jax.random.key(0))
        >>> int(state.step), sorted(metrics)
        (1, ['clean_acc', 'grad_norm', 'loss'])

    Reference:
        Averaging: Gowal et al., 2020, arXiv:2010.03593.
    """
    augment_key, objective_key = jax.random.split(key)
    batch = jax.tree.map(jnp.asarray, batch)
    mask = jnp.ones(batch.labels.shape) if batch.mask is None else batch.mask.astype(jnp.float32)
    images = to_float(batch.images)
    if augment is not None:
        images = augment(augment_key, images, batch.index)
    batch = batch._replace(images=images)
    total = jnp.maximum(_sum(mask.sum(), axis_name), 1.0)

    remember = getattr(objective, "remember", None)
    memory_gradient = getattr(objective, "memory_gradient", False)

    weights, memory = _per_device((state.params, state.memory), axis_name)
    which = (0, 1) if memory_gradient else (0,)

    def found(statistics: Any, rows: Any, part: Any) -> tuple[Any, dict[str, Any]]:
        """The network's state after some of the rows, and what is to be summed over parts and devices."""

        def loss_of(params: Any, memory: Any) -> tuple[Any, Aux]:
            learner = Learner(trainable, params, statistics, axis_name, memory, state.step, part, accumulate)
            losses, aux = objective(objective_key, learner, rows)
            return (losses * rows.mask).sum() / total, aux

        (loss, aux), gradients = jax.value_and_grad(loss_of, which, has_aux=True)(weights, memory)
        return aux.state, {
            "loss": loss,
            "gradients": gradients,
            "means": {name: (value * rows.mask).sum() / total for name, value in aux.means.items()},
            "counts": {name: ((rows.mask > 0) & value).sum(dtype=jnp.int32) for name, value in aux.counts.items()},
            "sums": {name: total_of(value, rows, None) for name, value in aux.sums.items()},
        }

    statistics, sums = _in_parts(found, state.state, batch._replace(mask=mask), accumulate)
    sums = _sum(sums, axis_name)
    gradient = sums["gradients"][0]
    memory = state.memory
    if remember is not None:
        memory = remember(memory, sums["sums"], sums["gradients"][1] if memory_gradient else None)
    with jax.numpy_dtype_promotion("standard"):  # Optax multiplies its int32 step count with floats
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    statistics = _mean_of_floats(statistics, axis_name)
    ema = _averaged(state.ema, (params, statistics), state.step, ema_decay)
    metrics = {"loss": sums["loss"], "grad_norm": optax.tree.norm(gradient), **sums["means"], **sums["counts"]}
    return TrainState(params, statistics, opt_state, ema, state.step + 1, memory), metrics


def _in_parts(found: Callable[..., Any], statistics: Any, batch: Any, count: int) -> tuple[Any, dict[str, Any]]:
    """`found` of all rows, or of equal parts of them one after another: the last state, and the sums."""
    if count == 1:
        return found(statistics, batch, None)
    parts = jax.tree.map(lambda rows: rows.reshape(count, -1, *rows.shape[1:]), batch)
    first = jax.tree.map(lambda rows: rows[0], parts)
    shapes = jax.eval_shape(found, statistics, first, 0)[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def one(before: Any, part: Any) -> tuple[Any, None]:
        after, sums = found(before[0], *part)
        return (after, jax.tree.map(jnp.add, before[1], sums)), None

    numbers = jnp.arange(count, dtype=jnp.int32)
    return jax.lax.scan(one, (statistics, zeros), (parts, numbers))[0]


def _per_device(tree: Any, axis_name: str | None) -> Any:
    # Otherwise `shard_map`, which tracks what is equal on all devices, sums the gradient by itself, and we once more.
    return tree if axis_name is None else jax.lax.pcast(tree, axis_name, to="varying")


def _sum(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _mean_of_floats(tree: Any, axis_name: str | None) -> Any:
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis_name) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _averaged(ema: Any, now: Any, step: Any, decay: Any) -> Any:
    """θ̄ + (1−τ)(θ − θ̄): in this form, unlike Optax's, parameters that rest are an exact fixed point."""
    if ema is None:
        return None
    step = step.astype(jnp.float32)
    decay = jnp.minimum(jnp.asarray(decay, jnp.float32), (1 + step) / (10 + step))

    def towards(average: Any, new: Any) -> Any:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return average + (1 - decay).astype(new.dtype) * (new - average)

    return jax.tree.map(towards, ema, now)
