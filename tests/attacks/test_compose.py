"""Attacks made of attacks, against their parts run by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluate, sets
from jaxrobust.attacks.core import engine
from jaxrobust.types import Classifier, Code, Confident, Misclassified, Targeted, TopK, Towards
from tests import tiny

KEY = jax.random.key(5)
BALL = sets.Linf(0.03)
# one that rarely succeeds, one that does more often, and one that nothing resists
WEAK = attacks.pgd(sets.Linf(0.004), steps=1)
FAIR = attacks.pgd(sets.Linf(0.03), steps=3, loss="margin")
STRONG = attacks.pgd(sets.Linf(0.3), steps=3)


@pytest.fixture(scope="module")
def problem():
    network = tiny.dense_classifier(3)
    return network, *tiny.images_and_labels(network, 12)


advance = jax.jit(engine.advance, static_argnames="stop")


def by_hand(attack, problem, restart, goal=None):
    """One run of an attack, its own key and number, through ask and tell alone."""
    network, images, labels = problem
    goal = Misclassified(jnp.asarray(labels)) if goal is None else goal
    keys = attacks.example_keys(KEY, np.arange(len(images)))
    states = engine.begin(attack, jnp.asarray(images), goal, keys, network(images), restart)
    for _ in range(attack.asks):
        states = advance(attack, network, states, stop="clean")
    return jax.vmap(attack.best)(states)


def best_by_hand(runs):
    """The best of several bookings: success first, then loss."""
    success, loss = (np.stack([getattr(run, name) for run in runs]) for name in ("success", "loss"))
    which = np.where(success == success.any(0)[None], loss, -np.inf).argmax(0)
    images = np.stack([run.images if hasattr(run, "images") else run.image for run in runs])
    return success.any(0), images[which, np.arange(len(which))], which


@pytest.mark.slow
def test_restarts_are_runs_with_keys_of_their_own(problem):
    found = attacks.run(attacks.restarts(FAIR, 3), *problem, key=KEY)
    success, images, which = best_by_hand([by_hand(FAIR, problem, run) for run in range(3)])
    assert len(set(which.tolist())) > 1
    np.testing.assert_array_equal(found.success, success)
    np.testing.assert_allclose(found.images, images, atol=1e-6)
    assert (found.forwards[:-1] == 1 + 3 * FAIR.asks).all()


@pytest.mark.slow
def test_restarts_are_those_that_an_attack_has_itself(problem):
    found = attacks.run(attacks.restarts(FAIR, 3), *problem, key=KEY)
    own = attacks.run(dataclasses.replace(FAIR, restarts=3), *problem, key=KEY)
    np.testing.assert_allclose(found.images, own.images, atol=1e-6)
    np.testing.assert_array_equal(found.forwards, own.forwards)


@pytest.mark.slow
def test_restarts_of_runs_that_differ_come_one_round_after_another(problem):
    network, images, labels = problem
    twice = attacks.restarts(attacks.apgd_t(BALL, steps=2, targets=3), 2)
    found = attacks.run(twice, *problem, key=KEY)
    assert (found.forwards[:-1] == 1 + 2 * 3 * 3).all()
    goal, keys = Misclassified(jnp.asarray(labels)), attacks.example_keys(KEY, np.arange(12))
    begin = jax.jit(engine.begin)
    states = [begin(twice, jnp.asarray(images), goal, keys, network(images), run) for run in range(6)]
    targets = np.stack([state.inner.inner.aim.target for state in states])
    np.testing.assert_array_equal(targets[:3], targets[3:])
    assert not (targets[0] == targets[1]).any()


@pytest.mark.slow
def test_every_run_aims_at_a_class_of_its_own(problem):
    network, images, labels = problem
    attack = attacks.pgd(BALL, steps=3, loss="dlr")
    found = attacks.run(attacks.targeted_each(attack, targets=3), *problem, key=KEY)
    order = np.argsort(-np.where(np.eye(4, dtype=bool)[labels], -np.inf, network(images)), axis=1)
    goals = [Towards(jnp.asarray(order[:, r]), Misclassified(jnp.asarray(labels))) for r in range(3)]
    success, expected, which = best_by_hand([by_hand(attack, problem, r, goal) for r, goal in enumerate(goals)])
    assert len(set(which.tolist())) > 1
    np.testing.assert_array_equal(found.success, success)
    np.testing.assert_allclose(found.images, expected, atol=1e-6)
    assert (found.forwards[:-1] == 1 + 3 * 4).all()
    assert (found.backwards[:-1] == 3 * 3).all()


@pytest.mark.slow
def test_targets_that_do_not_exist_cost_nothing(problem):
    three, nine = (attacks.targeted_each(attacks.pgd(BALL, steps=2), targets=targets) for targets in (3, 9))
    found, more = (attacks.run(made, *problem, key=KEY) for made in (three, nine))
    for name in ("images", "success", "loss", "forwards", "backwards"):
        np.testing.assert_array_equal(getattr(found, name), getattr(more, name), err_msg=name)
    # within one run, too, nothing is counted
    one = attacks.run(attacks.worst_of(nine, until_success=True), *problem, key=KEY)
    np.testing.assert_array_equal(one.forwards, found.forwards)
    np.testing.assert_array_equal(one.success, found.success)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda labels: TopK(labels, 2), lambda labels: Confident(Misclassified(labels), 0.9)])
def test_success_at_each_class_is_the_criterion_s(problem, wrap):
    network, images, labels = problem
    made = attacks.targeted_each(attacks.pgd(sets.Linf(0.1), steps=5), targets=3)
    found = attacks.run(made, network, images, wrap(labels), key=KEY)
    met = jax.vmap(lambda goal, z: goal.met(z))
    goal = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (12,)), wrap(labels))
    np.testing.assert_array_equal(met(goal, network(found.images)), found.success)
    assert found.success.any()


def in_turn(parts, problem):
    """Each attack on those examples that all before it left, with the counts of what ran."""
    network, images, labels = problem
    success, forwards, backwards = (np.zeros(len(images), kind) for kind in (bool, int, int))
    found = images.copy()
    for part in parts:
        left = np.flatnonzero(~success)
        if not len(left):
            break
        one = attacks.run(part, network, images[left], labels[left], key=KEY, indices=left)
        success[left], forwards[left], backwards[left] = (
            one.success,
            forwards[left] + np.asarray(one.forwards) - 1,
            backwards[left] + np.asarray(one.backwards),
        )
        won = np.asarray(one.success)
        found[left[won]] = one.images[won]
    return success, found, forwards + 1, backwards


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((WEAK, FAIR), id="the_next_is_stronger", marks=pytest.mark.slow),
        pytest.param((WEAK, FAIR, STRONG), id="ever_stronger", marks=pytest.mark.slow),
        pytest.param((STRONG, WEAK), id="the_first_leaves_none", marks=pytest.mark.slow),
        pytest.param((FAIR, attacks.square(sets.Linf(0.1), queries=9), WEAK), id="kinds", marks=pytest.mark.slow),
    ],
)
def test_survivors_are_attacked_as_by_hand(problem, parts):
    found = attacks.run(attacks.worst_of(*parts, until_success=True), *problem, key=KEY)
    success, images, forwards, backwards = in_turn(parts, problem)
    np.testing.assert_array_equal(found.success, success)
    np.testing.assert_allclose(found.images[success], images[success], atol=1e-5)
    np.testing.assert_array_equal(found.forwards, forwards)
    np.testing.assert_array_equal(found.backwards, backwards)
    if parts[0] is WEAK:
        # already wrong, done after the first, after the second and so on
        assert len(set(forwards.tolist())) == 1 + len(parts)
    assert (np.asarray(found.code[:-1]) == Code.RAN).all()


@pytest.mark.slow
def test_survivors_in_lanes_early_stopping_and_training(problem):
    network, images, labels = problem
    made = attacks.worst_of(WEAK, dataclasses.replace(FAIR, restarts=2), until_success=True)
    whole = attacks.run(made, *problem, key=KEY)
    lanes = evaluate.run_lanes(made, *problem, key=KEY, lanes=4, early_stop=False, progress=False).result
    np.testing.assert_allclose(lanes.images, whole.images, atol=1e-5)
    np.testing.assert_array_equal(lanes.forwards, whole.forwards)
    early = attacks.run(made, *problem, key=KEY, early_stop=True)
    np.testing.assert_array_equal(early.success, whole.success)
    assert (early.forwards <= whole.forwards).all()
    assert (early.forwards < whole.forwards).any()
    keys = attacks.example_keys(KEY, np.arange(12))
    # as in a training step
    last = jax.jit(engine.last_iterate)(made, network, jnp.asarray(images), Misclassified(jnp.asarray(labels)), keys)
    np.testing.assert_allclose(last[:-1], whole.images[:-1], atol=1e-5)


@pytest.mark.slow
def test_the_best_of_attacks_with_any_restarts(problem):
    """Runs after the first have keys of their own, so only what one run finds is what it would find alone."""
    fair = dataclasses.replace(FAIR, loss="cross_entropy")  # ranks its runs as the whole ranks attacks
    made = attacks.worst_of(WEAK, dataclasses.replace(fair, restarts=2))
    found = attacks.run(made, *problem, key=KEY)
    assert made.restarts == 1
    assert (found.forwards[:-1] == 1 + WEAK.asks + 2 * fair.asks).all()
    assert (found.backwards[:-1] == WEAK.gradients + 2 * fair.gradients).all()
    single = attacks.run(attacks.worst_of(WEAK, fair), *problem, key=KEY)
    assert (found.success >= single.success).all()
    assert ((found.success & ~single.success) | (np.asarray(found.loss) >= np.asarray(single.loss) - 1e-5)).all()


@pytest.mark.slow
def test_runs_of_members_differ_by_their_number(problem):
    """APGD-T in a whole with restarts aims every run at another class."""
    member = attacks.apgd_t(BALL, steps=3, targets=3)
    alone, inside = (attacks.run(made, *problem, key=KEY) for made in (member, attacks.worst_of(member)))
    np.testing.assert_array_equal(inside.success, alone.success)
    np.testing.assert_array_equal(inside.forwards, alone.forwards)


@pytest.mark.slow
def test_nothing_is_traced_twice_inside_compositions(problem):
    network, images, labels = problem
    traces = 0

    def counting(params, images):
        nonlocal traces
        traces += 1
        return tiny.dense_net(params, images)

    def run(radius):
        each = attacks.targeted_each(attacks.restarts(attacks.pgd(sets.Linf(radius), steps=2), 2), targets=2)
        made = attacks.worst_of(attacks.fgsm(sets.Linf(radius)), each, until_success=True)
        return attacks.run(made, Classifier(counting, network.params), images, labels, key=KEY)

    run(0.01)
    first = traces
    run(0.02)
    assert traces == first


@pytest.mark.parametrize("name", ["pgd", "square", "hop_skip_jump"])
def test_what_an_attack_must_see_is_what_the_one_within_must(name):
    inner = attacks.REGISTRY[name](sets.L2(1.0))
    compositions = [attacks.restarts(inner, 1), attacks.targeted_each(inner), attacks.minimal(inner)]
    compositions += [] if inner.minimum_norm else [attacks.eot(inner)]
    compositions += [attacks.worst_of(inner, dataclasses.replace(inner, restarts=2), until_success=True)]
    assert {attack.knowledge for attack in compositions} == {inner.knowledge}


@pytest.mark.slow
def test_padding_is_not_meant(problem):
    network, images, labels = problem
    made = attacks.worst_of(attacks.fgsm(BALL), attacks.worst_of_k(BALL, samples=5, chunk=3))
    images, goal, keys = (
        jnp.asarray(images),
        Misclassified(jnp.asarray(labels)),
        attacks.example_keys(KEY, np.arange(12)),
    )
    states = engine.begin(made, images, goal, keys, network(images), 0)
    meant = []
    for _ in range(made.asks):
        meant.append(np.asarray(jax.vmap(made.meant)(states))[0].sum())
        states = advance(made, network, states, stop="never")
    assert meant == [1, 1, 3, 2]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: attacks.restarts(FAIR, 0), ValueError, "n must be >= 1; got 0"),
        (lambda: attacks.restarts(attacks.fgsm(BALL), 2), ValueError, "n must be 1 for .*; got 2 equal runs of"),
        (lambda: attacks.restarts(attacks.pgd, 2), TypeError, "attack must be an Attack|Type-check error"),
        (lambda: attacks.targeted_each(FAIR, targets=0), ValueError, "targets must be >= 1; got 0"),
        (attacks.worst_of, ValueError, "attacks must hold at least one attack; got none"),
        (lambda: attacks.worst_of(FAIR, until_success=1), TypeError, "until_success must be True or False|Type-check"),
        (lambda: attacks.worst_of(attacks.pgd), TypeError, "attacks must be attacks such as|Type-check error"),
    ],
)
def test_bad_compositions_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_target_of_its_own_is_refused(problem):
    network, images, labels = problem
    with pytest.raises(ValueError, match=r"the criterion must have no target for targeted_each.*got Targeted"):
        attacks.run(attacks.targeted_each(FAIR), network, images, Targeted(labels), key=KEY)
    with pytest.raises(ValueError, match="targeted_each, which chooses it; got Towards"):
        attacks.run(attacks.targeted_each(attacks.apgd_t(BALL)), *problem, key=KEY)
