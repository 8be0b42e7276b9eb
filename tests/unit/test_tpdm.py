"""TPDM's head: how tokens lie, what it sees, when it decides, and files of another size."""

import pytest
import torch

from rapid_core.policy_file.format import PolicyError, write
from rapid_core.policy_file.heads import head_metadata, tpdm_metadata
from rapid_core.policy_file.policies import check_model, policy_of
from rapid_core.techniques.heads.rapid3 import Heads
from rapid_core.techniques.heads.tpdm import TPDMHeads, TPDMPolicy, squares
from rapid_core.types import Features, FeatureSpec, HeadInput, Mode
from rapid_testing.actors import METADATA, text
from rapid_testing.heads import WINDOW, decide

HIDDEN, SIDE = 6, 4


def heads(bias=None):
    """Heads of a small model; bias: logits that they give whatever they see."""
    torch.manual_seed(0)
    found = TPDMHeads(HIDDEN, SIDE, 8)
    if bias is not None:
        found.heads["step"].fc2.weight.data.zero_()
        found.heads["step"].fc2.bias.data.copy_(torch.tensor(bias))
    return found


def look(evaluation, **changes):
    x = torch.zeros(4, 8, 8)
    features = Features(torch.randn(SIDE**2, 2 * HIDDEN), torch.randn(HIDDEN), evaluation)
    return HeadInput(x, x, x, **{"features": features, **changes})


def test_four_tokens_that_follow_one_another_are_a_square():
    found = squares(torch.arange(16.0).view(1, 16, 1), 4)
    assert found[0, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def run(policy, sigmas, shown):
    """Actions over sigmas as a strip; shown: evaluations that could be seen when they were
    computed."""
    actor, history, features, out = policy.start(WINDOW), (), None, []
    for i, sigma in enumerate(sigmas):
        since = i - 1 - sigmas.index(history[-1]) if history else 0
        seen = features if history else None
        action = decide(actor, seen, i, (*sigmas, 0.0), history, since)
        if action.mode is Mode.RUN:
            history = (*history, sigma)
            features = look(i) if i in shown else look(i, features=None)
        out.append(action)
    return text(out)


def steered(bias, speedup=1.0):
    return TPDMPolicy(heads=heads(bias), speedup=speedup)


SIGMAS = (1.0, 0.9, 0.7, 0.6, 0.5005, 0.45, 0.3, 0.2505, 0.1)


def test_a_jump_goes_to_its_share_of_the_sigma_and_not_to_a_thousandth_below():
    """The evaluation at 0.5004 is below 0.50049, where the jump goes, and above 0.5."""
    share = 0.50049
    bias = float(torch.logit(torch.tensor(share, dtype=torch.float64)))
    assert run(steered([bias, 0.0]), (1.0, 0.6, 0.5004, 0.3, 0.1), range(9)) == "#.#.#"
    # Half of 1 is 0.5, half of 0.45 is 0.225.
    assert run(steered([0.0, 0.0]), SIGMAS, range(9)) == "#....#..#"


def test_an_image_that_could_not_be_seen_is_computed():
    assert run(steered([0.0, 0.0]), SIGMAS, [0, 6]) == "#....##.#"
    assert run(steered([0.0, 0.0]), SIGMAS, []) == "#" * 9


def test_the_budget_is_a_ceiling():
    assert run(steered([9.0, -9.0], 3.0), SIGMAS, range(9)) == "###......"


def test_every_computed_evaluation_is_looked_at_once():
    actor, sigma, first = steered(None).start(WINDOW), torch.tensor(0.5), look(0)
    assert actor.logits(first, sigma).shape == (2,) and actor.known
    assert actor.logits(first, sigma) is None and actor.known
    assert actor.logits(look(0, features=None), sigma) is None and not actor.known
    assert actor.logits(None, sigma) is None and not actor.known
    assert actor.logits(look(3), sigma).shape == (2,)


def test_it_says_which_tokens_it_looks_at():
    needs = steered(None).requirements
    assert needs.features == FeatureSpec("tpdm-sd3", "sd3", HIDDEN, SIDE)
    assert needs.logits and needs.decides_schedule and needs.modes == {Mode.SKIP, Mode.RUN}


def saved(tmp_path, ours, **changes):
    metadata = {**METADATA, "architecture": "sd3", **tpdm_metadata(ours), **changes}
    return write(tmp_path / "tpdm.safetensors", "heads", metadata, ours.state_dict())


def test_heads_are_written_and_read(tmp_path):
    file = saved(tmp_path, heads())
    policy = policy_of(file, 2.0)
    assert policy.requirements.modes == {Mode.SKIP, Mode.RUN}
    assert policy.sparsity is None and policy.prediction_order == 0
    tokens, modulation = torch.randn(2, SIDE**2, 2 * HIDDEN), torch.randn(2, HIDDEN)
    assert torch.equal(
        policy.heads(tokens, modulation)["step"], heads()(tokens, modulation)["step"]
    )
    assert policy.to_record()["technique"] == "tpdm" and policy.to_record()["heads"] == ["step"]
    check_model(file, 16, HIDDEN)
    with pytest.raises(PolicyError, match="hidden = 6, trained on demo flux; this model has 1536"):
        check_model(file, 16, 1536)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"structure": "mlp"}, "structure = 'mlp'; accepted is one of rapid3, rapid+, tpdm-sd3"),
        (
            {"architecture": "flux"},
            "architecture = 'flux'; accepted is 'sd3', whose tokens heads of structure tpdm-sd3 look at",
        ),
        (
            {"heads": ["step", "cache"]},
            "heads = ['step', 'cache']; accepted is the step head alone",
        ),
        ({"side": 3}, "side = 3; accepted is an even number"),
        (
            {"width": 16},
            "heads.step.conv1.weight has shape (8, 12, 3, 3); accepted is 16 x 12 x 3 x 3",
        ),
        ({"hidden": 10**6}, "hidden = 1000000; accepted is a whole number from 1 to 16384"),
    ],
)
def test_wrong_heads_are_named(tmp_path, changes, said):
    with pytest.raises(PolicyError) as error:
        policy_of(saved(tmp_path, heads(), **changes), 2.0)
    assert "tpdm.safetensors" in str(error.value) and said in str(error.value)


def test_heads_of_the_other_structure_are_told_apart(tmp_path):
    ours = Heads(4, HIDDEN, ("step",), width=8)
    body = {name: value for name, value in ours.state_dict().items() if name.startswith("heads.")}
    metadata = {
        **METADATA,
        "architecture": "sd3",
        **head_metadata(ours, 0, (0.5, 0.25, 0.125)),
        **tpdm_metadata(heads()),
    }
    with pytest.raises(PolicyError, match="heads.step.conv1.weight has shape"):
        policy_of(write(tmp_path / "x.safetensors", "heads", metadata, body), 2.0)
