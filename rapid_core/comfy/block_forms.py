"""How the host calls the blocks of each family, in the one form that hooks look at.

A hook is given a dict with `img` (rows, tokens, channels), where there is one `txt`, `pe` (rotary
positions with an axis of tokens), `vec`, and `transformer_options`. Most families come with that; what
others come with is translated here. A family's form is named in its row of `architectures`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Run = Callable[[dict], dict]


@dataclass(frozen=True)
class BlockCall:
    """A block that the host calls. Keys that only this pack knows: `others`, tensors that the block
    passes on beside `img` and adds to (sound); `times`, modulations (rows, frames, ...) of which
    every token takes its frame's."""

    args: dict
    run: Run
    """The block itself, on such a dict."""
    finish: Callable[[dict], Any] = field(default=lambda out: out)
    """What the host expects of the block, of what `run` gave."""


# Blocks that the host has hooks for: (arguments of the hook, the host's block) -> BlockCall.


def _common(args: dict, original: Run) -> BlockCall:
    return BlockCall(args, original)


def _minimax_h3(args: dict, original: Run) -> BlockCall:
    """Tokens without rows: a batch of one. The video is the last of the segments that modulations
    are for, so that where some of its tokens run, the segments' places still are those of the rest."""

    def run(given: dict) -> dict:
        inside = {**args, "img": given["img"][0], "rope_freqs": given["pe"]}
        return {"img": original(inside)["img"][None]}

    seen = {**args, "img": args["img"][None], "pe": args["rope_freqs"]}
    return BlockCall(seen, run, lambda out: {"img": out["img"][0]})


def _ltxv(args: dict, original: Run) -> BlockCall:
    """Positions are a pair of a matrix and its kind."""
    matrix, kind = args["pe"]

    def run(given: dict) -> dict:
        (times,) = given["times"]
        return original({**args, "img": given["img"], "vec": times, "pe": (given["pe"], kind)})

    return BlockCall({**args, "pe": matrix, "times": (args["vec"],), "vec": None}, run)


def _ltx_av(args: dict, original: Run) -> BlockCall:
    """Video and sound are a pair."""

    def run(given: dict) -> dict:
        video, *others = original({**args, "img": (given["img"], *given["others"])})["img"]
        return {"img": video, "others": tuple(others)}

    video, *others = args["img"]
    seen = {**args, "img": video, "others": tuple(others)}
    return BlockCall(seen, run, lambda out: {"img": (out["img"], *out["others"])})


HOOKED: dict[str, Callable[[dict, Run], BlockCall]] = {
    "": _common,
    "minimax_h3": _minimax_h3,
    "ltxv": _ltxv,
    "ltx_av": _ltx_av,
}


# Blocks whose `forward` is patched: (forward, its arguments, those by name, what is kept for the
# rest of the model call) -> BlockCall.


def _next_dit(original: Callable, given: tuple, named: dict, kept: dict) -> BlockCall:
    del kept
    x, mask, pe, *rest = given

    def run(args: dict) -> dict:
        return {"img": original(args["img"], mask, args["pe"], *rest, **named)}

    return BlockCall({"img": x, "pe": pe}, run, _tokens)


def _krea2(original: Callable, given: tuple, named: dict, kept: dict) -> BlockCall:
    del kept
    x, vec, pe, *rest = given

    def run(args: dict) -> dict:
        return {"img": original(args["img"], args["vec"], args["pe"], *rest, **named)}

    return BlockCall({"img": x, "vec": vec, "pe": pe}, run, _tokens)


def _kandinsky5(original: Callable, given: tuple, named: dict, kept: dict) -> BlockCall:
    """The host's own hook calls the block by names that it does not have (0.30)."""
    del kept
    x, text, *rest = given
    named = dict(named)
    pe = named.pop("freqs")

    def run(args: dict) -> dict:
        return {"img": original(args["img"], text, *rest, freqs=args["pe"], **named)}

    return BlockCall({"img": x, "pe": pe}, run, _tokens)


def _predict2(original: Callable, given: tuple, named: dict, kept: dict) -> BlockCall:
    """Tokens (rows, T, H, W, channels) with modulations of frames. Where some are computed, each of
    them is a frame, between the blocks, too."""
    x, embedding, *rest = given
    sizes = kept.setdefault("sizes", x.shape[1:4])  # as the first block is given them
    named = dict(named)
    pe, lora = named.pop("rope_emb_L_1_1_D"), named.pop("adaln_lora_B_T_3D")

    def laid_out(img: Tensor) -> Tensor:
        whole = img.shape[1] == sizes.numel()
        return img.unflatten(1, sizes) if whole else img[:, :, None, None]

    def run(args: dict) -> dict:
        frames, more = args["times"]
        rotary = {"rope_emb_L_1_1_D": args["pe"], "adaln_lora_B_T_3D": more}
        out = original(laid_out(args["img"]), frames, *rest, **named, **rotary)
        return {"img": out.flatten(1, 3)}

    def finish(out: dict) -> Tensor:
        return laid_out(out["img"])

    seen = {"img": x.flatten(1, 3), "pe": pe, "times": (embedding, lora)}
    return BlockCall(seen, run, finish)


def _tokens(out: dict) -> Tensor:
    return out["img"]


PATCHED: dict[str, Callable[[Callable, tuple, dict, dict], BlockCall]] = {
    "": _next_dit,
    "krea2": _krea2,
    "kandinsky5": _kandinsky5,
    "predict2": _predict2,
}
