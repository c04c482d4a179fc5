"""What the lanes save, from time to time and whenever they are left, and how a run goes on from it."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _compile, _store
from jaxrobust.attacks import Attack
from jaxrobust.evaluate.host import HostModel
from jaxrobust.evaluate.lanes import Watch, undisturbed
from jaxrobust.types import Classifier

__all__ = ["check_unchanged", "held", "kept", "of_model"]

FORMAT = 2  # of what is saved; to be raised with any change of it
EVERY = 30.0  # seconds between two saves
SHARE = 0.05  # of the wall time at most goes into saves
LANES = ("lane_example", "lane_age", "lane_done")  # of a run, one entry a lane
PROBED = 4  # images at which gradients are compared
POINTS = 16  # at which a host model is asked, half of them noise, half of them means of two images
CLOSE = 1e-3  # of the logits' spread: other batch shapes round them otherwise
GRADIENTS_CLOSE = 0.05  # of the gradients' norm: they jump at kinks, where rounding decides


def of_model(model: Classifier | HostModel, run_id: str | None) -> dict[str, str]:
    """What a model is, part by part; to be asked before the model is, since some functions count their calls.

    Args:
        model: the model.
        run_id: see `_store.identity`.

    Returns:
        The name of each part -> its identity.

    Raises:
        ValueError: something cannot be identified, and there is no `run_id`.
    """
    if isinstance(model, HostModel):
        return {"model function": _store.identity(model, what="model", run_id=run_id)}
    if not isinstance(model, Classifier):
        return {}  # and is refused for it in a moment
    # mapped, so that dictionaries come in the order in which a program sees them
    params = jax.tree.map(_canonical, model.params)
    return {
        "model function": _store.identity((model.apply, model.activations), what="model", run_id=run_id),
        "parameters": _store.identity(params, what="model.params", run_id=run_id),
    }


def check_unchanged(before: dict[str, str], model: Classifier | HostModel) -> None:
    """That a model is what it was before it was asked, see `of_model`: else what is saved, and paid for, is lost."""
    after = of_model(model, None)
    for part, identity in before.items():
        if after.get(part) != identity:
            raise ValueError(
                f"model must not change as it is used where progress is saved; got another {part} after the clean pass "
                '(a count of calls, a cache?): pass run_id="...", a name of your own for this run'
            )


@contextlib.contextmanager
def held(files: Iterable[_store.Path]) -> Iterator[None]:
    """Hold save files for this run alone, see `_store.locked`."""
    with contextlib.ExitStack() as locks:
        for file in files:
            locks.enter_context(_store.locked(file))
        yield


def _canonical(leaf: Any) -> Any:
    """A number as it will be on the device."""
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def kept(path: _store.Path, attack: Attack, model: dict[str, str], run_id: str | None) -> Watch:
    """What goes on from a save file, and saves there now and then, at the end, and when an exception ends the run.

    Args:
        path: where it is or will be.
        attack: the attack as it was given.
        model: what `of_model` says.
        run_id: as there.

    Returns:
        What looks on; opened, it raises as `File`.
    """

    @contextlib.contextmanager
    def watch(run: Any) -> Iterator[Callable[[], None]]:
        file = File(path, run, attack, model, run_id)
        before, next_save = run.executed, time.perf_counter() + EVERY

        def after_round() -> None:
            nonlocal next_save
            began = time.perf_counter()
            if began > next_save:
                file.save()
                next_save = time.perf_counter() + max(EVERY, (time.perf_counter() - began) / SHARE)

        try:
            yield after_round
        except BaseException as error:  # Ctrl-C among them
            if run.executed > file.executed:
                try:
                    with undisturbed():
                        file.save()
                except Exception as failure:  # the first error is the one to tell
                    error.add_note(f"What was done could not be saved to {path}: {failure}")
            raise
        if run.executed > before or not path.exists():
            try:
                file.save()
            except OSError as error:  # such as a full disk: no reason to lose what has been computed
                text = f"the finished run was not saved to {path}: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=1)

    return watch


class File:
    """The save file of one run of the lanes.

    Args:
        path: where it is or will be.
        run: the run, before its first step.
        attack: the attack as it was given.
        model: what `of_model` says.
        run_id: as there.

    Raises:
        ValueError: something cannot be identified, the path is a folder, or the file is of another run or damaged.
    """

    def __init__(self, path: _store.Path, run: Any, attack: Attack, model: dict[str, str], run_id: str | None) -> None:
        self.path, self.run = path, run
        self.identity = {
            "version": _store.versions()["jaxrobust"],
            "format of the file": str(FORMAT),
            "run_id": str(run_id),
            "attack": _store.identity(attack, what="attack", run_id=run_id),
            "stop rule": str(run.stop),
            **model,
            "images": _store.identity(run.images),
            "labels or criterion": _store.identity(run.goal, what="labels", run_id=run_id),
            "indices": _store.identity(run.indices),
            "key": _store.identity(run.key),
        }
        if path.is_dir():
            raise ValueError(f"save must name a file; got the folder {path}")
        stored = _store.read_arrays(path) if path.exists() else None
        if stored is not None:
            self._compare(stored)
        self._keep({})  # nothing yet
        self.probe = _probe(run)
        if stored is None:
            path.parent.mkdir(parents=True, exist_ok=True)  # now, rather than when there is something to lose
        else:
            self._compare_answers(stored)
            self._check_whole(stored)
            self._restore(stored)
        self.executed = run.executed  # when it was saved last

    def save(self) -> None:
        """Write the books and the lanes; of lanes that a failed step has taken along, what was saved of them last."""
        run = self.run
        leaves = jax.tree.leaves(run.states) if run.waits else []
        try:
            # copies: the next step is given the lanes' own memory to write to
            self._keep({f"lane_{i}": np.array(_store.raw(leaf)) for i, leaf in enumerate(leaves)})
        except Exception:  # of buffers given away, or of a computation that failed: XLA has several
            # of examples that are still in the run that they were in then
            before = self.kept["lane_example"]
            self.kept["lane_example"] = np.where(run.runs_done[before] == self.kept_runs, before, -1)
        _store.write_arrays(
            self.path,
            identity=json.dumps(self.identity),
            **{f"probe_{name}": values for name, values in self.probe.items()},
            seconds=run.seconds,
            executed=run.executed,
            needed=run.needed,
            runs_done=run.runs_done,
            **{f"best_{name}": values for name, values in run.best.items()},
            **self.kept,
        )
        self.executed = run.executed

    def _keep(self, states: dict[str, np.ndarray]) -> None:
        """Keep the lanes as they are, and in which of its runs each example is."""
        self.kept = {name: getattr(self.run, name).copy() for name in LANES} | states
        self.kept_runs = self.run.runs_done[self.run.lane_example]

    def _compare(self, stored: dict[str, np.ndarray]) -> None:
        try:
            identity = json.loads(str(stored["identity"]))
            differing = [
                name for name in {**identity, **self.identity} if identity.get(name) != self.identity.get(name)
            ]
        except (KeyError, ValueError, AttributeError, TypeError):
            differing = ["version (or it is no save file at all)"]
        self._refuse(differing)

    def _compare_answers(self, stored: dict[str, np.ndarray]) -> None:
        differing = []
        for name, here in self.probe.items():
            there = stored.get(f"probe_{name}")
            if there is None or there.shape != here.shape:
                got = None if there is None else there.shape
                self._damaged(f"probe_{name} must have shape {here.shape}; got {got}")
            if not _alike(name, there, here):
                differing.append(f"the model's {name}, though not in its code")
        self._refuse(differing)

    def _refuse(self, differing: list[str]) -> None:
        if not differing:
            return
        hint = ""
        if "model function" in differing:
            hint = (
                " (a function or object that keeps something of its calls, a count or a compiled function, is another "
                "one after them: make it anew, or begin with a run_id)"
            )
        raise ValueError(
            f"save must name a file of this very run; {self.path} was written by a run that differs in: "
            f"{', '.join(differing)}. Name another file, or remove it to start anew{hint}"
        )

    def _check_whole(self, stored: dict[str, np.ndarray]) -> None:
        """That every array is there, and of the right shape and type."""
        run, lanes = self.run, (stored.get("lane_example", np.zeros(0)).size,)
        books = {f"best_{name}": values for name, values in run.best.items()}
        wanted = {name: (values.shape, values.dtype) for name, values in (books | {"runs_done": run.runs_done}).items()}
        wanted |= {name: (lanes, getattr(run, name).dtype) for name in LANES}
        wanted |= dict.fromkeys(("executed", "needed"), ((), np.dtype(np.int64)))
        wanted |= {"seconds": ((), np.dtype(np.float64))}
        for name, (shape, dtype) in wanted.items():
            found = stored.get(name)
            if found is None or found.shape != shape or (found.dtype != dtype and found.dtype.kind != "V"):
                got = "none" if found is None else f"{found.dtype}{list(found.shape)}"
                self._damaged(f"{name} must be {dtype}{list(shape)}; got {got}")
        examples = stored["lane_example"]
        if examples.size and not (examples.min() >= -1 and examples.max() < len(run.images)):
            self._damaged(f"lane_example must lie in [-1, {len(run.images)})")

    def _damaged(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path} must be a whole .npz, remove it to start anew; got damage: {what}")

    def _restore(self, stored: dict[str, np.ndarray]) -> None:
        """Take over the books; and the lanes, if as many are asked for."""
        run = self.run
        run.best = {name: _as(stored[f"best_{name}"], values.dtype) for name, values in run.best.items()}
        run.runs_done = stored["runs_done"]
        run.executed, run.needed = int(stored["executed"]), int(stored["needed"])
        run.earlier = float(stored["seconds"])
        self.kept = {name: array for name, array in stored.items() if name.startswith("lane_")}
        self.kept_runs = run.runs_done[self.kept["lane_example"]]
        if len(stored["lane_example"]) == run.width and "lane_0" in stored:
            for name in LANES:
                setattr(run, name, stored[name].copy())
            like = run.example_states()
            leaves = jax.tree.leaves(like)
            states = []
            for i, leaf in enumerate(leaves):
                array = stored.get(f"lane_{i}")
                shape = jax.eval_shape(jax.random.key_data, leaf).shape if _is_key(leaf) else leaf.shape
                if array is None or array.shape != shape:
                    self._damaged(f"lane_{i} must have shape {shape}; got {None if array is None else array.shape}")
                states.append(_store.restored(array, leaf))
            run.states = jax.tree.unflatten(jax.tree.structure(like), states)
        run.line_up()


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as(array: np.ndarray, dtype: Any) -> np.ndarray:
    """An array as it was before .npz, which knows no bfloat16 and its like, took its bytes."""
    return array.view(dtype) if array.dtype.kind == "V" else array


def _probe(run: Any) -> dict[str, np.ndarray]:
    """What a model says, since not all of a function need be in its code: a service may change behind it."""
    found = {"logits": run.logits}
    if isinstance(run.model, HostModel):
        rng = np.random.default_rng(0)
        noise = rng.random((POINTS // 2, *run.images.shape[1:]))
        first, second = run.images[rng.integers(len(run.images), size=(2, POINTS // 2))]
        found["answers"] = run.model(np.concatenate([noise, (first + second) / 2]).astype(run.images.dtype))
    if run.attack.gradients:
        images = run.images[:PROBED]
        directions = np.random.default_rng(0).normal(size=run.logits[:PROBED].shape).astype(run.logits.dtype)
        found["gradients"] = _gradients(run.there.model, images, directions)
    return {name: values if values.dtype.kind == "f" else values.astype(np.float32) for name, values in found.items()}


def _gradients(model: Classifier | HostModel, images: np.ndarray, directions: np.ndarray) -> np.ndarray:
    if isinstance(model, HostModel):
        return model.linearised(images)[1](directions[:, None])[:, 0]
    return np.asarray(_pulled(model, images, directions))


@_compile.jit
def _pulled(model: Classifier, images: Any, directions: Any) -> Any:
    """Directions in logit space pulled back to the images."""
    return jax.vjp(lambda images: model(images), images)[1](directions)[0]


def _alike(name: str, there: np.ndarray, here: np.ndarray) -> bool:
    """Whether two answers are the same but for rounding, which is small beside what sets answers apart."""
    finite = np.isfinite(here)
    if not np.array_equal(finite, np.isfinite(there)):
        return False
    there, here = (np.where(finite, values, 0).astype(np.float64) for values in (there, here))
    if name == "gradients":
        return bool(np.linalg.norm(there - here) <= GRADIENTS_CLOSE * np.linalg.norm(here))
    spread = np.ptp(here - here.mean(-1, keepdims=True))
    rounding = 64 * np.finfo(np.float32).eps * np.abs(here).max()
    return bool(np.abs(there - here).max() <= CLOSE * spread + rounding)
