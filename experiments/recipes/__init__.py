"""Recipes: a run of the field's tables each, a file a data set; `experiments.train --list` prints them."""

from __future__ import annotations

import difflib

from experiments.recipes import cifar10, digits, imagenet100, mnist
from experiments.recipes.recipe import Recipe

__all__ = ["RECIPES", "find"]

RECIPES = {recipe.name: recipe for module in (digits, mnist, cifar10, imagenet100) for recipe in module.RECIPES}


def find(name: str) -> Recipe:
    """A recipe by its name.

    Args:
        name: see `RECIPES`.

    Returns:
        The recipe.

    Raises:
        ValueError: there is none; the message has close names.
    """
    if name in RECIPES:
        return RECIPES[name]
    close = difflib.get_close_matches(name, RECIPES, n=4) or [one for one in RECIPES if one.startswith(name[:5])]
    near = f"; close ones are {', '.join(close)}" if close else ""
    raise ValueError(f"--recipe must be one of those that --list prints; got {name!r}{near}")
