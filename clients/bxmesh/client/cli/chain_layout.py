"""Where the boxes of a graph go: in layers, each box below all that it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["HEIGHT", "LAYER_GAP", "WIDTH", "Layout"]

WIDTH, HEIGHT, LAYER_GAP = 250, 86, 56
_GAP = 28
_LANE = 20
_MOST_LANES = 1000
_SWEEPS = 6

_Place = tuple[float, float]


@dataclass(frozen=True)
class _Lane:
    """Where an edge passes a layer in which it neither begins nor ends."""

    edge: tuple[str, str]
    layer: int


_Item = str | _Lane


@dataclass(frozen=True)
class Layout:
    """The middle of the upper edge of each box, and of what each edge passes, its ends included."""

    places: dict[str, _Place]
    edges: dict[tuple[str, str], list[_Place]]
    width: float
    height: float

    @classmethod
    def of(cls, after: Mapping[str, Sequence[str]]) -> Layout:
        """Takes the boxes, and what each waits for; what waits in a circle is drawn somehow."""
        depths = _depths(after)
        ways = _ways(after, depths)
        layers: list[list[_Item]] = [[] for _ in range(max(depths.values(), default=-1) + 1)]
        for name, depth in depths.items():
            layers[depth].append(name)
        for way in ways.values():
            for item in way:
                if isinstance(item, _Lane):
                    layers[item.layer].append(item)
        _sort(layers, ways)
        widths = [sum(map(_width, layer)) + _GAP * (len(layer) - 1) for layer in layers]
        width = max(widths, default=0)
        places: dict[_Item, _Place] = {}
        for depth, layer in enumerate(layers):
            x = (width - widths[depth]) / 2
            for item in layer:
                places[item] = (x + _width(item) / 2, depth * (HEIGHT + LAYER_GAP))
                x += _width(item) + _GAP
        return cls(
            {name: places[name] for name in after},
            {edge: [places[item] for item in way] for edge, way in ways.items()},
            width,
            max(0, len(layers) * (HEIGHT + LAYER_GAP) - LAYER_GAP),
        )


def _width(item: _Item) -> float:
    return _LANE if isinstance(item, _Lane) else WIDTH


def _depths(after: Mapping[str, Sequence[str]]) -> dict[str, int]:
    depths = dict.fromkeys(after, 0)
    # As often as there are boxes: so it ends for circles too.
    for _ in after:
        for name, before in after.items():
            depth = 1 + max((depths[each] for each in before), default=-1)
            depths[name] = min(depth, len(after) - 1)
    return depths


def _ways(
    after: Mapping[str, Sequence[str]], depths: dict[str, int]
) -> dict[tuple[str, str], list[_Item]]:
    """Returns what each edge passes, unless there are so many that no picture shows them."""
    edges = [(each, name) for name, before in after.items() for each in before]
    lanes = {edge: range(depths[edge[0]] + 1, depths[edge[1]]) for edge in edges}
    if sum(map(len, lanes.values())) > _MOST_LANES:
        lanes = dict.fromkeys(edges, range(0))
    return {
        edge: [edge[0], *(_Lane(edge, layer) for layer in lanes[edge]), edge[1]] for edge in edges
    }


def _sort(layers: list[list[_Item]], ways: dict[tuple[str, str], list[_Item]]) -> None:
    """Orders each layer by the middle of the neighbours, so that few edges cross."""
    above: dict[_Item, list[_Item]] = {}
    below: dict[_Item, list[_Item]] = {}
    for way in ways.values():
        for upper, lower in pairwise(way):
            above.setdefault(lower, []).append(upper)
            below.setdefault(upper, []).append(lower)
    order: dict[_Item, float] = {}
    for layer in layers:
        order |= _fractions(layer)
    for sweep in range(_SWEEPS):
        neighbours, direction = (below, -1) if sweep % 2 else (above, 1)
        for layer in layers[::direction]:
            middles = {
                item: sum(order[each] for each in near) / len(near)
                for item in layer
                if (near := neighbours.get(item))
            }
            order |= middles
            layer.sort(key=order.__getitem__)
            order |= _fractions(layer)


def _fractions(layer: list[_Item]) -> dict[_Item, float]:
    return {item: (index + 0.5) / len(layer) for index, item in enumerate(layer)}
