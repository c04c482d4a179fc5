"""A value taken apart by one level: what it is by itself, and what it is made of; for `_identity`."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pathlib
import platform
import sys
import sysconfig
import types
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Node", "Unknown", "Used", "node_of", "raw"]

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented))
ORDERED = (tuple, list, dict, collections.OrderedDict, collections.deque)
UNORDERED = (set, frozenset)
METHODS_IN_C = (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)
SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
# what `jax.jit` and `functools.cache` make
FASTER = ("PjitFunction", "PmapFunction", "_lru_cache_wrapper")
# wrappers that look at arguments and results and change nothing
CHECKERS = ("beartype", "jaxtyping", "typeguard")
# of a PyTorch module: what `torch.compile` leaves on it
TORCH_COMPILED = ("_compiled_call_impl", "_is_torch_compile")
# of a class: what says nothing of how its objects behave, or is made from what does
UNTOLD = {
    "__abstractmethods__", "__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__",
    "__dataclass_fields__", "__dataclass_params__", "__dict__", "__doc__", "__firstlineno__", "__match_args__",
    "__module__", "__orig_bases__", "__parameters__", "__qualname__", "__static_attributes__", "__weakref__",
    "_abc_impl",
}  # fmt: skip


class Node(NamedTuple):
    """What a value is by itself, what it is made of (a name for errors, a value), and whether the order counts."""

    label: tuple[str | bytes, ...]
    parts: Iterable[tuple[str, Any]] = ()
    ordered: bool = True


@dataclasses.dataclass(frozen=True)
class Used:
    """A module of the user's, by those of its attributes whose names some code knows."""

    module: types.ModuleType
    names: frozenset[str]

    @property
    def key(self) -> Any:
        return id(self.module), self.names


class Unknown(Exception):
    """A value that cannot be read, and why."""


def raw(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array; a random key as its data."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def node_of(value: Any, run_id: str | None) -> Node:
    """Take a value apart, by one level."""
    kind = type(value)
    if kind in PLAIN:
        return Node((kind.__name__, repr(value)))
    if isinstance(value, enum.Enum):
        return Node(("enum", str(value.name)), [(".__class__", kind), (".value", value._value_)])
    if isinstance(value, jax.core.Tracer):
        raise Unknown("a number that JAX is tracing")
    if kind is np.ndarray or isinstance(value, (np.generic, np.memmap, jax.Array)):
        return _array(value)
    if isinstance(value, np.dtype):
        return Node(("dtype", str(value)))
    plain_tuple = isinstance(value, tuple) and kind.__reduce_ex__ is object.__reduce_ex__
    if kind in ORDERED or plain_tuple or isinstance(value, UNORDERED):
        return _container(value)
    named = _named(value)
    if named is not None:
        return named
    if isinstance(value, (jax.Device, jax.sharding.Mesh, jax.sharding.Sharding)):
        return Node(("placement", kind.__name__))  # where something runs does not change what it is
    if isinstance(value, (types.ModuleType, Used)):
        return _module(value)
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, types.FunctionType):
        return _function(value, run_id)
    if isinstance(value, type):
        return _class(value, run_id)
    found = _callable(value)
    if found is not None:
        return found
    found = _network(value)
    if found is not None:
        return found
    frozen = dataclasses.is_dataclass(value) and getattr(kind, "__dataclass_params__").frozen  # noqa: B009
    if run_id is not None and _version(kind.__module__) is None and not frozen:
        return Node(("object", kind.__module__, kind.__qualname__, run_id))
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        fields = [(f".{name}", getattr(value, name, None)) for name in names]
        others = _attributes(getattr(value, "__dict__", {}), but={*names, *_computed(kind)})
        return Node(("dataclass", *(name for name, _ in others)), [(".__class__", kind), *fields, *others])
    try:
        return _object(value)
    except Exception as error:  # whatever the object's own code raises
        if run_id is not None:
            return Node(("object", kind.__module__, kind.__qualname__, run_id))
        raise Unknown(f"a {kind.__module__}.{kind.__qualname__} ({error})") from None


def _array(value: Any) -> Node:
    impl = ""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        impl = str(jax.random.key_impl(value))
    try:
        array = raw(value)
    except Exception as error:
        raise Unknown(f"an array of shape {value.shape} that cannot be fetched ({error})") from None
    label = ("array", str(array.dtype), str(array.shape), impl)
    if array.dtype.hasobject or array.dtype.kind == "T":
        return Node(label, [(f".flat[{i}]", item) for i, item in enumerate(array.ravel().tolist())])
    flat = np.ascontiguousarray(array).reshape(-1)
    return Node((*label, hashlib.sha256(flat.view(np.uint8) if flat.size else b"").digest()))


def _container(value: Any) -> Node:
    kind = type(value)
    own = [] if kind in ORDERED + UNORDERED else [(".__class__", kind), (".__dict__", getattr(value, "__dict__", {}))]
    if isinstance(value, UNORDERED):
        return Node((kind.__name__,), [*own, *(("{…}", item) for item in value)], ordered=False)
    if isinstance(value, dict):
        pairs = [(part, item) for key, item in value.items() for part, item in (("{…}", key), (f"[{key!r:.40}]", item))]
        return Node((kind.__name__,), pairs)
    limit = str(value.maxlen) if kind is collections.deque else ""
    return Node((kind.__name__, limit), [*own, *((f"[{i}]", item) for i, item in enumerate(value))])


def _named(value: Any) -> Node | None:
    """Of what an installed package gives by a name: the name and the package's version."""
    if "__qualname__" in getattr(value, "__dict__", ()) and not isinstance(value, type):
        module, name = value.__dict__.get("__module__"), value.__dict__["__qualname__"]
    elif any("__qualname__" in vars(base) for base in type(value).__mro__):
        module, name = getattr(value, "__module__", None), value.__qualname__
    else:
        return None
    version = _version(module) if isinstance(module, str) else None
    if version is None or not isinstance(name, str):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return Node(("named", module, name, version)) if found is value else None


def _module(value: Any) -> Node:
    if isinstance(value, Used):
        known = vars(value.module)
        parts = [(f".{name}", _seen(known[name], value.names)) for name in sorted(value.names & known.keys())]
        return Node(("module", value.module.__name__), parts)
    version = _version(value.__name__)
    if version is None:  # held, not named by code: whatever is in it may be used
        return _module(Used(value, frozenset(name for name in vars(value) if not name.startswith("__"))))
    return Node(("module", value.__name__, version))


def _seen(value: Any, names: frozenset[str]) -> Any:
    """What code that knows some names can reach of a value: of the user's modules, the attributes of these names."""
    mine = isinstance(value, types.ModuleType) and _version(value.__name__) is None
    return Used(value, names) if mine else value


def _code(value: types.CodeType) -> Node:
    arguments = value.co_argcount + value.co_kwonlyargcount
    label = (
        "code",
        value.co_code,
        getattr(value, "co_exceptiontable", b""),
        repr((value.co_names, value.co_varnames[:arguments], value.co_freevars, value.co_cellvars)),
        repr((value.co_flags, value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)),
    )
    return Node(label, [(" constant", constant) for constant in value.co_consts])


class _Names(NamedTuple):
    """What some code, and the code in it, reads of globals, imports (levels, names), assigns to, and names at all."""

    globals: tuple[str, ...]
    imports: tuple[tuple[int, str], ...]
    assigned: frozenset[str]
    all: frozenset[str]


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> _Names:
    globals_: set[str] = set()
    imports: set[tuple[int, str]] = set()
    assigned: set[str] = set()
    named: set[str] = set()
    codes = [code]
    for part in codes:  # which grows
        codes.extend(constant for constant in part.co_consts if isinstance(constant, types.CodeType))
        named.update(part.co_names)
        # for `getattr`
        named.update(constant for constant in part.co_consts if isinstance(constant, str) and constant.isidentifier())
        level = 0
        for instruction in dis.get_instructions(part):
            if isinstance(instruction.argval, int) and instruction.opname.startswith("LOAD_"):
                level = instruction.argval  # the level and the names of an import come just before it
            elif instruction.opname == "IMPORT_NAME":
                imports.add((level, instruction.argval))
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                globals_.add(instruction.argval)
            elif instruction.opname in ("STORE_GLOBAL", "STORE_DEREF"):
                assigned.add(instruction.argval)
    return _Names(tuple(sorted(globals_)), tuple(sorted(imports)), frozenset(assigned), frozenset(named))


def _function(value: Any, run_id: str | None) -> Node:
    while _is_checker(value):
        value = value.__wrapped__
    code, home = value.__code__, str(value.__globals__.get("__name__"))
    version = _version(home)
    if version is None and run_id is not None:
        return Node(("function", value.__module__ or "", value.__qualname__, run_id))
    names = _names(code)
    parts = [("", code), (".__defaults__", value.__defaults__), (".__kwdefaults__", value.__kwdefaults__)]
    for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
        parts.append((f" closure {name}", _settled(name, _seen(_content(cell), names.all), names)))
    parts += [(f".{name}", item) for name, item in sorted(vars(value).items()) if not name.startswith("__")]
    if version is None:
        builtins = value.__globals__.get("__builtins__", {})
        builtins = vars(builtins) if isinstance(builtins, types.ModuleType) else builtins
        for name in names.globals:
            found = value.__globals__.get(name, builtins.get(name, NotImplemented))
            parts.append((f" global {name}", _settled(name, _seen(found, names.all), names)))
        parts += [(f" import {name}", _imported(level, name, value, names)) for level, name in names.imports]
    return Node(("function", version or "", "" if version is None else home), parts)


def _imported(level: int, name: str, function: Any, names: _Names) -> Any:
    """What an import inside a function gives: an installed package by name and version, loaded or not, and of the
    user's modules what the code names.
    """
    package = function.__globals__.get("__package__")
    try:
        full = importlib.util.resolve_name("." * level + name, package) if level else name
        top = full.partition(".")[0]
        loaded = sys.modules.get(top)
        spec = importlib.util.find_spec(top) if loaded is None else getattr(loaded, "__spec__", None)
        if _installed(getattr(spec, "origin", None)):
            try:
                return full, importlib.metadata.version(top)
            except importlib.metadata.PackageNotFoundError:  # Python's own, or of another name
                return full, platform.python_version()
        module = importlib.import_module(full)
    except (ImportError, ValueError):  # as it would be in the function, which may know what to do then
        return NotImplemented
    return _seen(module, names.all)


def _installed(origin: str | None) -> bool:
    """Whether what is at a path is of an installed package or Python's own."""
    if origin is None or origin in ("frozen", "built-in"):
        return origin is not None
    path = pathlib.Path(origin)
    return any(name in path.parts for name in SITE) or pathlib.Path(sysconfig.get_paths()["stdlib"]) in path.parents


def _is_checker(value: Any) -> bool:
    """Whether a function only looks at the arguments and results of another."""
    home = str(value.__globals__.get("__name__")).partition(".")[0]
    checks = home in CHECKERS or value.__code__.co_filename.startswith("<@beartype")
    return checks and isinstance(getattr(value, "__wrapped__", None), types.FunctionType)


def _settled(name: str, value: Any, names: _Names) -> Any:
    """A number that a function assigns to itself may be whole before its first call and floating after (Optax)."""
    return float(value) if name in names.assigned and type(value) is int and abs(value) < 2**53 else value


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return NotImplemented


def _class(value: type, run_id: str | None) -> Node:
    label = ("class", value.__module__, value.__qualname__)
    if run_id is not None:
        return Node((*label, run_id))
    if issubclass(value, enum.Enum):
        told = {name: member._value_ for name, member in value.__members__.items()}
        written = (types.FunctionType, property, classmethod, staticmethod)
        told |= {name: item for name, item in vars(value).items() if isinstance(item, written)}
    else:
        told = {name: item for name, item in vars(value).items() if name not in UNTOLD and not _generated(item)}
    parts = _attributes(told)
    names = tuple(name for name, _ in parts)
    return Node((*label, *names), [(".__bases__", value.__bases__), (".__class__", type(value)), *parts])


def _generated(item: Any) -> bool:
    """Whether a method was written by `dataclass` or `namedtuple`."""
    if not isinstance(item, types.FunctionType):
        return False
    home = str(item.__globals__.get("__name__"))
    return item.__code__.co_qualname.startswith("__create_fn__.") or home.startswith("namedtuple_")


def _callable(value: Any) -> Node | None:
    """What can be called and is written in C, by whom it calls."""
    if isinstance(value, types.MethodType):
        return Node(("method",), [(".__func__", value.__func__), (".__self__", value.__self__)])
    if isinstance(value, functools.cached_property):
        return Node(("cached_property",), [("", value.func)])
    if isinstance(value, np.lib.npyio.NpzFile):
        return Node(("npz",), [("", dict(value))])
    if isinstance(value, functools.partial):
        parts = [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
        return Node(("partial",), [(f".{name}", item) for name, item in [("__class__", type(value)), *parts]])
    if isinstance(value, (classmethod, staticmethod)):
        return Node((type(value).__name__,), [("", value.__func__)])
    if isinstance(value, property):
        return Node(("property",), [(".fget", value.fget), (".fset", value.fset), (".fdel", value.fdel)])
    if isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
        if value.__self__ is None or isinstance(value, type):
            raise Unknown(f"the built-in function {value.__name__}, which no module gives")
        return Node(("built-in", value.__name__), [(".__self__", value.__self__)])
    if isinstance(value, METHODS_IN_C):
        return Node(("built-in", value.__name__), [(".__objclass__", value.__objclass__)])
    if isinstance(value, SLOTS):
        return Node(("slot", value.__name__))
    if isinstance(value, types.MappingProxyType):
        return Node(("mappingproxy",), [("", dict(value))])
    if isinstance(value, types.CellType):
        return Node(("cell",), [("", _content(value))])
    if type(value).__name__ in FASTER and hasattr(value, "__wrapped__"):
        return Node(("compiled", type(value).__name__), [("", value.__wrapped__)])
    return None


def _network(value: Any) -> Node | None:
    """Modules of Flax and tensors of PyTorch, which hold more than what they are."""
    kind = type(value)
    nnx, linen, torch = (sys.modules.get(name) for name in ("flax.nnx", "flax.linen", "torch"))
    if nnx is not None and isinstance(value, nnx.Variable):
        parts = [("type", kind), ("value", value.get_raw_value()), ("metadata", value.get_metadata())]
        return Node(("variable",), [(f".{name}", item) for name, item in parts])
    if nnx is not None and isinstance(value, nnx.Module):
        graph, state = nnx.split(value)
        return Node(("nnx",), [(" graph", graph), (" leaves", jax.tree.leaves(state))])
    if linen is not None and isinstance(value, linen.Module):
        names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
        return Node(("linen",), [(".__class__", kind), *((f".{name}", getattr(value, name, None)) for name in names)])
    if torch is not None and isinstance(value, torch.nn.Module) and not isinstance(value, torch.jit.ScriptModule):
        # what `torch.compile` makes is known by what it compiles
        return _torch_module(getattr(value, "_orig_mod", value), torch.nn.Module)
    if torch is not None and isinstance(value, torch.Tensor):
        found = value.detach().cpu().contiguous().reshape(-1)
        about = (str(value.dtype), tuple(value.shape))
        return Node(("torch",), [("", about), ("", found.view(torch.uint8).numpy() if found.numel() else None)])
    return None


def _torch_module(value: Any, base: Any) -> Node:
    """A PyTorch module: its class, what it holds by name, its hooks in their order, whatever else it has."""
    own, common = vars(value), vars(base())
    told = {name: item for name, item in own.items() if name not in common and name not in TORCH_COMPILED}
    told["training"] = value.training
    for name, item in own.items():
        if name in ("_parameters", "_buffers", "_modules"):
            told |= {f"{name}.{place}": held for place, held in item.items()}
        elif name in common and name.endswith("_hooks") and item:
            told[name] = list(item.values())  # without the numbers by which they are removed
    parts = _attributes(told)
    return Node(("torch module", *(name for name, _ in parts)), [(".__class__", type(value)), *parts])


def _attributes(told: dict[str, Any], *, but: Iterable[str] = ()) -> list[tuple[str, Any]]:
    """Attributes in the order of their names."""
    return [(f".{name}", told[name]) for name in sorted(told.keys() - set(but))]


def _computed(kind: type) -> set[str]:
    """Attributes that are computed from others and then kept."""
    members = [member for base in kind.__mro__ for member in vars(base).items()]
    return {name for name, item in members if isinstance(item, functools.cached_property)}


def _object(value: Any) -> Node:
    """Any other object, by what pickle would write of it."""
    kind = type(value)
    told = copyreg.dispatch_table.get(kind)
    reduced = value.__reduce_ex__(4) if told is None else told(value)
    if isinstance(reduced, str):
        return Node(("global", reduced), [(".__class__", kind)])
    make, arguments, *rest = reduced
    state, items, pairs = [*rest, None, None, None][:3]
    if isinstance(state, dict) and all(isinstance(name, str) for name in state):
        attributes = _attributes(state, but=_computed(kind))
    else:
        attributes = [("", state)]
    parts = [(".__class__", kind), ("", make), ("", arguments)]
    parts += [("", None if items is None else list(items)), ("", None if pairs is None else list(pairs)), *attributes]
    return Node(("object", *(name for name, _ in attributes)), parts)


SITE = ("site-packages", "dist-packages")


@functools.cache
def _version(module: str) -> str | None:
    """The version of the installed package that a module belongs to; None of the user's own."""
    top = module.partition(".")[0]
    if top == "jaxrobust":
        return str(getattr(sys.modules.get(top), "__version__", ""))
    if top == "__main__":  # wherever the program lies that runs it
        return None
    if top in sys.builtin_module_names:
        return platform.python_version()
    found = sys.modules.get(top)
    places = [getattr(found, "__file__", None), *list(getattr(found, "__path__", []))]
    folders = [pathlib.Path(place) for place in places if place]
    if any(name in folder.parts for folder in folders for name in SITE):
        try:
            return importlib.metadata.version(top)
        except importlib.metadata.PackageNotFoundError:
            return str(getattr(found, "__version__", ""))
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    frozen = getattr(getattr(found, "__spec__", None), "origin", None) in ("frozen", "built-in")
    return platform.python_version() if frozen or any(library in folder.parents for folder in folders) else None
