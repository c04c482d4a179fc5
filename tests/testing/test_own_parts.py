"""The page that writes a set, a loss, an attack and an objective of one's own."""

import ast
import inspect

import pytest

from experiments import own_parts
from experiments.own_parts import Brightness, Halving, Trades
from jaxrobust import sets, testing


def test_a_page_of_forty_lines():
    """Of code: no docstrings, imports or the guard of the last three."""
    nodes = [node for node in ast.walk(ast.parse(inspect.getsource(own_parts))) if hasattr(node, "lineno")]
    told = [node for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    left_out = {place for node in told for place in range(node.lineno, node.end_lineno + 1)}
    left_out |= {node.lineno for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom, ast.If))}
    assert len({node.lineno for node in nodes} - left_out) <= 40


def test_a_few_laws():
    testing.check_set(Brightness(0.2), shapes=((4, 3, 1),), laws=["samples_are_members", "size_and_contains_agree"])
    attack = Halving(sets.Linf(0.1))
    testing.check_attack(attack, shape=(4, 3, 1), classes=3, laws=["results_are_members_and_confirmed"])
    testing.check_objective(Trades(attack), shape=(4, 3, 1), laws=["losses_and_metrics_are_an_example_each"])
    assert str(attack) == "Halving in Linf(0.1), 3 steps, random start, logit"


@pytest.mark.slow
def test_all_laws():
    testing.check_set(Brightness(0.2))
    testing.check_attack(Halving(sets.Linf(0.1)))
    testing.check_objective(Trades(Halving(Brightness(0.2))))
