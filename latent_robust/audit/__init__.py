"""The audit finds dirty images: with a trained model, or from the images alone.

It needs no labels and no known noise level. It gives every sample a noise level, which training can
use, and it recommends a weight and a band for the regularizer.
"""

from latent_robust.lazy import lazy_names

_MODULES = {
    "Audit": "result",
    "DataAudit": "pictures.findings",
    "DataRows": "levels",
    "audit_by_trusted": "trusted",
    "audit_captions": "captions",
    "audit_data": "dataset",
    "audit_facts": "result",
    "audit_images": "scoring",
    "audit_samples": "scoring",
    "data_audit_of": "levels",
    "noisy_views": "hidden",
    "read_data_audit": "levels",
    "read_doubtful": "levels",
    "read_levels": "levels",
    "recommend": "spectrum",
    "reduced_noise": "reduction",
    "to_measure": "reduction",
}

__all__ = sorted(_MODULES)

__getattr__ = lazy_names(__name__, _MODULES)
