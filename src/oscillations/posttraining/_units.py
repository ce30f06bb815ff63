"""A network as a chain of units: residual blocks, and single layers with what follows them.

The network is traced by torch.fx down to torch's own layers. It may be cut wherever exactly one tensor passes from
what is before to what is behind; so whatever branches and joins is one unit, and composing the units is the network.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import fx, nn
from torch.fx import GraphModule, Node

from oscillations.engine.layers import is_matrix_layer

BLOCKS = {"BasicBlock", "Bottleneck", "InvertedResidual", "Block"}  # classes whose instances are one unit each


@dataclass(frozen=True)
class Unit:
    """A part of the network from the tensor ``start`` to the tensor ``stop``.

    ``weights``: the quantized weights in it, in network order.
    """

    name: str
    start: Node
    stop: Node
    weights: tuple[str, ...]


class Chain:
    """The units of a network whose quantized weights have the given parameter names."""

    def __init__(self, model: nn.Module, weights: list[str]):
        parameters = inspect.signature(model.forward).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.traced = fx.symbolic_trace(model, concrete_args=defaults)
        self.input = next(node for node in self.traced.graph.nodes if node.op == "placeholder")
        (self.output,) = next(node for node in self.traced.graph.nodes if node.op == "output").all_input_nodes
        self._nodes = _ancestors(self.output, self.input)
        self._matrices = {
            node for node in self._nodes
            if node.op == "call_module" and is_matrix_layer(self.traced.get_submodule(str(node.target)))
        }  # fmt: skip
        self._weights = {n: f"{n.target}.weight" for n in self._matrices if f"{n.target}.weight" in weights}
        self.units = self._units()

    def module(self, start: Node, stop: Node) -> GraphModule:
        """The part that computes ``stop`` from ``start``; shares the network's layers."""
        graph = fx.Graph()
        copies = {start: graph.placeholder("x")}
        for node in _ancestors(stop, start):
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[stop])
        return GraphModule(self.traced, graph)

    def layers(self, unit: Unit) -> list[Unit]:
        """Every quantized layer of a unit by itself, up to the next layer or the next branch or join.

        A unit with a single layer is that layer's.
        """
        if len(unit.weights) <= 1:
            return [unit]
        nodes = [node for node in self._nodes if self._weights.get(node) in unit.weights]
        return [
            Unit(str(node.target), node.all_input_nodes[0], self._follow(node), (self._weights[node],))
            for node in nodes
        ]

    def _follow(self, stop: Node) -> Node:
        while len(stop.users) == 1:
            (user,) = stop.users
            if user.op == "output" or user in self._matrices or len(user.all_input_nodes) > 1:
                break
            stop = user
        return stop

    def _units(self) -> list[Unit]:
        pieces: list[list[Node]] = []
        block = None
        for place, node in enumerate(self._nodes):
            previous, block = block, _block(node)
            entered = block is not None or node in self._matrices
            if not pieces or ((block != previous or (block is None and entered)) and self._live(place)):
                pieces.append([])
            pieces[-1].append(node)
        # what multiplies by no matrix (pooling, say) belongs to the layer behind it, and at the end before it
        joined: list[list[Node]] = []
        for piece in pieces:
            if joined and not self._matrices & set(joined[-1]):
                joined[-1] += piece
            else:
                joined.append(piece)
        if len(joined) > 1 and not self._matrices & set(joined[-1]):
            joined[-2] += joined.pop()
        units, start = [], self.input
        for piece in joined:
            stop = self.output if piece is joined[-1] else self._live(self._nodes.index(piece[-1]) + 1)
            assert stop is not None  # or it would not have been cut there
            weights = tuple(self._weights[node] for node in piece if node in self._weights)
            units.append(Unit(self._name(piece), start, stop, weights))
            start = stop
        return units

    def _live(self, place: int) -> Node | None:
        """The only tensor that passes to the nodes from ``place`` on; None if several do."""
        before, behind = [self.input, *self._nodes[:place]], set(self._nodes[place:])
        live = [node for node in before if node.op != "get_attr" and behind & set(node.users)]
        return live[0] if len(live) == 1 else None

    def _name(self, piece: list[Node]) -> str:
        """The block's name, else its layers'."""
        names = [_block(node) or str(node.target) for node in piece if node in self._matrices]
        return "+".join(dict.fromkeys(names))


def merged(units: list[Unit]) -> Unit:
    """Neighbouring units as one."""
    weights = tuple(name for unit in units for name in unit.weights)
    return Unit("+".join(unit.name for unit in units), units[0].start, units[-1].stop, weights)


def _ancestors(stop: Node, start: Node) -> list[Node]:
    """All nodes that ``stop`` needs, itself included, beyond ``start``; in the order they are computed."""
    needed, pending = set(), [stop]
    while pending:
        node = pending.pop()
        if node is not start and node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    return [node for node in stop.graph.nodes if node in needed]


def _block(node: Node) -> str | None:
    """Name of the outermost block that a node belongs to."""
    stack = node.meta.get("nn_module_stack", {})
    return next((name for name, (_, kind) in stack.items() if kind.__name__ in BLOCKS), None)
