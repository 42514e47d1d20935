"""What the scripts share that measure: entries of results/*.json, locks, tables in pages.

A page in docs/results has a place for each table. Its first marker may choose what to show:

    <!-- table digits
    columns: [seeds, FD (pixels)]
    rows: [DDPM, adversarial]
    -->
    <!-- end digits -->

The chosen rows and columns come first; the whole table follows, folded. Without a choice the whole
table is shown.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import statistics
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"  # the project's own numbers
PAGES = ROOT / "docs/results"
IMAGES = PAGES / "img"


# ------------------------------------------------------------------ entries


def row_and_seed(entry: dict) -> tuple[str, int]:
    return entry["row"], entry["seed"]


def finished(file: Path, key: Callable[[dict], Hashable] = row_and_seed) -> dict[Hashable, dict]:
    """The entries of a results file by `key`, in the order of the file; none without a file."""
    entries = json.loads(file.read_text()) if file.exists() else []
    return {key(entry): entry for entry in entries}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process works on this folder, then hold its lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def mean_std(values: Sequence[float | None]) -> str:
    """Mean and, for several seeds, sample standard deviation, to three significant figures."""
    if None in values:
        return "-"
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {statistics.stdev(values):.2g}"


# ------------------------------------------------------------------ tables in pages


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page_of(name: str) -> Path:
    """The page with the markers of table `name`. LookupError unless there is exactly one."""
    pages = [page for page in sorted(PAGES.glob("*.md")) if _place(name).search(page.read_text())]
    if len(pages) != 1:
        names = ", ".join(page.name for page in pages) or "none"
        raise LookupError(
            f"one page of docs/results must have `<!-- table {name} -->` and "
            f"`<!-- end {name} -->`, got {names}"
        )
    return pages[0]


def render(name: str, text: str) -> None:
    """Write `text` between the markers of table `name`, in the page that has them."""
    try:
        page = page_of(name)
    except LookupError as error:
        print(f"{error}; nothing rewritten")
        return
    page.write_text(filled(page.read_text(), name, text))


def filled(page: str, name: str, text: str) -> str:
    """The text of a page with `text`, or what its marker chooses of it, as table `name`."""
    place = _place(name).search(page)
    new = f"{place['begin']}\n{excerpt(text, place['choice'])}\n{place['end']}"
    return page[: place.start()] + new + page[place.end() :]


def excerpt(text: str, choice: str) -> str:
    """text: a Markdown table, and perhaps a note below it. choice: YAML with `rows`, by their first
    cell, and `columns`, by title; the first column is always shown.

    =>  the chosen part, the note, and the whole table folded; `text` itself without a choice."""
    chosen = yaml.safe_load(choice)
    if not chosen:
        return text
    table, _, note = text.partition("\n\n")
    head, _, *rows = [_cells(line) for line in table.splitlines()]
    names = [row[0].strip("*") for row in rows]
    columns, wanted = chosen.get("columns", head), chosen.get("rows", names)
    _check_known("columns", columns, head)
    _check_known("rows", wanted, names)
    kept = [i for i, title in enumerate(head) if i == 0 or title in columns]
    cut = [row for row, name in zip(rows, names, strict=True) if name in wanted]
    lines = [table_line([row[i] for i in kept]) for row in (head, *cut)]
    lines.insert(1, "|" + "---|" * len(kept))
    summary = f"<summary>The whole table: {len(rows)} rows, {len(head)} columns</summary>"
    folded = ['<details markdown="1">', summary, "", table, "", "</details>"]
    return "\n".join([*lines, "", *([note, ""] if note else []), *folded])


def _place(name: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?P<begin><!-- table {re.escape(name)}(?P<choice>\s.*?)-->)"
        rf".*?(?P<end><!-- end {re.escape(name)} -->)",
        re.DOTALL,
    )


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip()[1:-1].split("|")]


def _check_known(what: str, wanted: Sequence[str], existing: Sequence[str]) -> None:
    if unknown := [name for name in wanted if name not in existing]:
        raise ValueError(
            f"the table has no {what} {', '.join(unknown)}; it has {', '.join(existing)}"
        )
