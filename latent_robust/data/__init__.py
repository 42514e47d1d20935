"""Training data: sources of images and captions, decoding, buckets, deliberate contamination.

Every image is decoded once before training, so that an unreadable file is quarantined by name and
never ends a run. Contamination is reproducible and recorded, so that results can be evaluated.
"""

from latent_robust.lazy import lazy_names

_MODULES = {
    "BadImage": "decode",
    "ContaminatedImages": "contamination.image_dataset",
    "ContaminatedPairs": "contamination.pair_dataset",
    "ImageSet": "images",
    "PairSet": "pairs",
    "assign_bucket": "buckets",
    "contaminate_folder": "contamination.export",
    "contaminate_pairs": "contamination.export",
    "decode_image": "decode",
    "fit_bucket": "buckets",
    "make_buckets": "buckets",
    "open_images": "images",
    "open_pairs": "pairs",
    "open_reference": "pairs",
    "parse_contamination": "contamination.spec",
}

__all__ = sorted(_MODULES)

__getattr__ = lazy_names(__name__, _MODULES)
