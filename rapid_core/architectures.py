"""Table of Diffusion Transformer families: where their blocks are, their token layout, what an
evaluation costs.

A family is told by the class name of the host's `diffusion_model` and by attributes; nothing here
imports ComfyUI. A model that lacks what is read of its family is of no family that is known: its
whole evaluations can be skipped all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import attrgetter
from typing import Any

from .reasons import ReasonCode

# Layout of a block's tokens. Text stands before the image in the attention, but for IMAGE_FIRST.
APART = "apart"  # text and image are two tensors that attend together
IMAGE_FIRST = "image first"  # the same, and the image stands before the text
JOINT = "joint"  # one tensor, text first
ALONE = "alone"  # image tokens only; text at most through cross-attention

# What a weight matrix is applied to.
IMAGE, TEXT, BOTH, ONCE, APPROXIMATOR = "image", "text", "both", "once", "approximator"
PIXELS = "pixels"  # each of a token's
AUDIO = "audio"  # the sound's own tokens
LAYERS = "layers"  # the text as each layer of its encoder has it
# Nothing: the host computes it before the run, or for some conditionings alone (sound, a face, a
# camera's path), where it is a small part.
NOT_COUNTED = "not counted"


@dataclass(frozen=True)
class Group:
    """Blocks of one kind. name: in patches_replace["dit"], or "" where the host has no such hook
    and the blocks' `forward` is patched instead; attribute: the list of blocks; attentions: over
    "both" or the "image" itself, from the image to the "text" or what else has its keys elsewhere;
    per block. form: how the host calls a block, where it is not as it mostly does: a name in
    `comfy/block_forms.py`."""

    name: str
    attribute: str
    layout: str
    attentions: tuple[str, ...] = (BOTH,)
    form: str = ""


@dataclass(frozen=True)
class Architecture:
    """A family. stacks: groups that pass tokens on to one another, in order of execution; the last
    one is the stack that residual reuse passes over. weights: (part of a matrix's name, what it is
    applied to), first match wins. hidden: attribute with the width of the attention. whole: extra
    arguments with which all tokens are computed. known_as: models of the family by the names that
    people use. measured: on a trained model of the family, if a small one; of the others only
    exactness is known.

    patch_size: attribute with it, or the number. all_tokens: why some tokens can never be computed
    alone, None where they can. beside: blocks whose outputs are added to the tokens between the
    others, where a model has them. around: blocks before the stacks, and what they attend to.
    audio: axes of the second part of a latent (B, C, ...) that its tokens are cut from; none where
    a latent is one tensor. one_frame: whether more frames than one are other rows. more_text: tokens
    that the model puts before the text. heads: where the numbers of heads of queries and of keys are
    found, for models that repeat the latter."""

    family: str
    known_as: str
    stacks: tuple[tuple[Group, ...], ...]
    weights: tuple[tuple[str, str], ...]
    hidden: str = "hidden_size"
    whole: tuple[str, ...] = ()
    measured: bool = False
    patch_size: str | int = "patch_size"
    all_tokens: ReasonCode | None = None
    beside: str = ""
    around: tuple[tuple[str, str], ...] = ()
    audio: tuple[int, ...] = ()
    one_frame: bool = False
    more_text: int = 0
    heads: tuple[str, str] | None = None

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

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether tokens of a latent (B, C, [T,] H, W) are known."""
        return len(shape) == 4 or (len(shape) == 5 and (shape[2] == 1 or not self.one_frame))

    def fits(self, model: Any) -> bool:
        """Whether a model has everything that is read of a model of this family: AuraFlow's MMDiT
        has another model's class name, and a newer host may have renamed an attribute."""
        try:
            blocks = [len(getattr(model, group.attribute)) for group in self.groups]
            if getattr(model, "extra_per_block_abs_pos_emb", False):
                return False  # of Cosmos: positions that are added in every block
            if self.beside and blocks[-1] - 1 in getattr(model, "vace_layers_mapping", ()):
                return False  # what is added after the last block is no part of the residual
            return self.width(model) > 0 and self.patch(model) > 0 and all(blocks)
        except (AttributeError, IndexError, TypeError, ValueError):
            return False

    def width(self, model: Any) -> int:
        """Channels of a token between the blocks."""
        return int(attrgetter(self.hidden)(model))

    def patch(self, model: Any) -> int:
        """Latent pixels along a side of a token."""
        if isinstance(self.patch_size, int):
            return self.patch_size
        size = attrgetter(self.patch_size)(model)
        return int(size[-1] if isinstance(size, (tuple, list)) else size)

    def sharing(self, model: Any) -> int:
        """Heads of queries that share one of keys and values, which the model repeats for them."""
        if self.heads is None:
            return 1
        try:
            queries, keys = (int(attrgetter(place)(model)) for place in self.heads)
        except (AttributeError, TypeError, ValueError):
            return 1
        return queries // keys if 0 < keys <= queries and queries % keys == 0 else 1

    def image_tokens(self, model: Any, shape: tuple[int, ...]) -> int:
        """Image tokens of a latent (B, C, [T,] H, W); odd sides are padded as the host does."""
        patch, frames = self.patch(model), shape[2] if len(shape) == 5 else 1
        return frames * -(-shape[-2] // patch) * -(-shape[-1] // patch)

    def reference_tokens(self, model: Any, latents: Any) -> int:
        """Tokens of reference latents [(B, C, ...)], which are always computed."""
        return sum(self.image_tokens(model, tuple(latent.shape)) for latent in latents or ())

    def audio_tokens(self, shapes: Sequence[Sequence[int]]) -> int:
        """Tokens of the sound, in a latent whose parts have these shapes (B, C, ...)."""
        if not self.audio or len(shapes) < 2:
            return 0
        return prod(shapes[1][axis] for axis in self.audio)


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
_CHROMA_WEIGHTS = (("distilled_guidance_layer", APPROXIMATOR), *_FLUX_WEIGHTS)
CHROMA = Architecture("chroma", "Chroma", (_FLUX_STACK,), _CHROMA_WEIGHTS)
RADIANCE = Architecture(
    "chroma_radiance",
    "Chroma Radiance",
    (_FLUX_STACK,),
    (
        ("nerf_image_embedder", PIXELS),
        ("nerf_final_layer", PIXELS),
        ("nerf_blocks", IMAGE),
        *_CHROMA_WEIGHTS,
    ),
    all_tokens=ReasonCode.TOKENS_MIXED,  # a convolution over the picture comes last
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
MAGE_FLOW = Architecture("mage_flow", "Mage-Flow", QWEN.stacks, QWEN.weights, QWEN.hidden)
AURA = Architecture(
    "aura_flow",
    "AuraFlow, Pony V7",
    (
        (
            Group("double_block", "double_layers", APART),
            Group("single_block", "single_layers", JOINT),
        ),
    ),
    (
        ("mod", ONCE),
        ("t_embedder", ONCE),
        ("attn.w2", IMAGE),
        ("mlpX", IMAGE),
        ("double_layers", TEXT),
        ("single_layers", BOTH),
        ("cond_seq_linear", TEXT),
        ("_linear", IMAGE),
    ),
    hidden="init_x_linear.out_features",
    more_text=8,
)
LENS = Architecture(
    "lens",
    "Lens",
    ((Group("double_block", "transformer_blocks", IMAGE_FIRST),),),
    (
        *_STREAMS[:2],
        ("txt_", TEXT),
        ("to_add_out", TEXT),
        ("time_text_embed", ONCE),
        ("norm_out", ONCE),
        ("attn.to_out", IMAGE),
        ("img_", IMAGE),
        ("proj_out", IMAGE),
    ),
    hidden="inner_dim",
    patch_size=1,
)
JOY_IMAGE = Architecture(
    "joy_image",
    "JoyImage Edit",
    ((Group("double_block", "double_blocks", IMAGE_FIRST),),),
    (
        ("time_", ONCE),
        ("condition_embedder", TEXT),
        *_STREAMS[:2],
        ("txt_", TEXT),
        ("img_", IMAGE),
        ("proj_out", IMAGE),
    ),
    hidden="img_in.out_channels",
)
KREA2 = Architecture(
    "krea2",
    "Krea 2, Krea 2 Turbo",
    ((Group("", "blocks", JOINT, form="krea2"),),),
    (
        ("txtfusion.layerwise_blocks", LAYERS),
        ("txtfusion.projector", NOT_COUNTED),  # one column
        ("txt", TEXT),
        ("blocks", BOTH),
        ("last", BOTH),
        ("first", IMAGE),
    ),
    hidden="first.out_features",
    patch_size="patch",
    one_frame=True,
    heads=("blocks.0.attn.heads", "blocks.0.attn.kvheads"),
)
PREDICT2 = Architecture(
    "predict2",
    "Anima, Cosmos Predict2",
    ((Group("", "blocks", ALONE, (IMAGE, TEXT), form="predict2"),),),
    (
        ("llm_adapter", NOT_COUNTED),
        ("adaln", ONCE),
        ("cross_attn.k", TEXT),
        ("cross_attn.v", TEXT),
        ("blocks", IMAGE),
        ("x_embedder", IMAGE),
        ("final_layer", IMAGE),
    ),
    hidden="model_channels",
    patch_size="patch_spatial",
)
KANDINSKY5 = Architecture(
    "kandinsky5",
    "Kandinsky 5 image and video",
    ((Group("", "visual_transformer_blocks", ALONE, (IMAGE, TEXT), form="kandinsky5"),),),
    (
        ("modulation", ONCE),
        ("pooled_text", ONCE),
        ("time_", ONCE),
        ("cross_attention.to_key", TEXT),
        ("cross_attention.to_value", TEXT),
        ("text_", TEXT),
        ("visual_", IMAGE),
        ("out_layer", IMAGE),
    ),
    hidden="model_dim",
    around=(("text_transformer_blocks", TEXT),),
)
MINIMAX_H3 = Architecture(
    "minimax_h3",
    "MiniMax H3",
    ((Group("double_block", "blocks", JOINT, form="minimax_h3"),),),
    (
        ("token_refiner", NOT_COUNTED),
        ("condition_proj", NOT_COUNTED),
        ("adaln", ONCE),
        ("time_", ONCE),
        ("audio_", AUDIO),
        ("video_", IMAGE),
        ("blocks", BOTH),
    ),
    audio=(2, 3),
)
LTXV = Architecture(
    "ltxv",
    "LTX-Video",
    ((Group("double_block", "transformer_blocks", ALONE, (IMAGE, TEXT), form="ltxv"),),),
    (
        ("adaln", ONCE),
        ("attn2.to_k", TEXT),
        ("attn2.to_v", TEXT),
        ("caption_projection", TEXT),
        ("transformer_blocks", IMAGE),
        ("proj", IMAGE),
    ),
    hidden="inner_dim",
    whole=("keyframe_idxs",),
    patch_size=1,
)
LTX_AV = Architecture(
    "ltx_av",
    "LTX-2, LTX-2.3",
    (
        (
            Group(
                "double_block",
                "transformer_blocks",
                ALONE,
                (IMAGE, TEXT, AUDIO, AUDIO, AUDIO, AUDIO),
                form="ltx_av",
            ),
        ),
    ),
    (
        ("embeddings_connector", NOT_COUNTED),
        ("adaln", ONCE),
        ("audio_caption_projection", TEXT),
        ("audio_to_video_attn.to_k", AUDIO),
        ("audio_to_video_attn.to_v", AUDIO),
        ("audio_to_video_attn", IMAGE),
        ("video_to_audio_attn.to_k", IMAGE),
        ("video_to_audio_attn.to_v", IMAGE),
        ("video_to_audio_attn", AUDIO),
        ("attn2.to_k", TEXT),
        ("attn2.to_v", TEXT),
        ("audio_", AUDIO),
        *LTXV.weights[3:],
    ),
    hidden="inner_dim",
    patch_size=1,
    all_tokens=ReasonCode.TOKENS_WITH_SOUND,
    audio=(2,),
)
# For sound, faces, poses and the path of a camera.
_WAN_EXTRA = (
    "audio",
    "music",
    "face_",
    "motion_encoder",
    "frame_packer",
    "cond_encoder",
    "control_adapter",
    "pose",
    "_mask",
    "_global",
    "img_emb",
)
WAN = Architecture(
    "wan",
    "Wan 2.1, Wan 2.2, Fun Control, FlowRVS, VACE, Camera, S2V, Animate, HuMo, SCAIL, SCAIL-2, WanDancer",
    ((Group("double_block", "blocks", ALONE, (IMAGE, TEXT)),),),
    (
        *((part, NOT_COUNTED) for part in _WAN_EXTRA),
        ("cross_attn.k", TEXT),
        ("cross_attn.v", TEXT),
        ("blocks", IMAGE),
        ("head", IMAGE),
        ("patch_emb", IMAGE),
        ("text_emb", TEXT),
    ),
    hidden="dim",
    whole=(
        "reference_latent",
        "context_latents",
        "clip_fea",
        "clip_fea_ref",
        "audio_embed",
        "face_pixel_values",
        "reference_motion",
    ),
    beside="vace_blocks",
)
LUMINA2 = Architecture(
    "lumina2",
    "Lumina Image 2.0",
    ((Group("", "noise_refiner", ALONE, (IMAGE,)),), (Group("", "layers", JOINT),)),
    (
        ("dec_net", IMAGE),
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
    around=(("context_refiner", TEXT),),
    heads=("layers.0.attention.n_local_heads", "layers.0.attention.n_local_kv_heads"),
)
Z_IMAGE = replace(LUMINA2, family="z_image", known_as="Z-Image", measured=False)

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
    measured=True,
    heads=("config.heads", "config.kv_heads"),
)

ALL = (
    FLUX,
    SD3,
    LUMINA2,
    Z_IMAGE,
    QWEN,
    FLUX2,
    CHROMA,
    HUNYUAN,
    WAN,
    LUMINA_NEXT,
    RADIANCE,
    MAGE_FLOW,
    AURA,
    LENS,
    JOY_IMAGE,
    KREA2,
    PREDICT2,
    KANDINSKY5,
    MINIMAX_H3,
    LTXV,
    LTX_AV,
)
FAMILIES = tuple(a.family for a in ALL)

# By the class of the host's `diffusion_model`.
_FAMILIES = {
    "Flux": FLUX,
    "OpenAISignatureMMDITWrapper": SD3,
    "MMDiT": SD3,
    "Chroma": CHROMA,
    "ChromaRadiance": RADIANCE,
    "HunyuanVideo": HUNYUAN,
    "QwenImageTransformer2DModel": QWEN,
    "MageFlowTransformer2DModel": MAGE_FLOW,
    "LensTransformer2DModel": LENS,
    "JoyImageTransformer3DModel": JOY_IMAGE,
    "SingleStreamDiT": KREA2,
    "MiniTrainDIT": PREDICT2,
    "Anima": PREDICT2,
    "Kandinsky5": KANDINSKY5,
    "MiniMaxH3Model": MINIMAX_H3,
    "LTXVModel": LTXV,
    "LTXAVModel": LTX_AV,
    "WanModel": WAN,
    "VaceWanModel": WAN,
    "CameraWanModel": WAN,
    "WanModel_S2V": WAN,
    "HumoWanModel": WAN,
    "AnimateWanModel": WAN,
    "SCAILWanModel": WAN,
    "SCAIL2WanModel": WAN,
    "WanDancerModel": WAN,
    "CausalWanModel": WAN,
    "NextDiT": LUMINA2,
    "NextDiTPixelSpace": LUMINA2,
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
    if family is SD3 and hasattr(model, "double_layers"):  # two classes are called MMDiT
        family = AURA
    return family if family is not None and family.fits(model) else None
