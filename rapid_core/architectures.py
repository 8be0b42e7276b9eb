"""Table of Diffusion Transformer families: where their blocks are, their token layout, what an
evaluation costs.

A family is told by the class name of the host's `diffusion_model` and by attributes; nothing here
imports ComfyUI. A model that lacks what is read of its family is of no family that is known: its
whole evaluations can be skipped all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Layout of a block's tokens. Text always stands before the image in the attention.
APART = "apart"  # text and image are two tensors that attend together
JOINT = "joint"  # one tensor, text first
ALONE = "alone"  # image tokens only; text at most through cross-attention

# What a weight matrix is applied to.
IMAGE, TEXT, BOTH, ONCE, APPROXIMATOR = "image", "text", "both", "once", "approximator"


@dataclass(frozen=True)
class Group:
    """Blocks of one kind. name: in patches_replace["dit"], or "" where the host has no such hook
    and the blocks' `forward` is patched instead; attribute: the list of blocks; attentions: over
    "both" or the "image" itself, from the image to the "text"; per block."""

    name: str
    attribute: str
    layout: str
    attentions: tuple[str, ...] = (BOTH,)


@dataclass(frozen=True)
class Architecture:
    """A family. stacks: groups that pass tokens on to one another, in order of execution; the last
    one is the stack that residual reuse passes over. weights: (part of a matrix's name, what it is
    applied to), first match wins. hidden: attribute with the width of the attention. whole: extra
    arguments with which all tokens are computed. known_as: models of the family by the names that
    people use. measured: on a trained model of the family, if a small one; of the others only
    exactness is known."""

    family: str
    known_as: str
    stacks: tuple[tuple[Group, ...], ...]
    weights: tuple[tuple[str, str], ...]
    hidden: str = "hidden_size"
    whole: tuple[str, ...] = ()
    measured: bool = False

    @property
    def marked(self) -> str:
        """The family, for a report."""
        return self.family if self.measured else f"{self.family} (unverified)"

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups in order of execution."""
        return tuple(group for stack in self.stacks for group in stack)

    @property
    def hookless(self) -> bool:
        """Whether some blocks have no hook of the host's."""
        return any(not group.name for group in self.groups)

    def fits(self, model: Any) -> bool:
        """Whether a model has everything that is read of a model of this family: AuraFlow's MMDiT
        has another model's class name, and a newer host may have renamed an attribute."""
        try:
            blocks = [len(getattr(model, group.attribute)) for group in self.groups]
            return self.width(model) > 0 and self.patch(model) > 0 and all(blocks)
        except (AttributeError, IndexError, TypeError, ValueError):
            return False

    def width(self, model: Any) -> int:
        """Channels of a token between the blocks."""
        return int(getattr(model, self.hidden))

    def patch(self, model: Any) -> int:
        """Latent pixels along a side of a token."""
        size = model.patch_size
        return int(size[-1] if isinstance(size, (tuple, list)) else size)

    def image_tokens(self, model: Any, shape: tuple[int, ...]) -> int:
        """Image tokens of a latent (B, C, [T,] H, W); odd sides are padded as the host does."""
        patch, frames = self.patch(model), shape[2] if len(shape) == 5 else 1
        return frames * -(-shape[-2] // patch) * -(-shape[-1] // patch)

    def reference_tokens(self, model: Any, latents: Any) -> int:
        """Tokens of reference latents [(B, C, ...)], which are always computed."""
        return sum(self.image_tokens(model, tuple(latent.shape)) for latent in latents or ())


_STREAMS = (
    ("img_mod", ONCE),
    ("txt_mod", ONCE),
    ("modulation", ONCE),
    ("img_", IMAGE),
    ("txt_", TEXT),
)
_FLUX_STACK = (
    Group("double_block", "double_blocks", APART),
    Group("single_block", "single_blocks", JOINT),
)
_FLUX_WEIGHTS = (*_STREAMS, ("adaLN", ONCE), ("single_blocks", BOTH), ("final_layer", IMAGE))

FLUX = Architecture(
    "flux",
    "FLUX.1 dev, schnell, Kontext, Fill, Krea, LongCat-Image",
    (_FLUX_STACK,),
    _FLUX_WEIGHTS,
    measured=True,
)
FLUX2 = Architecture("flux2", "FLUX.2 dev, klein", (_FLUX_STACK,), _FLUX_WEIGHTS)
CHROMA = Architecture(
    "chroma", "Chroma", (_FLUX_STACK,), (("distilled_guidance_layer", APPROXIMATOR), *_FLUX_WEIGHTS)
)
HUNYUAN = Architecture(
    "hunyuan_video",
    "HunyuanVideo, HunyuanVideo 1.5, SkyReels, HunyuanImage 2.1",
    (_FLUX_STACK,),
    (
        ("adaLN", ONCE),
        ("txt_in.t_emb", ONCE),
        ("txt_in.c_emb", ONCE),
        ("txt_in", TEXT),
        *_FLUX_WEIGHTS,
    ),
    whole=("guiding_frame_index", "ref_latent", "clip_fea", "txt_byt5"),
)
SD3 = Architecture(
    "sd3",
    "SD3, SD3.5 Medium and Large",
    ((Group("double_block", "joint_blocks", APART),),),
    (
        ("adaLN", ONCE),
        ("x_block", IMAGE),
        ("context_", TEXT),
        ("x_embedder", IMAGE),
        ("final_layer", IMAGE),
    ),
    measured=True,
)
QWEN = Architecture(
    "qwen_image",
    "Qwen-Image, Qwen-Image-Edit",
    ((Group("double_block", "transformer_blocks", APART),),),
    (
        *_STREAMS[:2],
        ("add_", TEXT),
        ("txt_", TEXT),
        ("attn.to_", IMAGE),
        ("img_", IMAGE),
        ("proj_out", IMAGE),
    ),
    hidden="inner_dim",
)
WAN = Architecture(
    "wan",
    "Wan 2.1, Wan 2.2, Fun Control, FlowRVS (not VACE, Camera, S2V, Animate, HuMo, SCAIL, WanDancer, causal)",
    ((Group("double_block", "blocks", ALONE, (IMAGE, TEXT)),),),
    (
        ("cross_attn.k", TEXT),
        ("cross_attn.v", TEXT),
        ("blocks", IMAGE),
        ("head", IMAGE),
        ("patch_emb", IMAGE),
        ("text_emb", TEXT),
    ),
    hidden="dim",
    whole=("reference_latent", "context_latents", "clip_fea"),
)
LUMINA2 = Architecture(
    "lumina2",
    "Lumina Image 2.0",
    ((Group("", "noise_refiner", ALONE, (IMAGE,)),), (Group("", "layers", JOINT),)),
    (
        ("adaLN", ONCE),
        ("noise_refiner", IMAGE),
        ("context_refiner", TEXT),
        ("layers", BOTH),
        ("final_layer", BOTH),
        ("x_embedder", IMAGE),
        ("cap_embedder", TEXT),
    ),
    hidden="dim",
    whole=("ref_latents", "ref_contexts", "siglip_feats", "ref_frames"),
    measured=True,
)
Z_IMAGE = Architecture(
    "z_image", "Z-Image", LUMINA2.stacks, LUMINA2.weights, LUMINA2.hidden, LUMINA2.whole
)

LUMINA_NEXT = Architecture(
    "lumina_next",
    "Lumina-Next-T2I, Lumina-Next-SFT (by RAPID Load Lumina-Next)",
    ((Group("double_block", "layers", ALONE, (IMAGE, TEXT)),),),
    (
        ("attn2.to_k", TEXT),
        ("attn2.to_v", TEXT),
        ("norm1.linear", ONCE),
        ("layers", IMAGE),
        ("patch_embedder", IMAGE),
        ("norm_out.linear_2", IMAGE),
    ),
)

ALL = (FLUX, SD3, LUMINA2, Z_IMAGE, QWEN, FLUX2, CHROMA, HUNYUAN, WAN, LUMINA_NEXT)
FAMILIES = tuple(a.family for a in ALL)

# By the class of the host's `diffusion_model`.
_FAMILIES = {
    "Flux": FLUX,
    "OpenAISignatureMMDITWrapper": SD3,
    "MMDiT": SD3,
    "Chroma": CHROMA,
    "HunyuanVideo": HUNYUAN,
    "QwenImageTransformer2DModel": QWEN,
    "WanModel": WAN,
    "NextDiT": LUMINA2,
    "LuminaNextDiT": LUMINA_NEXT,  # of rapid_core/comfy/lumina_next
}


def describe(model: Any) -> Architecture | None:
    """Family of a host's `diffusion_model`; None where the family is not in the table, or the model
    is not as the table has it. Never raises."""
    family = _FAMILIES.get(type(model).__name__)
    if family is FLUX and getattr(getattr(model, "params", None), "global_modulation", False):
        family = FLUX2
    if family is LUMINA2 and getattr(model, "pad_tokens_multiple", None):
        family = Z_IMAGE
    return family if family is not None and family.fits(model) else None
