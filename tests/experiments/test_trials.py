"""Trials of recipes: their steps, their page and their exit status."""

import json

import pytest

from experiments import trials


def test_a_trial_says_whether_the_loss_falls(tmp_path, capsys):
    options = ["digits", "--only", "standard", "--steps", "40", "--width", "4", "--batch-size", "32"]
    assert trials.main([*options, "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["recipe"] == "digits-standard"
    assert row["loss at last"] < row["loss at first"]
    assert "| digits-standard |" in path.with_suffix(".md").read_text()
    assert "digits-standard" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["digits", "--steps", "5"], ["digits", "--only", "no-such"]])
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        trials.main(options)
    assert "--steps must be at least 20, and --only name recipes" in capsys.readouterr().err
