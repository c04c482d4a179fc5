"""The local Wasserstein ball by entropic methods: projected Sinkhorn, and a ball around OTT-JAX's solver."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import _checks
from jaxrobust.sets._plans import PlanBall
from jaxrobust.sets.base import register
from jaxrobust.transport.capacity import repair
from jaxrobust.transport.ott import ott_distance, ott_plan
from jaxrobust.transport.plans import Plan, allowed, columns, costs, identity, windows
from jaxrobust.transport.sinkhorn import sinkhorn_projection
from jaxrobust.transport.windowed import row_sums
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["WassersteinOTT", "WassersteinSinkhorn"]

Scalar = Float[Array, ""]


LONGEST = 1e4  # how far a pixel that a projection starts from may be off


class _Entropic(PlanBall):
    """A step is kept on the plan's diagonal, so that the columns are the image that it wants; `project` then makes a
    plan of it again.
    """

    def _stepped(self, theta: Plan, change: Image) -> Plan:
        return theta.at[self.kernel**2 // 2].add(change)

    def _asked(self, gradient: Plan) -> Image:
        """The image's gradient, of one in the plan."""
        return gradient[self.kernel**2 // 2]

    def _wanted(self, x: Image, theta: Plan) -> Image:
        """The columns of θ; of a step so long that float32 hardly tells its pixels apart from x, a shorter one."""
        image = columns(theta)
        largest = jnp.max(jnp.abs(image - x))
        return jnp.where(largest > LONGEST, x + (image - x) * (LONGEST / jnp.maximum(largest, LONGEST)), image)

    def _settled(self, x: Image, theta: Plan, plan: Plan) -> Plan:
        """A member from a plan that almost is one: θ itself if that holds, else the point nearest to the columns of θ
        on the segment from the plan to where the step began.
        """
        budget, wanted = self._budget(x), self._wanted(x, theta)
        near, home = jax.vmap(lambda plan: repair(plan, x, budget, p=self.p))(jnp.stack([plan, theta]))
        image, back = columns(near), columns(home) - columns(near)
        square = jnp.sum(jnp.square(back))
        length = jnp.clip(jnp.sum(back * (wanted - image)) / jnp.where(square > 0, square, 1), 0, 1)
        return jnp.where(self._holds(x, theta, 2e-6), theta, near + length * (home - near))


@pytree("radius", "regularisation")
class WassersteinSinkhorn(_Entropic):
    """The local Wasserstein ball, searched as Wong, Schmidt and Kolter do: steps in the image, entropic projections.

    θ is a transport plan Π (k², H, W, C) with rows x, and x' its columns, so that mass is conserved, membership is
    read off the plan, and the true distance is at most `size`. A step adds to the image (it is kept on the plan's
    diagonal); `project` takes the columns w of the plan to `transport.sinkhorn_projection`, mends what float32 and
    an unfinished iteration leave over, and then looks from there along the segment towards the point from which the
    step was taken for the point nearest to w. The entropic term blurs: it spends budget that an exact projection
    (`Wasserstein`) uses for the attack, so this ball is searched less well than that one.

    Args:
        radius: ε, the mean distance^p by which a unit of the image's mass moves, ≥ 0: 0.1 moves 10 % of all mass by
            one pixel. Typical, with p = 2: MNIST 1 (7 x 7), CIFAR-10 0.1 (5 x 5).
        p: 1 for distances in pixels, 2 for their squares (static).
        kernel: side k of the window within which mass may move, odd (static).
        regularisation: λ ≥ 0 of the projection; larger is sharper and slower. MNIST 1000, CIFAR-10 3000.
        rounds: the most rounds of a projection (static).
        tolerance: to which rows and budget hold when it ends, before they are mended (static).

    Reference:
        Wong, Schmidt and Kolter, 2019, arXiv:1902.07906. Theirs clamps the image, which destroys mass, and lets a
        projection throw a member back; here [0, 1] is part of the problem, and a member stays where it is.
    """

    radius: Number
    p: int = 2
    kernel: int = 5
    regularisation: Number = 1000.0
    rounds: int = 400
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "regularisation", _checks.number("regularisation", self.regularisation, low=1e-3))
        _checks.count("rounds", self.rounds)
        _checks.number("tolerance", self.tolerance)

    def sample(self, key: Key, x: Image) -> Plan:
        """A step of the whole radius along random signs, projected."""
        signs = identity(jax.random.rademacher(key, x.shape, x.dtype), self.kernel)
        return self.project(x, self.ascend(x, self.init(x), signs, self._radius(x)))

    def project(self, x: Image, theta: Plan) -> Plan:
        """Near the member that is nearest to the plan's columns, and no further from them than where the step began."""
        found = sinkhorn_projection(
            x,
            self._wanted(x, theta),
            self._radius(x),
            p=self.p,
            kernel=self.kernel,
            regularisation=self.regularisation,
            rounds=self.rounds,
            tolerance=self.tolerance,
        )
        return self._settled(x, theta, found.plan)

    def ascend(self, x: Image, theta: Plan, gradient: Plan, size: Scalar) -> Plan:
        """x' + h · sign(g) with equal h for all pixels, such that half of what it changes is `size` of all mass."""
        direction = jnp.sign(self._asked(gradient))
        count = jnp.sum(jnp.abs(direction))
        return self._stepped(theta, 2 * size * jnp.sum(x) / jnp.where(count > 0, count, 1) * direction)

    def size(self, x: Image, theta: Plan) -> Scalar:
        """<C, Π>/Σx, an upper bound of the local transport distance."""
        return self._cost(x, theta)

    def distance(self, x: Image, theta: Plan, other: Plan) -> Scalar:
        """The cost of all that the two plans move differently, <C, |Π − Π'|>/Σx."""
        return self._cost(x, theta - other)


@pytree("radius")
class WassersteinOTT(_Entropic):
    """The local Wasserstein ball by OTT-JAX's Sinkhorn: entropic plans towards an image, and a differentiable size.

    θ is a transport plan Π (k², H, W, C) with rows x, and x' its columns, as in `WassersteinSinkhorn`. A step moves
    mass within the window, best gain per cost first, until `size` is spent. `project` is the segment retraction: OTT
    finds the entropic plan from x towards the image that the step wants, and what the plan moves is scaled down until
    its cost is the radius; that is the segment from the plan's image to x, on which a plan's cost is linear, so that
    one solve does what a search on the distance takes ten for, and the window and the rows hold exactly. It shrinks
    all of a change alike, where `Wasserstein` finds the nearest plan, and needs no inner solver: prefer that one for
    plain attacks, this one for what wants a distance with a gradient.

    `size` is the cost of a plan that holds, and so an upper bound of the true distance. Off the plans, on the way of a
    penalised attack (margin − λ max(0, size − ε)), it is OTT's distance between x and x', differentiable there.

    Args:
        radius: ε, the mean distance^p by which a unit of the image's mass moves, ≥ 0: 0.1 moves 10 % of all mass by
            one pixel. Typical, with p = 2: MNIST 0.3, CIFAR-10 0.02.
        p: 1 for distances in pixels, 2 for their squares (static).
        kernel: side k of the window within which mass may move, odd (static).
        epsilon: temperature of OTT's plans (static). Of a budget, 4 e^{−1/ε} goes to what only the entropy moves: 2e-4
            at 0.1. Below 1/80 of the window's largest cost it is several times slower (7 x 7 with p = 2: 0.225).
        iterations: the most Sinkhorn iterations (static).

    Reference:
        Cuturi et al., 2022, arXiv:2201.12324 (OTT); Wong, Schmidt and Kolter, 2019, arXiv:1902.07906 (the ball).
    """

    radius: Number
    p: int = 2
    kernel: int = 5
    epsilon: float = 0.1
    iterations: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.number("epsilon", self.epsilon, low=1e-4)
        _checks.count("iterations", self.iterations)

    def sample(self, key: Key, x: Image) -> Plan:
        """Mass moved up a random gradient, by a uniform part of the radius."""
        direction, length = jax.random.split(key)
        size = self._radius(x) * jax.random.uniform(length, (), x.dtype)
        noise = identity(jax.random.normal(direction, x.shape, x.dtype), self.kernel)
        return self.project(x, self.ascend(x, self.init(x), noise, size))

    def project(self, x: Image, theta: Plan) -> Plan:
        """The entropic plan towards the columns of Π, its moves scaled down to the radius; members stay as they are."""
        wanted = x + _evened(x, self._wanted(x, theta) - x)
        plan = ott_plan(x, wanted, p=self.p, kernel=self.kernel, epsilon=self.epsilon, iterations=self.iterations)
        return self._settled(x, theta, plan)

    def ascend(self, x: Image, theta: Plan, gradient: Plan, size: Scalar) -> Plan:
        """Mass of x' moved to where its window's gain per cost is best, in that order, at a cost of `size`.

        No pixel receives more than what it lacked of 1 before; what would exceed that stays.
        """
        gradient, image = self._asked(gradient), self.apply(x, theta)
        inside = allowed(x.shape, self.kernel)
        cost = jnp.asarray(costs(self.kernel, self.p), x.dtype)[:, None, None, None]
        gain = jnp.where(inside & (cost > 0), windows(gradient, self.kernel) - gradient[None], 0)
        gain = jnp.where(windows(image, self.kernel) < 1, gain / jnp.where(cost > 0, cost, 1), 0)
        best, choice = jnp.max(gain, 0), jnp.argmax(gain, 0)
        price = jnp.where(best > 0, image * jnp.take(cost[:, 0, 0, 0], choice), 0).reshape(-1)
        order = jnp.argsort(-best.reshape(-1))
        left = size * jnp.sum(x) - (jnp.cumsum(price[order]) - price[order])
        part = jnp.clip(left / jnp.where(price[order] > 0, price[order], 1), 0, 1)
        share = jnp.zeros_like(price).at[order].set(part).reshape(x.shape)
        sent = jnp.where(best > 0, share * image, 0)
        places = jnp.arange(self.kernel**2)[:, None, None, None]
        moves = jnp.where(places == choice[None], sent[None], 0)
        arriving = columns(moves)
        fitting = jnp.minimum(1, (1 - image) / jnp.where(arriving > 0, arriving, 1))
        moves = moves * windows(fitting, self.kernel)
        return self._stepped(theta, columns(moves) - row_sums(moves))

    def size(self, x: Image, theta: Plan) -> Scalar:
        """<C, Π>/Σx of a plan whose rows are x; of anything else OTT's Sinkhorn distance from x to its columns."""
        found = ott_distance(
            x, columns(theta), p=self.p, kernel=self.kernel, epsilon=self.epsilon, iterations=self.iterations
        )
        rows = jnp.max(jnp.abs(row_sums(theta) - x)) <= 2e-6
        return jnp.where(rows & (jnp.min(theta) >= -1e-6), self._cost(x, theta), found.distance)


def _evened(x: Image, change: Image) -> Image:
    """The change within the box, with its gains or its losses scaled down so that every channel keeps its mass."""
    gains = jnp.clip(change, 0, 1 - x)
    losses = jnp.clip(-change, 0, x)
    gained, lost = (jnp.sum(part, (0, 1), keepdims=True) for part in (gains, losses))
    both = jnp.minimum(gained, lost)
    return gains * (both / jnp.where(gained > 0, gained, 1)) - losses * (both / jnp.where(lost > 0, lost, 1))


register("wasserstein_sinkhorn", lambda: WassersteinSinkhorn(0.1, kernel=3, rounds=50))
register("wasserstein_ott", lambda: WassersteinOTT(0.1, kernel=3, iterations=50))
