"""What evaluation writes: whole or not at all, without pickles, recognised again."""

import dataclasses
import enum
import functools
import json
import os
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import _store, attacks, sets


def test_arrays_come_back(tmp_path):
    path = tmp_path / "new" / "folder" / "a.npz"
    written = {"numbers": np.arange(6.0).reshape(2, 3), "name": "a name", "count": 3}
    _store.write_arrays(path, **written)
    read = _store.read_arrays(path)
    assert read.keys() == written.keys()
    np.testing.assert_array_equal(read["numbers"], written["numbers"])
    assert str(read["name"]) == "a name"
    assert int(read["count"]) == 3
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("write", [_store.write_arrays, _store.write_json])
def test_a_failed_write_leaves_the_old_file(write, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"the old one")

    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fails)
    monkeypatch.setattr(pathlib.Path, "write_text", fails)
    with pytest.raises(OSError, match="disk full"):
        write(path, **({"a": np.zeros(3)} if write is _store.write_arrays else {"value": {}}))
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_objects_are_not_pickled(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        _store.write_arrays(tmp_path / "a.npz", what=np.array([object()]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["empty", "text", "first half", "all but a byte", "flipped", "one array", "pickle"])
def test_a_damaged_file_is_named(damage, tmp_path):
    path = tmp_path / "a.npz"
    _store.write_arrays(path, a=np.arange(1000.0), b=np.zeros(5))
    whole = path.read_bytes()
    if damage == "one array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "pickle":
        np.savez(path, a=np.array([object()]), allow_pickle=True)
    else:
        bytes_of = {
            "empty": b"",
            "text": b"not an archive",
            "first half": whole[: len(whole) // 2],
            "all but a byte": whole[:-1],
            "flipped": whole[:500] + bytes([whole[500] ^ 255]) + whole[501:],
        }
        path.write_bytes(bytes_of[damage])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"{path.name} must be a whole .npz, remove it to start anew; got damage"):
        _store.read_arrays(path)
    assert path.read_bytes() == before


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    _store.write_arrays(path, a=np.arange(50.0), b=np.zeros(5), c="text")
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"must be a whole \.npz"):
            _store.read_arrays(path)


def test_json_is_standard_json(tmp_path):
    path = tmp_path / "a.json"
    _store.write_json(
        path, {"nan": float("nan"), "list": [float("inf"), (1.5, -float("inf"))], "text": "ε", "none": None}
    )

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read == {"nan": None, "list": [None, [1.5, None]], "text": "ε", "none": None}


@dataclasses.dataclass
class Settings:
    where: pathlib.Path
    numbers: tuple
    inner: object


def test_descriptions_are_json_and_say_all():
    attack = attacks.pgd(sets.L1(5.0, quantile=0.9), steps=3, step_size=jnp.asarray(0.5))
    settings = Settings(pathlib.Path("a/b"), (np.float32(0.5), np.int64(3), True, None), {"attack": attack, 1: max})
    described = json.loads(json.dumps(_store.describe(settings)))
    assert described["type"] == "Settings"
    assert described["where"] == "a/b"
    assert described["numbers"] == [0.5, 3, True, None]
    assert described["inner"]["1"] == "builtins.max"
    found = described["inner"]["attack"]
    assert found["set"] == {"type": "L1", "radius": 5.0, "quantile": 0.9}
    assert (found["steps"], found["step_size"], found["loss"]) == (3, 0.5, "cross_entropy")


def test_descriptions_tell_apart_what_people_can_tell_apart():
    values = [
        np.True_, np.False_, b"a", b"b", 1j, 2j, {1, 2}, {1, 3}, Shade.LIGHT, Shade.DARK,
        functools.partial(max, 1), functools.partial(max, 2), Settings(1, 2, 3).__eq__, Settings(1, 2, 4).__eq__,
    ]  # fmt: skip
    described = [json.dumps(_store.describe(value)) for value in values]
    assert len(set(described)) == len(values)
    assert _store.describe({"b", "a", "c"}) == ["a", "b", "c"]


class Shade(enum.Enum):
    LIGHT = 1
    DARK = 2


def test_many_who_write_at_once_leave_one_whole_file(tmp_path):
    """Threads of one process, which share its number; what each puts down is its own until it is whole."""
    path, names, together = tmp_path / f"{'long' * 60}.npz", [], threading.Barrier(4)

    def write(number):
        def contents(partial):
            names.append(partial.name)
            partial.write_bytes(bytes([number]) * 1000)
            together.wait(30)
            assert partial.read_bytes() == bytes([number]) * 1000

        _store.atomically(path, contents)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set(names)) == 4
    assert set(path.read_bytes()) < set(range(4))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (done.append(name), real(*args))[1])
    _store.write_json(tmp_path / "a.json", {})
    assert done == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize(
    "leaf",
    [
        np.arange(3.0, dtype=np.float32),
        np.array(True),
        np.arange(4, dtype=np.uint32),
        jax.random.split(jax.random.key(3), 4),
        jax.random.key(1, impl="rbg"),
        jnp.arange(4).astype(jnp.bfloat16),
        jnp.asarray(1.5, jnp.bfloat16),
    ],
    ids=lambda leaf: f"{leaf.dtype}{list(leaf.shape)}",
)
def test_lane_leaves_come_back_from_disk(leaf, tmp_path):
    leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    _store.write_arrays(tmp_path / "a.npz", leaf=_store.raw(leaf))
    back = _store.restored(_store.read_arrays(tmp_path / "a.npz")["leaf"], leaf)
    assert back.dtype == leaf.dtype
    assert back.shape == leaf.shape
    assert back.sharding == leaf.sharding
    np.testing.assert_array_equal(_store.raw(back).astype(np.float64), _store.raw(leaf).astype(np.float64))
    assert _store.identity([back]) == _store.identity([leaf])
