"""TPDM: one head looks at the model's own tokens after every computed evaluation and says how far
to jump.

Ye et al. 2024 (arXiv 2412.01243), as their code for Stable Diffusion 3 has it: the tokens before
the blocks and those that the final layer's matrix sees, and the modulation vector, all mixed by
guidance. Of the Beta distribution that comes out its mode is taken; the next noise level is that
share of the present one. Here evaluations of the sampler's grid above that level are held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ...types import FeatureSpec, HeadInput, Window
from .network import Head, on_device
from .rapid3 import CLIP, OUTPUTS, HeadsActor, HeadsPolicy

KIND, FAMILY = "tpdm-sd3", "sd3"
HIDDEN, SIDE, WIDTH = 1536, 64, 128  # of the published weights: SD3-medium at 1024 x 1024 px
EPS = 1e-6


def squares(tokens: Tensor, side: int) -> Tensor:
    """Tokens (B, side * side, C) as a picture (B, C, side, side) in which each four that follow one
    another are a 2 x 2 square. Not how tokens lie in the picture they stand for; the published
    weights have learned it this way."""
    return rearrange(tokens, "b (h w p q) c -> b c (h p) (w q)", h=side // 2, w=side // 2, p=2, q=2)


class TPDMHeads(nn.Module):
    """The step head alone. hidden: width of a token; side: of the square that the picture's tokens
    make, even."""

    def __init__(self, hidden: int = HIDDEN, side: int = SIDE, width: int = WIDTH):
        super().__init__()
        self.hidden, self.side, self.width = hidden, side, width
        self.heads = nn.ModuleDict({"step": Head(2 * hidden, hidden, OUTPUTS["step"], width, EPS)})

    def forward(self, tokens: Tensor, modulation: Tensor) -> dict[str, Tensor]:
        """Logits (B, 2) of Beta's parameters, each 1 + exp(logit); tokens (B, side * side, 2
        hidden) and modulation (B, hidden) as in `Features`."""
        return {"step": self.heads["step"](squares(tokens.float(), self.side), modulation.float())}


@dataclass(frozen=True)
class TPDMPolicy(HeadsPolicy):
    """A TPDM head within a budget; `speedup` is a ceiling on what is spent."""

    technique: str = "tpdm"

    @property
    def view(self) -> FeatureSpec:
        """What the host has to show."""
        return FeatureSpec(KIND, FAMILY, self.heads.hidden, self.heads.side)

    def start(self, window: Window) -> TPDMActor:
        return TPDMActor(self)


class TPDMActor(HeadsActor):
    """The head in one run. An image whose tokens could not be seen is computed."""

    def __init__(self, policy: TPDMPolicy):
        super().__init__(policy)
        self.known: list[int] = []  # images whose last computed evaluation was seen
        self.decided: dict[int, int] = {}  # evaluation that an image's last decision looked at

    def ask(self, looks: Sequence[HeadInput | None], sigma: Tensor) -> Tensor | None:
        """Logits (images * 2,) of the images that were computed since they were last decided on,
        one image at a time: what the head sees of one is 50 MB."""
        shown = {
            i: look.features
            for i, look in enumerate(looks)
            if look is not None and look.features is not None
        }
        self.known = list(shown)
        new = {i: seen for i, seen in shown.items() if self.decided.get(i) != seen.evaluation}
        self.asked = list(new)
        if not new:
            return None
        self.heads, out = on_device(self.heads, sigma.device), []
        with torch.no_grad():
            for i, seen in new.items():
                logits = self.heads(
                    seen.tokens[None].to(sigma.device), seen.modulation[None].to(sigma.device)
                )
                self.decided[i] = seen.evaluation
                out.append(logits["step"][0])
        return torch.cat(out)

    def _by_image(self, answers: Sequence[float]) -> dict[int, dict[str, Tensor]]:
        found = super()._by_image(answers)
        return {i: found.get(i, {}) for i in self.known}

    def _landing(self, start: float, jump: float) -> float:
        return start * jump

    def _jump(self, logits: Tensor) -> float:
        """Mode of Beta(1 + e^a, 1 + e^b): e^a / (e^a + e^b)."""
        return min(max(float(torch.sigmoid(logits[0] - logits[1])), CLIP), 1 - CLIP)
