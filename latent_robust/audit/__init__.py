"""What judges data: a model, or the spectrum of the images; and the noise levels that come of it."""

from latent_robust.lazy import lazy_names

_MODULES = {
    "Audit": "scoring",
    "audit_facts": "scoring",
    "audit_images": "scoring",
    "audit_samples": "scoring",
    "images_to_measure": "spectrum",
    "read_levels": "levels",
    "recommend": "spectrum",
}

__all__ = sorted(_MODULES)

__getattr__ = lazy_names(__name__, _MODULES)
