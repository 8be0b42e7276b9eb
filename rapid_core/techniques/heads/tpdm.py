"""TPDM: one head looks at the model's own tokens after every computed evaluation and says how far
to jump.

Ye et al. 2024 (arXiv 2412.01243), as their code for Stable Diffusion 3 has it: the tokens before
the blocks and those that the final layer's matrix sees, and the modulation vector, all mixed by
guidance. Of the Beta distribution that comes out its mode is taken; the next sigma is that share of
the present one. Here evaluations of the sampler's grid above that sigma are skipped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from ...types import FeatureSpec, HeadInput, Requirements, Window
from .network import Head, RunHeads
from .rapid3 import CLIP, OUTPUTS, Rapid3Actor, Rapid3Policy

KIND = "tpdm-sd3"
FAMILY = "sd3"
# Of the published weights: SD3-medium at 1024 x 1024 px.
HIDDEN = 1536
SIDE = 64
WIDTH = 128
EPS = 1e-6


def squares(tokens: Tensor, side: int) -> Tensor:
    """Tokens (B, side * side, C) as a picture (B, C, side, side) in which each four that follow one
    another are a 2 x 2 square. Not how tokens lie in the picture they stand for; the published
    weights have learned it this way."""
    return rearrange(tokens, "b (h w p q) c -> b c (h p) (w q)", h=side // 2, w=side // 2, p=2, q=2)


class TPDMHeads(nn.Module):
    """The step head alone.

    hidden: width of a token. side: of the square that the picture's tokens make, even."""

    def __init__(self, hidden: int = HIDDEN, side: int = SIDE, width: int = WIDTH):
        super().__init__()
        self.hidden = hidden
        self.side = side
        self.width = width
        self.heads = nn.ModuleDict({"step": Head(2 * hidden, hidden, OUTPUTS["step"], width, EPS)})

    def forward(self, tokens: Tensor, modulation: Tensor) -> dict[str, Tensor]:
        """Logits (B, 2) of Beta's parameters, each 1 + exp(logit); tokens (B, side * side, 2
        hidden) and modulation (B, hidden) as in `Features`."""
        return {"step": self.heads["step"](squares(tokens.float(), self.side), modulation.float())}


@dataclass(frozen=True, kw_only=True)
class TPDMPolicy(Rapid3Policy):
    """A TPDM head within a budget; `speedup` is a ceiling on what is spent."""

    technique: ClassVar[str] = "tpdm"

    @property
    def requirements(self) -> Requirements:
        spec = FeatureSpec(KIND, FAMILY, self.heads.hidden, self.heads.side)
        return replace(super().requirements, features=spec)

    @override
    def start(self, window: Window, image: int = 0) -> TPDMActor:
        return TPDMActor(self, self._run_heads(image), image)


class TPDMActor(Rapid3Actor):
    """The head for one image of a run. Where its tokens could not be seen, it is computed."""

    def __init__(self, policy: TPDMPolicy, run: RunHeads, image: int = 0):
        super().__init__(policy, run, image)
        self.decided: int | None = None  # evaluation that the last decision looked at

    def logits(self, seen: HeadInput | None, sigma: Tensor) -> Tensor | None:
        """Logits (2,) once for every computed evaluation."""
        features = None if seen is None else seen.features
        self.known = features is not None
        if features is None or features.evaluation == self.decided:
            return None
        self.decided = features.evaluation
        heads = self.run.on(sigma.device)
        tokens = features.tokens[None].to(sigma.device)
        modulation = features.modulation[None].to(sigma.device)
        with torch.no_grad():
            return heads(tokens, modulation)["step"][0]

    def _landing(self, start: float, jump: float) -> float:
        return start * jump

    def _jump(self, logits: Tensor) -> float:
        """Mode of Beta(1 + e^a, 1 + e^b): e^a / (e^a + e^b)."""
        return min(max(float(torch.sigmoid(logits[0] - logits[1])), CLIP), 1 - CLIP)
