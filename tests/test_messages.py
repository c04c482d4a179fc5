"""What the doors say: each slip is an error or a warning that names the argument and the way out."""

import inspect
import itertools
import types
import warnings

import equinox
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrobust as jr
from jaxrobust import attacks, evaluate, sets

KEY = jax.random.key(0)
FACTORIES = {entry.factory.__name__: entry for entry in reversed(attacks.REGISTRY.values())}
WEIGHTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
X = np.random.default_rng(1).random((8, 2, 2, 3)).astype(np.float32)
Y = (X.reshape(8, 12) @ WEIGHTS).argmax(-1)


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


MODEL = jr.Classifier(linear, jnp.asarray(WEIGHTS))
ATTACK = attacks.fgsm(sets.Linf(0.1))


@pytest.fixture(autouse=True, scope="module")
def as_users_run():
    """Without the type checker of the tests, which would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def first_of(name):
    return next(iter(inspect.signature(FACTORIES[name].factory).parameters))


def make(name, *first, **options):
    """The attack by its public function, around one attack where it wants one."""
    entry = FACTORIES[name]
    if not first:
        example = sets.REGISTRY[entry.on]()
        first = (example if first_of(name) == "set" else attacks.pgd(example),)
    if name == "restarts":
        options = {"n": 2, **options}
    return entry.factory(*first, **options)


class Anything:
    pass


@pytest.mark.parametrize("name", sorted(FACTORIES))
def test_what_is_no_set_or_attack_is_refused_when_the_attack_is_built(name):
    wants = first_of(name)
    slips = ["linf", 0.1, 8, np.float32(0.1), jnp.ones(()), None, sets.Linf, attacks.pgd, lambda x: x, Anything(), {}]
    slips += [[sets.Linf(0.1)], (sets.Linf(0.1),), MODEL]
    slips += [ATTACK] if wants == "set" else [sets.Linf(0.1)]
    for slip in slips:
        with pytest.raises((TypeError, ValueError), match=f"^{wants}"):
            make(name, slip)


WITH_LOSS = sorted(name for name in FACTORIES if "loss" in inspect.signature(FACTORIES[name].factory).parameters)


@pytest.mark.parametrize("name", WITH_LOSS)
def test_unknown_losses_are_refused_when_the_attack_is_built(name):
    for slip in (3, 0.1, None, ("margin",), np.zeros(2)):
        with pytest.raises((TypeError, ValueError), match="loss must be one of"):
            make(name, loss=slip)
    with pytest.raises(ValueError, match=r"loss must be .*; got 'ce' \(did you mean 'cross_entropy'\?\)"):
        make(name, loss="ce")
    make(name, loss=lambda logits, goal: logits[0])


@pytest.mark.filterwarnings("ignore:Linf of radius 0")
@pytest.mark.parametrize("kind", [attacks.PGD, attacks.FMN, attacks.Square, attacks.RandomSearch])
def test_classes_let_the_placeholders_pass_around_which_jax_rebuilds_pytrees(kind):
    attack = {attacks.PGD: attacks.pgd, attacks.FMN: attacks.fmn, attacks.Square: attacks.square}.get(
        kind, attacks.worst_of_k
    )(sets.Linf(0.1))
    structure = jax.tree.structure(attack)
    for placeholder in (None, 0, object()):
        assert isinstance(jax.tree.unflatten(structure, [placeholder] * structure.num_leaves), kind)
        assert isinstance(
            jax.tree.map(lambda _, found=placeholder: found, attack, is_leaf=lambda v: v is attack.set), kind
        )
    for slip in ("linf", 0.1, sets.Linf, attack):
        with pytest.raises(TypeError, match="set must be"):
            jax.tree.map(lambda _, found=slip: found, attack, is_leaf=lambda v: v is attack.set)


def arguments(kind):
    """(attack, argument) of all arguments that are annotated so."""
    return [
        (name, parameter.name)
        for name, entry in FACTORIES.items()
        for parameter in itertools.islice(inspect.signature(entry.factory).parameters.values(), 1, None)
        # of Sparse-RS this one is read for patches alone
        if str(parameter.annotation).split(" |")[0] == kind and parameter.name != "move_every"
    ]


no_counts = st.one_of(
    st.integers(max_value=-1),
    st.floats(),
    st.text(max_size=3),
    st.booleans(),
    st.complex_numbers(),
    st.tuples(),
)
no_numbers = st.one_of(
    st.floats(max_value=-1e-3), st.sampled_from([np.nan, np.inf]), st.text(max_size=3), st.booleans(), st.just(1j)
)


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.sampled_from(arguments("int")), no_counts)
def test_what_is_no_count_is_refused_by_name(which, slip):
    name, argument = which
    with pytest.raises((TypeError, ValueError), match=argument):
        make(name, **{argument: slip})


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.sampled_from(arguments("Number")), no_numbers)
def test_what_is_no_number_is_refused_by_name(which, slip):
    name, argument = which
    with pytest.raises((TypeError, ValueError), match=argument):
        make(name, **{argument: slip})


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.sampled_from([*attacks.suites.SUITES, "pat-cifar10", "minimal", "unforeseen"]), st.data())
def test_what_suites_cannot_take_is_refused_by_name(name, data):
    argument = data.draw(st.sampled_from(["radius", "level", "network"]))
    slip = data.draw(no_counts if argument == "level" else no_numbers)
    with pytest.raises((TypeError, ValueError), match=argument):
        attacks.suite(name, **{argument: slip})


def run(model=MODEL, images=X, labels=Y):
    return attacks.run(ATTACK, model, images, labels, key=KEY)


def robustness(data=(X, Y), model=MODEL, **options):
    return evaluate.robustness(model, data, ATTACK, key=KEY, progress=False, **options)


def autoattack(**options):
    return evaluate.autoattack(MODEL, (X, Y), key=KEY, **options)


def foreign(home, name, **members):
    """A thing like one of a package that need not be here."""
    return type(name, (), {"__module__": home, **members})()


class Nnx(nnx.Module):
    def __call__(self, images):
        return images


class Linen(linen.Module):
    def __call__(self, images):
        return images


def tensor(array):
    return foreign("torch", "Tensor", shape=array.shape, dtype="torch.float32", ndim=array.ndim)


def no_array(self, *args, **options):
    raise RuntimeError("it is on another device")


class Trained(nnx.Module):
    """A network as it is while it is trained."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, images):
        return self.layer(images.reshape(len(images), -1)[:, :4])


def fails(images):
    raise ValueError("my own trouble.\n\nMuch more of it.")


def channels(spec, images):
    """Pooled features of a network that wants three channels."""
    kernel = jnp.zeros({"NCHW": (5, 3, 3, 3), "NHWC": (3, 3, 3, 5)}[spec])
    kernels = {"NCHW": "OIHW", "NHWC": "HWIO"}[spec]
    maps = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=(spec, kernels, spec))
    return maps.mean((2, 3) if spec == "NCHW" else (1, 2))


def wrapped(function):
    return jr.Classifier.from_function(function)


COLOUR, GREY = np.zeros((4, 8, 8, 3), np.float32), np.zeros((5, 28, 28), np.float32)
FIRST = COLOUR.transpose(0, 3, 1, 2)[:, :2]  # two channels first, of which no warning speaks
ONE_HOT = np.eye(3, dtype=np.float32)[Y]
BATCHES = [(X[:3], Y[:3]), (X[3:], Y[3:])]
RANDOM = attacks.RandomClassifier(lambda params, keys, images: images, ())
HOST = evaluate.HostModel(lambda images: WEIGHTS[: len(images)], 3)
# name -> call, the kind of error, and what it says in this order
MESSAGES = {
    "an NNX module": (lambda: run(Nnx()), TypeError, ["model must be a Classifier; got Nnx", "from_nnx(network)"]),
    "an NNX class": (lambda: run(Nnx), TypeError, ["got the class Nnx", "an instance", "from_nnx(network)"]),
    "a Linen module": (lambda: run(Linen()), TypeError, ["got Linen", "from_linen(module, variables)"]),
    "an Equinox module": (
        lambda: run(equinox.nn.MLP(12, 3, 4, 1, key=KEY)),
        TypeError,
        ["got MLP", "Classifier.from_equinox(module)"],
    ),
    "a torch module": (
        lambda: run(foreign("torch.nn.modules.container", "Sequential", __call__=lambda self, x: x)),
        TypeError,
        ["got Sequential", "evaluate.robustness", "evaluate.TorchModel(module)"],
    ),
    "a function": (lambda: run(linear), TypeError, ["got function linear", "Classifier.from_function(function)"]),
    "no model": (lambda: run(None), TypeError, ["model must be a Classifier; got None"]),
    "a host model": (lambda: run(HOST), TypeError, ["got HostModel", "evaluate.robustness"]),
    "a random model": (lambda: run(RANDOM), TypeError, ["got RandomClassifier", "random_classifier.mean(key)"]),
    "a raw model in the lanes": (lambda: robustness(model=Nnx()), TypeError, ["got Nnx", "from_nnx(network)"]),
    "a raw model to predict": (lambda: evaluate.predict(Nnx(), X), TypeError, ["got Nnx", "from_nnx(network)"]),
    "a raw model's trajectory": (
        lambda: attacks.trajectory(ATTACK, Nnx(), X, Y, key=KEY),
        TypeError,
        ["got Nnx", "from_nnx(network)"],
    ),
    "from_function of a number": (lambda: wrapped(42), TypeError, ["function must map images to logits; got 42"]),
    "… with parameters": (lambda: jr.Classifier.from_function(42, WEIGHTS), TypeError, ["function must"]),
    "Classifier of a number": (lambda: jr.Classifier(42, WEIGHTS), TypeError, ["apply must be a function", "42"]),
    "activations of a number": (lambda: jr.Classifier(linear, WEIGHTS, 3), TypeError, ["activations must be", "3"]),
    "from_nnx of Linen": (lambda: jr.Classifier.from_nnx(Linen()), TypeError, ["must be an nnx.Module", "from_linen"]),
    "from_linen of NNX": (
        lambda: jr.Classifier.from_linen(Nnx(), {}),
        TypeError,
        ["must be a flax.linen.Module", "from_nnx"],
    ),
    "a list of images": (lambda: run(images=list(X)), TypeError, ["images must be an array; got list", "np.asarray"]),
    "a tensor": (lambda: run(images=tensor(X)), TypeError, ["images must be an array", "cpu().numpy()"]),
    "a tensor elsewhere": (
        lambda: robustness((foreign("torch", "Tensor", __array__=no_array), Y)),
        TypeError,
        ["images must be one array; got Tensor", "images.detach().cpu().numpy()"],
    ),
    "bytes": (lambda: run(images=(X * 255).astype(np.uint8)), TypeError, ["images must be floating", "by 255"]),
    "whole numbers": (lambda: run(images=(X * 255).astype(int)), TypeError, ["images must be floating", "by 255"]),
    "bits": (lambda: run(images=X > 0.5), TypeError, ["got dtype bool (pass images.astype(np.float32))"]),
    "bits as integers": (lambda: run(images=(X > 0.5).astype(int)), TypeError, ["int64 (pass images.astype(np.float"]),
    "large numbers": (lambda: run(images=(X * 65535).astype(np.uint16)), TypeError, ["uint16 (divide by the value of"]),
    "words for images": (lambda: run(images=np.array(["a"])), TypeError, ["images must be floating", "got dtype <U1"]),
    "one image": (lambda: run(images=COLOUR[0]), ValueError, ["got (8, 8, 3)", "images[None]"]),
    "one grey image": (lambda: run(images=GREY[0, ..., None]), ValueError, ["got (28, 28, 1)", "images[None]"]),
    "grey images": (lambda: run(images=GREY), ValueError, ["got (5, 28, 28)", "images[..., None]"]),
    "grey images, or channels first": (
        lambda: run(images=GREY[:3]),
        ValueError,
        ["got (3, 28, 28)", "images[..., None]", "images.transpose(1, 2, 0)[None]"],
    ),
    "narrow images": (lambda: run(images=GREY[:, :3, :3]), ValueError, ["images[None]", "images[..., None]"]),
    "flat images": (lambda: run(images=GREY.reshape(5, -1)), ValueError, ["images.reshape(-1, H, W, C)"]),
    "stacked batches": (
        lambda: run(images=X[None]),
        ValueError,
        ["got (1, 8, 2, 2, 3)", "images.reshape(-1, *images.shape[2:])"],
    ),
    "a list of labels": (lambda: run(labels=list(Y)), TypeError, ["array of integers; got list", "np.asarray(labels)"]),
    "a tuple of labels": (lambda: run(labels=tuple(Y)), TypeError, ["got tuple", "np.asarray(labels)"]),
    "a tensor of labels": (lambda: run(labels=tensor(Y)), TypeError, ["got Tensor", "labels.detach().cpu().numpy()"]),
    "one-hot labels": (lambda: run(labels=ONE_HOT), TypeError, ["got float32[8, 3]", "labels.argmax(-1)"]),
    "one-hot integers": (lambda: run(labels=ONE_HOT.astype(int)), ValueError, ["(8,)", "(8, 3)", "labels.argmax(-1)"]),
    "a column of labels": (lambda: run(labels=Y[:, None]), ValueError, ["got (8, 1)", "labels[:, 0]"]),
    "labels that are floats": (lambda: run(labels=Y / 1), TypeError, ["got float64[8]", "labels.astype(np.int32)"]),
    "a criterion without labels": (
        lambda: robustness((X, jr.Targeted((Y + 1) % 3))),
        ValueError,
        ["a criterion must have the true labels", "got Targeted without"],
    ),
    "a criterion for labels": (
        lambda: jr.evaluate.masking(MODEL, (X, jr.Targeted((Y + 1) % 3)), jr.sets.Linf(0.1), key=KEY),
        TypeError,
        ["labels must be an array of integers", "got Targeted", "evaluate.robustness"],
    ),
    "a criterion's class": (
        lambda: robustness((X, jr.Misclassified)),
        TypeError,
        ["labels must be an array of integers", "got the class Misclassified"],
    ),
    "labels beyond 32 bits": (lambda: run(labels=Y + 2**32), ValueError, ["labels must lie in [0, 3)", "4294967296"]),
    "a folder that is none": (
        lambda: robustness(save_dir=3),
        TypeError,
        ["save_dir must be a path or a string; got 3"],
    ),
    "a run_id that is none": (lambda: robustness(run_id=3), TypeError, ["run_id must be a string or None; got 3"]),
    "a number of devices": (lambda: robustness(devices=3), TypeError, ["devices must be a list of devices", "got 3"]),
    "one device": (lambda: robustness(devices=jax.devices()[0]), TypeError, ["devices must be a list", "got Device"]),
    "a device's name": (lambda: robustness(devices=["cpu"]), TypeError, ["devices[0] must be a device", "got 'cpu'"]),
    "no radius": (
        lambda: attacks.fgsm(sets.Linf(None)),
        TypeError,
        ["set must have a number as its radius; got Linf of radius None"],
    ),
    "a list to worst_of": (
        lambda: attacks.worst_of([ATTACK, ATTACK]),
        TypeError,
        ["attacks must be attacks", "got list (unpack it: *attacks)"],
    ),
    "a label out of range": (lambda: jr.losses.margin(jnp.ones(4), 9), ValueError, ["labels must lie in [0, 4)", "9"]),
    "a label below 0": (lambda: jr.losses.dlr(jnp.ones(4), np.int64(-1)), ValueError, ["labels must lie in", "got -1"]),
    "dropout in a function": (
        lambda: run(wrapped(lambda x, network=Trained(nnx.Dropout(0.5, rngs=nnx.Rngs(0))): network(x))),
        ValueError,
        ["TraceContextError", "training mode", "network.eval() first"],
    ),
    "BatchNorm in a function": (
        lambda: run(wrapped(lambda x, network=Trained(nnx.BatchNorm(4, rngs=nnx.Rngs(0))): network(x))),
        ValueError,
        ["TraceContextError", "training mode", "network.eval() first"],
    ),
    "batches": (lambda: robustness(BATCHES), TypeError, ["data must be a pair", "list of batches", "np.concatenate"]),
    "more batches": (lambda: robustness(BATCHES * 2), TypeError, ["data must be a pair", "of batches"]),
    "endless batches": (lambda: robustness(itertools.cycle(BATCHES)), TypeError, ["data must be a pair", "of batches"]),
    "a pair of batches": (
        lambda: robustness(tuple(zip(*BATCHES, strict=True))),
        TypeError,
        ["images must be one array; got tuple", "np.concatenate(images)"],
    ),
    "images alone": (lambda: robustness(jnp.asarray(X)), TypeError, ["data must be a pair of images and labels; got"]),
    "a dictionary": (
        lambda: robustness({"image": X, "label": Y}),
        TypeError,
        ["data must be a pair", "(data['image'], data['label'])"],
    ),
    "a data set of batches": (lambda: jr.data.Dataset.from_arrays([X[:3], X[3:]], Y), TypeError, ["np.concatenate"]),
    "a data set of one-hot labels": (
        lambda: jr.data.Dataset.from_arrays(X, ONE_HOT),
        TypeError,
        ["labels must be an array of integers", "labels.argmax(-1)"],
    ),
    "a data set of grey images": (
        lambda: jr.data.Dataset.from_arrays(GREY, Y[:5]),
        ValueError,
        ["images must have shape (N, H, W, C)", "images[..., None]"],
    ),
    "batches to train on": (
        lambda: jr.training.fit(Nnx(), BATCHES, objective=jr.training.standard(), key=KEY),
        TypeError,
        ["train_data: data must be a pair", "of batches"],
    ),
    "a model that wants NCHW": (
        lambda: run(wrapped(lambda x: channels("NCHW", x)), COLOUR, Y[:4]),
        ValueError,
        ["ValueError: conv_general_dilated", "(4, 8, 8, 3), NHWC", "it takes (4, 3, 8, 8)", "transpose(0, 3, 1, 2)"],
    ),
    "a model of another size": (
        lambda: run(images=COLOUR, labels=Y[:4]),
        ValueError,
        ["TypeError: dot_general", "got (192,) and (12,) (the model failed on images of shape (4, 8, 8, 3), NHWC)"],
    ),
    "a model with trouble": (
        lambda: run(wrapped(fails), COLOUR, Y[:4]),
        ValueError,
        ["ValueError: my own trouble (the model failed on images of shape (4, 8, 8, 3), NHWC)"],
    ),
    "a model with a slip": (lambda: run(wrapped(lambda x: x.foo)), ValueError, ["AttributeError: ", "foo"]),
    "a model that branches": (
        lambda: run(wrapped(lambda x: x if x.sum() > 0 else -x)),
        ValueError,
        ["TracerBoolConversionError: ", "HostModel(function, classes)"],
    ),
    "a model on NumPy": (lambda: run(wrapped(np.asarray)), ValueError, ["TracerArrayConversion", "HostModel(function"]),
    "norm Linf": (lambda: autoattack(norm="Linf"), ValueError, ["norm must be one of", "did you mean 'linf'?"]),
    "norm l∞": (lambda: autoattack(norm="l∞"), ValueError, ["norm must be one of", "did you mean 'linf'?"]),
    "norm 2": (lambda: autoattack(norm=2), ValueError, ["norm must be one of", "got 2", "did you mean 'l2'?"]),
    "norm inf": (lambda: autoattack(norm=np.inf), ValueError, ["norm must be", "did you mean 'linf'?"]),
    "norm array": (lambda: autoattack(norm=np.zeros(2)), ValueError, ["norm must be one of"]),
    "norm of plus": (lambda: autoattack(norm="l1", version="plus"), ValueError, ["norm must", "for version 'plus'"]),
    "version": (lambda: autoattack(version="Standard"), ValueError, ["version must", "did you mean 'standard'?"]),
    "suite": (lambda: attacks.suite("autoattack_linf"), ValueError, ["name must", "did you mean 'autoattack-linf'?"]),
    "a run's arguments swapped": (
        lambda: evaluate.save_run([], "runs/a", title="t"),
        TypeError,
        ["run_dir must be a path or a string; got list"],
    ),
    "no list of evaluations": (
        lambda: evaluate.save_run("runs/a", ATTACK, title="t"),
        TypeError,
        ["evaluations must be a list of evaluations; got PGD"],
    ),
    "evaluations of attacks": (
        lambda: evaluate.save_run("runs/a", [ATTACK], title="t"),
        TypeError,
        ["evaluations[0] must be an Evaluation; got PGD"],
    ),
    "a finished run's folder": (lambda: evaluate.is_finished(3, {}), TypeError, ["run_dir must be a path", "got 3"]),
    "fab restarts": (lambda: attacks.fab(sets.L2(1.0), restarts=0), ValueError, ["restarts must be >= 1; got 0"]),
    "grid points": (
        lambda: attacks.grid_search(sets.RotationTranslation(), points=3),
        TypeError,
        ["points must be a tuple", "3"],
    ),
    "sparsity": (lambda: make("msd", sparsity=3), TypeError, ["sparsity must be (least, most); got 3"]),
    "part-wise steps": (lambda: make("affine", relative_step_sizes=0.1), TypeError, ["relative_step_sizes must be"]),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_errors_say_what_to_do(case):
    call, kind, parts = MESSAGES[case]
    with pytest.raises(kind) as found:
        call()
    said, place = str(found.value), 0
    for part in parts:
        assert part in said[place:], said
        place = said.index(part, place)
    assert len(said) < 400
    assert "\n" not in said


@pytest.mark.parametrize("case", [name for name, (_, _, parts) in MESSAGES.items() if "wants NCHW" not in name])
def test_only_a_model_that_wants_them_so_is_said_to_want_nchw(case):
    with pytest.raises((TypeError, ValueError)) as found:
        MESSAGES[case][0]()
    assert "NCHW" not in str(found.value)


def test_an_equinox_module_works_as_its_message_says():
    network = equinox.nn.Sequential([equinox.nn.Lambda(jnp.ravel), equinox.nn.Linear(12, 3, key=KEY)])
    model = jr.Classifier.from_equinox(network, channels_first=False)
    np.testing.assert_allclose(model(X)[2], network(X[2]), rtol=1e-5)


def warned(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        call()
    return [str(one.message) for one in found if one.category is UserWarning]


SLIPS = {
    "Linf of bytes": (lambda: sets.Linf(8), ["Linf of radius 8", "did you mean 8 / 255?"]),
    "a radius that was rounded": (lambda: sets.Linf(8 // 255), ["Linf of radius 0", "8 // 255", "write 0.0"]),
    "Linf at another radius": (lambda: sets.Linf(0.1).with_radius(16.0), ["did you mean 16 / 255?"]),
    "L0 of a share": (lambda: sets.L0(0.03), ["L0 of radius 0.03", "counts what changes"]),
    "L0 of a share within": (lambda: sets.Masked(sets.L0(0.5), np.ones((2, 2, 3), bool)), ["L0 of radius 0.5"]),
    "channels first": (
        lambda: evaluate.predict(wrapped(lambda x: x.mean((2, 3))), np.zeros((2, 3, 7, 7), np.float32)),
        ["(N, 3, 7, 7) look like NCHW", "images.transpose(0, 2, 3, 1)"],
    ),
    "one channel first": (
        lambda: jr.data.Dataset.from_arrays(np.zeros((2, 1, 9, 9), np.uint8), [0, 1]),
        ["(N, 1, 9, 9) look like NCHW"],
    ),
}


@pytest.mark.parametrize("case", SLIPS)
def test_likely_slips_are_warned_of(case):
    call, parts = SLIPS[case]
    (said,) = set(warned(call))
    for part in parts:
        assert part in said


NO_SLIPS = {
    "Linf of all": lambda: (sets.Linf(1.0), sets.Linf(1), sets.Linf(100.0)),
    "a rebuilt set": lambda: jax.tree.map(lambda leaf: 8 * leaf, sets.Linf(np.float64(0.5))),
    "a traced radius": lambda: jax.jit(lambda r: sets.Linf(r).radius)(8.0),
    "an array": lambda: sets.Linf(jnp.float32(8)),
    "no radius": lambda: (sets.Linf(0.0), sets.Linf(np.float32(0)), sets.Linf(jnp.int32(0))),
    "counts": lambda: (sets.L0(1), sets.L0(24.0), sets.L0(0), sets.L0(1e6)),
    "many channels": lambda: evaluate.predict(wrapped(lambda x: x.mean((1, 2))), np.zeros((2, 3, 4, 5), np.float32)),
    "small images": lambda: evaluate.predict(wrapped(lambda x: x.mean((1, 2))), np.zeros((2, 3, 3, 3), np.float32)),
    "suites": lambda: [attacks.suite(name) for name in (*attacks.suites.SUITES, "minimal")],
    "registered sets": lambda: [entry() for entry in sets.REGISTRY.values()],
}


@pytest.mark.parametrize("case", NO_SLIPS)
def test_what_may_well_be_meant_is_not_warned_of(case):
    assert not warned(NO_SLIPS[case])


@pytest.fixture(scope="module")
def explicit():
    """Everything on a mesh of four devices whose axes are explicit, as `jax.make_mesh` makes them."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("d")), NamedSharding(mesh, PartitionSpec())
    return types.SimpleNamespace(
        mesh=mesh,
        images=jax.device_put(X, rows),
        labels=jax.device_put(Y, rows),
        model=jr.Classifier(linear, jax.device_put(MODEL.params, everywhere)),
        key=jax.random.clone(jax.device_put(KEY, everywhere)),
    )


PLAIN = {"model": MODEL, "images": X, "labels": Y}
WAYS = {
    "run": lambda attack, key, **given: attacks.run(attack, **given, key=key),
    "jit": lambda attack, key, **given: jax.jit(lambda given, key: attacks.run(attack, **given, key=key))(given, key),
    "lanes": lambda attack, key, **given: evaluate.run_lanes(attack, **given, key=key, early_stop=False).result,
}


EVERYTHING = ("images", "labels", "model", "key")


@pytest.mark.parametrize(
    ("way", "which"),
    [
        ("run", EVERYTHING),
        pytest.param("run", ("images",), marks=pytest.mark.slow),
        pytest.param("jit", EVERYTHING, marks=pytest.mark.slow),
        pytest.param("lanes", EVERYTHING, marks=pytest.mark.slow),
    ],
)
def test_arrays_on_explicit_meshes_are_attacked_like_others(way, which, explicit):
    attack = attacks.pgd(sets.Linf(0.1), steps=2)
    given = {**PLAIN, "key": KEY, **{name: getattr(explicit, name) for name in which}}
    found, plain = WAYS[way](attack, **given), attacks.run(attack, **PLAIN, key=KEY)
    np.testing.assert_allclose(found.images, plain.images, atol=1e-6)
    assert (np.asarray(found.success) == np.asarray(plain.success)).all()


@pytest.mark.slow
def test_in_the_context_of_an_explicit_mesh_everything_runs(explicit):
    attack = attacks.pgd(sets.Linf(0.1), steps=2)
    plain = evaluate.robustness(MODEL, (X, Y), attack, key=KEY, progress=False)
    with jax.set_mesh(explicit.mesh):
        given = {"images": explicit.images, "labels": explicit.labels, "model": explicit.model, "key": explicit.key}
        assert attacks.run(attack, **given).success.shape == (8,)
        assert attacks.trajectory(attack, **given).shape == (3, 8)
        found = evaluate.robustness(
            explicit.model, (explicit.images, explicit.labels), attack, key=explicit.key, progress=False
        )
    assert found.union.accuracy == plain.union.accuracy
