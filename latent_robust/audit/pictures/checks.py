"""The checks: what each measures, from which value on it is a finding, and what to do then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What a finding means for training. dirt: the picture is not what it should be. copy: it is there
# already. fit: it does not fit what will be trained. text: its caption is at fault. note: worth
# knowing.
Kind = Literal["dirt", "copy", "fit", "text", "note"]


@dataclass(frozen=True)
class Check:
    """A measure with a threshold.

    key: name of the column. title: of the finding, in the plural. above: whether values above the
    threshold are findings, or below. unit: of the value. how: how it is measured. blind: what it
    cannot see. remedy: what to do. tag: words for `--tag-dirt`, "" for none.
    """

    key: str
    title: str
    kind: Kind
    threshold: float
    above: bool
    unit: str
    how: str
    blind: str
    remedy: str
    tag: str = ""

    def finds(self, value: float) -> bool:
        """NaN, for what was not measured, is no finding."""
        return value > self.threshold if self.above else value < self.threshold


TRAIN = "train with --audit and --objective ambient"

CHECKS = (
    Check(
        "noise", "noisy", "dirt", 0.04, True, "of the range",
        "spread of a second difference in the flattest tenth of the tiles, at the picture's size",
        "noise that was smoothed away afterwards; fine texture everywhere counts as noise",
        f"{TRAIN}: each picture is used above its own noise", "noisy",
    ),
    Check(
        "jpeg", "recompressed below quality 50", "dirt", 50, False, "quality",
        "quantization tables of a JPEG file; else the steps of the coefficients on the 8 x 8 grid "
        "that an earlier JPEG left in the pixels",
        "JPEG that was resized or moved off its grid afterwards",
        f"{TRAIN}, or give --trusted", "jpeg artifacts",
    ),
    Check(
        "blur", "blurred", "dirt", 0.75, True, "pixels",
        "width of the sharpest edges, at the size of training; the sharpest quarter of the tiles "
        "counts, so a blurred background is no blurred picture",
        "pictures without edges",
        f"{TRAIN}, or leave them out", "blurry",
    ),
    Check(
        "enlarged", "without fine detail (enlarged or blurred)", "dirt", 2.25, True,
        "powers of ten",
        "how much weaker the highest frequencies are than the middle ones, at the training size",
        "enlarged pictures with noise or sharpening added afterwards",
        "use the originals, or train at half the size", "low resolution",
    ),
    Check(
        "block", "with a missing block", "dirt", 0.004, True, "of the area",
        "largest gray, black or white rectangle inside the picture",
        "blocks below 5 pixels a side, of the border's colour, in other colours, or in JPEG files",
        "leave them out (--audit with ambient does)", "missing part",
    ),
    Check(
        "bars", "with black bars", "dirt", 0.02, True, "of the side",
        "black rows or columns at two opposite sides, and a picture from side to side between",
        "bars that are not black",
        "cut the bars off", "letterbox",
    ),
    Check(
        "mark", "with a repeated mark", "dirt", 0.4, True, "correlation",
        "slopes that pictures share in the same place, as a watermark or logo leaves them",
        "marks on less than a third of the pictures, at changing places, and in sets whose "
        "pictures are all laid out alike",
        "leave them out (--audit with ambient does), or tag them", "watermark",
    ),
    Check(
        "small", "smaller than they are trained", "fit", 0, True, "times enlarged",
        "shorter side against --size",
        "", "use larger originals, or a smaller --size",
    ),
    Check(
        "cut", "so long that a square crop loses 40 %", "fit", 0.4, True, "of the area",
        "sides of the picture", "", "train with --buckets",
    ),
    Check(
        "clipped", "over- or underexposed", "note", 0.25, True, "of the pixels",
        "black and white pixels, where many others are nearly black or white",
        "", "",
    ),
    Check(
        "dark", "dark", "note", 0.2, False, "98th percentile of the brightness",
        "brightness", "", "",
    ),
    Check(
        "bright", "pale", "note", 0.8, True, "2nd percentile of the brightness",
        "brightness", "", "",
    ),
    Check(
        "gray", "without colour, unlike most", "note", 0.5, True, "",
        "differences between the channels", "", "",
    ),
    Check(
        "profile", "with another colour profile than sRGB", "note", 0.5, True, "",
        "the profile in the file; training ignores it", "", "convert them to sRGB",
    ),
    Check(
        "transparent", "transparent", "note", 0.5, True, "",
        "the file's alpha channel; training shows them on white", "", "",
    ),
    Check(
        "duplicate", "exact copies of another", "copy", 0.5, True, "",
        "checksum of the pixels", "", "--audit leaves out all but the first",
    ),
    Check(
        "near_duplicate", "nearly copies of another", "copy", 0.5, True, "",
        "64 bits of the perceptual hash, then a thumbnail",
        "crops, mirror images and strong changes of colour", "look at them; they count double",
    ),
    Check(
        "caption_missing", "without a caption", "text", 0.5, True, "", "the text", "",
        "write them, or train those pictures without (--caption-dropout)",
    ),
    Check(
        "caption_empty", "with a caption that says nothing", "text", 0.5, True, "",
        "file names, addresses, numbers and words such as `photo`", "", "write them",
    ),
    Check(
        "caption_identical", "with a caption that many share", "text", 0.5, True, "",
        "equal texts", "", "say what differs",
    ),
    Check(
        "caption_script", "with a caption in another script", "text", 0.5, True, "",
        "Unicode names of the letters", "another language in the same script", "translate them",
    ),
    Check(
        "caption_cut", "with a caption that is cut", "text", 0.5, True, "",
        "tokens against the limit of CLIP's text encoder, 75", "", "put first what matters",
    ),
)  # fmt: skip
