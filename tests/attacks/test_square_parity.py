"""Square against the authors' code, statistically: the same images, as many seeds as keys, each image on its own."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrobust import attacks, sets
from jaxrobust.types import Classifier

BALLS = {"Linf": sets.Linf, "L2": sets.L2, "L1": sets.L1}
LEVEL = 1e-3  # of a false alarm, for each of the two comparisons in a norm


def net(params, images):
    """The fixture's network."""
    return jnp.tanh((images.reshape(images.shape[0], -1) - 0.5) @ params["hidden"]) @ params["out"]


@functools.cache
def fixture():
    with np.load(Path(__file__).parents[1] / "fixtures" / "square.npz") as file:
        return dict(file)


@functools.cache
def counts(norm):
    """(keys, images) queries until success, the first point's among them; 0 where the budget does not do."""
    data = fixture()
    model = Classifier(net, {name: jnp.asarray(data[name]) for name in ("hidden", "out")})
    attack = attacks.square(BALLS[norm](data[f"radius_{norm}"].item()), queries=data["queries"].item())
    images, found = (data["images"] / 255).astype(np.float32), []
    for seed in range(len(data[norm])):
        result = attacks.run(attack, model, images, data["labels"], key=jax.random.key(seed), early_stop=True)
        found.append(np.where(result.success, result.forwards - 1, 0))
    return np.stack(found)


def p_value(ours, theirs):
    """Two-sided, of the sum over images of both samples' rank sums: were the two the same code, any exchange of one
    image's counts between them would be as likely, which gives the sum its mean and variance.
    """
    both = np.concatenate([ours, theirs])
    ranks = stats.rankdata(both, axis=0)
    n, m = len(ours), len(theirs)
    variance = np.sum(n * m / (n + m) * ranks.var(0, ddof=1))
    return 2 * stats.norm.sf(abs(np.sum(ranks[:n] - ranks.mean(0))) / np.sqrt(variance))


def compared(ours, theirs, budget):
    """The p values of robust accuracy and of queries until success, those that never come beyond the budget."""
    until = [np.where(found == 0, budget + 1, found) for found in (ours, theirs)]
    return p_value(ours == 0, theirs == 0), p_value(*until)


@pytest.mark.slow
@pytest.mark.optimised(True)  # one program, run for long
@pytest.mark.parametrize("norm", BALLS)
def test_robust_accuracy_and_queries_are_those_of_the_authors_code(norm):
    ours, theirs = counts(norm), fixture()[norm]
    for found in (ours, theirs):
        print(f"{norm}: robust {np.mean(found == 0):.4f}, median queries {np.median(found[found > 0])}")
    assert 0.1 < np.mean(theirs == 0) < 0.9
    robust, queries = compared(ours, theirs, fixture()["queries"])
    print(f"{norm}: p of robust accuracy {robust:.3f}, of queries {queries:.3f}")
    assert robust > LEVEL
    assert queries > LEVEL


def test_the_comparison_sees_what_is_different(rng):
    """What ours mends shows in the same number of seeds, and so does a fifth more queries; a split in two does not."""
    data, released = fixture(), fixture()["released_Linf"]
    assert min(compared(released, data["Linf"], data["queries"])) < LEVEL
    until = rng.geometric(0.02, (24, 64))
    assert p_value(until[:12], until[12:]) > LEVEL
    assert p_value(1.3 * until[:12], until[12:]) < LEVEL
