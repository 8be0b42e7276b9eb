"""CLIP (Radford et al. 2021) by transformers, from weights that are on this machine already."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.optional import device, needed

WEIGHTS = "openai/clip-vit-large-patch14"
# Of its training pictures.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class Clip:
    """Embeddings of pictures and text, of unit length, on the CPU. what: who asks, for the error;
    name: weights, a folder or on the Hugging Face hub. Raises ValueError where package or weights
    are missing."""

    def __init__(self, what: str, name: str = WEIGHTS):
        package = needed("transformers", "transformers", what)
        try:
            self.tokens = package.CLIPTokenizer.from_pretrained(name, local_files_only=True)
            model = package.CLIPModel.from_pretrained(name, local_files_only=True)
        except OSError:
            raise ValueError(
                f"{what} needs the weights {name}, which are not here: hf download {name}"
            ) from None
        self.name = name
        self.side = model.config.vision_config.image_size
        self.model = model.float().to(device()).requires_grad_(False)
        self.model.train(False)

    @torch.no_grad()
    def pictures(self, pictures: Tensor) -> Tensor:
        """(n, width) of pictures (n, 3, H, W) in 0 .. 1: the shorter side scaled, the middle cut
        out."""
        height, width = pictures.shape[-2:]
        scale = self.side / min(height, width)
        size = [max(self.side, round(length * scale)) for length in (height, width)]
        x = F.interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)
        top = (size[0] - self.side) // 2
        left = (size[1] - self.side) // 2
        x = x[..., top : top + self.side, left : left + self.side]
        x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
        seen = self.model.vision_model(pixel_values=x.to(device())).pooler_output
        return F.normalize(self.model.visual_projection(seen), dim=1).cpu()

    @torch.no_grad()
    def text(self, text: str) -> Tensor:
        """(1, width) of a text, of as many tokens as CLIP reads."""
        tokens = self.tokens(
            text,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(device())
        read = self.model.text_model(**tokens).pooler_output
        return F.normalize(self.model.text_projection(read), dim=1).cpu()
