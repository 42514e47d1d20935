"""What training leaves behind: LoRA files or a whole network, and the proof that they hold it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from latent_robust.core import Parameterization
from latent_robust.files import sync_directory, write_atomically, writing

from .components import Components
from .kohya import kohya_metadata, to_kohya
from .lora import ADAPTER, MAGNITUDE, MAGNITUDE_IN_FILE, adapted_parts, load_lora

logger = logging.getLogger(__name__)
KOHYA_NAME = "lora_kohya.safetensors"
# What peft needs to rebuild an adapter. Not all that its configuration holds: older versions
# refuse keys they do not know, and `lora_dropout` would go on dropping when diffusers samples.
CONFIG_KEYS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora")


def save_lora(components: Components, folder: Path) -> list[Path]:
    """Write the adapters for diffusers and, where the family has the format, for ComfyUI and A1111
    (without DoRA).  =>  the files, each whole or, after an InputError of the disk, as before."""
    files = [_save_for_diffusers(components, folder / LORA_WEIGHT_NAME_SAFE)]
    if components.family.kohya:
        files += _save_for_kohya(components, folder / KOHYA_NAME)
    return files


def _save_for_diffusers(components: Components, path: Path) -> Path:
    parts = {}
    for name, part in adapted_parts(components).items():
        tensors = get_peft_model_state_dict(part, adapter_name=ADAPTER)
        if name in components.text_encoders:
            tensors = {
                _text_name(part, key).replace(MAGNITUDE, MAGNITUDE_IN_FILE): value
                for key, value in tensors.items()
            }
        config = part.peft_config[ADAPTER]
        parts[f"{name}_lora_layers"] = {k: v.detach().cpu() for k, v in tensors.items()}
        parts[f"{name}_lora_adapter_metadata"] = {
            **{key: getattr(config, key) for key in CONFIG_KEYS},
            "target_modules": sorted(config.target_modules),
        }
    with writing(path), TemporaryDirectory() as temporary:
        components.pipeline.save_lora_weights(temporary, **parts)
        write_atomically(path, Path(temporary, LORA_WEIGHT_NAME_SAFE).read_bytes())
    return path


def _save_for_kohya(components: Components, path: Path) -> list[Path]:
    config = components.network.peft_config[ADAPTER]
    if config.use_dora:
        logger.warning("%s is not written: its format has no DoRA that programs agree on", path)
        return []
    name = components.family.name
    predicts_v = components.process.parameterization is Parameterization.V_PREDICTION
    tensors = to_kohya(_lora_layers(components), ADAPTER, name)
    metadata = kohya_metadata(name, predicts_v, config.r, config.lora_alpha)
    write_atomically(path, safetensors.torch.save(tensors, metadata))
    return [path]


def _lora_layers(components: Components) -> dict[str, LoraLayer]:
    """By diffusers' names, `unet.…`, `text_encoder.text_model.…`."""
    return {
        f"{part}.{_text_name(module, name) if part in components.text_encoders else name}": layer
        for part, module in adapted_parts(components).items()
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }


def _text_name(encoder: nn.Module, name: str) -> str:
    """Everybody's files have a `text_model.` that transformers 5 took out of CLIPTextModel."""
    return name if hasattr(encoder, "text_model") else f"text_model.{name}"


def save_network(components: Components, folder: Path) -> Path:
    """Write the network as a diffusers folder.  =>  `folder/unet` or `folder/transformer`, whole
    or, after an InputError of the disk, absent."""
    final = folder / components.family.network_name
    temporary = folder / f".{final.name}.tmp"
    with writing(final):
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
            components.network.save_pretrained(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            sync_directory(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


@torch.no_grad()
def verify_lora(
    components: Components, files: Sequence[Path], make_components: Callable[[], Components]
) -> dict[str, float]:
    """Load each file that `save_lora` wrote into a model of its own, as diffusers' users do, and
    compare what network and text encoders answer.

    make_components: gives the model as it was before training, each time anew, in the same dtype
    and on the same device.  =>  file name: largest difference of the answers; 0 is usual on a CPU.
    RuntimeError if a file does not reproduce the trained model."""
    differences = {}
    for file in files:
        fresh = make_components()
        probe = _Probe(fresh, encoders=adapted_parts(components).keys() & fresh.text_encoders)
        base, trained = probe.answers(fresh), probe.answers(components)
        load_lora(fresh, file)
        loaded = probe.answers(fresh)
        for name, answer in trained.items():
            difference = (loaded[name] - answer).abs().max().item()
            effect = (base[name] - answer).abs().max().item()
            # The same numbers go through the same layers: other kernels may round differently, but
            # a lost layer or a wrong scale is of the order of the adapters' effect.
            rounding = torch.finfo(fresh.network.dtype).eps * answer.abs().max().item()
            if not difference <= max(0.01 * effect, 16 * rounding):
                raise RuntimeError(
                    f"{file} does not reproduce the trained model: the answer of its {name} is "
                    f"off by {difference:.3g}, where the training itself changed it by {effect:.3g}"
                )
            differences[file.name] = max(difference, differences.get(file.name, 0.0))
    return differences


class _Probe:
    """Fixed inputs, made with an untrained model's encoders; the trained one's may be unloaded.

    encoders: names of the text encoders to compare, if any."""

    CAPTIONS = ("a red circle above a blue square", "")

    def __init__(self, components: Components, encoders: Set[str]):
        side = 8 * components.family.multiple
        generator = torch.Generator().manual_seed(0)
        pictures = torch.rand(2, 3, side, side, generator=generator) * 2 - 1
        times = components.process.times
        self.encoders = encoders
        self.sizes = torch.tensor([[side, side]] * 2)
        self.text = components.encode_text(list(self.CAPTIONS))
        self.t = times[[len(times) // 4, len(times) // 2]]
        self.noisy = components.encode_pictures(pictures)[0]
        self.noisy += torch.randn(self.noisy.shape, generator=generator)

    def answers(self, components: Components) -> dict[str, Tensor]:
        """Of the network and of the text encoders, float32, on the CPU."""
        network, family = components.network, components.family
        encoders = [components.text_encoders[name] for name in self.encoders]
        with _evaluating(network, *encoders):
            denoise = family.denoiser(network, self.text, self.sizes)
            answers = {family.network_name: denoise(self.noisy.to(network.device), self.t)}
            if self.encoders:
                answers |= components.encode_text(list(self.CAPTIONS))
        return {name: answer.float().cpu() for name, answer in answers.items()}


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """No dropout, for a while."""
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, before in zip(modules, training, strict=True):
            module.train(before)
