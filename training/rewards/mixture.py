"""Several rewards as one: their weighted mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from training.pictures import Drawn
from training.rewards.judged import Agreement, Judged, Preference
from training.rewards.likeness import Decibels, Fidelity, Perceptual, Similarity
from training.rewards.reward import Reward

REWARDS: dict[str, Callable[[], Reward]] = {
    "psnr": Fidelity,
    "decibels": Decibels,
    "ssim": Similarity,
    "lpips": Perceptual,
    "imagereward": Preference,
    "clip": Agreement,
    "judge": Judged,
}


def parsed(given: Sequence[str] | str) -> dict[str, float]:
    """Weights that sum to 1 by name, of texts NAME or NAME:WEIGHT (1 unless given). Raises
    ValueError."""
    weights: dict[str, float] = {}
    for text in [given] if isinstance(given, str) else given:
        name, _, weight = text.partition(":")
        if name not in REWARDS or name in weights:
            raise ValueError(
                f"reward {text}: give each of {', '.join(REWARDS)} at most once, as NAME or "
                "NAME:WEIGHT"
            )
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = 0.0
        if not 0 < weights[name] < float("inf"):
            raise ValueError(
                f"reward {text}: the weight must be a number above 0, as in {name}:0.5"
            )
    if not weights:
        raise ValueError(f"no reward given; give some of {', '.join(REWARDS)}")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


class Mixture:
    """The weighted mean of rewards. weights: of `parsed`; prompts: all that they will be asked
    about. Raises ValueError."""

    def __init__(self, weights: dict[str, float], prompts: Sequence[str]):
        self.parts = [(REWARDS[name](), weight) for name, weight in weights.items()]
        for reward, _ in self.parts:
            reward.check(prompts)

    @property
    def about(self) -> str:
        """What a policy's metadata say of it."""
        single = len(self.parts) == 1
        return " + ".join(
            reward.about if single else f"{weight:.3g} {reward.about}"
            for reward, weight in self.parts
        )

    def __call__(self, drawn: Drawn) -> tuple[list[float], dict[str, list[float]]]:
        """Quality of each image, and what each reward gave. Raises ValueError for a reward outside
        of 0 .. 1: below 0, a discount for cost would reward spending more on bad pictures."""
        columns = {reward.name: reward(drawn) for reward, _ in self.parts}
        for name, column in columns.items():
            bad = [value for value in column if not 0 <= value <= 1]  # NaN is among them
            if bad:
                raise ValueError(
                    f"reward {name}: {bad[0]:.3g} for {drawn.reference.prompt!r}; it has to lie in "
                    "0 .. 1"
                )
        weights = [weight for _, weight in self.parts]
        total = [
            sum((w * v for w, v in zip(weights, row, strict=True)), 0.0)
            for row in zip(*columns.values(), strict=True)
        ]
        return total, columns
