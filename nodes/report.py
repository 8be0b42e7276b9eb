"""Report: what a run computed, reused and held, as text and as JSON."""

import json
import secrets

import torch
from comfy_api.latest import io, ui

from ..rapid_core.comfy.chain import chain_of, log_of
from ..rapid_core.heatmap import draw
from ..rapid_core.record import fingerprint

NOT_PATCHED = (
    "RAPID: no RAPID node patched this model (or all are set to off), and RAPID Policy Sampler did not sample with it; "
    "it ran densely."
)
NO_RUN = "RAPID: this model has not been sampled with since it was patched."


class Report(io.ComfyNode):
    """Shows the record of the run that made a latent and passes the latent through."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_Report",
            display_name="RAPID Report",
            category="RAPID",
            description="Says what the sampling run that made this latent computed, reused and held, and why "
            "anything was computed densely. The record is in the API's outputs as JSON.",
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
                    tooltip="The model that was sampled with: the last RAPID node's output.",
                ),
                io.Latent.Input(
                    "latent", tooltip="The sampler's output; passed through unchanged."
                ),
                io.Image.Input(
                    "picture",
                    optional=True,
                    tooltip="The decoded picture, to lay the map over; does not "
                    "change anything else.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The latent that came in, unchanged, for VAE Decode.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="A few lines: evaluations computed, reused and held, "
                    "speed-up that the spent FLOPs allow, memory in MiB, and why anything was computed "
                    "densely.",
                ),
                io.Image.Output(
                    display_name="map",
                    tooltip="How often each image token was computed (yellow: always, "
                    "dark blue: never), and below it one cell an evaluation (black: left out); the "
                    "cells alone where all tokens did the same.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, latent, picture=None):
        log = log_of(model)
        record = (
            log.find(fingerprint(latent["samples"]), other=chain_of(model) is not None)
            if log
            else None
        )
        text = record.text() if record else NO_RUN if chain_of(model) else NOT_PATCHED
        data = [json.dumps(record.as_json(), allow_nan=False)] if record else []
        image = draw(record, picture) if record else torch.zeros(1, 64, 64, 3)
        chosen = (
            record is not None and record.grid is not None
        )  # else there is nothing to see in it
        name = f"rapid_map_{secrets.token_hex(4)}"  # a server that starts anew counts from 1 again
        maps = (
            ui.ImageSaveHelper.save_images(image, name, io.FolderType.temp, None) if chosen else []
        )
        shown = {"text": (text,), "rapid_record": data, "rapid_map": maps}
        return io.NodeOutput(latent, text, image, ui=shown)
