"""What a model call shows of a model's insides to learned heads; comfy is not needed for it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rapid_core.architectures import FLUX, SD3
from rapid_core.comfy.block_table import BlockInfo
from rapid_core.comfy.features import feature_tap, make_tap, why_blind
from rapid_core.reasons import text
from rapid_core.types import FeatureSpec

HIDDEN, SIDE = 6, 4
SPEC = FeatureSpec("tpdm-sd3", "sd3", HIDDEN, SIDE)
LATENT = (2, 16, 8, 8)  # of 4 x 4 tokens
CONDS = {"positive": [{"uuid": "p"}], "negative": [{"uuid": "n"}]}
FIRST = BlockInfo(0, SD3.stacks[0][0], first=True, last=False, main=True)
LAST = BlockInfo(1, SD3.stacks[0][0], first=False, last=True, main=True)
ASIDE = BlockInfo(2, SD3.stacks[0][0], first=True, last=True, main=False)


class FinalLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 2 * HIDDEN))
        self.norm_final = nn.LayerNorm(HIDDEN, elementwise_affine=False)


@pytest.fixture
def model():
    return SimpleNamespace(final_layer=FinalLayer(), hidden_size=HIDDEN, patch_size=2)


def call(tap, model, uuids, images, **changes):
    settings = {"shape": LATENT[1:], "all_tokens": True, **changes}
    return feature_tap(tap, model, uuids, images, **settings)


def pass_blocks(shown, before, vector, after):
    """A model call: its blocks change the tokens in place."""
    args = {"img": before, "vec": vector}
    shown.enter(ASIDE, {"img": before + 1})
    shown.enter(FIRST, args)
    before.add_(9)
    shown.leave(FIRST, {"img": before})
    shown.enter(LAST, {"img": before, "vec": vector + 1})
    shown.leave(LAST, {"img": after})
    shown.leave(ASIDE, {"img": after + 1})
    shown.end()


@torch.no_grad()
def test_tokens_are_seen_as_they_enter_the_blocks_and_as_the_final_layers_matrix_sees_them(model):
    tap, tokens = make_tap(SPEC, LATENT, CONDS), SIDE**2
    before, after = torch.randn(2, 4, tokens, HIDDEN)
    vector = torch.randn(4, HIDDEN)
    original = before.clone()
    pass_blocks(call(tap, model, ["n", "p"], [0, 1]), before, vector, after)
    assert tap.end(0, [0, 1], 1.5) is None
    shift, scale = model.final_layer.adaLN_modulation(vector).chunk(2, 1)
    final = model.final_layer.norm_final(after) * (1 + scale[:, None]) + shift[:, None]
    rows = torch.cat((original, final), 2)
    for image in (0, 1):
        negative, positive = image, 2 + image  # row = chunk * images + position
        seen = tap.features.latest[image]
        expected = rows[negative] + 1.5 * (rows[positive] - rows[negative])
        assert torch.allclose(seen.tokens, expected, atol=1e-6)
        mixed = vector[negative] + 1.5 * (vector[positive] - vector[negative])
        assert torch.allclose(seen.modulation, mixed, atol=1e-6)
        assert torch.equal(tap.pooled[image], vector[positive])


def test_the_modulation_vector_of_the_first_evaluation_is_kept_for_heads_that_want_no_tokens(model):
    tap = make_tap(None, LATENT, CONDS)
    vector = torch.randn(2, 1, HIDDEN)
    shown = call(tap, model, ["p", "n"], [1], all_tokens=False)
    shown.enter(FIRST, {"img": torch.zeros(2, 3, HIDDEN), "vec": vector})
    shown.end()
    assert torch.equal(tap.pooled[1], vector[0, 0]) and list(tap.pooled) == [1]
    shown.enter(FIRST, {"img": torch.zeros(2, 3, HIDDEN), "vec": torch.zeros(4, HIDDEN)})
    assert torch.equal(tap.pooled[1], vector[0, 0])  # other rows than the call's
    call(tap, model, ["n"], [0]).enter(FIRST, {"img": None, "vec": vector[:1]})
    call(tap, model, ["p"], [0]).enter(FIRST, {"img": None})  # a family that shows none
    assert list(tap.pooled) == [1]


def test_calls_that_show_nothing_are_not_watched(model):
    tap = make_tap(SPEC, LATENT, CONDS)
    tap.end(0, [], 1.0)
    assert call(None, model, ["p"], [0]) is None
    assert call(tap, model, ["p"], [0], all_tokens=False) is None
    assert call(tap, model, ["p", "p"], [0]) is None
    assert call(tap, model, ["p"], [0], shape=(16, 8, 6)) is None
    assert call(tap, model, ["p"], [0]).tokens
    plain = make_tap(None, LATENT, CONDS)
    plain.end(0, [], 1.0)
    assert call(plain, model, ["p"], [0]) is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"architecture": None}, "they are for sd3, this model is SimpleNamespace"),
        ({"architecture": FLUX}, "they are for sd3, this model is flux"),
        ({"spec": FeatureSpec("k", "sd3", 8, SIDE)}, "tokens are 8 wide, this model's 6"),
        (
            {"shape": (1, 16, 8, 12)},
            "look at 4 x 4 tokens (64 x 64 px), this latent has 4 x 6",
        ),
        ({"guider": SimpleNamespace(conds={**CONDS, "middle": []})}, "named middle"),
    ],
)
def test_why_heads_cannot_look_is_said(model, changes, words):
    settings = {
        "spec": SPEC,
        "architecture": SD3,
        "model": model,
        "shape": LATENT,
        "guider": SimpleNamespace(conds=CONDS),
    }
    assert why_blind(**settings) is None
    assert words in text(why_blind(**{**settings, **changes}))
