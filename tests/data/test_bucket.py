"""Prepared copies in a bucket: written there whole, and read from a copy on the local disk, which is made once."""

import numpy as np
import pytest

from jaxrobust import data
from jaxrobust.data._prepared import names
from jaxrobust.data.prepare import prepare
from tests.bucket import standing_in
from tests.data import files

ROOT = "gs://bucket/data"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with standing_in(tmp_path) as found:
        yield found
    assert not (tmp_path / "gs:").exists()


def test_a_data_set_in_a_bucket(bucket, tmp_path):
    raw = files.write_idx(tmp_path / "raw")
    assert str(prepare("mnist", raw, data_dir=ROOT)) == f"{ROOT}/mnist/1.0.0"
    assert names(ROOT) == ["mnist"]
    expected = files.pixels(files.TRAIN, (6, 5), 0)
    np.testing.assert_array_equal(data.load("mnist", "train", data_dir=ROOT).raw[..., 0], expected)
    (copy,) = (tmp_path / "cache/jaxrobust/data").iterdir()
    data.load("mnist", "train", data_dir=ROOT)
    assert list((tmp_path / "cache/jaxrobust/data").iterdir()) == [copy]
    with pytest.raises(FileExistsError, match=f"{ROOT}/mnist/1.0.0 exists"):
        prepare("mnist", raw, data_dir=ROOT)
    prepare("mnist", files.write_idx(tmp_path / "other", shape=(4, 4)), data_dir=ROOT, overwrite=True)
    assert data.load("mnist", "train", data_dir=ROOT).raw.shape == (files.TRAIN, 4, 4, 1)


def test_bad_places(bucket, tmp_path):
    with pytest.raises(RuntimeError, match=f"'imagenet100' is not prepared in {ROOT}"):
        data.load("imagenet100", data_dir=ROOT)
    with pytest.raises(ValueError, match="source must be on a local disk; got 'gs://bucket/raw'"):
        prepare("mnist", "gs://bucket/raw", data_dir=ROOT)
    bucket.forbidden = True
    with pytest.raises(PermissionError, match=f"^data_dir must be .*'{ROOT}'.*403"):
        prepare("mnist", files.write_idx(tmp_path / "raw"), data_dir=ROOT)
    assert bucket.names() == []
