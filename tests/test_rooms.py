"""The pages of the rooms: complete, and those that are committed."""

import pytest

from jaxrobust import rooms

PAGES = {room: rooms.place(room) for room in rooms.ROOMS}


@pytest.mark.parametrize("room", rooms.ROOMS)
def test_the_committed_page_is_what_is_generated(room):
    assert PAGES[room].read_text(encoding="utf-8") == rooms.page(room), "run python -m jaxrobust.rooms --write"


def test_every_room_has_a_page_and_is_linked():
    folders = {file.parent.name for file in rooms.HERE.glob("*/__init__.py")} - {"cli"}
    assert folders | {"losses"} == {*rooms.ROOMS, "attacks"}
    readme = (rooms.HERE.parent / "README.md").read_text(encoding="utf-8")
    for file in rooms.pages():
        assert f"]({file.relative_to(rooms.HERE.parent)})" in readme


def test_command_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(rooms, "pages", lambda: {tmp_path / "sets" / "README.md": lambda: "the page\n"})
    (tmp_path / "sets").mkdir()
    monkeypatch.setattr("sys.argv", ["rooms", "sets"])
    rooms.main()
    assert capsys.readouterr().out == "the page\n"
    monkeypatch.setattr("sys.argv", ["rooms", "--write"])
    rooms.main()
    assert (tmp_path / "sets" / "README.md").read_text(encoding="utf-8") == "the page\n"
    monkeypatch.setattr("sys.argv", ["rooms", "attic"])
    with pytest.raises(SystemExit, match="2"):
        rooms.main()
    assert "ROOM must be one of sets; got 'attic'" in capsys.readouterr().err
