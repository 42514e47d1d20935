"""What comes in: decoding, quarantine, sources of pictures, contamination, noise levels.

Names are imported from their modules when they are first used; torchvision takes seconds.
"""

from importlib import import_module

_MODULES = {
    "Audit": "audit",
    "BadPicture": "decode",
    "ContaminatedPairs": "contaminated_pairs",
    "ContaminatedPictures": "contamination",
    "PairSet": "pairs",
    "PictureSet": "pictures",
    "assign_bucket": "buckets",
    "audit_facts": "audit",
    "audit_pictures": "audit",
    "audit_samples": "audit",
    "contaminate_folder": "contaminate",
    "contaminate_pairs": "contaminate",
    "decode_picture": "decode",
    "fit_bucket": "buckets",
    "make_buckets": "buckets",
    "open_pairs": "pairs",
    "open_pictures": "sources",
    "open_reference": "pairs",
    "parse_contamination": "contamination",
    "pictures_to_look_at": "spectrum",
    "read_levels": "levels",
    "recommend": "spectrum",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
