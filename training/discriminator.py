"""RAPID3's adversarial reward: does a picture look as if everything had been computed?

Features of a frozen network, a small adapter and a logit, learned by binary cross-entropy: pictures
of full runs against those that the policy draws. The paper has CLIP's picture encoder and a
parameter-efficient adapter; bottleneck, replay and rates are ours."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.features import Features

REMEMBERED = 2048  # pictures of each kind, as features
BATCH = 32  # of each kind a step
LR = 1e-3


class Adapter(nn.Module):
    """Features (n, width) -> logits (n,): a residual bottleneck that starts as the identity, and a
    linear layer."""

    def __init__(self, width: int):
        super().__init__()
        self.down = nn.Linear(width, width // 4)
        self.up = nn.Linear(width // 4, width)
        self.logit = nn.Linear(width, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.logit(features + self.up(F.relu(self.down(features))))[:, 0]


class Replay:
    """The last pictures of a kind, as features."""

    def __init__(self, width: int, limit: int = REMEMBERED):
        self.rows = torch.zeros(0, width, dtype=torch.half)
        self.limit = limit

    def add(self, features: Tensor) -> None:
        """Remember features (n, width); the oldest are forgotten."""
        self.rows = torch.cat((self.rows, features.half()))[-self.limit :].clone()

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """(number, width), any of them several times, float32."""
        return self.rows[torch.randint(len(self.rows), (number,), generator=generator)].float()


class Discriminator:
    """Its first weights follow from the seed, and what a step looks at from seed and `when`, so
    that training that was killed goes on as if it had not been."""

    def __init__(self, features: Features, seed: int, remembered: int = REMEMBERED):
        self.features = features
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.Random(f"{seed}/discriminator").getrandbits(60))
            self.adapter = Adapter(features.width)
        self.optimiser = torch.optim.AdamW(self.adapter.parameters(), lr=LR)
        self.full = Replay(features.width, remembered)
        self.drawn = Replay(features.width, remembered)

    @torch.no_grad()
    def look(self, pictures: Tensor) -> Tensor:
        """Features (n, width) of pictures (n, 3, H, W), each picture's brought to mean 0 and
        deviation 1; in half precision, as they are remembered."""
        features = self.features(pictures).float()
        return F.layer_norm(features, features.shape[1:]).half()

    @torch.no_grad()
    def likeness(self, features: Tensor) -> Tensor:
        """d = sigmoid(logit) in 0 .. 1, (n,): how much like pictures of full runs."""
        return self.adapter(features.float()).sigmoid()

    def remember(self, full: Tensor, drawn: Tensor) -> None:
        """Features of full runs' pictures, and of drawn ones beside them."""
        self.full.add(full)
        self.drawn.add(drawn)

    @property
    def ready(self) -> bool:
        """Whether there is anything to learn from: not before a first picture that did not
        overflow."""
        return bool(len(self.full.rows) and len(self.drawn.rows))

    def step(self, when: str) -> dict[str, float]:
        """One update on what is remembered; its loss, and the accuracy before it."""
        generator = torch.Generator().manual_seed(
            random.Random(f"{self.seed}/discriminator/{when}").getrandbits(60)
        )
        rows = torch.cat((self.full.draw(BATCH, generator), self.drawn.draw(BATCH, generator)))
        labels = torch.cat((torch.ones(BATCH), torch.zeros(BATCH)))
        logits = self.adapter(rows)
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        accuracy = ((logits > 0).float() == labels).float().mean()
        return {
            "discriminator/loss": float(loss.detach()),
            "discriminator/accuracy": float(accuracy),
        }

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on."""
        return {
            "adapter": self.adapter.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "full": self.full.rows,
            "drawn": self.drawn.rows,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.adapter.load_state_dict(state["adapter"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.full.rows = state["full"]
        self.drawn.rows = state["drawn"]
