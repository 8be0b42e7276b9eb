"""Image tokens and latent pixels: a token is a patch of the latent, in the order frames, rows,
columns."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """Tokens of a latent (C, [T,] H, W) cut into patches of `patch` x `patch` pixels; odd sides are
    padded.

    Video and sound may be packed into one latent (1, L), the video first and `beside` numbers of
    sound behind it: then the tokens are the video's, and the sound is computed whenever anything
    is."""

    shape: tuple[int, ...]  # of the picture or video, (C, H, W) or (C, T, H, W)
    patch: int = 2
    beside: int = 0

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, rows, columns."""
        frames = self.shape[1] if len(self.shape) == 4 else 1
        return frames, -(-self.shape[-2] // self.patch), -(-self.shape[-1] // self.patch)

    @property
    def number(self) -> int:
        """Image tokens."""
        frames, rows, columns = self.size
        return frames * rows * columns

    @property
    def pixels(self) -> tuple[int, ...]:
        """Frames, height and width of the latent; without frames for a picture."""
        return self.shape[1:]

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of the latent as it is sampled."""
        return (1, prod(self.shape) + self.beside) if self.beside else self.shape

    def video(self, latent: Tensor) -> Tensor:
        """What the tokens are cut from, (C, [T,] H, W), of a latent."""
        return latent[0, : prod(self.shape)].view(self.shape) if self.beside else latent

    def with_video(self, latent: Tensor, video: Tensor) -> Tensor:
        """The latent with another video."""
        if not self.beside:
            return video
        return torch.cat((video.flatten(), latent[0, prod(self.shape) :]))[None]

    def to_pixels(self, values: Tensor) -> Tensor:
        """One value a token (N,) -> one a latent pixel, (1, H, W) or (1, T, H, W)."""
        frames, rows, columns = self.size
        out = values.view(frames, rows, columns)
        out = out.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
        out = out[:, : self.shape[-2], : self.shape[-1]]
        return out[None] if len(self.shape) == 4 else out

    def to_tokens(self, pixels: Tensor) -> Tensor:
        """Mean over each token's pixels: (H, W) or (T, H, W), any leading size of 1 -> (N,),
        float32."""
        frames, rows, columns = self.size
        pixels = pixels.reshape(frames, *self.shape[-2:]).float()
        high, wide = rows * self.patch - self.shape[-2], columns * self.patch - self.shape[-1]
        if high or wide:  # the padding repeats the edge, so that it does not change the mean much
            pixels = torch.nn.functional.pad(pixels[None], (0, wide, 0, high), mode="replicate")[0]
        return pixels.view(frames, rows, self.patch, columns, self.patch).mean((2, 4)).flatten()

    def mask(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (K,) -> mask of their latent pixels, (1, H, W) or (1, T, H, W)."""
        return self.to_pixels(self.chosen(tokens))

    def latent_mask(self, tokens: Tensor) -> Tensor:
        """The same for the latent as it is sampled, with all of the sound."""
        mask = self.mask(tokens)
        if not self.beside:
            return mask
        sound = torch.ones(self.beside, dtype=torch.bool, device=mask.device)
        return torch.cat((mask.expand(self.shape).flatten(), sound))[None]

    def chosen(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (K,) -> mask (N,)."""
        flags = torch.zeros(self.number, dtype=torch.bool, device=tokens.device)
        return flags.index_fill(0, tokens, True)
