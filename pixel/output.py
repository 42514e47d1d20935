"""The files of a run: settings, grids of images, the network, metrics."""

from __future__ import annotations

import logging
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn

from latent_robust.audit import DataRows, audit_facts, to_measure
from latent_robust.audit.spectrum import CLEAN, measure_spectrum
from latent_robust.data import ContaminatedImages
from latent_robust.evaluation.directory import begin_directory
from latent_robust.evaluation.features import make_extractors
from latent_robust.evaluation.figures import save_grid
from latent_robust.evaluation.metrics import REFERENCE, measure, require_enough
from latent_robust.files import write_json, writing
from latent_robust.training.directory import (
    AUDIT,
    measurement,
    timing,
    write_config,
)

from .config import PixelConfig
from .data import open_part
from .task import COLUMNS, PREVIEW, PixelTask

logger = logging.getLogger(__name__)


class Output:
    """The run directory of one run. found: what --audit says about the images.

    Built before training, so that a wrong reference or missing feature weights stop the command
    before it has trained for hours."""

    def __init__(
        self,
        config: PixelConfig,
        out: Path,
        dataset: ContaminatedImages,
        accelerator: Accelerator,
        found: DataRows | None = None,
    ):
        self.config, self.out, self.dataset, self.found = config, out, dataset, found
        self.clean: ContaminatedImages | None = None
        self.extractors = []
        if not accelerator.is_main_process:
            return
        if config.reference is not None:
            images = open_part(config.model_dump(), config.reference, None)
            self.clean = ContaminatedImages(images, [], config.seed)
        elif dataset.corruptions:
            self.clean = dataset
        require_enough(config.features, config.samples, dataset, self.clean)
        if config.samples:
            self.extractors = make_extractors(
                config.features,
                device=accelerator.device,
                weights=config.weights,
                offline=config.offline,
            )

    def begin(self) -> None:
        """Before the first step: write settings, manifest, quarantine and grids of the data."""
        dataset = self.dataset
        grids = {"training": dataset.sample_tensor(limit=PREVIEW)}
        if self.clean is not None:
            grids["clean"] = self.clean.clean_tensor(limit=PREVIEW)
        write_config(self.config, self.out)  # first, since it marks the directory as a run
        begin_directory(self.out, dataset.manifest(), dataset.quarantine, grids, COLUMNS)

    def finish(self, task: PixelTask, network: nn.Module, seconds: float | None) -> None:
        """Save the network for diffusers, generate samples, measure them.

        network: with averaged weights. seconds: duration of training; None if it was resumed.
        """
        config = self.config
        with writing(self.out):
            network.save_pretrained(self.out / "unet")
            task.scheduler.save_pretrained(self.out / "scheduler")
        facts = {"objective": config.objective, "steps": config.steps, "seed": config.seed}
        if config.facts.regularized:
            facts.update(weight=config.weight, band=config.band)
            if config.weight == 0:
                facts["data_look_clean"] = self._data_look_clean()
        facts.update(timing(self.out) if seconds is None else {"seconds": round(seconds, 1)})
        facts["measurement"] = measurement(config)
        if task.stop_at != config.stop_at:
            facts["stop_at"] = task.stop_at  # from the levels of this run; config.yaml has None
        if self.found is not None:
            facts["data_audit"] = self.found.summary()
        measured = {}
        if config.facts.needs_audit:
            is_dirty = self.dataset.dirty() if self.dataset.corruptions else None
            facts["audit"] = audit_facts(self.out / AUDIT, is_dirty)
        if config.samples:
            samples = task.generate(network, config.samples)
            if samples.isfinite().all():
                save_grid(samples[:PREVIEW], self.out / "samples" / "final.png", COLUMNS)
                measured = self._measure(samples)
            else:
                logger.warning(
                    "%s generates non-finite images: training has diverged, no metrics are written",
                    self.out,
                )
                measured = {"diverged": True}
        write_json(self.out / "metrics.json", {**facts, **measured})

    def _data_look_clean(self) -> bool:
        """Whether the spectrum of the training images shows no noise."""
        return measure_spectrum(*to_measure(self.dataset)).level < CLEAN

    def _measure(self, samples: Tensor) -> dict:
        count = max(len(samples), REFERENCE)
        return measure(
            samples,
            self.dataset.sample_tensor(count),
            None if self.clean is None else self.clean.clean_tensor(count),
            self.extractors,
            seed=self.config.seed,
        )
