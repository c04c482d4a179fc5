"""The in-jit engine: it alone calls the model, and it alone knows how a loop is best run on this machine."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxrobust import _checks, _compile, _inputs
from jaxrobust._borrow import borrowed
from jaxrobust.attacks.core.base import Attack, Best, is_better
from jaxrobust.types import AttackResult, Classifier, Code, Criterion, Key

__all__ = [
    "advance",
    "begin",
    "check_radii",
    "conclude",
    "each",
    "example_keys",
    "last_iterate",
    "merge",
    "of_examples",
    "run",
    "stop_of",
    "trajectory",
]

# XLA:CPU lowers only canonical convolutions well inside a loop (see `_loops_well`); up to this many asks of another
# model are unrolled into straight-line code instead, which costs compile time in proportion.
UNROLL = 11
PEEK = 8  # asks between two looks of the host at whether a batch is done
SLACK = 1e-3  # of the radius, where an attack does not keep the parameters by which its set could be asked

# When an example's search ends before its budget: never (training), where the clean image already met the criterion,
# or at the first success.
Stop = Literal["never", "clean", "success"]


def example_keys(key: Key, indices: Any) -> Key:
    """One key an example, fold_in(key, index): an example's result depends on nothing but its key and itself.

    Args:
        key: the key of the whole run.
        indices: (N,) integers, the examples' places in their data set.

    Returns:
        (N,) keys.
    """
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.asarray(indices, jnp.uint32))


def each(attack: Attack, function: str | Callable[..., Any], *batched: Any) -> Any:
    """What `function(attack, …)`, or the attack's method of that name, gives for each of N examples.

    The attack is the same for all of them, but for radii of shape (N,), of which each example has its own.
    """

    def one(attack: Attack, *own: Any) -> Any:
        return getattr(attack, function)(*own) if isinstance(function, str) else function(attack, *own)

    leaves, places, tree = _with_radii(attack)
    if not places:
        return jax.vmap(functools.partial(one, attack))(*batched)
    axes = [0 if place in places else None for place in range(len(leaves))]
    return jax.vmap(lambda leaves, *own: one(tree.unflatten(leaves), *own), (axes, *(0 for _ in batched)))(
        leaves, *batched
    )


def of_examples(attack: Attack, rows: Any) -> Attack:
    """The attack for some of the examples: of radii that each has its own of, theirs."""
    leaves, places, tree = _with_radii(attack)
    for place in places:
        leaves[place] = np.asarray(leaves[place])[rows]
    return tree.unflatten(leaves) if places else attack


def _with_radii(attack: Attack) -> tuple[list[Any], tuple[int, ...], Any]:
    """The attack's leaves, which of them are radii of several examples, and its structure."""
    # not into a network by which a set measures, whose parameters may be called anything
    paths, tree = jax.tree_util.tree_flatten_with_path(attack, is_leaf=lambda node: isinstance(node, Classifier))
    radii = (place for place, (path, leaf) in enumerate(paths) if _is_radius(path) and jnp.ndim(leaf))
    return [leaf for _, leaf in paths], tuple(radii), tree


def _is_radius(path: Any) -> bool:
    return bool(path) and getattr(path[-1], "name", None) == "radius"


def check_radii(attack: Attack, images: Any) -> None:
    """That the radii of an attack's sets are one number, or one an image."""
    leaves, places, _ = _with_radii(attack)
    for shape in (jnp.shape(leaves[place]) for place in places):
        if shape != (len(images),):
            raise ValueError(f"radius must be one number or have shape ({len(images)},), one an image; got {shape}")


def stop_of(attack: Attack, early_stop: bool) -> Stop:
    """When an attack's searches end that are to end with success, or not: never with one that may be luck."""
    return "success" if early_stop and not attack.sees_draws else "clean"


def begin(attack: Attack, images: Array, goal: Criterion, keys: Key, logits: Array, restart: Any) -> Any:
    """The states (N, …) of one run, from images (N, H, W, C), their criteria, keys and clean logits (N, K).

    `restart` is the number of the run, one for all or (N,).
    """
    restarts = jnp.broadcast_to(jnp.asarray(restart, jnp.int32), len(images))
    keys = jax.vmap(jax.random.fold_in)(keys, restarts)
    return each(attack, "begin", keys, images, goal, logits, restarts)


def advance(
    attack: Attack, model: Classifier, states: Any, *, stop: Stop, gradient: bool = True, narrow: bool = False
) -> Any:
    """One ask and tell for every example: one batched forward pass and its pullbacks.

    Args:
        attack: the attack.
        model: called once, on all N · q points.
        states: (N, …).
        stop: when an example's search ends early; from then on its state is frozen.
        gradient: False tells zeros instead of gradients, for an ask that only books.
        narrow: whether points beyond a width of the attack that no example means are left out, which takes a branch in
            the program.

    Returns:
        The new states.
    """
    points = each(attack, "ask", states)
    widths = attack.widths if narrow else (attack.width,)
    steps = [widths[: place + 1] for place in range(len(widths))]
    answers = [functools.partial(_answer, attack, model, ends=ends, gradient=gradient) for ends in steps]
    if len(answers) > 1:
        logits, gradients = lax.switch(_level(attack, states, stop), answers, states, points)
    else:
        logits, gradients = answers[-1](states, points)
    return tell(attack, states, logits, gradients, stop=stop)


def tell(attack: Attack, states: Any, logits: Array, gradients: Array | None, *, stop: Stop) -> Any:
    """The new states (N, …), given logits (N, q, K) and gradients (N, q, m, …) of the points that these states ask.

    Without gradients zeros are told; an example whose search is over stays as it is.
    """
    if gradients is None:
        gradients = _no_gradients(jax.eval_shape(lambda: each(attack, "ask", states)))

    def one(attack: Attack, state: Any, logits: Array, gradients: Array) -> Any:
        frozen = is_finished(attack, state, stop)
        new = attack.tell(state, logits, gradients)
        return jax.tree.map(lambda n, o: o if n is o else jnp.where(frozen, o, n), new, state)

    return each(attack, one, states, logits, gradients)


def _no_gradients(points: Any) -> Array:
    """Zeros in place of gradients at points (N, q, …), or at what has their shape and dtype."""
    count, queries, *shape = points.shape
    # behind a barrier, else XLA may spend seconds on folding what an attack makes of zeros
    return lax.optimization_barrier(jnp.zeros((count, queries, 1, *shape), points.dtype))


def _level(attack: Attack, states: Any, stop: Stop) -> Array:
    """Which of the attack's widths holds all points that are meant."""
    meant = each(attack, lambda attack, state: attack.meant(state) & ~is_finished(attack, state, stop), states)
    last = jnp.max(jnp.where(meant, jnp.arange(1, attack.width + 1)[None], 0))
    return jnp.sum(last > jnp.asarray(attack.widths[:-1]), dtype=jnp.int32)


def _answer(
    attack: Attack, model: Classifier, states: Any, points: Array, *, ends: tuple[int, ...], gradient: bool
) -> tuple[Array, Array]:
    """Logits (N, q, K) and gradients (N, q, m, …) at the points of each example up to the last end, zeros besides.

    Points between two ends always make one batch, so that a point's answer never depends on what others mean.
    """
    count, queries, shape = *points.shape[:2], points.shape[2:]
    slices = [slice(*pair) for pair in itertools.pairwise((0, *ends))]
    pieces = [points[:, piece].reshape(-1, *shape) for piece in slices]
    # what uses no gradients may not even have any, as a model that calls the host
    gradient = gradient and attack.gradients > 0
    passes = [jax.vjp(model, piece) if gradient else (model(piece), None) for piece in pieces]

    def whole(parts: list[Array]) -> Array:
        rows = [part.reshape(count, -1, *part.shape[1:]) for part in parts]
        if ends == (queries,):
            return rows[0]
        joined = jnp.concatenate(rows, 1)
        return jnp.pad(joined, [(0, 0), (0, queries - joined.shape[1])] + [(0, 0)] * (joined.ndim - 2))

    logits = whole([logits for logits, _ in passes])
    if not gradient:
        return logits, _no_gradients(points)
    cotangents = each(attack, "cotangents", states, logits)
    found = []
    for (_, pull), piece in zip(passes, slices, strict=True):
        columns = [cotangents[:, piece, m].reshape(-1, cotangents.shape[-1]) for m in range(cotangents.shape[2])]
        found.append(jnp.stack([pull(column)[0] for column in columns], 1))
    return logits, whole(found)


def is_finished(attack: Attack, state: Any, stop: Stop) -> Array:
    """Whether one example's search is over."""
    return attack.done(state) | _ended(attack.best(state), stop)


def _ended(best: Best, stop: Stop) -> Array:
    if stop == "never":
        return jnp.zeros_like(best.success)
    if stop == "clean":
        return best.success & (best.forwards == 0)
    return best.success


def merge(first: Best, second: Best, *, stop: Stop) -> Best:
    """The better of two runs' bookings (success first, then rank); a second run after the end never happened."""
    happened = ~_ended(first, stop)
    better = is_better(second.success, second.rank, first.success, first.rank)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where((happened & better).reshape(better.shape + (1,) * (new.ndim - better.ndim)), new, old)

    return Best(
        image=choose(second.image, first.image),
        success=choose(second.success, first.success),
        loss=choose(second.loss, first.loss),
        size=choose(second.size, first.size),
        forwards=first.forwards + jnp.where(happened, second.forwards, 0),
        backwards=first.backwards + jnp.where(happened, second.backwards, 0),
        non_finite=first.non_finite | (happened & second.non_finite),
        parameters=jax.tree.map(choose, second.parameters, first.parameters),
        logits=jax.tree.map(choose, second.logits, first.logits),
        rank=choose(second.rank, first.rank),
    )


def verdict(
    success: Any, confirmed: Any, inside: Any, non_finite: Any, forwards: Any, *, where: Any, started: Any = True
) -> Any:
    """The `Code` of each example, from what was booked, whether a fresh pass confirms it and the set contains it;
    NumPy's where or JAX's.
    """
    failed = where(success, Code.DISAGREED, where(non_finite, Code.NON_FINITE, where(started, Code.RAN, Code.NO_START)))
    failed = where(success & ~inside, Code.OUTSIDE, failed)
    won = where(forwards == 0, Code.ALREADY, Code.RAN)
    return where(success & confirmed & inside, won, failed).astype(np.int32)


def has_started(attack: Attack, loss: Any) -> Any:
    """Whether an example's search had a point to start from, by the loss that is booked."""
    return loss > -np.inf if attack.needs_start else np.ones((), bool)


def contained(attack: Attack, images: Array, best: Best) -> Array:
    """Whether what was booked (N, …) lies in the set, as the set itself says, and in [0, 1]; a clean image does."""

    def one(attack: Attack, x: Array, best: Best) -> Array:
        if best.parameters is None:
            member = best.size <= jnp.asarray(attack.set.radius).astype(best.size.dtype) * (1 + SLACK)
        else:
            member = attack.set.contains(x, best.parameters)
        return (best.forwards == 0) | (member & jnp.all((best.image >= -1e-6) & (best.image <= 1 + 1e-6)))

    return each(attack, one, images, best)


def conclude(attack: Attack, model: Classifier, images: Array, goal: Criterion, best: Best) -> AttackResult:
    """The result (N, …) of what was booked: success is claimed only where a fresh forward pass confirms it and the set
    contains it.

    Of an attack that sees draws of the model, that pass alone decides: both what it took for a success and what not may
    have been luck.
    """
    confirmed = jax.vmap(lambda goal, logits: goal.met(logits))(goal, model(best.image))
    claimed = best.success | confirmed if attack.sees_draws else best.success
    inside = contained(attack, images, best)
    return AttackResult(
        images=jnp.where(inside[:, None, None, None], best.image, jnp.clip(images, 0, 1)),
        success=claimed & confirmed & inside,
        loss=best.loss,
        size=best.size,
        forwards=best.forwards + 1,
        backwards=best.backwards,
        code=verdict(
            claimed,
            confirmed,
            inside,
            best.non_finite,
            best.forwards,
            where=jnp.where,
            started=has_started(attack, best.loss),
        ),
        parameters=best.parameters,
    )


def search(
    attack: Attack, model: Classifier, images: Array, goal: Criterion, keys: Key, *, stop: Stop, unroll: bool
) -> AttackResult:
    """The whole attack as one pure program."""
    logits = model(images)

    def one_run(restart: Any, over: Any) -> Best:
        states = begin(attack, images, goal, keys, logits, restart)
        states = _repeat(attack, model, states, attack.asks - attack.bookings, stop=stop, unroll=unroll, over=over)
        for _ in range(attack.bookings):
            states = advance(attack, model, states, stop=stop, gradient=False, narrow=not unroll)
        return each(attack, "best", states)

    def another_run(best: Best, restart: Any) -> tuple[Best, None]:
        return merge(best, one_run(restart, _ended(best, stop)), stop=stop), None

    best, runs = one_run(0, False), attack.runs(logits.shape[-1])
    if runs > 1:
        best, _ = lax.scan(another_run, best, jnp.arange(1, runs))
    return conclude(attack, model, images, goal, best)


def _repeat(
    attack: Attack, model: Classifier, states: Any, times: int, *, stop: Stop, unroll: bool, over: Any = False
) -> Any:
    """Asks so often, or until all examples are done; those that are `over` (N,) do not count."""
    step = functools.partial(advance, attack, model, stop=stop, narrow=not unroll)
    if unroll:
        for _ in range(times):
            states = step(states)
        return states
    if not _may_end(attack, stop):
        return lax.scan(lambda states, _: (step(states), None), states, length=times)[0]

    def goes_on(loop: tuple[Any, Any]) -> Array:
        return (loop[1] < times) & ~jnp.all(_finished(attack, loop[0], stop=stop) | over)

    return lax.while_loop(goes_on, lambda loop: (step(loop[0]), loop[1] + 1), (states, jnp.zeros((), jnp.int32)))[0]


def _may_end(attack: Attack, stop: Stop) -> bool:
    """Whether a batch may be done before its last ask; elsewhere looking would be for nothing."""
    return attack.ends_early or stop == "success"


def _finished(attack: Attack, states: Any, *, stop: Stop) -> Array:
    return each(attack, functools.partial(is_finished, stop=stop), states)


_search = _compile.jit(search, static_argnames=("stop", "unroll"))
_begin = _compile.jit(begin)
_advance = _compile.jit(advance, static_argnames=("stop", "gradient"), donate_argnames="states")
_done = _compile.jit(_finished, static_argnames="stop")
_best = _compile.jit(lambda attack, states: each(attack, "best", states))
_merge = _compile.jit(merge, static_argnames="stop")
_conclude = _compile.jit(conclude)


def run(
    attack: Attack,
    model: Classifier,
    images: Any,
    labels: Any,
    *,
    key: Key,
    indices: Any = None,
    early_stop: bool = False,
    check: bool = True,
) -> AttackResult:
    """Attack a batch of images.

    Pure: it can be called inside `jit`, and `vmap` over the attack's numbers, the key or the parameters works. Called
    outside, it compiles itself once for all radii, step sizes, parameters and data of one shape. Inside `jax.shard_map`
    it needs `check_vma=False`, since its loops begin with what is equal on all devices and end with what is not.

    Args:
        attack: such as `attacks.pgd(sets.Linf(8 / 255))`; a radius may also be an array (N,), one an image.
        model: the classifier.
        images: (N, H, W, C) floating point in [0, 1]; of less than 32 bits they are attacked, and returned, in float32.
        labels: (N,) true labels, integer; or a criterion: `Targeted`, `TopK`, `Confident`, `Towards`.
        key: makes all randomness; example i uses fold_in(key, indices[i]).
        indices: (N,) integers, the examples' places in their data set; by default 0 … N−1. With them a result does
            not depend on the batch in which an example comes.
        early_stop: whether success ends an example's search, so that the first success is returned, not the one of
            highest loss. It saves time once the last example has ended; the lanes of `evaluate` make more of it. An
            attack that sees draws of a random model (`eot`) goes on, since its success may be luck.
        check: whether to look at values (range, finiteness, determinism), which runs the model on up to eight
            images, twice. Under `jit` values cannot be looked at.

    Returns:
        The result, one entry an example.

    Raises:
        TypeError: images, labels or key of the wrong dtype.
        ValueError: wrong shapes, radii that are not one an image, images outside of [0, 1], labels out of range,
            non-finite parameters, a model that returns probabilities, random or no (N, K) logits.

    Example:
        >>> model = Classifier.from_function(lambda x: x.reshape(x.shape[0], -1)[:, :2])
        >>> attack = jr.attacks.pgd(jr.sets.Linf(0.1), steps=5)
        >>> result = run(attack, model, images, labels, key=jax.random.key(0))  # doctest: +SKIP
    """
    check_attack(attack)
    _checks.key(key)
    _inputs.image_shape(images)
    arguments = attack, model, images, labels, key, indices
    if (mesh := _checks.explicit_mesh(arguments)) is not None:
        return _without_explicit_axes(arguments, mesh, early_stop=early_stop, check=check)
    check_radii(attack, images)
    images = _inputs.widened(images)
    goal = _inputs.criterion(labels, images)
    classes = _inputs.logits_shape(model, images)
    traced = _checks.is_traced(attack, model, images, goal, key)
    if check and not traced:
        check_numbers(attack)
        _inputs.image_values(images)
        _inputs.label_values(goal, classes)
        _inputs.finite_params(model)
        _inputs.model_values(model, np.clip(np.asarray(images[:8]), 0, 1))
    given = model  # kept until this returns, so that what is borrowed of it lives
    model = given if traced else borrowed(given)
    attack = attack.bound_to(model)
    images = jnp.clip(jnp.asarray(images), 0, 1)
    goal = jax.tree.map(jnp.asarray, goal)
    keys = example_keys(key, jnp.arange(images.shape[0]) if indices is None else indices)
    stop = stop_of(attack, early_stop)
    if jax.default_backend() != "cpu":
        loops_well = True
    elif traced:
        loops_well = _loops_well(attack, model, images, goal)
    else:  # the trace of the program itself, which is wanted anyway
        known = _shapes((attack, model, images, goal, keys))
        loops_well = _forward_loops_well(model, images) and _is_canonical_search(*known, stop)
    unroll = not loops_well and attack.asks <= UNROLL and attack.runs(classes) == 1
    if traced or loops_well or unroll:
        return _search(attack, model, images, goal, keys, stop=stop, unroll=unroll)
    return _stepped(attack, model, images, goal, keys, stop=stop)


def _without_explicit_axes(given: Any, mesh: Any, **options: bool) -> AttackResult:
    """`run` on arrays whose explicit sharding is left to the compiler inside; the result lies as the images do."""

    def inside(attack: Attack, model: Classifier, images: Any, labels: Any, key: Key, indices: Any) -> AttackResult:
        return run(attack, model, images, labels, key=key, indices=indices, **options)

    rows = jax.typeof(given[2]).sharding.spec[:1] if _checks.explicit_mesh(given[2]) is not None else ()
    return jax.sharding.auto_axes(inside, out_sharding=NamedSharding(mesh, PartitionSpec(*rows)))(*given)


def _stepped(
    attack: Attack, model: Classifier, images: Array, goal: Criterion, keys: Key, *, stop: Stop
) -> AttackResult:
    """`search` with its loops in Python, for models whose convolutions XLA:CPU would run naively inside a loop."""
    logits = _compile.forward(model, images)
    best, over = None, np.zeros(len(images), bool)
    for restart in range(attack.runs(logits.shape[-1])):
        states = _begin(attack, images, goal, keys, logits, restart)
        for ask in range(attack.asks):
            gradient = ask < attack.asks - attack.bookings and attack.gradients > 0
            states = _advance(attack, model, states, stop=stop, gradient=gradient)
            if _may_end(attack, stop) and ask % PEEK == 0 and (over | _done(attack, states, stop=stop)).all():
                break
        found = _best(attack, states)
        best = found if best is None else _merge(best, found, stop=stop)
        over = np.asarray(_ended(best, stop))
    return _conclude(attack, model, images, goal, best)


def last_iterate(attack: Attack, model: Classifier, images: Array, goal: Criterion, keys: Key) -> Array:
    """The images on which adversarial training trains: the last iterate, without the passes that only book.

    Pure and to be called inside the compiled training step; nothing is checked.

    Args:
        attack: the attack; its restarts do not count.
        model: the classifier in the mode in which to craft.
        images: (N, H, W, C) in [0, 1].
        goal: the criterion, usually `Misclassified(labels)`.
        keys: (N,) keys, see `example_keys`.

    Returns:
        (N, H, W, C), with gradients stopped.
    """
    images, model = lax.stop_gradient((images, model))
    attack = attack.bound_to(model)
    check_radii(attack, images)
    unroll = (
        jax.default_backend() == "cpu" and attack.asks_to_last < UNROLL and not _loops_well(attack, model, images, goal)
    )
    if attack.joins(model):
        logits, clean = model.with_activations(images)
        states = begin(attack, images, goal, keys, logits, 0)
        step = functools.partial(_step_jointly, attack, model, clean)
        states = lax.fori_loop(0, attack.asks_to_last, step, states, unroll=unroll)
    else:
        states = begin(attack, images, goal, keys, model(images), 0)
        states = _repeat(attack, model, states, attack.asks_to_last, stop="never", unroll=unroll)
    return lax.stop_gradient(each(attack, "last", states))


def _step_jointly(attack: Attack, model: Classifier, clean: Any, place: Any, states: Any) -> Any:
    """One ask and tell of an attack on a set that measures with the model: one pass, and one pullback, for both."""
    (logits, maps), pull = jax.vjp(model.with_activations, each(attack, "ask", states)[:, 0])
    (gradients,) = pull(each(attack, "joint_cotangents", states, logits, maps, clean))
    return each(attack, "joint_tell", states, gradients, maps)


@_checks.off_mesh
def trajectory(attack: Attack, model: Classifier, images: Any, labels: Any, *, key: Key) -> np.ndarray:
    """The attack's loss at every point it asks, to see whether it has converged.

    Args:
        attack: the attack; the first run is followed.
        model: the classifier.
        images: (N, H, W, C) in [0, 1].
        labels: (N,) labels or a criterion.
        key: as in `run`.

    Returns:
        (asks, N) losses; an example that is misclassified from the start keeps its clean loss.
    """
    check_attack(attack)
    _checks.key(key)
    images, goal = _inputs.batch(images, labels)
    check_radii(attack, images)
    _inputs.classifier(model)
    # by way of NumPy, so that no array lies on a mesh with explicit axes
    goal = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), goal)
    keys = example_keys(key, jnp.arange(images.shape[0]))
    attack, images = attack.bound_to(model), jnp.asarray(np.asarray(images))
    states = _begin(attack, images, goal, keys, _compile.forward(model, images), 0)
    losses = []
    for _ in range(attack.asks):
        states = _advance(attack, model, states, stop="clean")
        # a copy: the next step is given the state's own buffers to write to
        losses.append(np.array(each(attack, "loss_of", states)))
    return np.stack(losses)


def check_numbers(attack: Attack) -> None:
    """That an attack's numbers, which can be looked at, are finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(attack):
        name = f"attack{jax.tree_util.keystr(path)}"
        if jnp.ndim(leaf) == 0:
            _checks.number(name, jax.device_get(leaf), low=-jnp.inf)
        elif not np.isfinite(jax.device_get(leaf)).all():
            raise ValueError(f"{name} must be finite; got NaN or infinite values")
    leaves = jax.tree_util.tree_flatten_with_path(attack, is_leaf=lambda node: isinstance(node, Classifier))[0]
    for radius in (leaf for path, leaf in leaves if _is_radius(path)):
        _checks.number("radius", jax.device_get(radius))


def check_attack(attack: Any) -> None:
    """That an attack is one, and not the function that makes it."""
    if not isinstance(attack, Attack):
        raise TypeError(f"attack must be an Attack such as attacks.pgd(sets.Linf(8 / 255)); got {attack!r}")


def _loops_well(attack: Attack, model: Classifier, images: Array, goal: Criterion) -> bool:
    """Whether XLA:CPU would run the attack on the model inside a loop as fast as outside.

    It brings convolutions to the form its fast kernels want (NHWC, HWIO) only in the entry computation; in the body
    of a loop any other form, such as the usual transpose of a convolution, runs 5 to 20 times slower. So one step's
    program is read for its convolutions, the set's own among them. `models.layers.Conv` keeps the form.
    """
    return _is_canonical_step(*_shapes((attack, model, images, goal)))


def _forward_loops_well(model: Classifier, images: Array) -> bool:
    """The same of the model's forward pass alone, which is read sooner."""
    return _is_canonical_forward(*_shapes((model, images)))


def _shapes(arguments: Any) -> tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]:
    leaves, tree = jax.tree.flatten(arguments)
    return tree, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


@functools.lru_cache(maxsize=256)
def _is_canonical_step(tree: Any, leaves: Any) -> bool:
    def step(attack: Attack, model: Classifier, images: Array, goal: Criterion) -> Any:
        keys = example_keys(jax.random.key(0), jnp.arange(len(images)))
        states = begin(attack, images, goal, keys, model(images), 0)
        return advance(attack, model, states, stop="never")

    return _is_canonical(jax.make_jaxpr(step)(*_unshaped(tree, leaves)))


@functools.lru_cache(maxsize=256)
def _is_canonical_search(tree: Any, leaves: Any, stop: Stop) -> bool:
    return _is_canonical(_search.trace(*_unshaped(tree, leaves), stop=stop, unroll=False))


@functools.lru_cache(maxsize=256)
def _is_canonical_forward(tree: Any, leaves: Any) -> bool:
    return _is_canonical(jax.make_jaxpr(lambda model, images: model(images))(*_unshaped(tree, leaves)))


def _unshaped(tree: Any, leaves: Any) -> Any:
    return tree.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])


def _is_canonical(traced: Any) -> bool:
    """Whether all convolutions of what was traced have the form that XLA:CPU's fast kernels want."""
    return all(_canonical(equation) for equation in _equations(getattr(traced.jaxpr, "jaxpr", traced.jaxpr)))


def _equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


def _canonical(equation: Any) -> bool:
    if equation.primitive.name != "conv_general_dilated":
        return True
    spec = equation.params["dimension_numbers"]
    rank = len(spec.lhs_spec)
    space = tuple(range(rank - 2))
    image = (0, rank - 1, *(i + 1 for i in space))
    return spec.lhs_spec == image and spec.out_spec == image and spec.rhs_spec == (rank - 1, rank - 2, *space)
