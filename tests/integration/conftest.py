"""Fixtures of the tests that run in the real ComfyUI."""

import atexit
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from devkit.base_folder import remove_base_folder
from devkit.comfy_process import Comfy, import_comfy


def _import_host() -> Comfy:
    base = Path(tempfile.mkdtemp(prefix="rapid-tests-"))
    atexit.register(remove_base_folder, base)
    try:
        return import_comfy(base)
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from None


# Now and not in a fixture, so that test modules here may import comfy at their top.
HOST = _import_host()


@pytest.fixture(scope="session")
def comfy_host() -> Comfy:
    """ComfyUI, imported into this process."""
    return HOST


@pytest.fixture(scope="session")
def pack(comfy_host: Comfy) -> ModuleType:
    """This pack, loaded by ComfyUI."""
    return comfy_host.load_pack(comfy_host.base / "custom_nodes" / "rapid")


@pytest.fixture(scope="session")
def demo_pack(comfy_host: Comfy) -> ModuleType:
    """The demo's node pack, loaded by ComfyUI."""
    return comfy_host.load_pack(comfy_host.base / "custom_nodes" / "rapid_demo")


@pytest.fixture(scope="session")
def pack_module(pack: ModuleType) -> Callable[[str], ModuleType]:
    """Modules of the loaded pack, e.g. pack_module("rapid_core.record"); a plain import is another
    copy."""
    return lambda name: importlib.import_module(f"{pack.__name__}.{name}")


@pytest.fixture(autouse=True)
def _bad_predictions_allowed(pack_module: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions on random weights are off by about 100 %, which would have everything computed.
    The tests of that rule set the bound back."""
    actor = pack_module("rapid_core.techniques.step_skip.schedule_actor")
    monkeypatch.setattr(actor, "SAFE_ERROR", 1e9)
    monkeypatch.setattr(actor, "SAFE_GAP", 1e9)


@pytest.fixture(scope="session")
def load_tiny(comfy_host: Comfy, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """load_tiny(kind, seed=0): a fresh MODEL of kind "flux", "sd3" or "sd35"; its file is made
    once."""
    import comfy.sd

    from rapid_testing.tiny_models import save_tiny_model

    folder = tmp_path_factory.mktemp("tiny_models")

    def load(kind: str, seed: int = 0):
        path = folder / f"{kind}-{seed}.safetensors"
        if not path.is_file():
            save_tiny_model(kind, path, seed)
        return comfy.sd.load_diffusion_model(str(path))

    return load


@pytest.fixture(scope="session")
def _loaded(load_tiny: Callable) -> dict:
    """Models that all tests share; each test gets a clone."""
    return {}


@pytest.fixture(scope="session")
def _shared(load_tiny: Callable, _loaded: dict) -> Callable:
    def get(kind: str):
        if kind not in _loaded:
            _loaded[kind] = load_tiny(kind)
        return _loaded[kind].clone()

    return get


@pytest.fixture(scope="session")
def family(_shared, comfy_host) -> Callable:
    """family(kind): (MODEL, shape of a latent without batch)."""
    from rapid_testing.families import FAMILIES, FROM_FILES

    built = {}

    def get(kind):
        if kind in FROM_FILES:
            return _shared(kind), (16, 16, 24)
        if kind not in built:
            built[kind] = FAMILIES[kind].build()
        return built[kind].clone(), FAMILIES[kind].latent

    return get


@pytest.fixture
def tiny_flux(_shared: Callable):
    """A clone of the tiny FLUX model: 2 double and 2 single blocks."""
    return _shared("flux")


@pytest.fixture
def tiny_sd3(_shared: Callable):
    """A clone of the tiny SD3 model: 2 blocks."""
    return _shared("sd3")


@pytest.fixture
def tiny_sd35(_shared: Callable):
    """A clone of the tiny SD3.5-medium-like model: 2 blocks, the first with a second attention."""
    return _shared("sd35")


@pytest.fixture(params=["flux", "sd3"])
def tiny_model(request: pytest.FixtureRequest, _shared: Callable):
    """Each of the two main architectures in turn (a clone)."""
    return _shared(request.param)


@pytest.fixture(scope="session")
def sample(comfy_host: Comfy) -> Callable:
    """rapid_testing.sampling.sample."""
    from rapid_testing.sampling import sample

    return sample


@pytest.fixture(scope="session")
def make_conditioning(comfy_host: Comfy) -> Callable:
    """rapid_testing.sampling.make_conditioning."""
    from rapid_testing.sampling import make_conditioning

    return make_conditioning


@pytest.fixture(scope="session")
def region(comfy_host: Comfy, pack: ModuleType) -> Callable:
    """region(model, keep_ratio, **settings): what RAPID Region Adaptive makes of a model, here with
    settings that compute much in part."""
    inputs = {
        "preset": "custom",
        "warm_up": 0.2,
        "tail": 0.1,
        "refresh_interval": 3,
        "drift_threshold": 0.0,
        "error_threshold": 0.0,
        "metric": "std",
        "direction": "low",
        "starvation": 0.1,
        "inactive": "predict",
        "slope": 0.0,
        "kv_cache": "last value",
    }

    def patch(model: Any, keep_ratio: float = 0.5, **settings: Any) -> Any:
        values = {**inputs, "keep_ratio": keep_ratio, **settings}
        return comfy_host.run_node("RAPID_RegionAdaptive", model=model, **values)[0]

    return patch


@pytest.fixture
def record_of(pack_module):
    """record_of(model): record of the latest run of a model that a node patched."""
    chain_of = pack_module("rapid_core.comfy.chain").chain_of
    return lambda model: chain_of(model).log.records[-1]


@pytest.fixture
def reason(pack_module):
    """reason(code, ...): a Reason as the pack has it."""
    codes = pack_module("rapid_core.reasons").ReasonCode
    make = pack_module("rapid_core.types").Reason
    return lambda code, **params: make(codes[code], **params)


@pytest.fixture
def accelerate(comfy_host, pack):
    """accelerate(model, speedup): the model with RAPID Accelerate on it."""
    return lambda model, speedup=2.0, **given: comfy_host.run_node(
        "RAPID_Accelerate", model=model, speedup=speedup, **given
    )[0]


@pytest.fixture
def patched(comfy_host, pack):
    """patched(model, name, **changed): `model` with a node of `rapid_testing.frozen.NODES` on it."""
    from rapid_testing.frozen import NODES

    def patched(model, name, **changed):
        node_id, settings = NODES[name]
        schema = comfy_host.nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA()
        defaults = {
            slot.id: slot.default
            for slot in schema.inputs
            if getattr(slot, "default", None) is not None
        }
        return comfy_host.run_node(node_id, model=model, **{**defaults, **settings, **changed})[0]

    return patched
