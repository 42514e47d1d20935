"""Write a latent-space run: grids, validation losses, the LoRA or the network, and metrics."""

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
from latent_robust.audit.spectrum import CLEAN, measure_spectrum
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
from .data import select_images, to_measure
from .full_finetune import save_network
from .lora.files import KOHYA_NAME, save_lora
from .lora.verify import verify_lora
from .preparation import Preparation, Prompts
from .sampling import generate_images
from .scene_match import match_scenes
from .validation_loss import validation_losses

logger = logging.getLogger(__name__)
PREVIEW, COLUMNS = 16, 4  # images in the grids of the data and of the final samples


class Evaluators:
    """Feature networks and CLIP, loaded before training, so that missing weights stop a run before
    it starts. None are loaded if no images are generated for metrics."""

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
    """Writes the run directory of one run. make_components: loads the model as it was before
    training, a new one on each call."""

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
        """Write the settings, the quarantine, and grids of the training and the clean images."""
        prepared, train_pairs = self.prepared, self.prepared.train_pairs
        grids = {"training": select_images(train_pairs, train_pairs.sample, PREVIEW)}
        if (reference := prepared.reference) is not None:
            grids["clean"] = select_images(reference, reference.clean, PREVIEW)
        pairs = prepared.pairs
        write_config(self.config, self.out)  # first: it marks the directory as a run
        begin_directory(self.out, pairs.manifest(), pairs.quarantine, grids, COLUMNS)
        write_json(self.out / "samples" / "prompts.json", prepared.prompts.captions)

    def on_checkpoint(self, network: nn.Module, step: int) -> None:
        """Generate images for the prompts and log the validation losses. Called with the averaged
        weights in place; at step 0 the model is the base model."""
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
        """Save the model, verify the files, generate images and measure them. Called with the
        averaged weights in place.

        seconds: the time that training took; None if it was resumed."""
        config = self.config
        facts = {
            "objective": config.objective,
            "steps": config.steps,
            "seed": config.seed,
            "parameterization": self.components.process.parameterization.value,
        }
        if config.facts.regularized:
            facts.update(weight=config.weight, band=config.band)
            if config.weight == 0:
                facts["data_look_clean"] = self._data_look_clean()
        if seconds is None:
            facts.update(timing(self.out))
        else:
            facts["seconds"] = round(seconds, 1)
            facts["cost"] = {"seconds_per_step": round(seconds / config.steps, 4)}
        facts["measurement"] = measurement(config)
        if config.lora:
            files = save_lora(self.components, self.out)
            facts["verified"] = verify_lora(self.components, files, self.make_components)
            facts["pipeline"] = type(self.components.pipeline).__name__
        else:
            save_network(self.components, self.out)
        if self.prepared.found is not None:
            facts["data_audit"] = self.prepared.found.summary()
        if config.facts.needs_audit:
            pairs = self.prepared.pairs
            dirty = pairs.dirty() if pairs.corruptions else None
            facts["audit"] = audit_facts(self.out / AUDIT, dirty)
        metrics = self._measure() if config.samples else {}
        write_json(self.out / "metrics.json", {**facts, **metrics})

    def lora_files(self) -> dict[Path, str]:
        """The verified LoRA files of a finished run, and how to use each."""
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
        """=>  (N, 3, resolution, resolution) in [-1, 1], from noise that depends only on the run's
        seed."""
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
        components, validation = self.components, self.prepared.validation
        network = components.network

        def denoiser(batch: dict) -> Callable[..., Tensor]:
            text = batch["text"]
            if self.config.text_encoder:  # the cache holds the outputs of the untrained ones
                captions = [validation.captions[i] for i in batch["index"].tolist()]
                text = components.encode_text(captions)
            return components.family.denoiser(network, text, batch["size"])

        return validation_losses(
            denoiser,
            components.process,
            validation.dataset,
            validation.indices,
            network=network,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
        )

    def _data_look_clean(self) -> bool:
        """Whether the spectrum of the training images shows no noise."""
        pairs = self.prepared.pairs
        return measure_spectrum(*to_measure(pairs)).level < CLEAN

    def _measure(self) -> dict:
        """The metrics of generated images; only that it diverged if these are not finite."""
        prepared = self.prepared
        samples = self.generate(prepared.metric_prompts)
        if not samples.isfinite().all():
            logger.warning("%s generates non-finite images: nothing is measured", self.out)
            return {"diverged": True}
        save_grid(samples[:PREVIEW], self.out / "samples" / "final.png", COLUMNS)
        train_pairs, reference = prepared.train_pairs, prepared.reference
        metrics = measure(
            samples,
            select_images(train_pairs, train_pairs.sample),
            None if reference is None else select_images(reference, reference.clean),
            self.evaluators.extractors,
            seed=self.config.seed,
        )
        metrics["captions"] = prepared.metric_prompts.captions[:PREVIEW]  # of final.png
        if prepared.scenes is not None:
            metrics["match"] = match_scenes(samples, prepared.scenes)
        if self.evaluators.clip is not None:
            metrics["clip"] = {
                "model": self.evaluators.clip.name,
                **self.evaluators.clip(samples, prepared.metric_prompts.captions),
            }
        return metrics
