"""YAML without tags, of bounded size and depth. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from scorefast.files.text import one_line, shortened

if TYPE_CHECKING:
    from yaml.events import Event
    from yaml.nodes import MappingNode, Node, ScalarNode

LARGEST_RECIPE = 100_000  # bytes of YAML; reference.yaml, the longest shipped one, has 10,000
MAX_NODES, MAX_DEPTH = 10_000, 50  # of a document with its aliases expanded


class _BoundedLoader(yaml.SafeLoader):
    """Loader of plain YAML: no tags, no duplicate keys, at most MAX_DEPTH levels and MAX_NODES nodes.

    An alias counts as the nodes that it expands to, so nested aliases cannot multiply beyond the bound.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self._nodes = self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: object) -> Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise self._refusal(f"the tag {event.tag} is not allowed", event)
        before = self._nodes
        self._nodes, self._depth = self._nodes + 1, self._depth + 1
        if self._depth > MAX_DEPTH:
            raise self._refusal(f"nested deeper than {MAX_DEPTH} levels", event)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise self._refusal(f"the alias {event.anchor} refers to a value that contains it", event)
            self._nodes = before + self._sizes[id(node)]
        if self._nodes > MAX_NODES:
            raise self._refusal(f"more than {MAX_NODES:,} values", event)
        self._depth -= 1
        self._sizes.setdefault(id(node), self._nodes - before)
        return node

    def compose_mapping_node(self, anchor: str | None) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys and key.value != "<<":
                    raise self._refusal(f"duplicate key {key.value[:100]!r}", key)
                keys.add(key.value)
        return node

    def construct_number(self, node: ScalarNode) -> float | int:
        if len(node.value) > 100:
            raise self._refusal("a number with more than 100 digits", node)
        return self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)

    @staticmethod
    def _refusal(problem: str, where: Event | Node) -> yaml.YAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


for _kind in ("int", "float"):
    _BoundedLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _BoundedLoader.construct_number)


def parse_yaml(text: str) -> object:
    """Parse plain YAML of bounded size. Raises ValueError with one line otherwise."""
    if len(text) > LARGEST_RECIPE:
        raise ValueError(f"longer than {LARGEST_RECIPE:,} characters")
    try:
        return yaml.load(text, _BoundedLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{shortened(error.problem or error.context or 'not YAML')}") from None
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML forbids; 2026-99-99, 0b_
        raise ValueError(one_line(error)) from None
