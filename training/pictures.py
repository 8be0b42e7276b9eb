"""Pictures that rewards look at: drawn ones for the moment, those of references kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.files import replaced
from training.graph import Graph
from training.references import Reference, file_name


class Pictures:
    """Decodes a workflow's latents. Pictures are rounded to half precision, references' and others'
    alike."""

    def __init__(self, graph: Graph, folder: Path):
        self.graph = graph
        self.folder = folder

    def of(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) in 0 .. 1; of videos (B * frames, 3, H, W). Raises WorkflowError where
        nothing is decoded."""
        # One by one: neither memory nor rounding depends on how many there are.
        return torch.cat([self.graph.picture(latent) for latent in latents.split(1)]).half().float()

    def of_reference(self, reference: Reference) -> Tensor:
        """(1, 3, H, W), decoded once; no picture stays in memory."""
        name = file_name(reference.prompt, reference.seed, reference.refined)
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            save({"picture": self.of(reference.latent).half().contiguous()}, path)
        return load_file(path)["picture"].float()


class Drawn:
    """Images (B, ...) of one prompt beside the reference of the same seed; nothing is decoded
    before it is asked for."""

    def __init__(self, latents: Tensor, reference: Reference, pictures: Pictures):
        self.latents = latents
        self.reference = reference
        self._pictures = pictures

    @cached_property
    def pictures(self) -> Tensor:
        """(B, 3, H, W); of videos (B * frames, 3, H, W)."""
        return self._pictures.of(self.latents)

    @cached_property
    def reference_pictures(self) -> Tensor:
        """The reference's picture beside each of `pictures`."""
        picture = self._pictures.of_reference(self.reference)
        return picture.repeat(len(self.pictures) // len(picture), 1, 1, 1)

    def by_image(self, values: Tensor | Sequence[float]) -> list[float]:
        """Figures of `pictures`, averaged over the frames of each image."""
        flat = values if isinstance(values, Tensor) else torch.tensor(values)
        return flat.float().view(len(self.latents), -1).mean(1).tolist()


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file that is there whole or not at all, whenever this process is killed."""
    replaced(path, lambda part: save_file(tensors, part))
