"""The small Stable Diffusion 1.x pipeline that ships with the project, for demos and tests.

scripts/build_demo_model.py trained it on captioned scenes of five shapes
(latent_robust/data/sources/scenes.py). It is stored in half precision as a diffusers folder, except
for the text side:

- The tokenizer is CLIP's own, built from the vocabulary that open_clip ships.
- CLIP has 49,408 tokens, of which the captions of the scenes use a few dozen. Only the embeddings
  of these are stored; tokens.json lists them. Training never changes the embedding of a token that
  does not occur, so the other rows are random numbers: they are made again from a fixed seed, with
  the mean and standard deviation of the stored rows. The model treats them as unknown words, each
  one different and always the same.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from latent_robust.core.seeds import derive_generator
from latent_robust.data.sources.scenes import caption_vocabulary
from latent_robust.files import write_json

from .library_logging import silence_libraries

DEMO = Path(__file__).parent / "assets" / "demo"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = "tokens.json"  # in the text encoder's folder


def load_demo_pipeline(folder: Path = DEMO) -> StableDiffusionPipeline:
    """float32, in evaluation mode, without a safety checker. Images are 32 x 32."""
    with silence_libraries():
        vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    tokens = json.loads((folder / "text_encoder" / TOKENS).read_text())
    tokenizer = clip_tokenizer()
    return make_pipeline(vae, expand_vocabulary(text_encoder, tokens, tokenizer), tokenizer, unet)


def save_demo_model(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the files that `load_demo_pipeline` reads; `pipeline.save_pretrained` writes more."""
    tokens = known_tokens(pipeline.tokenizer, caption_vocabulary())
    text_encoder = reduce_vocabulary(pipeline.text_encoder, tokens, pipeline.tokenizer)
    parts = {"vae": pipeline.vae, "text_encoder": text_encoder, "unet": pipeline.unet}
    with silence_libraries():
        for name, part in parts.items():
            copy.deepcopy(part).half().save_pretrained(folder / name)
            config = json.loads((folder / name / "config.json").read_text())
            config.pop("_name_or_path", None)  # a path of the machine it was trained on
            write_json(folder / name / "config.json", config)
    write_json(folder / "text_encoder" / TOKENS, tokens)


def make_pipeline(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """A pipeline with the noise schedule of Stable Diffusion 1.x, all parts in evaluation mode."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae.eval(),
        text_encoder.eval(),
        tokenizer,
        unet.eval(),
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def clip_tokenizer() -> CLIPTokenizer:
    """OpenAI CLIP's tokenizer, 49,408 tokens, from the file of merges in open_clip."""
    packed = files("open_clip").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    characters = list(bytes_to_unicode().values())
    # The file has a header line and more merges than CLIP uses. Of CLIP's tokens 2 * 256 are bytes
    # and 2 are special; the rest are merges. open_clip.tokenizer.SimpleTokenizer does the same.
    lines = gzip.decompress(packed).decode().split("\n")[1 : 49_152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    ends = [f"{character}</w>" for character in characters]
    vocabulary = [*characters, *ends, *("".join(merge) for merge in merges), BEGIN, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=merges,
        pad_token=END,
        model_max_length=77,
    )


def known_tokens(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> list[str]:
    """The tokens that occur in the texts, and the special ones."""
    ids = tokenizer(list(texts)).input_ids
    return tokenizer.convert_ids_to_tokens(sorted({token for row in ids for token in row}))


def expand_vocabulary(
    text_encoder: CLIPTextModel, tokens: list[str], tokenizer: CLIPTokenizer
) -> CLIPTextModel:
    """text_encoder: has embeddings of `tokens`, in this order.  =>  one that has embeddings of all
    the tokenizer's tokens, the others random (fixed seed)."""
    rows = text_encoder.get_input_embeddings().weight.detach()
    std, mean = torch.std_mean(rows)
    generator = derive_generator(0, "token embedding")
    weight = mean + std * torch.randn(len(tokenizer), rows.shape[1], generator=generator)
    weight[tokenizer.convert_tokens_to_ids(tokens)] = rows
    return _with_embedding(text_encoder, weight, list(range(len(tokenizer))), tokenizer)


def reduce_vocabulary(
    text_encoder: CLIPTextModel, tokens: list[str], tokenizer: CLIPTokenizer
) -> CLIPTextModel:
    """The inverse of `expand_vocabulary`: keep the embeddings of `tokens` only, in this order."""
    ids = tokenizer.convert_tokens_to_ids(tokens)
    rows = text_encoder.get_input_embeddings().weight.detach()[ids]
    return _with_embedding(text_encoder, rows, ids, tokenizer)


def _with_embedding(
    text_encoder: CLIPTextModel, weight: torch.Tensor, ids: list[int], tokenizer: CLIPTokenizer
) -> CLIPTextModel:
    """A copy with other token embeddings. weight: (len(ids), width); ids: of the rows' tokens."""
    config = copy.deepcopy(text_encoder.config)
    config.vocab_size = len(weight)
    config.bos_token_id = ids.index(tokenizer.bos_token_id)
    config.eos_token_id = config.pad_token_id = ids.index(tokenizer.eos_token_id)
    other = CLIPTextModel(config)
    state = text_encoder.state_dict()
    (name,) = (key for key in state if key.endswith("token_embedding.weight"))
    other.load_state_dict(state | {name: weight})
    return other.eval()
