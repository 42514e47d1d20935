"""The images of a pixel run: data, trusted images and contamination, by the run's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_robust.data import ContaminatedImages, open_images, parse_contamination
from latent_robust.data.images import ImageSet, JoinedImages
from latent_robust.data.trusted import parse_trusted, refuse_unfit, trusted_indices


def contaminated_images(config: Mapping[str, Any]) -> ContaminatedImages:
    """config: the settings of a run, by name. Trusted images that are not in the data follow it."""
    corruptions = parse_contamination(config["contamination"])
    images: ImageSet | JoinedImages = open_part(config, config["data"], config["limit"])
    trusted: list[int] = []
    if config["trusted"] is not None:
        spec = parse_trusted(config["trusted"], config["contamination"])
        if spec.data is None:
            names = [images.name(index) for index in range(len(images))]
            trusted = trusted_indices(spec, names, config["seed"])
        else:
            first, second = images, open_part(config, spec.data, None)
            refuse_unfit(len(second), len(first))
            images = JoinedImages(first, second)
            trusted = list(range(len(first), len(images)))
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
