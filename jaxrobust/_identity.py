"""What an object is, as a digest: equal for what was built alike, in whatever process, and different for all else.

The object is read as a graph: a node for each value, a label for what the value is by itself, edges to what it is made
of. Nodes are numbered by object, since functions name one another in circles, but the digest rests on labels and
edges alone: two nodes that look alike as far as one can walk count as one.
"""

from __future__ import annotations

import hashlib
from typing import Any

from jaxrobust._taken_apart import Node, Unknown, Used, node_of

__all__ = ["identity"]

RUN_ID = 'Pass run_id="...", a name of your own for this run, that stands for what cannot be read'


def identity(value: Any, *, what: str = "value", run_id: str | None = None, advice: str = RUN_ID) -> str:
    """A digest of what a value is: of another value, another; of one built alike, in any process, the same.

    It rests on types, numbers (arrays by dtype, shape and bytes), structure, and functions: by code, constants,
    defaults, closures, and the values of the globals that the code names. What belongs to an installed package counts
    by its name and the package's version.

    Args:
        value: anything.
        what: how errors call it.
        run_id: stands for whatever is not made of numbers, names, containers, frozen dataclasses and networks:
            functions and other objects of the user's then count by their names alone.
        advice: the way out that errors name, where it is another.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: something in it cannot be read (a lock, a connection, a generator) and there is no `run_id`.

    Example:
        >>> scale = 2.0
        >>> identity(lambda x: scale * x) == identity(lambda x: scale * x), identity((1, 2)) == identity([1, 2])
        (True, False)
    """
    if not (run_id is None or isinstance(run_id, str)):
        raise TypeError(f"run_id must be a string or None; got {run_id!r}")
    return _digest(*_graph(value, what, run_id, advice))


def _graph(value: Any, what: str, run_id: str | None, advice: str) -> tuple[list[Node], list[list[int]]]:
    """Every value that can be reached, the first one first, and whom each is made of."""
    nodes: list[Node] = []
    edges: list[list[int]] = []
    values, paths = [value], [what]
    numbers = {_key(value): 0}
    for value in values:  # which grows while it is read
        path = paths[len(nodes)]
        try:
            node = node_of(value, run_id)
        except Exception as error:  # Unknown, or whatever the objects' own code raises
            kind = type(value)
            got = error if isinstance(error, Unknown) else f"a {kind.__module__}.{kind.__qualname__} ({error!r})"
            raise ValueError(
                f"{path} must be something that can be recognised in another process; got {got}. {advice}"
            ) from None
        made_of = []
        for name, part in node.parts:
            number = numbers.setdefault(_key(part), len(values))
            if number == len(values):
                values.append(part)
                paths.append(path + name if len(path) < 200 else path)
            made_of.append(number)
        nodes.append(node._replace(parts=()))
        edges.append(made_of)
    return nodes, edges


def _digest(nodes: list[Node], edges: list[list[int]]) -> str:
    """Colours from the leaves up; then, among what can reach a circle, refined until no two more are told apart."""
    colours: list[bytes] = [b""] * len(nodes)
    parents: list[list[int]] = [[] for _ in nodes]
    waiting = [len(made_of) for made_of in edges]
    for number, made_of in enumerate(edges):
        for part in made_of:
            parents[part].append(number)
    ready = [number for number, count in enumerate(waiting) if not count]
    for number in ready:  # which grows
        colours[number] = _colour(nodes[number], [colours[part] for part in edges[number]])
        for parent in parents[number]:
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    if waiting[0] == 0:
        return colours[0].hex()
    circular = [number for number, count in enumerate(waiting) if count]
    told_apart = 0
    while True:
        new = {n: _colour(nodes[n], [colours[part] for part in edges[n]]) for n in circular}
        for number, colour in new.items():
            colours[number] = colour
        found = set(new.values())
        if len(found) == told_apart:
            return _hash(colours[0], *sorted(found)).hex()
        told_apart = len(found)


def _colour(node: Node, parts: list[bytes]) -> bytes:
    label = [part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in node.label]
    return _hash(_hash(*label), *(parts if node.ordered else sorted(parts)))


def _hash(*parts: bytes) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{len(part)}:".encode())
        found.update(part)
    return found.digest()


def _key(value: Any) -> Any:
    return value.key if isinstance(value, Used) else id(value)
