"""What evaluation writes: whole or not at all, without pickles, recognised again."""

import dataclasses
import json
import pathlib

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


def test_fingerprints_tell_runs_apart():
    key = jax.random.key(0)
    weights = np.ones((2, 3), np.float32)
    parts = ["success", {"steps": 3}, [{"w": weights}, key]]
    same = ["success", {"steps": 3}, [{"w": jnp.ones((2, 3))}, jax.random.key(0)]]
    others = [
        ["clean", *parts[1:]],
        [parts[0], {"steps": 4}, parts[2]],
        [*parts[:2], [{"w": weights}, jax.random.key(1)]],
        [*parts[:2], [{"w": weights.T}, key]],
        [*parts[:2], [{"w": weights.astype(np.int32)}, key]],
        [*parts[:2], [{"w": weights * np.float32(1 + 1e-6)}, key]],
        [*parts[:2], [{"v": weights}, key]],
    ]
    prints = [_store.fingerprint(*p) for p in (parts, *others)]
    assert _store.fingerprint(*same) == prints[0]
    assert len(set(prints)) == len(prints)


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
    assert _store.fingerprint([back]) == _store.fingerprint([leaf])
