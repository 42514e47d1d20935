"""How well images match their captions, according to an open_clip model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_robust.errors import InputError

from .features import Extractor, load_open_clip, open_clip_image_encoder


@dataclass(frozen=True)
class ClipScore:
    """name: of the model. Report it with every score: scores of different models cannot be
    compared."""

    name: str
    images: Extractor
    captions: Callable[[Sequence[str]], Tensor]

    def __call__(self, images: Tensor, captions: Sequence[str]) -> dict[str, float]:
        """images: (N, C, H, W) in [-1, 1]; captions: one for each image.

        =>  `clip_score` in [0, 100], the mean of 100 max(cos, 0) (Hessel et al. 2021, who use 2.5
        instead of 100); `clip_cosine`, the mean cosine, which still differs between models whose
        score is 0.
        """
        if len(images) != len(captions):
            raise InputError(f"{len(images)} images cannot have {len(captions)} captions")
        image_features = self.images(images)
        caption_features = torch.cat(
            [
                self.captions(captions[i : i + self.images.batch_size])
                for i in range(0, len(captions), self.images.batch_size)
            ]
        )
        cosine = F.cosine_similarity(image_features, caption_features)
        return {
            "clip_score": 100 * cosine.clamp(min=0).mean().item(),
            "clip_cosine": cosine.mean().item(),
        }


def load_clip_score(spec: str, *, device: str | torch.device = "cpu") -> ClipScore:
    """spec: NAME:FILE.safetensors or local-dir:DIR, as for open_clip features.

    InputError for missing weights, which are never downloaded, and for a missing tokenizer: CLIP's
    comes with open_clip, those of SigLIP and others with the folder or from the Hub.
    """
    network, name = load_open_clip(spec, device)
    images = Extractor(name, open_clip_image_encoder(network, device), device)
    return ClipScore(name, images, _text_encoder(network, spec, device))


def _text_encoder(network: nn.Module, spec: str, device) -> Callable[[Sequence[str]], Tensor]:
    """=>  a function from captions (B) to embeddings (B, D), not normalized, float32, CPU."""
    tokenizer = _tokenizer(spec)

    @torch.no_grad()
    def encode(captions: Sequence[str]) -> Tensor:
        return network.encode_text(tokenizer(list(captions)).to(device)).float().cpu()

    return encode


def _tokenizer(spec: str):
    import open_clip

    model = spec if spec.startswith("local-dir:") else spec.partition(":")[0]
    try:
        return open_clip.get_tokenizer(model)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the tokenizer of open_clip model {spec!r} is missing ({error}); put its files into a "
            "folder with open_clip_config.json and the weights, and give local-dir:DIR"
        ) from error
