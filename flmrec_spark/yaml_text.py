"""YAML without the surprises of version 1.1, for configs and templates."""

from __future__ import annotations

import re
from typing import Any

import yaml

_FLOAT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$")  # 010 is text: eight to YAML 1.1, and to a user the code of an event
_INT_TAG = "tag:yaml.org,2002:int"


class Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, 010 and 12:30 are none, and no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


class Dumper(yaml.SafeDumper):
    """Writes what Loader reads back: the text "1e-3" gets its quotes."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Only double quotes keep every line break, such as U+0085, as it is.
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')


Loader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != _INT_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Dumper.add_representer(str, _text)
for _end in (Loader, Dumper):
    _end.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
Loader.add_implicit_resolver(_INT_TAG, _INT, list("-+0123456789"))
