"""Networks and counts of others, which are read where they lie and never committed."""

import os
import pathlib

import pytest

FOLDER = pathlib.Path(os.environ.get("JAXROBUST_REFERENCES", pathlib.Path(__file__).parents[2] / "shared" / "data"))


def published(name):
    """The path of a published file below the folder; the test is skipped where it is not there."""
    found = next(FOLDER.glob(f"**/{name}"), None)
    if found is None:
        pytest.skip(f"no {name} below {FOLDER}: set JAXROBUST_REFERENCES")
    return found
