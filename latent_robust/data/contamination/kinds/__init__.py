"""The registry of corruptions, by their name in `--contamination`.

Adding a corruption means adding its class here.
"""

from ..corruption import Corruption
from .caption import CaptionDrop, CaptionShuffle, CaptionTruncate
from .image import Blocks, Blur, Gaussian, Jpeg, Outliers, SaltAndPepper
from .near_duplicate import NearDuplicate
from .poison import EncoderPoison
from .watermark import Watermark

CORRUPTIONS: dict[str, type[Corruption]] = {
    corruption.kind: corruption
    for corruption in (
        *(Gaussian, SaltAndPepper, Outliers, Blocks, Blur, Jpeg, Watermark),
        *(CaptionShuffle, CaptionDrop, CaptionTruncate, NearDuplicate, EncoderPoison),
    )
}
