"""The order of the laws."""

import pathlib

LAWS = pathlib.Path(__file__).with_name("test_laws.py")


def pytest_collection_modifyitems(items):
    """Puts the laws of one attack together, so that its programs are still there when the next of them needs them."""

    def case(item):
        values = item.callspec.params if hasattr(item, "callspec") else {}
        return str(values.get("attack", "")), str(values.get("perturbation_set", ""))

    places = [place for place, item in enumerate(items) if item.path == LAWS]
    for place, item in zip(places, sorted((items[place] for place in places), key=case), strict=True):
        items[place] = item
