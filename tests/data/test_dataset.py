import doctest
import importlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxrobust.data import Dataset, load
from jaxrobust.data._dataset import split_range

numbers = st.just("") | st.integers(-40, 40).map(str)
percents = st.just("") | st.integers(-100, 100).map(lambda p: f"{p}%")


@given(st.tuples(numbers, numbers) | st.tuples(percents, percents), st.integers(1, 40))
def test_split_grammar_is_tfds(boundaries, total):
    first, last = boundaries
    assume(first or last)  # TFDS does not know "part[:]"
    # The last 1% of 10 examples is none of them; TFDS takes it for all.
    assume(not any(text.startswith("-") and _rounds_to_none(text, total) for text in boundaries))
    split = f"part[{first}:{last}]"
    info = tfds.core.SplitInfo(name="part", shard_lengths=[total], num_bytes=0)
    oracle = tfds.core.ReadInstruction.from_spec(split)
    try:
        (absolute,) = oracle.to_absolute({"part": info})
        start, stop = absolute.from_ or 0, total if absolute.to is None else absolute.to
        valid = 0 <= start < stop <= total
    except (AssertionError, ValueError):
        valid = False
    if valid:
        assert split_range(split, {"part": total}, "mine") == ("part", start, stop)
    else:
        with pytest.raises(ValueError, match=r"split must name a part of the .* examples"):
            split_range(split, {"part": total}, "mine")


def _rounds_to_none(text, total):
    return text.endswith("%") and round(int(text[:-1]) * total / 100) == 0


def test_a_part_that_rounds_to_nothing_is_refused():
    with pytest.raises(ValueError, match=r"split must name a part of the 10 examples of mine part; got 'part\[-1%:\]'"):
        split_range("part[-1%:]", {"part": 10}, "mine")


def test_whole_split_and_spaces():
    assert split_range("part", {"part": 3}, "mine") == ("part", 0, 3)
    assert split_range("part[:]", {"part": 3}, "mine") == ("part", 0, 3)
    assert split_range(" part [ 1 : 2 ] ", {"part": 3}, "mine") == ("part", 1, 2)


@pytest.mark.parametrize("split", ["", "part[", "part[1]", "part[::2]", "part[1.5:]", "part+part", "part[:5%%]"])
def test_bad_grammar(split):
    with pytest.raises(ValueError, match="split must read like"):
        split_range(split, {"part": 10}, "mine")


def test_mixed_units_are_refused():
    with pytest.raises(ValueError, match="split must use positions or percentages, not both"):
        split_range("part[10%:5]", {"part": 10}, "mine")


def test_unknown_split_lists_the_known():
    with pytest.raises(ValueError, match=r"split of digits must be one of test, train; got 'valid\[:3\]'"):
        load("digits", "valid[:3]")


def test_digits_partition_scikit_learns():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    test, train = load("digits"), load("digits", "train")
    assert (len(test), len(train), test.shape, test.classes) == (359, 1438, (8, 8, 1), 10)
    np.testing.assert_array_equal(test.images[..., 0] * 16, bunch.images[4::5])
    np.testing.assert_array_equal(test.labels, bunch.target[4::5])
    counts = np.bincount(test.labels) + np.bincount(train.labels)
    np.testing.assert_array_equal(counts, np.bincount(bunch.target))


def test_digits_unpack():
    images, labels = load("digits", "test[:100]")
    assert images.shape == (100, 8, 8, 1)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    assert images.min() == 0
    assert images.max() == 1
    whole, _ = load("digits", "test")
    np.testing.assert_array_equal(load("digits", "test[-10:]").images, whole[-10:])


def test_indexing(rng):
    raw = rng.integers(0, 256, (6, 3, 2, 1), dtype=np.uint8)
    data = Dataset.from_arrays(raw, np.arange(6), name="mine")
    image, label = data[4]
    assert label == 4
    np.testing.assert_array_equal(image, (raw[4] / 255).astype(np.float32))
    for index in (slice(1, 5, 2), [1, 3], np.array([False, True, False, True, False, False])):
        np.testing.assert_array_equal(data[index].raw, raw[[1, 3]])
        assert data[index].classes == 6
    np.testing.assert_array_equal(data.take(2).labels, [0, 1])
    with pytest.raises(ValueError, match=r"count must be 1..6"):
        data.take(7)
    assert repr(data) == "Dataset(mine: 6 images (3, 2, 1), 6 classes)"


@pytest.mark.parametrize(
    ("images", "labels", "kind", "message"),
    [
        (np.zeros((2, 2, 2, 1), np.int32), [0, 1], TypeError, "images must be uint8"),
        (np.zeros((2, 2, 2), np.uint8), [0, 1], ValueError, r"images must have shape .*got \(2, 2, 2\)"),
        (np.zeros((0, 2, 2, 1), np.uint8), [], ValueError, "images must not be empty"),
        (np.full((2, 2, 2, 1), 1.5), [0, 1], ValueError, r"images must lie in \[0, 1\].*1.5"),
        (np.full((2, 2, 2, 1), np.nan), [0, 1], ValueError, r"images must lie in \[0, 1\].*nan"),
        (np.zeros((2, 2, 2, 1), np.uint8), [0.0, 1.0], TypeError, "labels must be an array of integers"),
        (np.zeros((2, 2, 2, 1), np.uint8), [0, 1, 2], ValueError, "labels must have shape"),
        (np.zeros((2, 2, 2, 1), np.uint8), [0, -1], ValueError, r"labels must lie in 0\.\.0; got -1\.\.0"),
        (
            np.zeros((2, 2, 2, 1), np.uint8),
            [0, 2**31 - 1],
            ValueError,
            "classes must be at most 1000000; got 21474",
        ),
    ],
)
def test_bad_arrays(images, labels, kind, message):
    with pytest.raises(kind, match=message):
        Dataset.from_arrays(images, labels)


@pytest.mark.parametrize("module", ["_dataset", "augment", "loader", "sources"])
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"jaxrobust.data.{module}"))
    assert result.failed == 0
    assert result.attempted > 0
