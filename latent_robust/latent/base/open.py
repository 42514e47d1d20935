"""Load the pipeline that `--model` names, and check that all its weights are in the checkpoint."""

from __future__ import annotations

from pathlib import Path

from diffusers import DiffusionPipeline
from torch import nn

from .demo_model import load_demo_pipeline
from .folder import PARTS, Dtypes, cast_parts, open_folder
from .hub import fetch
from .model_spec import ModelKind, model_kind
from .single_file import open_single_file
from .weight_checks import check_tokenizers, check_weights


def open_pipeline(model: str, *, offline: bool, dtypes: Dtypes) -> DiffusionPipeline:
    """For arguments and errors see `load_components`."""
    pipeline = _open(model, offline, dtypes)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            check_weights(part, f"{name} of {model}")
    check_tokenizers(pipeline, model)
    return pipeline


def _open(model: str, offline: bool, dtypes: Dtypes) -> DiffusionPipeline:
    path = Path(model).expanduser()
    match model_kind(model):
        case ModelKind.DEMO:
            return cast_parts(load_demo_pipeline(), dtypes)
        case ModelKind.FOLDER:
            return open_folder(path, dtypes)
        case ModelKind.FILE:
            return open_single_file(path, offline=offline, dtypes=dtypes)
        case ModelKind.HUB:
            return open_folder(fetch(model, PARTS, offline=offline), dtypes)
