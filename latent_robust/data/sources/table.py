"""Images in a column of a table: a parquet file or a dataset of the Hugging Face Hub.

The images are decoded here and not by `datasets`, where one bad image ends the iteration.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from latent_robust.data.decode import BadImage, decode_image
from latent_robust.errors import InputError


class TableSource:
    """Images and optional integer labels (column `label`) of a `datasets.Dataset`.

    The image column is the first with the Image feature, else the column `image` or `img` if it
    holds bytes or {bytes, path}. Raises InputError if there is none, or no row.
    """

    dtype = torch.uint8
    ignored = 0

    def __init__(self, table: Any, spec: str, limit: int | None = None):
        from datasets import Image

        if not len(table):
            raise InputError(f"{spec} has no rows")
        table = table.select(range(min(limit or len(table), len(table))))
        self.column = _image_column(table.features, spec)
        self.labels = _labels(table)
        # `datasets` must not decode: one bad image would end the iteration.
        self.table = table.cast_column(self.column, Image(decode=False))
        self._images = self.table.select_columns([self.column])
        self.names = list(self._names())

    def load(self, index: int, channels: int) -> tuple[Tensor, int]:
        data = self.read(index)
        return decode_image(data, self.names[index], channels), zlib.crc32(data)

    def values(self, column: str) -> list:
        """The values of a column for all rows, as Python objects."""
        return self.table.with_format("arrow")[:][column].to_pylist()

    def read(self, index: int) -> bytes:
        """The stored bytes of an image. Raises BadImage."""
        cell = self._images[index][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise BadImage("no image in this row")
        data = cell["bytes"]
        if data is not None:
            return data
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error

    def _names(self) -> Iterator[str]:
        import pyarrow.compute as pc

        cells = self._images.with_format("arrow")[:][self.column]
        for row, path in enumerate(pc.struct_field(cells, "path").to_pylist()):
            path = PurePath(path or "")
            # An absolute path belongs to the local cache, not to the data: keep only its name.
            yield f"row {row} {path.name if path.is_absolute() else path}".removesuffix(" .")


def read_parquet(path: Path, limit: int | None = None) -> TableSource:
    from datasets import Dataset

    try:
        table = Dataset.from_parquet(str(path))
    except Exception as error:  # pyarrow, datasets and the disk raise types of their own
        raise InputError(f"cannot read {path} as parquet: {_first_cause(error)}") from error
    return TableSource(table, str(path), limit)


def read_hub(name: str, split: str, offline: bool, limit: int | None = None) -> TableSource:
    """Load a dataset of the Hub. name: OWNER/NAME; offline: use the local cache only.

    Raises InputError if the dataset cannot be opened.
    """
    from datasets import load_dataset

    try:
        with _hub_offline(offline):
            table = load_dataset(name, split=split)
    except Exception as error:  # the network, the Hub and datasets raise types of their own
        remedy = (
            "with --offline, only datasets in the local cache can be used"
            if offline
            else "check the name, the split and the network"
        )
        raise InputError(
            f"cannot open hf:{name}:{split}: {_first_cause(error)}; {remedy}"
        ) from error
    return TableSource(table, f"hf:{name}:{split}", limit)


@contextmanager
def _hub_offline(offline: bool) -> Iterator[None]:
    """Set the libraries' offline switch. They read HF_HUB_OFFLINE only once, at import."""
    import datasets
    import huggingface_hub

    modules = (datasets.config, huggingface_hub.constants)
    saved = [module.HF_HUB_OFFLINE for module in modules]
    for module, value in zip(modules, saved, strict=True):
        module.HF_HUB_OFFLINE = value or offline
    try:
        yield
    finally:
        for module, value in zip(modules, saved, strict=True):
            module.HF_HUB_OFFLINE = value


def _image_column(features: Any, spec: str) -> str:
    from datasets import Image, Value

    for column, feature in features.items():
        if isinstance(feature, Image):
            return column
    for column in ("image", "img"):
        feature = features.get(column)
        named = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
        if named or feature in (Value("binary"), Value("large_binary")):
            return column
    columns = ", ".join(features)
    raise InputError(
        f"no image column in {spec} (columns: {columns}); the column must have the Image feature, "
        "or be called `image` or `img` and hold bytes or {bytes, path}"
    )


def _labels(table: Any) -> Tensor | None:
    if "label" not in table.features:
        return None
    labels = table.with_format("arrow")[:]["label"]
    if labels.null_count or not str(labels.type).startswith(("int", "uint")):
        return None
    return torch.tensor(labels.to_pylist(), dtype=torch.int64)


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0] or type(error).__name__
