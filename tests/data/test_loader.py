import gc
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrobust.data import Batch, Dataset, Loader, augment

sizes = st.integers(1, 40)


def numbered(count):
    """Images that carry their own position."""
    raw = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 1))
    return Dataset.from_arrays(raw.copy(), np.arange(count))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("jaxrobust-loader")]


@given(sizes, st.integers(0, 2**31), st.integers(0, 1000))
def test_order_is_a_permutation_of_seed_and_epoch(count, seed, epoch):
    order = Loader(numbered(count), 1, seed=seed).order(epoch)
    assert sorted(order.tolist()) == list(range(count))
    np.testing.assert_array_equal(order, Loader(numbered(count), 7, seed=seed, shuffle=True).order(epoch))


def test_orders_differ_by_epoch_and_seed():
    orders = {tuple(Loader(numbered(40), 1, seed=s).order(e).tolist()) for s in range(5) for e in range(5)}
    assert len(orders) == 25


def hosts_of(count, batch_size, hosts, **make):
    make = {"seed": 3, "prefetch": 0} | make
    return [Loader(numbered(count), batch_size, host=i, hosts=hosts, **make) for i in range(hosts)]


@given(sizes, st.integers(1, 10), st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_parts_of_hosts_are_the_batch_of_one(count, rows, hosts, drop_last, epoch):
    """Field by field and row by row, fillers too; so every example is seen once an epoch, whatever the number."""
    if count < (rows * hosts if drop_last else 1):
        return
    (whole,) = hosts_of(count, rows * hosts, 1, drop_last=drop_last)
    parts = hosts_of(count, rows * hosts, hosts, drop_last=drop_last)
    assert {len(part) for part in parts} == {len(whole)}
    seen = []
    for batch, *pieces in zip(whole.epoch(epoch), *(part.epoch(epoch) for part in parts), strict=True):
        assert all(piece.images.shape == (rows, 2, 2, 1) for piece in pieces)
        for field, found in zip(batch, zip(*pieces, strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(found), field)
        assert batch.mask.all() or not drop_last
        assert (batch.images.dtype, batch.labels.dtype, batch.index.dtype) == (np.float32, np.int32, np.int32)
        # Rows that fill the batch are whole examples too.
        np.testing.assert_array_equal(batch.labels, batch.index)
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.index.astype(np.float32) / np.float32(255))
        seen += batch.index[batch.mask].tolist()
    assert len(seen) == len(set(seen)) == (len(whole) * rows * hosts if drop_last else count)


def test_bytes_stay_bytes_on_request():
    loaders = [Loader(numbered(6), 2, seed=0, as_bytes=as_bytes) for as_bytes in (True, False)]
    for raw, floats in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert raw.images.dtype == np.uint8
        np.testing.assert_array_equal(np.asarray(augment.to_float(raw.images)), floats.images)
    floating = Loader((np.full((2, 2, 2, 1), 0.5), [0, 1]), 2, seed=0, as_bytes=True)
    assert next(floating.epoch(0)).images.dtype == np.float32


@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 3), st.data())
def test_start_skips_without_changing_the_rest(count, batch_size, prefetch, draw):
    loader = Loader(numbered(count), batch_size, seed=1, prefetch=prefetch)
    start = draw.draw(st.integers(0, len(loader)))
    whole, rest = list(loader.epoch(4)), list(loader.epoch(4, start=start))
    assert len(rest) == len(loader) - start
    for one, other in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(one.index, other.index)
        np.testing.assert_array_equal(one.images, other.images)


def test_start_does_not_read_the_earlier_batches():
    read = []

    class Counting:
        def __len__(self):
            return 10

        def __getitem__(self, position):
            read.append(position)
            return np.zeros((2, 2, 1), np.uint8), position

    list(Loader(Counting(), 2, shuffle=False).epoch(0, start=3))
    assert sorted(read) == [6, 7, 8, 9]


def test_in_order_and_as_pytree():
    batches = list(Loader((np.zeros((5, 2, 2, 1), np.uint8), np.arange(5)), 3, shuffle=False).epoch(9))
    assert isinstance(batches[0], Batch)
    assert len(jax.tree.leaves(batches[0])) == 4
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 0]]
    assert batches[1].mask.tolist() == [True, True, False]


class Failing:
    """A source whose seventh example cannot be read."""

    def __len__(self):
        return 20

    def __getitem__(self, position):
        if position == 6:
            raise OSError("disk gone")
        return np.zeros((2, 2, 1), np.float32), position


@pytest.mark.parametrize(("prefetch", "workers"), [(0, 1), (1, 1), (5, 1), (5, 3)])
def test_errors_of_the_thread_are_raised_in_their_turn(prefetch, workers):
    batches = Loader(Failing(), 2, shuffle=False, prefetch=prefetch, workers=workers).epoch(0)
    assert [next(batches).index.tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
    assert threads() == []


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_end_with_an_early_break(workers):
    for batch in Loader(numbered(30), 2, seed=0, workers=workers).epoch(0):
        assert threads()
        break
    del batch
    gc.collect()
    assert threads() == []


def test_threads_end_when_the_consumer_fails():
    def consume():
        for _ in Loader(numbered(30), 2, seed=0).epoch(0):
            raise KeyError("consumer")

    with pytest.raises(KeyError, match="consumer"):
        consume()
    gc.collect()
    assert threads() == []


def test_no_thread_before_the_first_batch_nor_after_the_last():
    batches = Loader(numbered(6), 2, seed=0).epoch(0)
    assert threads() == []
    assert len(list(batches)) == 3
    assert threads() == []


def test_reads_ahead_of_the_consumer_but_no_further():
    read = []

    class Recording(Failing):
        def __getitem__(self, position):
            read.append(position)
            return np.zeros((2, 2, 1), np.float32), position

    batches = Loader(Recording(), 2, shuffle=False, prefetch=3).epoch(0)
    next(batches)
    deadline = time.monotonic() + 10
    while len(read) < 8 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert read == list(range(8))  # the batch in hand and three more
    batches.close()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1; got 0"),
        ({"seed": None}, ValueError, "seed must be given when shuffle is True"),
        ({"seed": -1}, ValueError, "seed must be >= 0; got -1"),
        ({"host": 2, "hosts": 2}, ValueError, r"host must be 0\.\.1; got 2"),
        ({"hosts": 0}, ValueError, "hosts must be >= 1"),
        ({"hosts": 3}, ValueError, "batch_size must be a multiple of hosts, 3; got 2"),
        ({"prefetch": -1}, ValueError, "prefetch must be >= 0"),
        ({"workers": 0}, ValueError, "workers must be >= 1"),
        ({"batch_size": 11, "drop_last": True}, ValueError, "dataset must fill a batch; got 10 examples"),
        ({"dataset": []}, ValueError, "dataset must fill a batch; got 0 examples"),
        ({"dataset": iter([])}, TypeError, "dataset must have __len__ and __getitem__"),
    ],
)
def test_bad_arguments(arguments, kind, message):
    given_ = {"dataset": numbered(10), "batch_size": 2, "seed": 0, **arguments}
    with pytest.raises(kind, match=message):
        Loader(given_.pop("dataset"), given_.pop("batch_size"), **given_)


def test_bad_epochs_fail_before_the_first_batch():
    loader = Loader(numbered(10), 2, seed=0)
    with pytest.raises(ValueError, match="number must be >= 0; got -1"):
        loader.epoch(-1)
    with pytest.raises(ValueError, match=r"start must be 0\.\.5, a step of the epoch; got 6"):
        loader.epoch(0, start=6)
