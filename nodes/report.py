"""Report: what a run computed and skipped, as text and as JSON."""

import json
import logging
import secrets
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..rapid_core.comfy.chain import chain_of, record_of
from ..rapid_core.heatmap import draw
from ..rapid_core.reasons import ReasonCode, text, to_json
from ..rapid_core.record import RunRecord
from ..rapid_core.types import Reason
from .base import RapidNode


class Report(RapidNode):
    """Shows the record of the run that made a latent and passes the latent through."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_Report",
            display_name="RAPID Report",
            category="RAPID",
            description="Shows which steps of a run were computed and which were skipped, how much faster "
            "that was, and why something was computed in full. API clients get it all as JSON.",
            search_aliases=[
                "statistics",
                "timeline",
                "heat map",
                "what was skipped",
                "speed",
                "rapid",
                "报告",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that goes into the sampler: the last RAPID node's output.",
                ),
                io.Latent.Input(
                    "latent", tooltip="The sampler's output. Passed through unchanged."
                ),
                io.Image.Input(
                    "picture",
                    optional=True,
                    tooltip="The decoded picture, to draw the map over it. Changes nothing else.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The latent that came in, unchanged, for VAE Decode.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="A few lines: evaluations computed, reused and skipped, speed-up, memory in "
                    "MiB, and why something was computed in full.",
                ),
                io.Image.Output(
                    display_name="map",
                    tooltip="How often each part of the picture was computed (yellow: always, dark blue: "
                    "never). Below it one cell per evaluation (black: skipped). Only these cells where all "
                    "parts did the same.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any], picture: Any = None) -> io.NodeOutput:
        try:
            record = record_of(model, latent["samples"])
            if record is not None:
                return report_on(record, latent, picture)
            reason = why_none(model)
        except Exception as error:  # the latent passes through here, and is worth more
            logging.exception("RAPID: this run could not be reported on")
            failed = f"{type(error).__name__}: {error}"
            reason = Reason(ReasonCode.RECORD_FAILED, error=failed)
        shown = {
            "text": (text(reason),),
            "rapid_record": [],
            "rapid_map": [],
            "rapid_reason": [json.dumps(to_json(reason), allow_nan=False)],
        }
        return io.NodeOutput(latent, text(reason), torch.zeros(1, 64, 64, 3), ui=shown)


def why_none(model: Any) -> Reason:
    """Why there is no record of a latent."""
    chain = chain_of(model)
    if chain is None:
        return Reason(ReasonCode.NOT_PATCHED)
    return Reason(ReasonCode.OTHER_LATENT if chain.log.records else ReasonCode.NOT_SAMPLED)


def report_on(record: RunRecord, latent: dict[str, Any], picture: Any) -> io.NodeOutput:
    """What the node gives where there is a record."""
    image = draw(record, picture)
    shown = {
        "text": (record.text(),),
        "rapid_record": [json.dumps(record.to_json(), allow_nan=False)],
        "rapid_map": saved(image) if record.grid is not None else [],  # else nothing to see
        "rapid_reason": [],
    }
    return io.NodeOutput(latent, record.text(), image, ui=shown)


def saved(image: Any) -> list[Any]:
    """Temporary files of an image (B, H, W, 3), as the page asks for them."""
    name = f"rapid_map_{secrets.token_hex(4)}"  # a server that starts anew counts from 1 again
    return ui.ImageSaveHelper.save_images(image, name, io.FolderType.temp, None)
