"""Objects whose identities are compared: built twice, in two processes, and against objects that differ a little."""

import collections
import dataclasses
import enum
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from jaxrobust import attacks, losses, sets, training
from jaxrobust._store import identity
from jaxrobust.data import augment
from jaxrobust.evaluate import HostModel
from jaxrobust.types import CRITERIA, Classifier

RATE = 0.5
TABLE = np.arange(3.0)
TINY = {"pgd": {"steps": 2}}


class Colour(enum.Enum):
    """An enumeration."""

    RED = 1
    BLUE = 2


class Names(frozenset):
    """A set with a class of its own."""


class Scaled:
    """An object that is called by a method."""

    def __init__(self, factor):
        self.factor = factor

    def apply(self, images):
        """Images times a factor."""
        return self.factor * images


class Net(nnx.Module):
    """A network whose activation is an attribute."""

    def __init__(self, activation=nnx.relu, rate=0.1, width=4):
        rngs = nnx.Rngs(0)
        # drawn weights round as XLA was told to compile, which tests change
        ones = nnx.initializers.ones_init()
        self.first = nnx.Linear(12, width, kernel_init=ones, rngs=rngs)
        self.second = nnx.Linear(width, 3, kernel_init=ones, rngs=rngs)
        self.dropout, self.activation = nnx.Dropout(rate, rngs=rngs), activation

    def __call__(self, images):
        """Logits."""
        hidden = self.activation(self.first(images.reshape(len(images), -1)))
        return self.second(self.dropout(hidden))


class Smooth(linen.Module):
    """A Linen network."""

    width: int = 4
    activation: object = linen.relu

    @linen.compact
    def __call__(self, images):
        """Logits."""
        ones = linen.initializers.ones_init()
        hidden = linen.Dense(self.width, kernel_init=ones)(images.reshape(len(images), -1))
        return linen.Dense(3, kernel_init=ones)(self.activation(hidden))


def wired(activation):
    """A class of networks whose code, and nothing else, says the activation."""
    name = {"relu": "relu", "tanh": "tanh"}[activation]

    class Wired(Net):
        __call__ = (
            (lambda self, images: nnx.relu(self.first(images)))
            if name == "relu"
            else (lambda self, images: nnx.tanh(self.first(images)))
        )

    return Wired


def even(number):
    """One of two functions that name each other."""
    return True if number == 0 else odd(number - 1)


def odd(number):
    """The other."""
    return False if number == 0 else even(number - 1)


def uses_globals(images):
    """A function of globals: a number, an array, another function, modules."""
    return RATE * jnp.square(images) + TABLE[0] + np.pi * even(2)


def with_globals(function, **changed):
    """A function as it would be, were some globals different."""
    return types.FunctionType(function.__code__, {**function.__globals__, **changed}, function.__name__)


class Holds:
    """An object that keeps something and uses it."""

    def __init__(self, kept):
        self.kept = kept

    def __call__(self, images):
        """What its module makes of images."""
        return self.kept.act(images)

    def bound(self):
        """The same as a function that closes over what is kept."""
        kept = self.kept
        return lambda images: kept.act(images)


def written_in_a_string(sign):
    """An object of a class that `python -c` or `exec` made."""
    scope = {}
    exec(f"class Net:\n    def __call__(self, x):\n        return {sign}x", scope)
    return scope["Net"]()


class Row(tuple):
    """A tuple with attributes."""

    def __new__(cls, items, **attributes):
        row = super().__new__(cls, items)
        vars(row).update(attributes)
        return row


def closure(value):
    """A function that closes over a value."""
    return lambda images: value * images


def custom(scale):
    """Two functions of equal values, and of gradients that may differ."""
    found = jax.custom_vjp(lambda x: x)
    found.defvjp(lambda x: (x, None), lambda _, g: (scale * g,))
    return found


def module_of_the_users(body):
    """A module that no package brings."""
    made = types.ModuleType("mine")
    exec(body, made.__dict__)
    return made


def linen_classifier(**fields):
    """A classifier with few numbers."""
    module = Smooth(**fields)
    return Classifier.from_linen(module, module.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3))))


def registered():
    """All that is registered: name -> how it is made."""
    made = {f"set {name}": entry for name, entry in sets.REGISTRY.items()}
    made |= {
        f"attack {name}": functools.partial(lambda e: e(sets.REGISTRY[e.on]()), entry)
        for name, entry in attacks.REGISTRY.items()
    }
    labels = np.arange(3, dtype=np.int32)
    made |= {f"criterion {n}": functools.partial(make, labels, labels + 1) for n, make in CRITERIA.items()}
    made |= {f"loss {name}": functools.partial(lambda loss: loss, loss) for name, loss in losses.LOSSES.items()}
    made |= {f"schedule {n}": functools.partial(training.schedule, n, 0.1, 100) for n in training.SCHEDULES}
    made |= {
        f"objective {n}": lambda e=entry: e.make(attacks.pgd(sets.Linf(0.1))) for n, entry in training.REGISTRY.items()
    }
    return made | {
        "config": training.TrainConfig,
        "flip": lambda: augment.random_flip,
        "crop": lambda: functools.partial(augment.random_crop, padding=2),
        "chain": lambda: augment.chain(augment.random_flip, functools.partial(augment.random_crop, padding=2)),
    }


def others():
    """What else is saved with runs, or named by it."""
    return {
        "nnx": lambda: Classifier.from_nnx(Net()),
        "linen": linen_classifier,
        "function": lambda: Classifier.from_function(uses_globals),
        "with parameters": lambda: Classifier(lambda w, x: x @ w, jnp.ones((4, 3))),
        "host": lambda: HostModel(closure(2.0), 3),
        "bpda": lambda: attacks.bpda(jnp.round).before(Classifier(closure(1.0), {"b": 1.0, "a": np.ones(2)})),
        "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(1.0, 10)),
        "chain of optax": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
        "functions": lambda: [even, odd, uses_globals, custom(1.0), jax.jit(closure(1)), jax.grad(closure(2.0))],
        "objects": lambda: [Scaled(2.0), Scaled(2.0).apply, Colour.RED, Net, wired("relu"), np.random.default_rng(3)],
        "containers": lambda: [
            {"a", "b", "c"},
            frozenset("xyz"),
            Names("pqr"),
            {"b": 1, "a": 2},
            (1, [2.0, (3j, b"4")]),
        ],
        "keys": lambda: [jax.random.key(1), jax.random.key(1, impl="rbg"), jnp.float32, np.dtype("int8")],
    }


def pairs():
    """What differs and was once taken for the same: name -> two objects."""
    return {
        "partial": (functools.partial(even, 1), functools.partial(even, 2)),
        "partial keywords": (functools.partial(even, number=1), functools.partial(even, number=2)),
        "closure": (closure(1), closure(2)),
        "closure of an array": (closure(jnp.ones(100)), closure(jnp.ones(100).at[7].set(2))),
        "default": (lambda x, k=1: k * x, lambda x, k=2: k * x),
        "keyword default": (lambda x, *, k=1: k * x, lambda x, *, k=2: k * x),
        "constant": (lambda x: 2.0 * x, lambda x: 3.0 * x),
        "sign": (lambda z, goal: z[0], lambda z, goal: -z[0]),
        "attribute": (lambda x: x.min(), lambda x: x.max()),
        "nested": (lambda x: (lambda: x + 1)(), lambda x: (lambda: x + 2)()),
        "global number": (uses_globals, with_globals(uses_globals, RATE=0.25)),
        "global array": (uses_globals, with_globals(uses_globals, TABLE=np.arange(3.0) + 1)),
        "global function": (uses_globals, with_globals(uses_globals, even=odd)),
        "global module": (
            with_globals(lambda x: mine.act(x), mine=module_of_the_users("act = lambda x: x + 1")),  # noqa: F821
            with_globals(lambda x: mine.act(x), mine=module_of_the_users("act = lambda x: x + 2")),  # noqa: F821
        ),
        "module as attribute": tuple(Holds(module_of_the_users(f"act = lambda x: x + {n}")) for n in (1, 2)),
        "module in a closure": tuple(Holds(module_of_the_users(f"act = lambda x: x + {n}")).bound() for n in (1, 2)),
        "module as argument": tuple(
            functools.partial(even, module_of_the_users(f"act = lambda x: x + {n}")) for n in (1, 2)
        ),
        "class in a string": (written_in_a_string("+"), written_in_a_string("-")),
        "attribute of a tuple": (Row((1, 2), scale=1.0), Row((1, 2), scale=2.0)),
        "deque": (collections.deque([1], maxlen=1), collections.deque([1], maxlen=2)),
        "in a circle": (even, odd),
        "bound object": (Scaled(1.0).apply, Scaled(2.0).apply),
        "jit": (jax.jit(closure(1)), jax.jit(closure(2))),
        "vmap": (jax.vmap(closure(1), in_axes=0), jax.vmap(closure(1), in_axes=1)),
        "cache": (functools.cache(closure(1)), functools.cache(closure(2))),
        "custom gradient": (custom(1.0), custom(-1.0)),
        "bpda": (Classifier(closure(1.0), ()), attacks.bpda(jnp.round).before(Classifier(closure(1.0), ()))),
        "stand-in": (attacks.bpda(jnp.round), attacks.bpda(jnp.round, backward=jnp.square)),
        "schedule": (optax.cosine_decay_schedule(1.0, 10), optax.cosine_decay_schedule(1.0, 20)),
        "optimizer": (optax.adam(0.1), optax.adam(0.2)),
        "optimizer's schedule": tuple(optax.sgd(optax.linear_schedule(1.0, 0.0, n)) for n in (3, 4)),
        "activation": (Classifier.from_nnx(Net(nnx.relu)).apply, Classifier.from_nnx(Net(nnx.tanh)).apply),
        "dropout": (Net(rate=0.1), Net(rate=0.2)),
        "class body": (wired("relu"), wired("tanh")),
        "object of a class": (wired("relu")(), wired("tanh")()),
        "linen width": (linen_classifier(width=4).apply, linen_classifier(width=5).apply),
        "linen activation": (linen_classifier().apply, linen_classifier(activation=linen.tanh).apply),
        "enum": (Colour.RED, Colour.BLUE),
        "criterion": (CRITERIA["misclassified"](np.zeros(2, int), None), CRITERIA["top_2"](np.zeros(2, int), None)),
        "numpy bool": (np.True_, np.False_),
        "bytes": (b"a", b"b"),
        "set": ({1, 2}, {1, 3}),
        "subclass of a set": (Names("ab"), {"a", "b"}),
        "complex": (1 + 1j, 1 + 2j),
        "zero": (0.0, -0.0),
        "nan": (float("nan"), None),
        "list": ([1, 2], (1, 2)),
        "depth": ([1, [2, 3]], [[1, 2], 3]),
        "dictionary": ({1: 2}, {"1": 2}),
        "bool": (True, 1),
        "text": ("1", 1),
        "dtype": (np.zeros(3, np.float32), np.zeros(3, np.int32)),
        "shape": (np.zeros((2, 3)), np.zeros((3, 2))),
        "key": (jax.random.key(0), jax.random.key(1)),
        "implementation": (jax.random.key(0), jax.random.key(0, impl="rbg")),
        "type": (Scaled(1.0), dataclasses.make_dataclass("Scaled", ["factor"])(1.0)),
        "builtin": ([1].append, [2].append),
        "numpy function": (np.add, np.subtract),
    }


def digests():
    """Name -> identity, of everything."""
    return {name: identity(make()) for name, make in (registered() | others()).items()}
