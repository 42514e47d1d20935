"""All that a data set stores, before anything is decoded: what an audit looks at."""

from __future__ import annotations

from functools import partial
from io import BytesIO

from torchvision.transforms.v2.functional import to_pil_image

from .images import Source, open_source
from .pairs import list_pairs
from .sources.pair_list import PairList
from .sources.spec import FORMS, IMAGE_FORMS, PAIR_FORMS, parse_spec

ARRAYS = frozenset(IMAGE_FORMS) - frozenset(PAIR_FORMS)  # no files: digits, fashion-mnist


def list_stored(
    spec: str,
    *,
    caption_column: str | None = None,
    limit: int | None = None,
    offline: bool = False,
) -> PairList:
    """The names, captions and stored bytes of all pictures, also of those without a caption.

    spec: a folder, or one of `sources.spec.FORMS`. Raises InputError for a wrong `spec`, and for a
    source or a column that cannot be read.
    """
    if parse_spec(spec, FORMS).kind in ARRAYS:
        source = open_source(spec, limit, offline)
        listed = PairList(partial(_png, source))
        for index, name in enumerate(source.names):
            listed.add(index, name, None)
        return listed
    listed = list_pairs(spec, caption_column, False, limit, offline, captionless=True)
    # A picture counts also if its caption cannot be used.
    unusable = {name for _, name, _ in listed.refused}
    listed.quarantine = [row for row in listed.quarantine if row["name"] not in unusable]
    for key, name, _ in listed.refused:
        listed.add(key, name, None)
    return listed


def _png(source: Source, index: int) -> bytes:
    image, _ = source.load(index, 1)
    file = BytesIO()
    to_pil_image(image).save(file, "PNG")
    return file.getvalue()
