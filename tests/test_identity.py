"""An identity is equal for what was built alike, in any process, and different for whatever behaves differently."""

import copy
import dataclasses
import functools
import json
import os
import pathlib
import pickle
import re
import socket
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust import attacks, sets
from jaxrobust._store import identity
from jaxrobust.data import augment
from jaxrobust.types import Classifier
from tests import identities

REGISTERED, OTHERS, PAIRS = identities.registered(), identities.others(), identities.pairs()


@pytest.fixture(scope="module")
def digests():
    return identities.digests()


@pytest.fixture(scope="module")
def rebuilt():
    return identities.pairs()


def test_what_is_built_twice_is_equal(digests):
    assert identities.digests() == digests


def test_what_is_registered_is_told_apart(digests):
    by_digest = {}
    for name, digest in digests.items():
        by_digest.setdefault(digest, []).append(name)
    # names of one attack: with these defaults they are the same run
    same = [[identities_of(name) for name in names] for names in by_digest.values() if len(names) > 1]
    assert all(len(set(map(str, made))) == 1 for made in same), same


def identities_of(name):
    made = (REGISTERED | OTHERS)[name]()
    return type(made), jax.tree.structure(made), [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(made)]


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_is_told_apart(name, rebuilt):
    first, second = PAIRS[name]
    assert identity(first) != identity(second)
    assert identity([first, 1]) != identity([second, 1])
    again = rebuilt[name]
    assert (identity(again[0]), identity(again[1])) == (identity(first), identity(second))


def variants(value, depth=3):
    """Values that differ from a value in one place."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float, np.number)):
        yield value + type(value)(1)
    elif isinstance(value, str):
        yield value + "'"
    elif value is None:
        yield 1
    elif isinstance(value, (np.ndarray, jax.Array)):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            yield jax.random.fold_in(value, 1)
        else:
            flipped = np.array(value)
            flipped.view(np.uint8).reshape(-1)[0] ^= 1
            yield flipped
    elif isinstance(value, tuple) and depth:
        yield (*value, None)
        for place, item in enumerate(value):
            for other in variants(item, depth - 1):
                yield (*value[:place], other, *value[place + 1 :])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type) and depth:
        for field in dataclasses.fields(value):
            for other in variants(getattr(value, field.name), depth - 1):
                changed = copy.copy(value)
                object.__setattr__(changed, field.name, other)
                yield changed
    elif callable(value):
        yield lambda *arguments: 2 * value(*arguments)


@pytest.mark.parametrize("kind", ["set", "attack", "criterion", ""])
def test_every_field_counts(kind, digests):
    for name, make in REGISTERED.items():
        if not (name.startswith(f"{kind} ") if kind else " " not in name):
            continue
        found = [identity(other) for other in variants(make())]
        assert found, name
        assert digests[name] not in found, name
        assert len(set(found)) == len(found), name


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(max_size=3),
    st.binary(max_size=3),
    st.builds(np.float32, st.floats(width=32)), st.builds(np.bool_, st.booleans()),
)  # fmt: skip
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(st.integers() | st.text(max_size=2), max_size=4),
        st.dictionaries(st.integers(0, 3) | st.text(max_size=2), inner, max_size=3),
    ),
    max_leaves=8,
)


def spelled(value):
    """A value, its types and their order, in words."""
    kind = type(value).__name__
    if isinstance(value, frozenset):
        return kind, sorted(map(spelled, value))
    if isinstance(value, dict):
        return kind, [(spelled(key), spelled(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return kind, [spelled(item) for item in value]
    return kind, value.tobytes().hex() if isinstance(value, np.generic) else repr(value)


@settings(max_examples=40, deadline=None)
@given(VALUES, VALUES)
def test_containers_are_told_apart_by_what_they_hold(first, second):
    assert (identity(first) == identity(second)) == (spelled(first) == spelled(second))
    assert identity(pickle.loads(pickle.dumps(first))) == identity(first)
    assert identity([first, first]) == identity([first, copy.deepcopy(first)]) != identity([first])


def test_circles_end():
    first, second = [1], [1]
    first.append(first)
    second.append(second)
    assert identity(first) == identity(second) != identity([1, [1]])
    first[0] = 2
    assert identity(first) != identity(second)


def test_arrays_count_by_dtype_shape_and_bytes():
    strong, weak = jnp.asarray(1.0, jnp.float32), jnp.asarray(1.0)
    assert weak.weak_type
    assert identity(strong) == identity(weak) == identity(np.float32(1)) == identity(np.ones((), np.float32))
    image = np.arange(12.0).reshape(3, 4)
    assert identity(image.T) == identity(np.ascontiguousarray(image.T)) != identity(image)
    assert identity(jnp.ones(3, jnp.bfloat16)) != identity(jnp.ones(3, jnp.float16))


def test_use_does_not_change_what_functions_are():
    model, schedule = Classifier.from_nnx(identities.Net()), PAIRS["schedule"][0]
    before = identity((model.apply, schedule, augment.random_flip))
    hash(model.apply)
    jax.eval_shape(model, jnp.zeros((2, 2, 2, 3)))
    schedule(3)
    assert identity((model.apply, schedule, augment.random_flip)) == before


def test_another_process_agrees(digests):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": "7"}
    script = "import json; from tests import identities; print(json.dumps(identities.digests()))"
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=300)
    assert json.loads(found.stdout) == digests, found.stderr.decode()


UNREADABLE = {
    "lock": threading.Lock,
    "socket": socket.socket,
    "generator": lambda: (i for i in range(3)),
    "file": lambda: pathlib.Path(os.devnull).open(),  # noqa: SIM115
    "thread": threading.Thread,
}


@dataclasses.dataclass(frozen=True)
class Ball:
    """A set of the user's own."""

    radius: float
    loss: object = None


def test_with_a_run_id_numbers_still_count():
    def balls(radius):
        return identity(attacks.pgd(sets.Linf(radius)), run_id="mine"), identity(Ball(radius, max), run_id="mine")

    assert balls(0.1) == balls(0.1)
    assert not set(balls(0.1)) & set(balls(0.2))
    assert identity(Ball(0.1, lambda x: x), run_id="mine") == identity(Ball(0.1, lambda x: -x), run_id="mine")


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_refused_by_its_place(name):
    value = UNREADABLE[name]()
    try:
        service = identities.Scaled(value)
        match = (
            r"^model\.function.*factor.* must be something that can be recognised .*; got a .* Pass run_id=\"\.\.\.\""
        )
        with pytest.raises(ValueError, match=match):
            identity(service.apply, what="model.function")
        known = [identity(service.apply, run_id=run_id) for run_id in ("mine", "mine", "yours")]
        assert known[0] == known[1] != known[2]
        # numbers count even so
        assert identity([1, service.apply], run_id="mine") != identity([2, service.apply], run_id="mine")
    finally:
        getattr(value, "close", lambda: None)()


def test_a_module_imported_inside_a_function_counts_by_what_is_in_it(monkeypatch):
    def shifted(images):
        from module_of_mine import act

        return act(images)

    found = set()
    for shift in (1, 2, 1):
        module = identities.module_of_the_users(f"act = lambda x: x + {shift}")
        monkeypatch.setitem(sys.modules, "module_of_mine", module)
        found.add(identity(shifted))
    assert len(found) == 2


def test_an_import_of_a_package_loads_nothing():
    def dear(images):
        import turtle

        return turtle.act(images)

    identity(dear)
    assert "turtle" not in sys.modules


class Lazy:
    """What ordinary models have in their classes and modules."""

    @functools.cached_property
    def factor(self):
        return 2.0

    def __call__(self, images):
        return self.factor * images if WORD.match("a") else images


WORD = re.compile("[a-z]")


def test_cached_properties_and_patterns_are_known():
    assert identity(Lazy()) == identity(Lazy())


def test_an_opened_npz_counts_by_its_arrays(tmp_path):
    found = set()
    for number, values in enumerate(([1.0, 2.0], [1.0, 3.0], [1.0, 2.0])):
        np.savez(tmp_path / f"{number}.npz", weights=values)
        found.add(identity(np.load(tmp_path / f"{number}.npz")))
    assert len(found) == 2


class Proxy:
    """Its class is not what it says."""

    @property
    def __dict__(self):
        raise RuntimeError("not connected")


def test_an_object_whose_own_code_fails_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"recognised in another process.*run_id"):
        identity([Proxy()])
