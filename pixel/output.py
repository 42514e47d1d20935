"""What a run leaves behind: settings, grids, the network, metrics, a report."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn

from latent_robust.data import ContaminatedPictures, open_pictures, write_quarantine
from latent_robust.evaluation.features import make_extractor
from latent_robust.evaluation.figures import save_grid
from latent_robust.evaluation.metrics import REFERENCE, FeatureCache, evaluate
from latent_robust.evaluation.report import write_report
from latent_robust.files import write_json, writing
from latent_robust.training.run import write_config

from .config import PixelConfig
from .task import COLUMNS, PREVIEW, PixelTask

logger = logging.getLogger(__name__)


class Output:
    """The run directory of one run. Made before training, so that missing weights of a feature
    network or a wrong reference do not cost a run."""

    def __init__(
        self,
        config: PixelConfig,
        out: Path,
        dataset: ContaminatedPictures,
        accelerator: Accelerator,
    ):
        self.config, self.out, self.dataset = config, out, dataset
        self.clean: ContaminatedPictures | None = None
        self.extractors = []
        if not accelerator.is_main_process:
            return
        if config.reference is not None:
            pictures = open_pictures(
                config.reference,
                size=config.size,
                channels=config.channels,
                offline=config.offline,
            )
            self.clean = ContaminatedPictures(pictures, [], config.seed)
        elif dataset.corruptions:
            self.clean = dataset
        if config.samples:
            self.extractors = [
                make_extractor(
                    spec,
                    device=accelerator.device,
                    weights=config.weights,
                    offline=config.offline,
                )
                for spec in config.features
            ]

    def is_finished(self) -> bool:
        try:
            return json.loads((self.out / "metrics.json").read_text())["steps"] == self.config.steps
        except FileNotFoundError:
            return False

    def begin(self) -> None:
        """What is known before the first step: settings, what was broken, what it trains on."""
        samples, dataset = self.out / "samples", self.dataset
        with writing(self.out):
            samples.mkdir(parents=True, exist_ok=True)
        write_config(self.config, self.out)
        dataset.write_manifest(self.out / "manifest.jsonl")
        save_grid(dataset.sample_tensor(limit=PREVIEW), samples / "training.png", COLUMNS)
        if self.clean is not None:
            save_grid(self.clean.clean_tensor(limit=PREVIEW), samples / "clean.png", COLUMNS)
        if dataset.quarantine:
            file = self.out / "quarantine.jsonl"
            write_quarantine(dataset.quarantine, file)
            count = len(dataset.quarantine)
            print(f"{count} broken pictures are left out, see {file}", file=sys.stderr)

    def finish(self, task: PixelTask, network: nn.Module, seconds: float | None) -> None:
        """With the averaged weights: save them for diffusers, draw, measure, report.

        seconds: how long training took; None if it was resumed.
        """
        config = self.config
        with writing(self.out):
            network.save_pretrained(self.out / "unet")
            task.scheduler.save_pretrained(self.out / "scheduler")
        facts = {"objective": config.objective, "steps": config.steps, "seed": config.seed}
        if seconds is not None:
            facts["seconds"] = round(seconds, 1)
        measured = {}
        if config.samples:
            samples = task.draw(network, config.samples)
            if samples.isfinite().all():
                save_grid(samples[:PREVIEW], self.out / "samples" / "final.png", COLUMNS)
                measured = self._measure(samples)
            else:
                logger.warning(
                    "%s draws non-finite pictures: it has diverged, nothing is measured", self.out
                )
        write_json(self.out / "metrics.json", {**facts, **measured})
        write_report([self.out], self.out / "report.html")

    def _measure(self, samples: Tensor) -> dict:
        """Distances of the samples, and of the training set itself, to clean pictures; to the
        training pictures where nothing clean is known."""
        count, seed = max(len(samples), REFERENCE), self.config.seed
        training = FeatureCache(self.dataset.sample_tensor(count))
        if self.clean is None:
            metrics = evaluate(samples, training, self.extractors, training=training, seed=seed)
            return {"compared_with": "training", "metrics": metrics}
        clean = FeatureCache(self.clean.clean_tensor(count))
        metrics = evaluate(samples, clean, self.extractors, training=training, seed=seed)
        floor = evaluate(training, clean, self.extractors, seed=seed)
        return {
            "compared_with": "clean",
            "metrics": metrics,
            "floors": {"training set": floor},
        }
