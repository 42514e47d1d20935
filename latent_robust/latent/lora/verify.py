"""The proof that LoRA files hold what was trained."""

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
    """Load each file that `save_lora` wrote into a model of its own, as diffusers' users do, and
    compare its adapters and what network and text encoders answer.

    make_components: gives the model as it was before training, each time anew, in the same dtype
    and on the same device.  =>  file name: largest difference of the answers; 0 is usual on a CPU.
    RuntimeError if a file does not reproduce the trained model."""
    differences = {}
    for file in files:
        with components.offload():
            fresh = make_components()
            probe = _Probe(fresh, encoders=adapted_parts(components).keys() & fresh.text_encoders)
            base, epsilon = probe.answers(fresh), torch.finfo(fresh.network.dtype).eps
            load_lora(fresh, file)
            other = _other_layer(lora_layers(components), lora_layers(fresh))
            if other is not None:
                raise _Unlike(file, f"{other} has other weights, or another scale")
            loaded = probe.answers(fresh)
            del fresh
        for name, answer in probe.answers(components).items():
            difference = (loaded[name] - answer).abs().max().item()
            effect = (base[name] - answer).abs().max().item()
            # The same numbers in the same layers; but kernels may round differently, and so does
            # autocast, in which the trained network may still be wrapped.
            rounding = 16 * epsilon * answer.abs().max().item()
            if not difference <= max(0.01 * effect, rounding):
                raise _Unlike(
                    file,
                    f"{name} is off by {difference:.3g}, where training moved it by {effect:.3g}",
                )
            differences[file.name] = max(difference, differences.get(file.name, 0.0))
    return differences


class _Unlike(RuntimeError):
    def __init__(self, file: Path, how: str):
        super().__init__(f"{file} does not reproduce the trained model: {how}")


def _other_layer(trained: dict[str, LoraLayer], loaded: dict[str, LoraLayer]) -> str | None:
    """The first layer whose adapters are not the same, bit for bit."""
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


class _Probe:
    """Fixed inputs, made with an untrained model's encoders; the trained one's may be unloaded.

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

    def answers(self, components: Components) -> dict[str, Tensor]:
        """Of the network and of the text encoders, float32, on the CPU."""
        network, family = components.network, components.family
        encoders = [components.text_encoders[name] for name in self.encoders]
        with evaluation_mode(network, *encoders):
            denoise = family.denoiser(network, self.text, self.sizes)
            answers = {family.network_name: denoise(self.noisy.to(network.device), self.t)}
            if self.encoders:
                answers |= components.encode_text(list(self.CAPTIONS))
        return {name: answer.float().cpu() for name, answer in answers.items()}
