"""Report: what a run computed and skipped, as text and as JSON."""

import json
import logging
import secrets
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..rapid_core.comfy import clock
from ..rapid_core.comfy.chain import chain_of, record_of, why_no_record
from ..rapid_core.comfy.upstream import patches_before, source
from ..rapid_core.heatmap import draw
from ..rapid_core.reasons import ReasonCode, text, to_json
from ..rapid_core.record import RunRecord, two_digits
from ..rapid_core.summary import full_summary, summary
from ..rapid_core.types import Reason
from .base import RapidNode

Record = io.Custom("RAPID_RECORD")


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
                "报告",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that goes into the sampler: the last RAPID node's output.",
                ),
                io.Latent.Input(
                    "latent",
                    lazy=True,  # so that the clock is started before the sampler runs
                    tooltip="The sampler's output. Passed through unchanged.",
                ),
                io.Image.Input(
                    "picture",
                    optional=True,
                    lazy=True,
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
                Record.Output(
                    display_name="record",
                    tooltip="Seconds, speed-up and closeness of this run, for RAPID Compare.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def check_lazy_status(cls, **given: Any) -> list[str]:
        """All that is not there yet. Called once the model is there, before the sampler runs."""
        clock.start()
        return [name for name, value in given.items() if value is None]

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any], picture: Any = None) -> io.NodeOutput:
        few = None
        try:
            record = record_of(model, latent["samples"])
            if record is not None:
                return report_on(record, latent, picture)
            reason, few = without_record(model, cls.hidden)
        except Exception as error:  # the latent passes through here, and is worth more
            logging.exception("RAPID: this run could not be reported on")
            failed = f"{type(error).__name__}: {error}"
            reason = Reason(ReasonCode.RECORD_FAILED, error=failed)
        shown = {
            "text": (text(reason),),
            "rapid_record": [],
            "rapid_summary": [] if few is None else [few],
            "rapid_map": [],
            "rapid_reason": [json.dumps(to_json(reason), allow_nan=False)],
        }
        return io.NodeOutput(latent, text(reason), torch.zeros(1, 64, 64, 3), few, ui=shown)


def without_record(model: Any, hidden: Any) -> tuple[Reason, dict[str, Any] | None]:
    """What is said of a latent that has no record, and the few numbers where it was computed in
    full."""
    graph = hidden.dynprompt if hidden else None
    sampler = source(graph, str(hidden.unique_id), "latent") if graph else None
    if sampler is not None:
        here = patches_before(graph, source(graph, str(hidden.unique_id), "model"))
        if patches_before(graph, sampler) - here:
            return Reason(ReasonCode.WRONG_MODEL), None
    if chain_of(model) is not None:
        return why_no_record(model), None
    took = None if sampler is None else clock.time_of(sampler)
    if took is None:
        return Reason(ReasonCode.NOT_PATCHED), None
    seconds, steps = took
    reason = Reason(ReasonCode.FULL_RUN, seconds=two_digits(seconds), steps=steps)
    return reason, full_summary(seconds, steps)


def report_on(record: RunRecord, latent: dict[str, Any], picture: Any) -> io.NodeOutput:
    """What the node gives where there is a record."""
    image = draw(record, picture)
    few = summary(record)
    shown = {
        "text": (record.text(),),
        "rapid_record": [json.dumps(record.to_json(), allow_nan=False)],
        "rapid_summary": [few],
        "rapid_map": saved(image, "map") if record.grid is not None else [],  # else nothing to see
        "rapid_reason": [],
    }
    return io.NodeOutput(latent, record.text(), image, few, ui=shown)


def saved(image: Any, kind: str) -> list[Any]:
    """Temporary files of an image (B, H, W, 3), as the page asks for them."""
    name = f"rapid_{kind}_{secrets.token_hex(4)}"  # a server that starts anew counts from 1 again
    return ui.ImageSaveHelper.save_images(image, name, io.FolderType.temp, None)
