"""How exact and how fast the projection onto the Wasserstein ball is, beside the algorithm that was released for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.harness import Figure, Settings, against, register
from jaxrobust import transport
from jaxrobust.transport import dual
from tests.references import transport as reference

RADIUS, STEP = 0.1, 0.5
SMALL = (((4, 4, 1), 3), ((6, 6, 1), 5))
LARGE = (((28, 28, 1), 7), ((32, 32, 3), 5))
HALVINGS = (15, 25, 50)  # the released default, that of its scripts, and enough for float32
Project = Callable[[Any, Any, Any], Any]


@register
def projection_quality(settings: Settings) -> Iterator[Figure]:
    """Distances of projections onto the Wasserstein ball (p = 1) to the quadratic program's, and their times."""
    rounds = (15, 60)
    for shape, kernel in SMALL[: 1 if settings.quick else None]:
        problems = [_problem(settings.seed + n, shape, kernel) for n in range(2 if settings.quick else 20)]
        where = f"{shape[0]}x{shape[1]}, window {kernel}"
        with_limit = [reference.project(x, plan, RADIUS, 1, kernel) for x, plan in problems]
        for count in rounds:
            errors = _errors(functools.partial(dual.project, rounds=count), problems, with_limit)
            yield Figure.of(f"{where}, {count} rounds: distance to the optimum over the way", errors)
        without = [reference.project(x, plan, RADIUS, 1, kernel, False) for x, plan in problems]
        errors = _errors(functools.partial(dual.project, capacity=False), problems, without)
        yield Figure.of(f"{where}, full pixels ignored: distance to the optimum over the way", errors)
        for count in HALVINGS:
            errors = _errors(functools.partial(released, halvings=count), problems, without)
            yield Figure.of(f"{where}, released, {count} halvings, full pixels ignored: the same", errors)

    for shape, kernel in LARGE[: 1 if settings.quick else None]:
        batch = 2 if settings.quick else 32
        x, plan = (jnp.stack(part) for part in zip(*(_problem(n, shape, kernel) for n in range(batch)), strict=True))
        budget = RADIUS * jnp.sum(x, (1, 2, 3))
        ours = _work(dual.project, plan, x, budget)
        theirs = {
            f"released, {count} halvings": _work(functools.partial(released, halvings=count), plan, x, budget)
            for count in (HALVINGS[1:2] if settings.quick else HALVINGS)
        }
        others = {"ours, full pixels ignored": _work(functools.partial(dual.project, capacity=False), plan, x, budget)}
        where = f"{'x'.join(map(str, shape))}, window {kernel}"
        timings = against(ours, others | theirs, pairs=settings.repeats(5))
        measured = next(iter(timings.values())).reference
        yield Figure.of(f"{where}: a projection", 1e3 * measured / batch, "ms per image")
        for name, timing in timings.items():
            yield Figure.of(f"{where}: {name}, over a projection", timing.ratio)


def released(plan: Any, x: Any, budget: Any, *, halvings: int) -> Any:
    """The released projection without limit on full pixels: at each halving of the price, every row is sorted."""
    kernel = round(plan.shape[0] ** 0.5)
    cost = transport.costs(kernel, 1)
    values = jnp.where(transport.allowed((x.shape[0], x.shape[1], 1), kernel), plan, -1e6)
    values = jnp.moveaxis(values, 0, -1)
    counts = jnp.arange(1, kernel**2 + 1, dtype=x.dtype)

    def primal(price: Any) -> Any:
        priced = values - price * cost
        ordered = -jnp.sort(-priced, axis=-1)
        thresholds = (jnp.cumsum(ordered, axis=-1) - x[..., None]) / counts
        last = jnp.sum((ordered > thresholds).astype(jnp.int32), axis=-1, keepdims=True) - 1
        return jnp.maximum(priced - jnp.take_along_axis(thresholds, jnp.maximum(last, 0), axis=-1), 0)

    def halve(_: Any, bracket: Any) -> Any:
        low, high = bracket
        middle = (low + high) / 2
        over = jnp.sum(primal(middle) * cost) > budget
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    bracket = (jnp.zeros(()), 2 * jnp.max(jnp.abs(plan)) + jnp.max(x))
    return jnp.moveaxis(primal(lax.fori_loop(0, halvings, halve, bracket)[1]), -1, 0)


def _problem(seed: int, shape: tuple[int, int, int], kernel: int) -> tuple[Any, Any]:
    """A digit-like image, half empty with a fifth of its pixels full, and its identity after a gradient step."""
    rng = np.random.default_rng(seed)
    kind = rng.random(shape)
    x = jnp.asarray(np.where(kind < 0.5, 0, np.where(kind < 0.7, 1, rng.random(shape))), jnp.float32)
    gradient = transport.windows(jnp.asarray(rng.normal(size=shape), jnp.float32), kernel)
    return x, transport.identity(x, kernel) + STEP * gradient / jnp.max(jnp.abs(gradient))


def _errors(project: Project, problems: list[Any], optima: list[Any]) -> list[float]:
    compiled, errors = jax.jit(project), []
    for (x, plan), optimum in zip(problems, optima, strict=True):
        inside = np.asarray(transport.allowed((x.shape[0], x.shape[1], 1), round(len(plan) ** 0.5)))
        found = np.asarray(compiled(plan, x, RADIUS * jnp.sum(x)))
        errors.append(np.linalg.norm(found - optimum) / np.linalg.norm(inside * (optimum - np.asarray(plan))))
    return errors


def _work(project: Project, *problem: Any) -> Callable[[], Any]:
    return functools.partial(jax.jit(jax.vmap(project)), *problem)
