"""What a reward is."""

from __future__ import annotations

from collections.abc import Sequence

from training.pictures import Drawn


class Reward:
    """Quality of pictures in 0 .. 1, so that cost can only lower it. Made before anything is drawn:
    raises ValueError where a package or weights are missing. name: of the flag; about: what is
    mapped to 0 .. 1, and how; looks: at pictures, not at latents alone."""

    name = ""
    about = ""
    looks = True

    def check(self, prompts: Sequence[str]) -> None:
        """Raises ValueError for prompts that it cannot judge."""

    def __call__(self, drawn: Drawn) -> list[float]:
        """One figure an image."""
        raise NotImplementedError
