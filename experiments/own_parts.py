"""A set, a loss, an attack and an objective of one's own, each checked by the laws: `python -m experiments.own_parts`.

The checks take a minute or two on two CPU cores and print nothing where all laws hold.
"""

import jax
import jax.numpy as jnp

import jaxrobust as jr
from jaxrobust.attacks.core.ascent import Ascent
from jaxrobust.losses import cross_entropy, kl_divergence
from jaxrobust.types import pytree


@pytree("radius")
class Brightness(jr.sets.PerturbationSet):
    """x' = clip(x + θ) with one number |θ| ≤ radius for the whole image."""

    radius: float

    def init(self, x):
        """Nothing."""
        return jnp.zeros((), x.dtype)

    def sample(self, key, x):
        """Uniform in [−radius, radius]."""
        return self.radius * jax.random.uniform(key, (), x.dtype, -1, 1)

    def apply(self, x, theta):
        """Brighter or darker."""
        return jnp.clip(x + theta, 0, 1)

    def project(self, x, theta):
        """A clip."""
        return jnp.clip(theta, -self.radius, self.radius)

    def ascend(self, x, theta, gradient, size):
        """θ + size · sign(g)."""
        return theta + size * jnp.sign(gradient)

    def size(self, x, theta):
        """|θ|."""
        return jnp.abs(theta)


def logit(logits, goal):
    """A loss, ascended: the target's logit, or less of the label's."""
    return logits[goal.target] if goal.targeted else -logits[goal.label]


@pytree("set")
class Halving(Ascent):
    """Gradient ascent by steps of half the radius, a quarter, an eighth and so on."""

    set: jr.sets.PerturbationSet
    steps: int = 3
    loss: object = logit

    def _move(self, state, gradient):
        size = self.set.radius * 0.5 ** (1 + state.asked).astype(state.x.dtype)
        return self.set.project(state.x, self.set.ascend(state.x, state.theta, gradient, size)), None


@pytree("attack", "weight")
class Trades:
    """Cross-entropy of clean images + weight · KL(clean ‖ adversarial)."""

    attack: jr.attacks.Attack
    weight: float = 6.0

    def __call__(self, key, learner, batch):
        """Losses (N,)."""
        attack_key, craft_key, dropout_key = jax.random.split(key, 3)
        model, keys = learner.classifier("eval", craft_key), jr.attacks.example_keys(attack_key, batch.index)
        images = jr.attacks.last_iterate(self.attack, model, batch.images, jr.Misclassified(batch.labels), keys)
        (clean, _), (adversarial, learner) = (learner.train(x, dropout_key) for x in (batch.images, images))
        losses = jax.vmap(cross_entropy)(clean, batch.labels) + self.weight * jax.vmap(kl_divergence)(
            adversarial, clean
        )
        return losses, jr.training.Aux(learner.state, {}, {})


if __name__ == "__main__":
    jr.testing.check_set(Brightness(0.2))
    jr.testing.check_attack(Halving(jr.sets.Linf(0.1)))
    jr.testing.check_objective(Trades(Halving(Brightness(0.2))))
