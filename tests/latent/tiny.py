"""A tiny but genuine pipeline of each model family, built offline in milliseconds.

Every part is the class that the real checkpoints use, at a size of about 100,000 parameters with
random weights. The VAEs halve the sides once (the real ones three times).
"""

import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
START, END = "<|startoftext|>", "<|endoftext|>"


def make_pipeline(name: str, seed: int = 0) -> DiffusionPipeline:
    """name: one of FAMILIES.  =>  a new pipeline in eval mode; the same weights for the same seed.

    The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = {
            "sd1": _stable_diffusion_1,
            "sd2": _stable_diffusion_2,
            "sdxl": _stable_diffusion_xl,
            "sd3": _stable_diffusion_3,
            "flux": _flux,
        }[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def saved(name: str, folder: Path) -> Path:
    """Save the pipeline below `folder`.  =>  its own folder, `folder / name`."""
    path = Path(folder) / name
    make_pipeline(name).save_pretrained(path)
    return path


def _stable_diffusion_1() -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=_vae(),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(_clip_config(tokenizer, 16)),
        unet=_unet(cross_attention_dim=16, attention_head_dim=2),
        scheduler=PNDMScheduler(
            **BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_2() -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer(pad="!")
    return StableDiffusionPipeline(
        vae=_vae(),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(_clip_config(tokenizer, 16, hidden_act="gelu")),
        unet=_unet(cross_attention_dim=16, attention_head_dim=(2, 4), use_linear_projection=True),
        scheduler=DDIMScheduler(
            **BETAS,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl() -> StableDiffusionXLPipeline:
    tokenizer, tokenizer_2 = clip_tokenizer(), clip_tokenizer(pad="!")
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025, force_upcast=True),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(_clip_config(tokenizer, 16)),
        tokenizer_2=tokenizer_2,
        text_encoder_2=CLIPTextModelWithProjection(
            _clip_config(tokenizer_2, 16, hidden_act="gelu", projection_dim=16)
        ),
        unet=_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
    )


def _stable_diffusion_3() -> StableDiffusion3Pipeline:
    tokenizer, tokenizer_2, tokenizer_3 = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer()
    return StableDiffusion3Pipeline(
        vae=_vae(
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModelWithProjection(_clip_config(tokenizer, 16, projection_dim=16)),
        tokenizer_2=tokenizer_2,
        text_encoder_2=CLIPTextModelWithProjection(
            _clip_config(tokenizer_2, 16, hidden_act="gelu", projection_dim=16)
        ),
        tokenizer_3=tokenizer_3,
        text_encoder_3=_t5(tokenizer_3, width=32),
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux() -> FluxPipeline:
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    return FluxPipeline(
        vae=_vae(
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(_clip_config(tokenizer, 32)),
        tokenizer_2=tokenizer_2,
        text_encoder_2=_t5(tokenizer_2, width=32),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def _unet(**options) -> UNet2DConditionModel:
    defaults = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**defaults, **options})


def _vae(**options) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        **options,
    )


def _clip_config(tokenizer: CLIPTokenizer, width: int, **options) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def _t5(tokenizer: T5Tokenizer, width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def clip_tokenizer(pad: str = END) -> CLIPTokenizer:
    """CLIP's byte-level vocabulary without merges: one token per byte of text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(hidden))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """A unigram vocabulary of single characters, and of letters that begin a word."""
    characters = [c for c in string.printable if not c.isspace()]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(character, -3.0) for character in characters]
    pieces += [(f"\u2581{letter}", -2.5) for letter in string.ascii_lowercase]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
