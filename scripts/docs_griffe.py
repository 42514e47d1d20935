"""Shows this project's docstrings as Markdown: one list item per argument. Used by mkdocs.yml.

A docstring here describes an argument in a line that begins with its name and a colon. Markdown
would run such lines together into one paragraph.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"(?P<names>[a-z_]\w*(?:, [a-z_]\w*)*): (?P<text>.*)")


class Arguments(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    """Lines `name: text` become list items; `=>` and `Raises` begin a paragraph."""
    lines: list[str] = []
    in_list = False
    for line in docstring.splitlines():
        if argument := ARGUMENT.match(line):
            lines += ["", f"- `{argument['names']}`: {argument['text']}"]
            in_list = True
        elif in_list and line.startswith("    "):
            lines.append(line.strip())
        elif line.startswith(("=>", "Raises ")):
            lines += ["", line]
            in_list = False
        else:
            lines.append(line)
            in_list = in_list and bool(line)
    return "\n".join(lines).strip()
