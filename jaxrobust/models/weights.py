"""Parameters in files: our own plain `.npz`, and published PyTorch weights in whatever file the user has them.

Nothing here unpickles: `.npz` holds plain arrays, safetensors is read by hand, and a PyTorch file is left to PyTorch
itself, which is told to load nothing but weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrobust import _store
from jaxrobust.types import Classifier

__all__ = ["load_lpips", "load_npz", "load_torchvision", "save_npz"]

Model = TypeVar("Model")

_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16}
_SAFETENSORS |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}


def save_npz(path: str | os.PathLike[str], model: Any) -> None:
    """Write a model's numbers, batch statistics included, under dotted names such as "conv1.kernel".

    The file appears whole or not at all; one that is there is replaced only when the new one is complete.

    Args:
        path: the file, in a directory that exists. Nothing is appended to the name.
        model: an `nnx.Module` (its random streams are left out), a `Classifier`, or any pytree of arrays.

    Raises:
        ValueError: if two arrays would have the same name.
        TypeError: if a leaf is not an array, or of a type that `.npz` cannot hold without pickle, such as bfloat16.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_npz(f"{folder}/w.npz", {"dense": {"bias": jnp.ones(2)}})
        ...     load_npz(f"{folder}/w.npz", {"dense": {"bias": jnp.zeros(2)}})
        {'dense': {'bias': Array([1., 1.], dtype=float32)}}
    """
    arrays = _named(_numbers(model))
    for name, value in arrays.items():
        if getattr(value.dtype, "kind", None) not in set("biufc"):
            raise TypeError(f"{name} must be of a type that NumPy has; got {value.dtype}")
    _store.write_arrays(_store.place(path), **{name: np.asarray(value) for name, value in arrays.items()})


def load_npz(path: str | os.PathLike[str], model: Model) -> Model:
    """Read what `save_npz` wrote, or any `.npz` with the same names and shapes.

    Arrays take the model's types. Everything is checked before anything is changed.

    Args:
        path: the file.
        model: the kind of thing that was saved. An `nnx.Module` is updated in place, as `nnx.update` does; a
            `Classifier` or another pytree serves as the pattern for a new one.

    Returns:
        The same module, or the new classifier or pytree.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an `.npz` of plain arrays, or a name is missing or not expected, or a shape or the
            kind of number differs; the message lists every one.

    Example:
        >>> import tempfile
        >>> from jaxrobust.models import MnistNet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_npz(f"{folder}/net.npz", MnistNet(rngs=nnx.Rngs(0)))
        ...     network = load_npz(f"{folder}/net.npz", MnistNet(rngs=nnx.Rngs(1)))
    """
    return _fit(path, model, _read(path))


def load_torchvision(path: str | os.PathLike[str], model: Model) -> Model:
    """Read weights that have torchvision's names and layout into an `AlexNet`, a `VGG` or a bottleneck `ResNet`.

    Convolutions are transposed from OIHW to HWIO and dense layers from (out, in) to (in, out); the dense layer that
    follows the flattened maps has its inputs reordered from (C, H, W) to (H, W, C).

    Args:
        path: `.safetensors`, `.npz`, or `.pth`/`.pt`, which needs PyTorch. A state dict, or a checkpoint that holds
            one under "state_dict" or "model".
        model: an `nnx.Module`, updated in place, or its `Classifier`, the pattern for a new one.

    Returns:
        The same module, or the new classifier.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if it is a PyTorch file and PyTorch is not installed.
        ValueError: if the file is of another kind or damaged, or does not fit the model; the message lists every
            name and shape that is amiss.

    Example:
        >>> from jaxrobust.models import AlexNet
        >>> load_torchvision("alexnet.safetensors", AlexNet(rngs=nnx.Rngs(0)))  # doctest: +SKIP
    """
    return _fit(path, model, _from_torch(path, _read_any(path)))


def load_lpips(path: str | os.PathLike[str]) -> tuple[jax.Array, ...]:
    """Read the learned weights of LPIPS, for `perceptual.lpips`.

    Args:
        path: `.safetensors`, `.npz`, or `.pth`/`.pt`, which needs PyTorch. It holds (1, C, 1, 1) under
            "lin0.model.1.weight", "lin1.model.1.weight" and so on, as the authors' own files do.

    Returns:
        One (C,) a layer, ≥ 0.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if it is a PyTorch file and PyTorch is not installed.
        ValueError: if the file is of another kind or damaged, or holds anything else.

    Reference:
        Zhang, Isola, Efros, Shechtman, Wang, 2018, arXiv:1801.03924.
    """
    found = _read_any(path)
    names = [f"lin{index}.model.1.weight" for index in range(len(found))]
    if not found or set(names) != set(found):
        raise ValueError(f"{path} must hold lin0.model.1.weight, lin1.model.1.weight, …; got {sorted(found)}")
    for name in names:
        shape = found[name].shape
        if len(shape) != 4 or shape[0] != 1 or shape[2:] != (1, 1):
            raise ValueError(f"{name} must have shape (1, C, 1, 1); got {shape} in {path}")
        if not np.all(found[name] >= 0):
            raise ValueError(f"{name} must be >= 0; got {found[name].min()} in {path}")
    return tuple(jnp.asarray(found[name].reshape(-1), jnp.float32) for name in names)


def _fit(path: str | os.PathLike[str], model: Model, found: Mapping[str, np.ndarray]) -> Model:
    """The model with the arrays found in a file, if they fit it in every name, shape and kind of number."""
    pattern = _numbers(model)
    expected = _named(pattern)
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"not expected {name}" for name in found if name not in expected]
    for name in [name for name in expected if name in found]:
        want, have = expected[name], found[name]
        if want.shape != have.shape:
            problems.append(f"{name} must have shape {want.shape}, found {have.shape}")
        elif _family(want.dtype) is not _family(have.dtype):
            problems.append(f"{name} must be of type {want.dtype}, found {have.dtype}")
    if problems:
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems)}")
    loaded = [jnp.asarray(found[name], want.dtype) for name, want in expected.items()]
    numbers = jax.tree.unflatten(jax.tree.structure(pattern), loaded)
    return _with_numbers(model, numbers)


def _from_torch(path: str | os.PathLike[str], found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under our names and in our layout."""
    found = {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}
    places = {
        f"{kind}.{index}": f"{ours}{place + first}"
        for kind, ours, first in (("features", "convs.", 0), ("classifier", "dense", 1))
        for place, index in enumerate(_layers(found, kind))
    }
    convs = [found[f"features.{index}.weight"] for index in _layers(found, "features")]
    arrays = {}
    for name, value in found.items():
        module, _, leaf = name.rpartition(".")
        module = places.get(module, _residual(module))
        if leaf == "weight" and module == "dense1" and value.ndim == 2 and convs:
            value = _reordered(path, value, len(convs[-1]))
        kernel = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim)
        names = {"weight": "kernel" if kernel else "scale", "running_mean": "mean", "running_var": "var"}
        arrays[f"{module}.{names.get(leaf, leaf)}"] = value.transpose(kernel) if kernel and leaf == "weight" else value
    return arrays


def _layers(found: Mapping[str, np.ndarray], kind: str) -> list[int]:
    """The places at which PyTorch's Sequential of that name has layers with weights."""
    matches = (re.fullmatch(rf"{kind}\.(\d+)\.weight", name) for name in found)
    return sorted(int(match[1]) for match in matches if match)


def _residual(module: str) -> str:
    """A residual network's module by our name."""
    module = re.sub(r"^layer([1-9])\.", lambda match: f"stages.{int(match[1]) - 1}.", module)
    module = module.replace("downsample.0", "shortcut.conv").replace("downsample.1", "shortcut.bn")
    return "dense" if module == "fc" else module


def _reordered(path: str | os.PathLike[str], weight: np.ndarray, channels: int) -> np.ndarray:
    """A dense layer (out, C · h · w) after flattened square maps, its inputs in the order of h, w, C."""
    side = math.isqrt(weight.shape[1] // channels)
    if channels * side**2 != weight.shape[1]:
        raise ValueError(
            f"{path} does not fit: the first dense layer has {weight.shape[1]} inputs, not {channels} square maps"
        )
    maps = weight.reshape(-1, channels, side, side)
    return maps.transpose(0, 2, 3, 1).reshape(weight.shape)


def _with_numbers(model: Any, numbers: Any) -> Any:
    if isinstance(model, nnx.Module):
        nnx.update(model, numbers)
        return model
    return dataclasses.replace(model, params=numbers) if isinstance(model, Classifier) else numbers


def _numbers(model: Any) -> Any:
    if isinstance(model, nnx.Module):
        return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate))))
    return model.params if isinstance(model, Classifier) else model


def _named(numbers: Any) -> dict[str, Any]:
    """The leaves in order, by dotted name."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(numbers):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"{name or 'model'} must be an array; got a {type(leaf).__name__}")
        if name in named:
            raise ValueError(f"model must give every array its own name; got {name!r} twice")
        named[name] = leaf
    return named


def _read_any(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    readers = {".npz": _read, ".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
    suffix = _store.place(path).suffix
    if suffix not in readers:
        raise ValueError(f"path must end in one of {sorted(readers)}; got {str(path)!r}")
    return readers[suffix](path)


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    return _store.read_arrays(_store.place(path), lambda error: f"{path} must be an .npz file of plain arrays: {error}")


def _read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """A length in eight bytes, so much JSON of {name: {dtype, shape, data_offsets}}, and the arrays end to end."""
    content = memoryview(_store.place(path).read_bytes())
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        if not 8 < start <= len(content):
            raise ValueError(f"its header would end at byte {start} of {len(content)}")
        header = json.loads(bytes(content[8:start]))
        header.pop("__metadata__", None)
        return {name: _tensor(name, content[start:], **entry) for name, entry in header.items()}
    # Whatever else is amiss (no JSON, no mapping, other keys, shapes that do not fit), the file is not one.
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must be a safetensors file: {error}") from error


def _tensor(name: str, content: memoryview, *, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    if dtype not in _SAFETENSORS:
        raise ValueError(f"{name} must be of a type among {sorted(_SAFETENSORS)}; got {dtype!r}")
    first, last = data_offsets
    kind = np.dtype(_SAFETENSORS[dtype])
    if not 0 <= first <= last <= len(content) or last - first != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{name} of shape {shape} cannot lie in bytes {first} to {last} of {len(content)}")
    return np.frombuffer(content[first:last], kind).reshape(shape)


def _read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    if not _store.local("path", path).exists():
        raise FileNotFoundError(f"no such file: {str(path)!r}")
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{path} is a PyTorch file: install torch, or convert it to safetensors or npz") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        found = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), Mapping)), found)
        return {name: _numpy(value.detach()) for name, value in found.items()}
    # PyTorch raises a dozen kinds of error, some of them its own, and all mean that the file is not one.
    except Exception as error:
        raise ValueError(f"{path} must be a PyTorch file of weights alone: {error}") from error


def _numpy(tensor: Any) -> np.ndarray:
    # NumPy has no bfloat16 of PyTorch's
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _family(dtype: Any) -> Any:
    families = (jnp.floating, jnp.integer, jnp.complexfloating, jnp.bool_)
    return next((family for family in families if jnp.issubdtype(dtype, family)), None)
