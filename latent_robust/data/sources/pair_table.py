"""Pairs in a table: a parquet file or a dataset of the Hugging Face Hub.

Images are read as in `table.py`; this module adds captions and repeats.
"""

from __future__ import annotations

from .pair_list import CAPTION_COLUMNS, PairList, find_caption_column, to_repeats
from .table import TableSource


def list_table(
    source: TableSource, spec: str, caption_column: str | None, *, captionless: bool = False
) -> PairList:
    """List the pairs in the order of the rows. A column `repeats` is optional.

    spec: the table's name, for messages. captionless: a table without a caption column is fine.
    Raises InputError for a missing caption column and for repeats that are no whole number >= 1.
    """
    others = [column for column in source.table.column_names if column != source.column]
    nothing = [None] * len(source.names)
    if captionless and caption_column is None and not set(others).intersection(CAPTION_COLUMNS):
        captions = nothing
    else:
        captions = source.values(find_caption_column(others, caption_column, spec))
    repeats = source.values("repeats") if "repeats" in others else nothing
    pairs = PairList(source.read)
    for row, name in enumerate(source.names):
        pairs.add(row, name, captions[row], to_repeats(repeats[row], f"{spec}, {name}"))
    return pairs
