"""The command line: `python -m benchmarks.run [NAMES...] [--output FILE.json] [--quick]`."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import jax
import tyro

from benchmarks import (
    attack_overhead,
    autoattack,
    beside_autoattack,
    beside_foolbox,
    beside_torchattacks,
    fit_many,
    lanes_early_stop,
    mnist_at,
    mnist_vanilla,
    pgd_overhead,
    projection_quality,
    reading,
    retraces,
    set_costs,
    train_step_overhead,
    wasserstein,
)
from benchmarks.harness import NEEDS, REGISTRY, ROOT, Settings, missing
from benchmarks.tables import table
from jaxrobust import _checks
from jaxrobust._store import versions

__all__ = ["command", "main"]

# Imported for what they register, in this order.
MODULES = (
    retraces,
    pgd_overhead,
    set_costs,
    lanes_early_stop,
    mnist_vanilla,
    mnist_at,
    fit_many,
    projection_quality,
    wasserstein,
    reading,
    attack_overhead,
    train_step_overhead,
    autoattack,
    beside_autoattack,
    beside_torchattacks,
    beside_foolbox,
)


def main(settings: Settings) -> dict[str, Any]:
    """Run the benchmarks, print a table of each and write the file after each.

    Args:
        settings: which ones, and how.

    Returns:
        What the file holds.

    Raises:
        ValueError: an unknown name, one whose packages are missing, a count below 1, or an output that exists already.
    """
    names = [_checks.choice("names", name, REGISTRY) for name in settings.names]
    for name in names:
        if missing(name):
            raise ValueError(f"names: {name} needs packages that are not installed: {', '.join(missing(name))}")
    names = names or [name for name in REGISTRY if not missing(name)]
    for name in ("pairs", "at_epochs", "at_steps", "at_width", "at_examples"):
        if getattr(settings, name) is not None:
            _checks.count(name, getattr(settings, name))
    results = _environment(settings)
    output = _output(settings.output, results)
    for name in names:
        began = time.perf_counter()
        print(f"{name}: {(REGISTRY[name].__doc__ or '').splitlines()[0]}", flush=True)
        found: list[dict[str, Any]] = []
        try:
            found.extend(figure.to_json(name) for figure in REGISTRY[name](settings))
        except Exception as error:  # one that fails, for want of data say, must not lose the others' hours
            traceback.print_exc()
            results["errors"][name] = f"{type(error).__name__}: {error}"
        results["figures"] += found
        results["seconds"][name] = round(time.perf_counter() - began, 1)
        print(table(found) if found else "  no figures", flush=True)
        if output is not None:
            partial = output.with_name(f".{output.name}.partial")
            partial.write_text(json.dumps(results, indent=1) + "\n")
            partial.replace(output)
    if output is not None:
        print(f"results: {output}")
    return results


def _output(output: pathlib.Path | None, about: dict[str, Any]) -> pathlib.Path | None:
    """The file to write; a folder's is named after the device and the date."""
    if output is None:
        return None
    if output.is_dir():
        device = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
        output /= f"{about['date'][:16].replace(':', '')}_{device}.json"
    if output.exists():
        raise ValueError(f"output must be a new file; {output} exists")
    output.parent.mkdir(parents=True, exist_ok=True)
    return output


def _environment(settings: Settings) -> dict[str, Any]:
    """Everything that the figures depend on."""
    changes = _git("status", "--porcelain")
    return {
        "schema": 1,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": _device(),
        "platform": jax.default_backend(),
        "versions": versions() | _peers(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "quick": settings.quick,
        "settings": {name: value for name, value in vars(settings).items() if isinstance(value, (int, float))},
        "seconds": {},
        "errors": {},
        "figures": [],
    }


def _peers() -> dict[str, str]:
    """The versions of the packages that some benchmarks need besides, where they are installed."""
    return {
        name: importlib.metadata.version(name)
        for name in sorted({name for needs in NEEDS.values() for name in needs})
        if importlib.util.find_spec(name) is not None
    }


def _git(*arguments: str) -> str | None:
    """What git says about the tree that this file is in; None where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _device() -> str:
    """The device in words; of a CPU the cores, since how many devices they are shown as is a matter of settings."""
    if jax.default_backend() == "cpu":
        return f"{os.cpu_count()} CPU cores, {platform.machine()}"
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def command(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit status: 0, 1 where a benchmark failed, 2 where the arguments are wrong. A target that is missed is a
        figure like any other, not a failure.
    """
    try:
        results = main(tyro.cli(Settings, prog="python -m benchmarks.run", args=arguments))
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if results["errors"] else 0


if __name__ == "__main__":
    sys.exit(command())
