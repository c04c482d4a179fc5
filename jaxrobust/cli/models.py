"""The model that a command line names: what a function of the user's returns, as one that is attacked."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from jaxrobust import _checks, _store
from jaxrobust.types import Classifier

__all__ = ["WEIGHTS", "Failed", "load", "network", "of", "training_notes"]

WEIGHTS = "weights.npz"  # in the folder of a training run


class Failed(ValueError):
    """The user's own code raised, which is told in one line; its traceback is the cause's."""


def load(text: str, *, weights: str | None = None) -> Any:
    """Import what `PACKAGE.MODULE:FUNCTION` or `PATH/FILE.py:FUNCTION` names, and call it where it is a function.

    Args:
        text: what was written. The current folder is on the path, and so is the folder of a file.
        weights: the folder of a training run, or an `.npz` of `models.save_npz`, to fill an NNX module with.

    Returns:
        A model: see `of`.

    Raises:
        ValueError: there is no such module, file or name, or weights that do not fit it.
        Failed: importing or calling it raised.
    """
    if weights is None:
        return of(_made(text), text)
    from jaxrobust.models import load_npz

    module, path = network(text), _store.place(weights)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"--weights must be an .npz or the folder of a finished training run; got {weights!r}")
    return of(load_npz(path, module), text)


def training_notes(folder: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What an evaluation notes of the training behind its weights.

    Args:
        folder: what `--weights` names, or None.

    Returns:
        The log as a note of the name "training"; nothing where it is no folder of a training run.
    """
    from jaxrobust.training._run import read_rows

    rows = [] if folder is None else read_rows(_store.place(folder) / "training")
    return {"training": rows} if rows else {}


def network(text: str) -> Any:
    """The NNX module that a command line names, to be trained or filled with weights.

    Args:
        text: as for `load`.

    Returns:
        The module.

    Raises:
        ValueError: as `load`, or it is another kind of model.
        Failed: importing or calling it raised.
    """
    from flax import nnx

    made = _made(text)
    if not isinstance(made, nnx.Module):
        raise ValueError(f"--model {text} must return a Flax NNX module here; got {_checks.told(made)}")
    return made


def _made(text: str) -> Any:
    """What a function of the user's returns, or an object that is there."""
    where, _, name = text.rpartition(":")
    if not where or not name.isidentifier():
        raise ValueError(f"--model must be written PACKAGE.MODULE:FUNCTION or PATH/FILE.py:FUNCTION; got {text!r}")
    module = _guarded(text, functools.partial(_file if where.endswith(".py") else _module, where))
    if not hasattr(module, name):
        known = [n for n, v in vars(module).items() if not n.startswith("_") and callable(v)]
        raise ValueError(f"--model: {where} has no {name!r}{_checks._nearest(name, known)}")
    found = getattr(module, name)
    makes = inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, functools.partial)
    return _guarded(text, found) if makes else found


def _module(name: str) -> Any:
    if "" not in sys.path and str(pathlib.Path.cwd()) not in sys.path:
        sys.path.insert(0, str(pathlib.Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"--model: there is no module {name!r}, here or installed") from None
        raise


def _file(name: str) -> Any:
    path = pathlib.Path(name).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"--model: there is no file {name!r}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    known = sys.modules.get(path.stem)
    own = known is None or getattr(known, "__file__", None) == str(path)
    spec = importlib.util.spec_from_file_location(path.stem if own else f"{path.stem}_of_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _guarded(text: str, call: Callable[[], Any]) -> Any:
    """What a call into the user's code returns; what it raises, in one line with its place."""
    try:
        return call()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}"
        if isinstance(error, ValueError) and str(error).startswith("--model"):
            raise
        if isinstance(error, SyntaxError):
            place = f"{pathlib.Path(error.filename or '').name}:{error.lineno}"
        what = " ".join(str(error).split()) or "nothing more"
        raise Failed(f"--model {text} raised {type(error).__name__} at {place}: {what}") from error


def of(made: Any, text: str = "") -> Any:
    """What a user's function returned, as a model that `evaluate.robustness` takes.

    Args:
        made: a `Classifier`, a `HostModel`, an NNX module, a Linen module with its variables (and a dictionary of
            arguments of its call, such as `{"train": False}`), a torch module, or a function in JAX from images to
            logits.
        text: how errors call it.

    Returns:
        A `Classifier` or a host model.

    Raises:
        ValueError: it is nothing of this.
    """
    from flax import linen, nnx

    from jaxrobust import evaluate

    if isinstance(made, (Classifier, evaluate.HostModel)):
        return made
    if isinstance(made, nnx.Module):
        return Classifier.from_nnx(made)
    if isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], linen.Module):
        module, variables, *options = made
        return Classifier.from_linen(module, variables, **(options[0] if options else {}))
    homes = {kind.__module__.partition(".")[0] for kind in type(made).__mro__}
    if "torch" in homes:
        return evaluate.TorchModel(made.eval())
    if "equinox" in homes:
        return Classifier.from_equinox(made)
    if inspect.isfunction(made) or isinstance(made, functools.partial):
        return Classifier.from_function(made)
    raise ValueError(
        f"--model {text} must return a Classifier, an NNX module, (linen module, variables), a HostModel or a torch "
        f"module; got {_checks.told(made)}"
    )
