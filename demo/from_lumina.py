"""Start of the Lumina-Next-like demo model: what the Lumina-like one has learned of pictures. No
ComfyUI.

    python -m demo.from_lumina --out START
    python -m demo.train --model lumina_next --init START/lumina_next.safetensors ...

Both have the same words, patches, embedding of time, widths and heads. Lumina's refiner of image
tokens and its blocks become the blocks, as they are except for what turns queries and keys. Text,
which in Lumina changes from block to block and is attended to together with the image, is read by
linear maps of the words that come nearest to what Lumina's blocks make of it, and counts as much as
there on average. The text in the vector that modulates is silent until it is trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor, nn

from demo.demo_model import DemoModel, export, load_weights
from demo.latents import LatentMap
from demo.pack.words import encode
from demo.train import Pool
from demo.twins.layers import rotate
from demo.twins.lumina import GroupedAttention
from demo.twins.lumina_next import SIZE

LUMINA = Path(__file__).parent / "models" / "diffusion_models" / "lumina.safetensors"
BLOCK = {
    "attention_norm1.weight": "norm1.norm.weight",
    "adaLN_modulation.1.weight": "norm1.linear.weight",
    "adaLN_modulation.1.bias": "norm1.linear.bias",
    "attention_norm2.weight": "norm2.weight",
    "attention.out.weight": "attn2.to_out.0.weight",
    "ffn_norm1.weight": "ffn_norm1.weight",
    "ffn_norm2.weight": "ffn_norm2.weight",
    "feed_forward.w1.weight": "feed_forward.linear_1.weight",
    "feed_forward.w2.weight": "feed_forward.linear_2.weight",
    "feed_forward.w3.weight": "feed_forward.linear_3.weight",
}
OTHERS = {
    "x_embedder.bias": "patch_embedder.proj.bias",
    "t_embedder.mlp.0.weight": "time_caption_embed.timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "time_caption_embed.timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "time_caption_embed.timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "time_caption_embed.timestep_embedder.linear_2.bias",
    "final_layer.adaLN_modulation.1.weight": "norm_out.linear_1.weight",
    "final_layer.adaLN_modulation.1.bias": "norm_out.linear_1.bias",
    "final_layer.linear.weight": "norm_out.linear_2.weight",
    "final_layer.linear.bias": "norm_out.linear_2.bias",
}


def order() -> Tensor:
    """Where in a head of Lumina's the channels of a head of Lumina-Next's stand, (96,).

    Lumina turns 16 pairs of channels by a place in the text, the same for all of an image, 16 by
    the row, 16 by the column; Lumina-Next turns 24 by the row and 24 by the column, in turn. Of
    three speeds there, two are nearest to one of Lumina's; the third gets pairs that were not
    turned."""
    text, row, column = torch.arange(48).view(3, 16)
    pairs = torch.empty(24, 2, dtype=torch.long)
    old = torch.tensor([3 * k // 2 for k in range(16)])  # speeds nearest to those of Lumina
    new = torch.tensor([j for j in range(24) if j % 3 == 2])
    pairs[old] = torch.stack((row, column), 1)
    pairs[new] = text.view(8, 2)
    pairs = pairs.flatten()
    return torch.stack((2 * pairs, 2 * pairs + 1), 1).flatten()


def transplanted(lumina: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a Lumina-Next-like network that a Lumina-like one has, too, and zeros where text
    would modulate."""
    patches = {"p": SIZE.patch_size, "q": SIZE.patch_size}
    weights = {new: lumina[old] for old, new in OTHERS.items()}
    weights["patch_embedder.proj.weight"] = rearrange(
        lumina["x_embedder.weight"], "d (p q c) -> d (c p q)", **patches
    )
    for i in range(SIZE.layers):
        old, new = "noise_refiner.0" if i == 0 else f"layers.{i - 1}", f"layers.{i}"
        weights |= {f"{new}.{b}": lumina[f"{old}.{a}"] for a, b in BLOCK.items()}
        width, heads, kv_heads = SIZE.head_size, SIZE.heads, SIZE.kv_heads
        turned = order()
        q, k, v = (
            part.unflatten(0, (-1, width))
            for part in lumina[f"{old}.attention.qkv.weight"].split(
                [n * width for n in (heads, kv_heads, kv_heads)]
            )
        )
        weights[f"{new}.attn1.to_q.weight"] = q[:, turned].flatten(0, 1)
        weights[f"{new}.attn1.to_k.weight"] = k[:, turned].flatten(0, 1)
        weights[f"{new}.attn1.to_v.weight"] = v.flatten(0, 1)
        weights[f"{new}.attn2.to_q.weight"] = weights[f"{new}.attn1.to_q.weight"]
        for name, number in (("q", heads), ("k", kv_heads)):
            scale = lumina[f"{old}.attention.{name}_norm.weight"][turned]
            for attention in ("attn1", "attn2"):
                weights[f"{new}.{attention}.norm_{name}.weight"] = scale.repeat(number)
    weights["layers.0.gate"] = torch.zeros(SIZE.heads)  # Lumina's refiner sees no text
    caption = torch.zeros(SIZE.condition_size, SIZE.text_width)
    weights["time_caption_embed.caption_embedder.1.weight"] = caption
    return weights


class Reader:
    """Sees what one block of Lumina's makes of its text: sums of least squares for keys and values,
    and how much of the attention of image tokens goes there."""

    def __init__(self, attention: GroupedAttention):
        self.attention = attention
        self.words = torch.empty(0)  # (B, L, D), as the block of Lumina-Next is to read them
        self.squares = 1e-3 * torch.eye(SIZE.text_width)
        self.products = torch.zeros(SIZE.text_width, 2 * SIZE.kv_heads * SIZE.head_size)
        self.shares: list[Tensor] = []
        attention.register_forward_pre_hook(self._see)

    def _see(self, _module: nn.Module, given: tuple[Tensor, Tensor]) -> None:
        x, rope = given
        tokens, width = self.words.shape[1], SIZE.head_size
        found = self.attention.qkv(x)
        words = self.words.flatten(0, 1)
        self.squares += words.T @ words
        self.products += words.T @ found[:, :tokens, SIZE.hidden_size :].flatten(0, 1)
        heads = found.unflatten(2, (-1, width)).transpose(1, 2)
        q, k, _ = heads.split((SIZE.heads, SIZE.kv_heads, SIZE.kv_heads), 1)
        q, k = rotate(self.attention.q_norm(q), rope), rotate(self.attention.k_norm(k), rope)
        k = k.repeat_interleave(SIZE.heads // SIZE.kv_heads, 1)
        seen = (q[:, :, tokens:] @ k.transpose(2, 3) / width**0.5).softmax(-1)
        self.shares.append(seen[..., :tokens].sum(-1).mean((0, 2)))

    def weights(self, out: Tensor) -> dict[str, Tensor]:
        """Of a block's attentions. out: the matrix (D, heads * D) that its output goes through.

        Lumina has (1 - share) image + share text, Lumina-Next image + tanh(gate) text."""
        inner = SIZE.kv_heads * SIZE.head_size
        fitted = torch.linalg.solve(self.squares, self.products)
        share = torch.stack(self.shares).mean(0)
        ratio = share / (1 - share)
        largest = ratio.max() / 0.9
        turned = order()
        k = fitted[:, :inner].T.unflatten(0, (-1, SIZE.head_size))[:, turned].flatten(0, 1)
        return {
            "attn2.to_k.weight": k,
            "attn2.to_v.weight": fitted[:, inner:].T * largest,
            "attn2.to_out.0.weight": out * (1 - share).repeat_interleave(SIZE.head_size),
            "gate": (ratio / largest).atanh(),
        }


def read_text(model: DemoModel, size: int = 256, batches: int = 6) -> dict[str, Tensor]:
    """Weights of attention to the text, fitted on drawn scenes of `size` pixels."""
    layers: Any = model.twin.layers
    blocks = [block.attention for block in layers]
    readers = [Reader(attention) for attention in blocks]
    generator = torch.Generator().manual_seed(0)
    pool = Pool(size, LatentMap.load(), generator, 64, 1.0, "cpu")
    for _ in range(batches):
        data, counts = pool.batch(8)
        words = F.rms_norm(encode(counts, model.words)[0], (SIZE.text_width,), eps=SIZE.norm_eps)
        for reader in readers:
            reader.words = words
        t = torch.rand(len(data), generator=generator)
        noise = torch.randn(data.shape, generator=generator)
        model(torch.lerp(data, noise, t[:, None, None, None]), t, counts, torch.ones(len(data)))
    found = {}
    for i, reader in enumerate(readers, 1):
        of_block = reader.weights(blocks[i - 1].out.weight)
        found |= {f"layers.{i}.{name}": value for name, value in of_block.items()}
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lumina", type=Path, default=LUMINA, help="the Lumina-like weights")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    lumina, model = DemoModel("lumina"), DemoModel("lumina_next")
    try:
        load_weights(lumina, args.lumina)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise SystemExit(
            f"--lumina: {args.lumina} given, which is not the Lumina-like model with its word table "
            f"beside it; take demo/models/diffusion_models/lumina.safetensors."
        ) from error
    model.words.copy_(lumina.words)
    weights = transplanted(lumina.twin.state_dict()) | read_text(lumina)
    model.twin.load_state_dict({**model.twin.state_dict(), **weights})
    args.out.mkdir(parents=True, exist_ok=True)
    export("lumina_next", model.state_dict(), args.out / "lumina_next.safetensors", seen=0)


if __name__ == "__main__":
    main()
