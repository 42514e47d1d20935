"""What a latent-space run leaves behind: grids, validation, the LoRA or the network, metrics."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import Tensor, nn

from latent_robust.audit import audit_facts
from latent_robust.evaluation.clip_score import load_clip_score
from latent_robust.evaluation.directory import begin_directory
from latent_robust.evaluation.features import make_extractors
from latent_robust.evaluation.figures import save_grid
from latent_robust.evaluation.metrics import measure
from latent_robust.files import write_json
from latent_robust.training.directory import (
    AUDIT,
    measurement,
    timing,
    write_config,
)
from latent_robust.training.log import append_row

from .base.components import Components
from .config import LatentConfig
from .full_finetune import save_network
from .lora.files import KOHYA_NAME, save_lora
from .lora.verify import verify_lora
from .preparation import Preparation, Prompts, select_images
from .sampling import generate_images
from .scene_match import match_scenes
from .validation_loss import validation_losses

logger = logging.getLogger(__name__)
PREVIEW, COLUMNS = 16, 4  # images in the grids of data and of final samples


class Evaluators:
    """Feature networks and CLIP, loaded before training, so that missing weights do not cost a
    run. Empty where nothing is drawn."""

    def __init__(self, config: LatentConfig, device: torch.device):
        self.extractors, self.clip = [], None
        if config.samples == 0:
            return
        self.extractors = make_extractors(
            config.features, device=device, weights=config.weights, offline=config.offline
        )
        if config.clip_score is not None:
            self.clip = load_clip_score(config.clip_score, device=device)


class LatentOutput:
    """The run directory of one run. make_components: the model as it was before training."""

    def __init__(
        self,
        config: LatentConfig,
        out: Path,
        components: Components,
        prepared: Preparation,
        evaluators: Evaluators,
        accelerator: Accelerator,
        make_components: Callable[[], Components],
    ):
        self.config, self.out = config, out
        self.components, self.prepared, self.evaluators = components, prepared, evaluators
        self.accelerator, self.make_components = accelerator, make_components

    def begin(self) -> None:
        """Settings, what was broken, what it trains on."""
        prepared = self.prepared
        grids = {"training": _first(prepared.seen, prepared.seen.sample)}
        if prepared.truth is not None:
            grids["clean"] = _first(prepared.truth, prepared.truth.clean)
        pairs = prepared.pairs
        write_config(self.config, self.out)  # first: it says that what follows is a run's
        begin_directory(self.out, pairs.manifest(), pairs.quarantine, grids, COLUMNS)
        write_json(self.out / "samples" / "prompts.json", prepared.prompts.captions)

    def watch(self, network: nn.Module, step: int) -> None:
        """At a checkpoint, with the averaged weights: the prompts, and the validation losses. At
        step 0 these are the base model's."""
        if not self.accelerator.is_main_process:
            return
        if self.prepared.prompts.captions:
            grid = self.generate(self.prepared.prompts)
            save_grid(grid, self.out / "samples" / f"step-{step:08d}.png", len(grid))
        losses = self._validate()
        if losses:
            append_row(self.out, {"step": step, **losses})
            self.accelerator.log(losses, step=step)

    def finish(self, network: nn.Module, seconds: float | None) -> None:
        """With the averaged weights: save them, prove that the files hold them, draw, measure.

        seconds: how long training took; None if it was resumed."""
        config = self.config
        facts = {
            "objective": config.objective,
            "steps": config.steps,
            "seed": config.seed,
            "parameterization": self.components.process.parameterization.value,
        }
        if config.facts.regularized:
            facts.update(weight=config.weight, band=config.band)
        if seconds is None:
            facts.update(timing(self.out))
        else:
            facts["seconds"] = round(seconds, 1)
            facts["cost"] = {"seconds_per_step": round(seconds / config.steps, 4)}
        facts["measurement"] = measurement(config)
        if config.lora:
            files = save_lora(self.components, self.out)
            facts["verified"] = verify_lora(self.components, files, self.make_components)
        else:
            save_network(self.components, self.out)
        if config.facts.needs_audit:
            pairs = self.prepared.pairs
            known = pairs.dirty() if pairs.corruptions else None
            facts["audit"] = audit_facts(self.out / AUDIT, known)
        measured = self._measure() if config.samples else {}
        write_json(self.out / "metrics.json", {**facts, **measured})

    def lora_files(self) -> dict[Path, str]:
        """The LoRA files of a finished run, and for whom they are."""
        verified = json.loads((self.out / "metrics.json").read_text()).get("verified", {})
        uses = {
            LORA_WEIGHT_NAME_SAFE: 'for diffusers: pipeline.load_lora_weights("DIR")',
            KOHYA_NAME: "for ComfyUI (models/loras) and A1111 (models/Lora): copy it there",
        }
        return {
            self.out / name: f"{use}; verified: it reloads as it was trained"
            for name, use in uses.items()
            if name in verified
        }

    def generate(self, prompts: Prompts) -> Tensor:
        """=>  (N, 3, resolution, resolution); always the same noise for the same seed."""
        config, components = self.config, self.components
        fixed = prompts.fixed
        return generate_images(
            components,
            prompts.conditions(components),
            empty=self.prepared.dataset.empty_text if fixed else components.empty_text(),
            size=(config.resolution, config.resolution),
            steps=config.sampling_steps,
            guidance=config.guidance,
            seed=config.seed,
        )

    def _validate(self) -> dict[str, float]:
        components, prepared = self.components, self.prepared
        network = components.network

        def denoiser(batch: dict) -> Callable[..., Tensor]:
            text = batch["text"]
            if self.config.text_encoder:  # what is in the cache was said by the untrained ones
                captions = [prepared.validation_captions[i] for i in batch["index"].tolist()]
                text = components.encode_text(captions)
            return components.family.denoiser(network, text, batch["size"])

        return validation_losses(
            denoiser,
            components.process,
            prepared.validation,
            prepared.validated,
            network=network,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
        )

    def _measure(self) -> dict:
        samples = self.generate(self.prepared.measured)
        if not samples.isfinite().all():
            logger.warning("%s draws non-finite images: nothing is measured", self.out)
            return {}
        save_grid(samples[:PREVIEW], self.out / "samples" / "final.png", COLUMNS)
        prepared, captions = self.prepared, self.prepared.measured.captions
        truth = prepared.truth
        measured = measure(
            samples,
            select_images(prepared.seen, prepared.seen.sample),
            None if truth is None else select_images(truth, truth.clean),
            self.evaluators.extractors,
            seed=self.config.seed,
        )
        if prepared.scenes is not None:
            measured["match"] = match_scenes(samples, prepared.scenes)
        if self.evaluators.clip is not None:
            measured["clip"] = {
                "model": self.evaluators.clip.name,
                **self.evaluators.clip(samples, captions),
            }
        return measured


def _first(pairs, pick: Callable[[int], Tensor]) -> Tensor:
    return select_images(pairs, pick, PREVIEW)
