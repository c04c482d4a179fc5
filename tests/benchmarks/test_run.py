"""The benchmark harness: its command line, its registry, its files. No timing decides a test."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness, run, tables, work
from benchmarks.harness import REGISTRY, Figure, Settings

ROOT = Path(run.__file__).parent.parent
NAMES = {
    "autoattack",
    "fit_many",
    "lanes_early_stop",
    "mnist_at",
    "mnist_vanilla",
    "pgd_overhead",
    "projection_quality",
    "reading",
    "retraces",
    "train_step_overhead",
}
NAMES |= {"attack_overhead", "beside_autoattack", "beside_foolbox", "beside_torchattacks", "set_costs", "wasserstein"}


@pytest.fixture(scope="module")
def retraces(tmp_path_factory):
    """The results file of a quick run, and where it is."""
    folder = tmp_path_factory.mktemp("results")
    returned = run.main(Settings(names=("retraces",), quick=True, output=folder, progress=False))
    (file,) = folder.iterdir()
    return json.loads(file.read_text()), returned, file


def test_help_names_every_setting():
    line = [sys.executable, "-m", "benchmarks.run", "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--output", "--quick", "--pairs", "--weights", "--run-dir", "--at-epochs"):
        assert option in done.stdout


def test_registry_has_every_benchmark_by_its_own_name():
    assert set(REGISTRY) == NAMES
    for name, benchmark in REGISTRY.items():
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()
        assert benchmark.__doc__.strip().splitlines()[0]


@pytest.mark.slow
def test_retraces_are_none(retraces):
    result, _, _ = retraces
    changes = [figure for figure in result["figures"] if "changes" in figure["name"]]
    assert len(changes) == 2 * 2 * 5
    assert {figure["name"]: figure["value"] for figure in changes if figure["value"] != 0} == {}
    first = {figure["name"]: figure["value"] for figure in result["figures"]}
    assert first["in jit: programs compiled by the first call"] >= 1
    assert first["in jit: traces by the first call"] >= 1
    assert first["lanes: traces by the first call"] >= 1


def test_file_says_what_the_figures_depend_on(retraces):
    result, returned, file = retraces
    assert result == json.loads(json.dumps(returned))
    assert result["schema"] == 1
    assert result["quick"] is True
    assert result["errors"] == {}
    assert set(result["versions"]) >= {"python", "jax", "jaxlib", "flax", "numpy"}
    assert result["versions"]["jax"] == jax.__version__
    assert result["date"][:10] in file.name
    assert "cpu" in file.name
    assert result["dirty"] in (True, False, None)
    assert list(result["seconds"]) == ["retraces"]
    keys = {"benchmark", "name", "value", "unit", "target", "sense", "low", "high", "repeats", "met"}
    assert result["figures"]
    for figure in result["figures"]:
        assert set(figure) == keys
        assert isinstance(figure["value"], (int, float))
        assert isinstance(figure["unit"], str)
        assert figure["met"] is None or isinstance(figure["met"], bool)


def test_page_shows_every_figure(retraces):
    result, _, _ = retraces
    older = {**result, "date": "2000-01-01T00:00:00+00:00", "errors": {"retraces": "no data"}}
    page = tables.markdown([older, result])
    assert page.count("### retraces") == 2
    assert page.index(result["date"][:10]) < page.index("2000-01-01")
    assert page.count("Failed: no data") == 1
    assert "figures mean nothing" in page
    for figure in result["figures"]:
        assert page.count(f"| {figure['name']} |") == 2


def test_committed_page_is_up_to_date():
    found = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    assert (ROOT / "benchmarks" / "RESULTS.md").read_text() == tables.markdown(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(names=("pgd",)), "names must be one of .*retraces.*; got 'pgd'"),
        (Settings(names=("retraces",), pairs=0), "pairs must be >= 1; got 0"),
        (Settings(names=("retraces",), at_steps=0), "at_steps must be >= 1; got 0"),
        (Settings(names=("retraces",), output=Path(__file__)), "output must be a new file"),
    ],
)
def test_bad_settings_are_refused_at_the_door(settings, message, monkeypatch):
    def never(settings):
        raise AssertionError("the benchmark ran")
        yield

    monkeypatch.setitem(REGISTRY, "retraces", never)
    with pytest.raises(ValueError, match=message):
        run.main(settings)


def test_unknown_name_on_the_command_line_is_one_line(capsys):
    assert run.command(["pgd"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: names must be one of")
    assert said.err.count("\n") == 1


def test_failure_of_one_keeps_its_figures_and_the_others(tmp_path, monkeypatch, capsys):
    def broken(settings):
        """Fails."""
        yield Figure("before", 1.0)
        raise RuntimeError("no data")

    def sound(settings):
        """Works."""
        yield Figure("after", 2.0, "s", target=1.0)

    monkeypatch.setitem(REGISTRY, "broken", broken)
    monkeypatch.setitem(REGISTRY, "sound", sound)
    file = tmp_path / "new" / "results.json"
    assert run.command(["broken", "sound", "--output", str(file)]) == 1
    result = json.loads(file.read_text())
    assert [figure["name"] for figure in result["figures"]] == ["before", "after"]
    assert result["errors"] == {"broken": "RuntimeError: no data"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert "no data" in capsys.readouterr().err


def test_met_follows_the_sense():
    assert Figure("a", 1.0).met is None
    assert Figure("a", 1.0, target=1.0).met
    assert not Figure("a", 1.1, target=1.0).met
    assert Figure("a", 1.1, target=1.0, sense="at least").met
    assert not Figure("a", 0.9, target=1.0, sense="at least").met
    spread = Figure.of("a", [3.0, 1.0, 2.0])
    assert (spread.low, spread.value, spread.high, spread.repeats) == (1.0, 2.0, 3.0, 3)


def test_against_takes_turns_and_pairs():
    calls = []
    timings = harness.against(
        lambda: calls.append("reference"), {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, pairs=2
    )
    assert calls == ["reference", "a", "b", *["reference", "a", "reference", "b"] * 2]
    assert timings["a"].ratio.shape == timings["b"].reference.shape == (2,)
    np.testing.assert_array_equal(timings["a"].ratio, timings["a"].measured / timings["a"].reference)


def test_compilations_are_counted_inside_the_block_only():
    with harness.compilations() as found:
        jax.jit(lambda x: x * 3 + 1)(np.ones(7, np.float32))
    inside = len(found)
    jax.jit(lambda x: x * 3 + 2)(np.ones(7, np.float32))
    assert inside == len(found) == 1


def test_yardstick_is_the_gradient_of_the_summed_loss():
    model = work.mnist_net(Settings())
    images, labels = work.unlike(model, (28, 28, 1), 3, seed=0)
    assert (work.forward(model, images).argmax(1) == labels).all()
    found = work.gradients(model, images, labels, times=2)()

    def loss(images):
        return -jnp.take_along_axis(jax.nn.log_softmax(work.forward(model, images)), labels[:, None], axis=1).sum()

    direction = jnp.asarray(np.random.default_rng(1).normal(size=images.shape), jnp.float32)
    expected = jax.jvp(jax.jit(loss), (images,), (direction,))[1]
    np.testing.assert_allclose(jnp.vdot(found, direction), expected, rtol=1e-4)
