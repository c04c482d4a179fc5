"""The command line of the claims: `python -m experiments.claims X1 --scale cpu`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from experiments.claims import (
    calibration,
    common,
    distillation,
    overfitting,
    perturbations,
    regularisers,
    steps,
    thresholding,
    wasserstein,
)
from jaxrobust import _store

EXPERIMENTS = {
    "X1": perturbations.x1,
    "X2": perturbations.x2,
    "X3": perturbations.x3,
    "X4": thresholding.x4,
    "X5": steps.x5,
    "X7": overfitting.x7,
    "X10": distillation.x10,
    "X11": calibration.x11,
    "X14": regularisers.x14,
    "X15": wasserstein.x15,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run experiments; 0 if all claims hold, 1 if one does not, 2 if an argument is bad."""
    parser = argparse.ArgumentParser(prog="python -m experiments.claims", description=common.__doc__)
    parser.add_argument("experiments", nargs="+", metavar="X", choices=EXPERIMENTS, help=", ".join(EXPERIMENTS))
    parser.add_argument("--scale", choices=common.SCALES, default="cpu")
    parser.add_argument("--seeds", type=int, help="of training, instead of the scale's")
    parser.add_argument("--runs", type=_store.place, default="runs/claims", help="kept from run to run")
    parser.add_argument("--results", type=_store.place, default="experiments/results")
    parser.add_argument("--progress", action="store_true", help="show bars")
    given = parser.parse_args(arguments)
    scale = common.SCALES[given.scale]
    if given.seeds is not None:
        if given.seeds < 1:
            parser.error(f"--seeds must be at least 1; got {given.seeds}")
        scale = dataclasses.replace(scale, seeds=given.seeds)
    try:
        held = [
            common.run(name, EXPERIMENTS[name], scale, given.runs, given.results, given.progress)
            for name in given.experiments
        ]
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
