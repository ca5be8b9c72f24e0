"""Untrusted YAML: limits on size, depth and the nodes that aliases expand to."""

from pathlib import Path
from typing import Any

import yaml

from facessl.core.errors import ConfigError
from facessl.core.files import read_regular

#: Limits, above those of any recipe or configuration.
BYTES, NODES, DEPTH = 1_000_000, 10_000, 20


def read_yaml(path: Path) -> Any:
    """Value of a YAML file. ConfigError: it cannot be read, is not valid, is too large, or is nested too deep."""
    return parse_yaml(read_text(path), path)


def read_text(path: Path) -> str:
    """Text of a settings file. ConfigError: it cannot be read, or has more than `BYTES`."""
    try:
        return read_regular(path, most=BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def parse_yaml(text: str, name: str | Path) -> Any:
    """Value of a YAML text from the file or setting `name`; errors as in `read_yaml`."""
    try:
        return _Limited(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, a number of thousands of digits
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    except (LookupError, TypeError, AttributeError, ArithmeticError):  # of PyYAML, e.g. for `!!int ''`
        raise ConfigError(f"{name} is not valid YAML: a value does not fit its tag (`!!`)") from None


class _Limited(yaml.SafeLoader):
    """Loader that counts an alias (`*name`) as all nodes that it repeats, which may be billions."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0
        self._sizes: dict[int, int] = {}  # by the id of a node

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias, before = self.check_event(yaml.AliasEvent), self._nodes
        self._depth += 1
        if self._depth > DEPTH:
            raise yaml.YAMLError(f"it is nested more than {DEPTH} deep")
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise yaml.YAMLError("an alias (`*name`) repeats what it is a part of")
        self._nodes += self._sizes[id(node)] if is_alias else 1
        if self._nodes > NODES:
            raise yaml.YAMLError(f"with what its aliases (`*name`) repeat it has more than {NODES} values")
        if not is_alias:
            self._sizes[id(node)] = self._nodes - before
        is_key = index is None and isinstance(parent, yaml.MappingNode)
        if is_key and node.tag.rpartition(":")[2] not in ("str", "merge"):
            raise yaml.YAMLError(f"the key in line {node.start_mark.line + 1} is not a text: write it in quotes")
        return node
