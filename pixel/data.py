"""The images of a pixel run: data, trusted images and contamination, by the run's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_robust.data import ContaminatedImages, open_images, parse_contamination
from latent_robust.data.images import ImageSet
from latent_robust.data.trusted import add_trusted


def contaminated_images(config: Mapping[str, Any]) -> ContaminatedImages:
    """config: the settings of a run, by name. Trusted images that are not in the data follow it."""
    corruptions = parse_contamination(config["contamination"])
    images, trusted = add_trusted(
        config["trusted"],
        open_part(config, config["data"], config["limit"]),
        lambda data: open_part(config, data, None),
        contamination=config["contamination"],
        seed=config["seed"],
    )
    return ContaminatedImages(images, corruptions, config["seed"], trusted)


def open_part(config: Mapping[str, Any], data: str, limit: int | None) -> ImageSet:
    """The images of `data`, at the size of the run."""
    return open_images(
        data,
        size=config["size"],
        channels=config["channels"],
        limit=limit,
        max_bad_fraction=config["max_bad_fraction"],
        offline=config["offline"],
    )
