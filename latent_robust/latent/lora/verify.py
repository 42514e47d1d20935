"""Check that LoRA files reproduce the trained model.

Each file is loaded into a fresh base model. Its adapters must be equal bit for bit, and its outputs
equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from latent_robust.latent.base.components import Components
from latent_robust.latent.eval_mode import evaluation_mode

from .adapters import ADAPTER, adapted_parts
from .files import load_lora, lora_layers


@torch.no_grad()
def verify_lora(
    components: Components, files: Sequence[Path], make_components: Callable[[], Components]
) -> dict[str, float]:
    """Load each file of `save_lora` into a fresh model, as users of diffusers do. Compare its
    adapters, and the outputs of the network and the text encoders, with the trained model's.

    make_components: loads the model as it was before training, a new one on each call, in the same
    dtype and on the same device.  =>  file name: largest difference of the outputs, usually 0 on a
    CPU. RuntimeError if a file does not reproduce the trained model."""
    differences = {}
    for file in files:
        with components.offload():
            fresh = make_components()
            inputs = FixedInputs(
                fresh, encoders=adapted_parts(components).keys() & fresh.text_encoders
            )
            base, epsilon = inputs.outputs(fresh), torch.finfo(fresh.network.dtype).eps
            load_lora(fresh, file)
            other = _other_layer(lora_layers(components), lora_layers(fresh))
            if other is not None:
                raise _mismatch(file, f"{other} has other weights, or another scale")
            loaded = inputs.outputs(fresh)
            del fresh
        for name, output in inputs.outputs(components).items():
            difference = (loaded[name] - output).abs().max().item()
            effect = (base[name] - output).abs().max().item()
            # The adapters are equal, but kernels may round differently, and so may autocast, which
            # can still wrap the trained network.
            rounding = 16 * epsilon * output.abs().max().item()
            if not difference <= max(0.01 * effect, rounding):
                raise _mismatch(
                    file,
                    f"{name} is off by {difference:.3g}, while training changed it by {effect:.3g}",
                )
            differences[file.name] = max(difference, differences.get(file.name, 0.0))
    return differences


class FixedInputs:
    """Fixed inputs of the network and the text encoders, made with an untrained model: the trained
    model's encoders may be unloaded.

    encoders: names of the text encoders to compare, if any."""

    CAPTIONS = ("a red circle above a blue square", "")

    def __init__(self, components: Components, encoders: Set[str]):
        side = 8 * components.family.multiple
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, 3, side, side, generator=generator) * 2 - 1
        times = components.process.times
        self.encoders = encoders
        self.sizes = torch.tensor([[side, side]] * 2)
        self.text = components.encode_text(list(self.CAPTIONS))
        self.t = times[[len(times) // 4, len(times) // 2]]
        self.noisy = components.encode_images(images)[0]
        self.noisy += torch.randn(self.noisy.shape, generator=generator)

    def outputs(self, components: Components) -> dict[str, Tensor]:
        """=>  outputs of the network and the text encoders by name, float32, on the CPU."""
        network, family = components.network, components.family
        encoders = [components.text_encoders[name] for name in self.encoders]
        with evaluation_mode(network, *encoders):
            denoise = family.denoiser(network, self.text, self.sizes)
            outputs = {family.network_name: denoise(self.noisy.to(network.device), self.t)}
            if self.encoders:
                outputs |= components.encode_text(list(self.CAPTIONS))
        return {name: output.float().cpu() for name, output in outputs.items()}


def _other_layer(trained: dict[str, LoraLayer], loaded: dict[str, LoraLayer]) -> str | None:
    """Name of the first layer whose adapters are not equal bit for bit."""
    for name in sorted(trained.keys() | loaded.keys()):
        if name not in trained or name not in loaded:
            return name
        mine, theirs = trained[name], loaded[name]
        weights = theirs.state_dict()
        same = mine.scaling[ADAPTER] == theirs.scaling[ADAPTER] and all(
            torch.equal(value.cpu(), weights[key].cpu())
            for key, value in mine.state_dict().items()
            if key.startswith("lora_")
        )
        if not same:
            return name
    return None


def _mismatch(file: Path, reason: str) -> RuntimeError:
    return RuntimeError(
        f"{file} does not reproduce the trained model: {reason}. Do not use this file; the trained "
        "weights are in the run's last checkpoint"
    )
