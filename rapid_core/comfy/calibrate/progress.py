"""What the page shows of a calibration."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import comfy.utils
import latent_preview

from ..progress import say


class Progress:
    """What the page shows of a calibration: a bar over its budget, the latest picture, and the time
    left on the node. Nothing of it can cost a calibration."""

    def __init__(self, model: Any, node: str, budget: float, steps: int):
        self.node = node
        self.budget = budget
        self.steps = steps
        self.spent: Callable[[], float] = lambda: 0.0  # so far, in full pictures
        self.bar = comfy.utils.ProgressBar(round(budget * steps))
        self.previewer = previewer_of(model)
        self.began: tuple[float, float] | None = None  # seconds, and what was spent by then

    def callback(self, cost: float) -> Any:
        """The host's callback for a picture of this cost, in full pictures."""
        before = self.spent()
        if self.began is None:
            self.began = time.perf_counter(), before

        def callback(step: int, denoised: Any, _x: Any, steps: int) -> None:
            value = round((before + cost * (step + 1) / steps) * self.steps)
            preview = self._preview(denoised) if step + 1 >= steps else None
            self.bar.update_absolute(value, None, preview)

        return callback

    def _preview(self, denoised: Any) -> Any:
        if self.previewer is None:
            return None
        try:
            return self.previewer.decode_latent_to_preview_image("JPEG", denoised)
        except Exception as error:
            logging.warning("RAPID: no preview is shown (%s)", error)
            self.previewer = None
            return None

    def tell(self) -> None:
        """Show on the node how far it is."""
        say(self.node, self.line)

    def line(self) -> str:
        """How far it is, and how long it takes at the most from here."""
        spent = self.spent()
        line = f"{spent:.1f} of {self.budget:g} pictures"
        began, before = self.began or (0.0, spent)
        if spent > before:
            left = (time.perf_counter() - began) / (spent - before) * (self.budget - spent)
            line += f" · {shown_time(left)} left"
        return line

    def end(self) -> None:
        """All is drawn, be it less than the budget."""
        self.bar.update_absolute(self.bar.total)
        say(self.node, lambda: f"{self.spent():.1f} pictures · done")


def previewer_of(model: Any) -> Any:
    """What makes previews of a model's latents, as the host's settings have it; None for none."""
    try:
        return latent_preview.get_previewer(model.load_device, model.model.latent_format)
    except Exception as error:
        logging.warning("RAPID: there are no previews (%s)", error)
        return None


def shown_time(seconds: float) -> str:
    """A time as people read it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
