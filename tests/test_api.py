"""The grammar of the public interface: what every exported name promises."""

import dataclasses
import importlib
import inspect
import itertools
import pkgutil
import subprocess
import sys

import jax
import pytest

import jaxrobust

ROOMS = ["", "attacks", "data", "evaluate", "losses", "models"]
ROOMS += ["perceptual", "report", "sets", "testing", "training", "transport"]


def exported():
    for room in ROOMS:
        module = importlib.import_module(f"jaxrobust.{room}".rstrip("."))
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


EXPORTED = dict(exported())
FUNCTIONS = {name: thing for name, thing in EXPORTED.items() if inspect.isfunction(thing)}
CLASSES = {name: thing for name, thing in EXPORTED.items() if inspect.isclass(thing)}


@pytest.mark.parametrize("room", ROOMS)
def test_exports_are_listed_in_order_and_exist(room):
    module = importlib.import_module(f"jaxrobust.{room}".rstrip("."))
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name)


@pytest.mark.parametrize("room", ROOMS)
def test_dir_shows_what_is_public(room):
    module = importlib.import_module(f"jaxrobust.{room}".rstrip("."))
    shown = [name for name in dir(module) if not name.startswith("__")]
    assert shown == sorted(module.__all__)
    assert "__doc__" in dir(module)


def parameters(function):
    return list(inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_are_keyword_only(name):
    """Except one leading default, as in load(name, split="test"): an argument that is read without its name."""
    loose = [p.name for p in parameters(FUNCTIONS[name]) if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY]
    assert loose in ([], ["split"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_keys_are_called_key_and_have_no_default(name):
    for parameter in parameters(FUNCTIONS[name]):
        assert parameter.name not in ("rng", "rng_key", "prng", "seed_key")
        if parameter.name == "key":
            assert parameter.default is parameter.empty


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_follow_the_template(name):
    text = inspect.getdoc(FUNCTIONS[name]) or ""
    assert text.splitlines()[0].endswith((".", ":")), "the first line is one sentence"
    named = [p.name for p in parameters(FUNCTIONS[name])]
    if named:
        assert "Args:" in text
        for argument in named:
            assert f"{argument}:" in text, f"{argument} is not explained"
    if FUNCTIONS[name].__annotations__.get("return") not in (None, "None"):
        assert "Returns:" in text


@pytest.mark.parametrize("name", CLASSES)
def test_classes_say_what_they_are(name):
    text = inspect.getdoc(CLASSES[name]) or ""
    assert text.splitlines()[0].endswith((".", ":"))
    for method, function in inspect.getmembers(CLASSES[name], inspect.isfunction):
        if not method.startswith("_") and function.__module__.startswith("jaxrobust"):
            assert inspect.getdoc(function), f"{method} has no docstring"


@pytest.mark.parametrize("name", CLASSES)
def test_dataclasses_are_frozen(name):
    kind = CLASSES[name]
    if dataclasses.is_dataclass(kind):
        assert kind.__dataclass_params__.frozen


def test_unknown_rooms_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'attack'"):
        _ = jaxrobust.attack
    assert {"attacks", "sets", "Classifier"} <= set(dir(jaxrobust))


def test_importing_makes_no_arrays_and_loads_no_heavy_packages():
    """The core costs no more than JAX; `jax.distributed.initialize` must still be possible after the import."""
    code = (
        "import sys, jax, jaxrobust, jaxrobust.attacks, jaxrobust.sets, jaxrobust.losses, jaxrobust.evaluate\n"
        "heavy = {'flax', 'optax', 'orbax', 'tensorflow_datasets', 'sklearn', 'scipy.stats', 'matplotlib', 'jinja2'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"  # refused once there is a device
        "assert len(jax.local_devices(backend='cpu')) == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_no_private_jax_and_no_pickles():
    for module in pkgutil.walk_packages(jaxrobust.__path__, "jaxrobust."):
        spec = importlib.util.find_spec(module.name)
        with open(spec.origin) as file:
            text = file.read()
        assert "jax." + "_src" not in text, module.name
        assert "import pickle" not in text, module.name
        assert "allow_pickle=True" not in text, module.name
        # structures of two such classes compare equal, and jit takes the program of one for the other's; see types.py
        assert "tree_util.register_dataclass" not in text, module.name


def test_numbers_are_canonical_so_that_nothing_retraces():
    traces = 0

    @jax.jit
    def radius(perturbation_set):
        nonlocal traces
        traces += 1
        return perturbation_set.radius

    for value in (0.1, 1, jax.numpy.float32(0.3), jax.numpy.asarray(0.2), __import__("numpy").float64(0.4)):
        radius(jaxrobust.sets.Linf(value))
    assert traces == 1


def test_classes_alike_have_structures_apart():
    """Or jit runs the program of one on the other, once in a hundred times."""

    def alike(number):
        @jaxrobust.types.pytree("radius")
        class Alike:
            radius: float

            def times(self, x):
                return number * x

        return Alike

    kinds = [alike(number) for number in range(40)]
    found = [kind(1.0) for kind in kinds] + [entry() for entry in jaxrobust.sets.REGISTRY.values()]
    found += [entry(jaxrobust.sets.REGISTRY[entry.on]()) for entry in jaxrobust.attacks.REGISTRY.values()]
    pairs = [pair for pair in itertools.combinations(found, 2) if type(pair[0]) is not type(pair[1])]
    assert not [pair for pair in pairs if jax.tree.structure(pair[0]) == jax.tree.structure(pair[1])]
    call = jax.jit(lambda kind: kind.times(kind.radius))
    assert [float(call(kind(2.0))) for kind in kinds] == [2.0 * number for number in range(40)]
