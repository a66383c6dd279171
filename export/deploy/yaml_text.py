"""Plain data as YAML text, by PyYAML, the way people write it."""

from __future__ import annotations

from typing import Any

import yaml


def yaml_text(*documents: Any) -> str:
    """Documents in block style, keys in order, text of several lines as a block."""
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH
    )


_WIDTH = 2**31  # lines are not folded


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Labels that two objects share are written twice, not referred to."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
