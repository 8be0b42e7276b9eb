"""The host waits for its device at most once an evaluation, in the fetch before it decides."""

from collections import Counter

import pytest
import torch

from evaluation.host_models import TINY, here
from evaluation.probes import probe
from evaluation.synchronisations import count_waits, watched
from rapid_testing.families import FAMILIES
from rapid_testing.frozen import EVERY, NODES
from rapid_testing.sampling import sample

pytestmark = pytest.mark.main_host

STEPS = 8
FETCH = "rapid_core/engine/run.py"
WHOLE = ("accelerate 2", "skip")  # of EVERY: all that there is to blocks that are not known
# Classes that are not among FAMILIES, which is those with the same blocks.
CLASSES = [name for name in here() if TINY[name].model not in FAMILIES.values()]
REGION = {"preset": "custom", "keep_ratio": 0.5, "error_threshold": 0.0}
CASES = {
    **NODES,
    "attention": ("RAPID_RegionAdaptive", {**REGION, "metric": "attention"}),
    "random": ("RAPID_RegionAdaptive", {**REGION, "metric": "random"}),
    "quality": ("RAPID_Accelerate", {"mode": "quality", "policy_file": "none"}),
    "best picture": ("RAPID_Accelerate", {"aim": "best picture", "policy_file": "none"}),
}


@pytest.fixture
def patched(comfy_host, pack):
    """patched(model, name): the model with a node of CASES on it."""

    def patch(model, name):
        node, settings = CASES[name]
        schema = comfy_host.nodes.NODE_CLASS_MAPPINGS[node].GET_SCHEMA()
        slots = {slot.id: getattr(slot, "default", None) for slot in schema.inputs}
        given = {name: value for name, value in slots.items() if value is not None}
        given |= {name: value for name, value in settings.items() if name in slots}
        return comfy_host.run_node(node, model=model, **given)[0]

    return patch


def waits_of(model, latent, **settings):
    """Waits of one run."""
    weights = model.model.diffusion_model.state_dict().values()
    with count_waits(torch.device("cpu"), weights) as waits:
        settings = {"steps": STEPS, "cfg": 2.0, **settings}
        sample(watched(model, waits), latent=latent, **settings)
    return waits


def check(waits):
    """One fetch an evaluation, and no other."""
    assert waits.evaluation >= STEPS
    assert waits.most() <= 1, waits.places()
    assert {place.split(":")[0] for place in waits.places()} <= {FETCH}
    assert sum(waits.of(ours=True)) >= STEPS // 2  # it does see the fetches


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_every_node_waits_once_an_evaluation(kind, name, family, patched):
    model, latent = family(kind)
    check(waits_of(patched(model, name), torch.zeros(1, *latent)))


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in ("flux", "wan")])
def test_every_family_waits_once_an_evaluation(kind, family, patched):
    model, latent = family(kind)
    for name in ("accelerate 2", "reuse", "per token", "region", "sparse"):
        check(waits_of(patched(model, name), torch.zeros(1, *latent)))


def waits_of_class(model, name, **settings):
    """Waits of one run of a class of the host, with all that its conditioning holds."""
    weights = model.model.diffusion_model.state_dict().values()
    with count_waits(torch.device("cpu"), weights) as waits:
        TINY[name].model.sample(watched(model, waits), **{"steps": STEPS, "cfg": 2.0, **settings})
    return waits


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_the_host_waits_once_an_evaluation(name, patched, pack_module):
    model = TINY[name].model.build()
    known = pack_module("rapid_core.architectures").describe(model.model.diffusion_model)
    for node in WHOLE if known is None else EVERY:
        check(waits_of_class(patched(model, node), name))


@pytest.fixture
def divided(pack_module):
    """divided(model): the model, of whose four images one computes all tokens, one some, one reuses
    and one skips, in turn."""
    types = pack_module("rapid_core.types")
    mode = types.Mode

    def act(observation):
        turn = (observation.index + observation.image) % 4
        tokens = observation.tokens
        if observation.computed < 2 or turn == 0 or (turn == 1 and tokens is None):
            return types.Action()
        if turn == 1:
            return types.Action(tokens=torch.arange(0, tokens.number, 2))
        return types.Action(mode.REUSE if turn == 2 else mode.SKIP)

    def divide(model, tokens=True):
        kv = types.TokenRequirements(kv=types.KVKind.PREDICT) if tokens else None
        policy = probe(types, act, modes=frozenset(mode), prediction_order=1, tokens=kv)
        return pack_module("rapid_core.comfy.chain").attach(model, policy)

    return divide


def check_divided(record, waits, partial=True):
    """Images of one evaluation were run, reused and skipped, with one fetch."""
    modes = Counter(len(set(e.modes)) for e in record.evaluations)
    assert modes[3] >= 6, record.text()  # run, reuse and skip in one evaluation
    assert not partial or record.totals["partial"] >= 4, record.text()
    check(waits)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_batch_that_decides_differently_waits_once_an_evaluation(
    kind, family, divided, record_of
):
    model, latent = family(kind)
    model = divided(model)
    waits = waits_of(model, torch.zeros(4, *latent), steps=12)
    check_divided(record_of(model), waits)


@pytest.mark.parametrize("name", CLASSES)
def test_a_batch_of_any_class_that_decides_differently_waits_once_an_evaluation(
    name, divided, record_of, pack_module
):
    model = TINY[name].model.build()
    known = pack_module("rapid_core.architectures").describe(model.model.diffusion_model)
    if known is None:
        pytest.skip("its blocks are not known: nothing but whole evaluations is skipped")
    if TINY[name].model.images == 1:
        pytest.skip("ComfyUI draws one of it at a time")
    some = known.all_tokens is None
    model = divided(model, some)
    waits = waits_of_class(model, name, steps=12, batch=4)
    check_divided(record_of(model), waits, some)


@pytest.mark.parametrize("name", ["accelerate 2", "per token", "region", "sparse", "8 bit"])
def test_a_batch_with_masks_waits_once_an_evaluation(name, family, patched):
    model, latent = family("flux")
    mask = torch.zeros(1, 1, *latent[-2:])
    mask[..., :6, :] = 1
    check(waits_of(patched(model, name), torch.zeros(2, *latent), noise_mask=mask))


def test_keys_and_values_in_host_memory_wait_for_nothing_but_their_own_copies(family, patched):
    """On CUDA these are asynchronous, to and from pinned memory, which a CPU has none of."""
    CASES["host memory"] = ("RAPID_RegionAdaptive", {**REGION, "kv_cache": "host memory"})
    try:
        model, latent = family("flux")
        waits = waits_of(patched(model, "host memory"), torch.zeros(1, *latent))
    finally:
        del CASES["host memory"]
    others = [place for place in waits.places() if "engine/kv/" not in place]
    assert len(others) == 1 and others[0].startswith(FETCH)


# The counter itself.


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0, 0]),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.to("cpu"),
        lambda x: x.cpu(),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x.copy_(torch.zeros(3, 3)),
        lambda x: torch.zeros(3, 3).copy_(x),
        lambda x: torch.equal(x, x + 1),
        lambda x: x[x.argmax() // 3],
    ],
)
def test_what_makes_the_host_wait_is_counted_once(reads):
    with count_waits(torch.device("cpu")) as waits:
        x = torch.randn(3, 3, device=torch.device("cpu"))
        waits.next_evaluation()
        reads(x)
    assert waits.of(ours=False) == [1]


def test_what_stays_on_the_device_or_on_the_host_is_not_counted():
    with count_waits(torch.device("cpu")) as waits:
        x = torch.randn(3, 3, device=torch.device("cpu"))
        waits.next_evaluation()
        y = (x @ x).clamp(0, 1).masked_fill(x > 0, 0.0) + x.new_full((3,), 2.0)
        y[0] = 1.0
        y[x > 0] = 0.0
        torch.zeros(3).to(x.device, non_blocking=True)
        assert torch.ones(3).sum().item() == 3
        assert torch.ones(3)[torch.tensor([True, False, True])].tolist() == [1, 1]
    assert waits.of(ours=False) == [0]
