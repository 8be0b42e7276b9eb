"""Keys and values of tokens that are not computed: what is kept, what is predicted, and what it
takes."""

import math

import pytest
import torch

from rapid_core.engine import kv
from rapid_core.engine.kv import last
from rapid_core.reasons import ReasonCode
from rapid_core.types import KVKind, Reason

CPU = torch.device("cpu")
A = (0, "a")  # a cond
KINDS = tuple(KVKind)
HELD = tuple(kind for kind in KVKind if kind is not KVKind.NONE)
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


def test_there_is_a_class_for_every_kind():
    assert set(kv.ENTRIES) == set(KVKind)


# Prediction.


def test_predicted_keys_lie_on_the_line_of_their_latest_two():
    torch.manual_seed(0)
    slope, start = torch.randn(2, 1, 2, 7, 4)
    store, text = kv.KVStore(1, KVKind.PREDICT, 5), 2

    def line(sigma):
        return start + sigma * slope

    for sigma in (1.0, 0.8):
        store.tick(A, [0], [sigma], None, CPU)
        store.write(A, 0, kv.Write([0], line(sigma), -line(sigma), 2, text))
    tokens = torch.tensor([[1, 3]])
    for sigma in (0.7, 0.5):  # the others are predicted farther each time
        rows = torch.tensor([[0, 1, 3, 5]])
        fresh = line(sigma)[:, :, rows[0]]
        store.tick(A, [0], [sigma], tokens, CPU)
        attended = store.merge(A, 0, kv.Merge([0], fresh, -fresh, rows, text, 7))
        assert torch.allclose(attended.k, line(sigma), atol=1e-5)
        assert torch.allclose(attended.v, -line(sigma), atol=1e-5)


def test_a_second_look_at_a_sigma_takes_the_place_of_the_first():
    """heun and its like compute a sigma twice; the line goes through two sigmas, not through one
    twice."""
    torch.manual_seed(0)
    slope, start, wrong = torch.randn(3, 2, 1, 7, 4)
    store, text = kv.KVStore(2, KVKind.PREDICT, 5), 2

    def line(sigma):
        return start + sigma * slope

    for sigma, first in ((1.0, False), (0.8, True), (0.8, False)):
        values = wrong if first else line(sigma)
        store.tick(A, [0, 1], [sigma, sigma], None, CPU)
        store.write(A, 0, kv.Write([0, 1], values, values, 2, text))
    tokens, rows = torch.tensor([[1, 3], [0, 4]]), torch.tensor([[0, 1, 3, 5], [0, 1, 2, 6]])
    for sigma, first in ((0.7, True), (0.7, False), (0.5, False)):
        values = wrong if first else line(sigma)
        fresh = torch.stack([values[i][:, rows[i]] for i in (0, 1)])
        store.tick(A, [0, 1], [sigma, sigma], tokens, CPU)
        attended = store.merge(A, 0, kv.Merge([0, 1], fresh, fresh, rows, text, 7))
    assert torch.allclose(attended.k, line(0.5), atol=1e-5)
    assert torch.equal(attended.k, attended.v)


def predicted(dtype, before, latest, sigma=0.77, images=(0,)):
    """Keys (B, H, L, D) at `sigma`, of two that were computed at 1 and 0.9; token 0 is computed
    again as `latest` has it."""
    batch, _, number, _ = before.shape
    store = kv.KVStore(batch, KVKind.PREDICT, number)
    for at, values in ((1.0, before.to(dtype)), (0.9, latest.to(dtype))):
        store.tick(A, list(range(batch)), [at] * batch, None, CPU)
        store.write(A, 0, kv.Write(list(range(batch)), values, values, 2, 0))
    rows = torch.zeros(len(images), 1, dtype=torch.long)
    fresh = latest[list(images), :, :1].to(dtype)
    store.tick(A, images, [sigma] * len(images), rows, CPU)
    return store.merge(A, 0, kv.Merge(images, fresh, fresh, rows, 0, number)).k


def ahead_at(sigma):
    """How far it lies, in distances of 1 and 0.9, as float32 has it."""
    sigmas = torch.tensor([1.0, 0.9, sigma])
    return (sigmas[2] - sigmas[1]) / (sigmas[1] - sigmas[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_predicted_keys_are_rounded_once_and_so_is_how_far_they_move(dtype):
    torch.manual_seed(0)
    before, latest = torch.randn(2, 1, 1, 64, 8).to(dtype).float()
    keys = predicted(dtype, before, latest)
    movement = ahead_at(0.77) * (latest - before)
    line = latest + movement
    half = torch.finfo(dtype).eps / 2
    bound = half * line.abs() + half * movement.abs() + 2e-6
    assert ((keys.float() - line).abs() <= bound)[:, :, 1:].all()
    assert torch.equal(keys[:, :, :1].float(), latest[:, :, :1])  # was computed


def test_in_float32_one_kernel_predicts_what_the_formula_in_steps_did():
    torch.manual_seed(0)
    before = torch.randn(2, 4, 256, 32)
    latest = before + 0.2 * torch.randn_like(before)
    for sigma in (0.88, 0.77, 0.3):
        ahead = ahead_at(sigma).clamp(max=4.0)
        old = torch.addcmul(latest, latest - before, ahead)[:, :, 1:]
        keys = predicted(torch.float32, before, latest, sigma, (0, 1))[:, :, 1:]
        assert (keys - old).norm() <= 1e-6 * old.norm()
        assert (keys - old).abs().max() <= 1e-6 * old.abs().max()


@pytest.mark.parametrize("dtype, worst", [(torch.bfloat16, 1.03), (torch.float16, 1.03)])
def test_in_half_precision_one_kernel_is_as_near_as_the_formula_in_float32_was(dtype, worst):
    """Mean error against float64, keys moving by some per cent as they do in a model."""
    torch.manual_seed(0)
    before = torch.randn(1, 8, 1024, 64)
    latest = (before + 0.05 * torch.randn_like(before)).to(dtype).double()
    before = before.to(dtype).double()
    ahead = ahead_at(0.7).double()
    exact = latest + ahead * (latest - before)
    old = torch.addcmul(latest.float(), (latest - before).float(), ahead.float()).to(dtype)
    keys = predicted(dtype, before, latest, 0.7)
    error = (keys.double() - exact)[:, :, 1:].abs().mean()
    assert error <= worst * (old.double() - exact)[:, :, 1:].abs().mean()


def allocated(profile):
    """Bytes that operations allocated, whether or not they freed them again."""
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.function_events)


@pytest.mark.parametrize("images", [(0, 1), (1,)])
def test_a_merge_allocates_its_result_and_the_rows_that_it_moves(images):
    """The formula in steps took 11 times the keys and values themselves."""
    torch.manual_seed(0)
    number, share = 512, 4
    store = kv.KVStore(2, KVKind.PREDICT, number)
    values = torch.randn(2, 4, number, 32).bfloat16()
    for sigma in (1.0, 0.9):
        store.tick(A, [0, 1], [sigma, sigma], None, CPU)
        store.write(A, 0, kv.Write([0, 1], values, values, 2, 0))
    rows = torch.arange(0, number, share).expand(len(images), -1)
    fresh = values[list(images)][:, :, rows[0]]
    store.tick(A, images, [0.8] * len(images), rows, CPU)
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        attended = store.merge(A, 0, kv.Merge(images, fresh, fresh, rows, 0, number))
    result = attended.k.nbytes + attended.v.nbytes
    assert attended.k.shape == (len(images), 4, number, 32)
    assert result <= allocated(profile) <= result * (1 + 1 / share) + 64 * number * len(images)


def test_images_of_a_batch_are_predicted_as_each_by_itself():
    torch.manual_seed(0)
    before, latest = torch.randn(2, 3, 2, 16, 8)
    together = predicted(torch.float32, before, latest, images=(0, 1, 2))
    some = predicted(torch.float32, before, latest, images=(0, 2))
    assert torch.equal(some, together[[0, 2]])


def test_images_may_be_at_sigmas_of_their_own():
    """Each is predicted along its own line; a second look at a sigma is each image's own, too."""
    torch.manual_seed(0)
    slope, start, wrong = torch.randn(3, 2, 1, 5, 4)
    store = kv.KVStore(2, KVKind.PREDICT, 5)

    def line(sigmas):
        return start + torch.tensor(sigmas).view(2, 1, 1, 1) * slope

    for sigmas, first in (((1.0, 0.9), False), ((0.8, 0.85), True), ((0.8, 0.7), False)):
        values = torch.stack((wrong[0], line(sigmas)[1])) if first else line(sigmas)
        store.tick(A, [0, 1], sigmas, None, CPU)
        store.write(A, 0, kv.Write([0, 1], values, values, 2, 0))
    rows = torch.tensor([[1], [3]])
    sigmas = (0.6, 0.65)
    fresh = torch.stack([line(sigmas)[i][:, rows[i]] for i in (0, 1)])
    store.tick(A, [0, 1], sigmas, rows, CPU)
    keys = store.merge(A, 0, kv.Merge([0, 1], fresh, fresh, rows, 0, 5)).k
    assert torch.allclose(keys, line(sigmas), atol=1e-5)


def test_predicted_keys_survive_another_length_of_text():
    """The host may pad a prompt in one evaluation and not in the next; the image rows keep their
    line."""
    store = kv.KVStore(1, KVKind.PREDICT, 3)

    def line(sigma, text):
        return torch.full((1, 1, text + 3, 2), sigma)

    for sigma, text in ((1.0, 2), (0.8, 4)):
        store.tick(A, [0], [sigma], None, CPU)
        store.write(A, 0, kv.Write([0], line(sigma, text), line(sigma, text), 2, text))
    store.tick(A, [0], [0.6], torch.tensor([[0]]), CPU)
    rows = torch.tensor([[0, 1, 2, 3, 4]])
    fresh = line(0.6, 2)[:, :, :5]
    attended = store.merge(A, 0, kv.Merge([0], fresh, fresh, rows, 4, 7))
    assert torch.allclose(attended.k, line(0.6, 4))


# Last values.


def filled(kind, values, text=2, batch=1, store=None, device=CPU):
    """A store in which all rows of all images are `values` (B, H, L, D)."""
    store = store or kv.KVStore(batch, kind, values.shape[2] - text)
    images = list(range(batch))
    store.tick(A, images, [1.0] * batch, None, device)
    store.write(A, 0, kv.Write(images, values, values, 2, text))
    return store


def merged(store, images, fresh, rows, total, text=2, sigma=1.0):
    tokens = rows[:, text:] - text
    store.tick(A, images, [sigma] * len(images), tokens, fresh.device)
    return store.merge(A, 0, kv.Merge(images, fresh, fresh, rows, text, total))


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("kind", HELD)
def test_computed_tokens_stand_among_the_others_and_stay_there(kind, axis):
    torch.manual_seed(0)
    shape = (2, 9, 6) if axis == 1 else (2, 3, 9, 2)
    first = torch.randn(shape)
    store = kv.KVStore(2, kind, 7)
    store.tick(A, [0, 1], [1.0, 1.0], None, CPU)
    store.write(A, 0, kv.Write([0, 1], first, 2 * first, axis, 2))
    rows = torch.tensor([[0, 1, 4, 8]])
    fresh = torch.randn(shape).index_select(axis, rows[0])[1:]
    wanted = first.clone()
    wanted[1].index_copy_(axis - 1, rows[0], fresh[0])
    loose = 0.15 if kind is KVKind.EIGHT_BIT else 1e-6
    store.tick(A, [1], [1.0], rows[:, 2:] - 2, CPU)
    attended = store.merge(A, 0, kv.Merge([1], fresh, 2 * fresh, rows, 2, 9))
    assert torch.equal(attended.k.index_select(axis, rows[0]), fresh)
    assert torch.allclose(attended.k, wanted[1:], atol=loose)
    assert torch.allclose(attended.v, 2 * wanted[1:], atol=2 * loose)
    rows, nothing = torch.tensor([[0, 1], [0, 1]]), first.narrow(axis, 0, 2)
    store.tick(A, [0, 1], [1.0, 1.0], rows[:, 2:], CPU)
    later = store.merge(A, 0, kv.Merge([0, 1], nothing, nothing, rows, 2, 9)).k
    image = slice(2, 9)
    later, wanted = (t.movedim(axis, 0)[image] for t in (later, wanted))
    assert torch.allclose(later, wanted, atol=loose)


def test_without_a_cache_computed_tokens_attend_to_each_other():
    store = filled(KVKind.NONE, torch.randn(1, 1, 9, 4))
    fresh, rows = torch.randn(1, 1, 4, 4), torch.tensor([[0, 1, 3, 8]])
    attended = merged(store, [0], fresh, rows, 9)
    assert attended.fresh_only and torch.equal(attended.k, fresh) and store.bytes == 0
    assert store.keys_seen(4) == 4
    assert kv.KVStore(1, KVKind.PREDICT, 7).keys_seen(4) is None


@pytest.mark.parametrize("kind", [KVKind.LAST_VALUE, KVKind.HOST_MEMORY, KVKind.EIGHT_BIT])
def test_another_length_of_text_keeps_the_image(kind):
    torch.manual_seed(0)
    first = torch.randn(1, 2, 9, 4)
    for text in (4, 1):
        store = filled(kind, first)
        rows = torch.arange(text + 1)[None]
        fresh = torch.randn(1, 2, text + 1, 4)
        attended = merged(store, [0], fresh, rows, text + 7, text)
        image = first[:, :, 2:].clone()
        image[:, :, 0] = fresh[:, :, -1]
        assert torch.allclose(attended.k[:, :, text:], image, atol=0.15)
        assert torch.equal(attended.k[:, :, : text + 1], fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_store_takes_is_what_was_planned(kind):
    values = torch.randn(2, 3, 9, 4)
    store = filled(kind, values, batch=2)
    assert store.bytes == kv.bytes_of(kind, 2 * 9, 3 * 4, 2, 4)
    store.drop()
    assert store.bytes == 0


def test_planned_bytes_by_hand():
    """10 rows of 8 channels in half precision, in 3 pieces: two tensors, k and v."""
    planned = {kind: kv.bytes_of(kind, 10, 8, 3, 2) for kind in KVKind}
    assert planned == {
        KVKind.PREDICT: 640,
        KVKind.LAST_VALUE: 320,
        KVKind.HOST_MEMORY: 320,
        KVKind.EIGHT_BIT: 160 + 24,
        KVKind.NONE: 0,
    }


@pytest.mark.parametrize("kind", HELD)
def test_what_is_held_matters(kind):
    """Falsified, it gives something else."""
    torch.manual_seed(0)
    values, rows = torch.randn(1, 2, 9, 4), torch.tensor([[0, 1, 3]])
    fresh = values[:, :, rows[0]]
    pictures = []
    for factor in (1.0, 2.0):
        store = filled(kind, values)
        for entry in store._entries.values():
            for held in entry.tensors:
                held.copy_(held.float() * factor)
        pictures.append(merged(store, [0], fresh, rows, 9).k)
    assert not torch.allclose(*pictures, atol=0.5)


# Host memory.


class FakeEvent:
    """Of a stream whose copies are late until somebody waits."""

    log: list[str] = []

    def record(self, stream):
        self.log.append("copies")

    def synchronize(self):
        self.log.append("wait")


@pytest.fixture
def late(monkeypatch):
    """As if the model were on CUDA: what the host does to a HostKV, in order. Pinned memory is what
    `_allocate` asked for it."""
    log: list[str] = []
    pinned: list[int] = []
    entry = last.HostKV
    put, fill, empty = entry._put, last.fill_resized, torch.empty

    def allocate(*args, pin_memory=False, **named):
        out = empty(*args, **named)
        if pin_memory:
            pinned.append(out.data_ptr())
        return out

    def put_rows(self, *args):
        log.append("rows")
        return put(self, *args)

    def resize(*args):
        log.append("resize")
        return fill(*args)

    monkeypatch.setattr(last, "_can_pin", lambda device: True)
    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(FakeEvent, "log", log)
    monkeypatch.setattr(entry, "_put", put_rows)
    monkeypatch.setattr(last, "fill_resized", resize)
    return log, pinned


def test_the_host_waits_for_copies_before_it_touches_their_memory(late):
    log, pinned = late
    torch.manual_seed(0)
    values = torch.randn(1, 2, 9, 4)
    store = filled(KVKind.HOST_MEMORY, values)
    assert log == ["copies"]
    rows = torch.tensor([[0, 1, 3]])
    earlier = torch.randn(1, 2, 3, 4)
    merged(store, [0], earlier, rows, 9)
    assert log == ["copies", "wait", "copies"]  # computed rows are on their way
    entry = store._entries[A, 0]
    assert torch.equal(entry.held["k"], values)
    rows, fresh = torch.arange(5)[None], torch.randn(1, 2, 5, 4)
    attended = merged(store, [0], fresh, rows, 11, text=4)
    arrived = ["wait", "rows", "rows"]
    assert log == ["copies", "wait", "copies", *arrived, "resize", "resize", "copies"]
    assert all(held.data_ptr() in pinned for held in entry.held.values())
    wanted = torch.cat((fresh, earlier[:, :, 2:], values[:, :, 4:]), 2)
    assert torch.equal(attended.k, wanted)
    store.write(A, 0, kv.Write([0], wanted, wanted, 2, 4))
    assert log[-4:] == [*arrived, "copies"]


def test_only_computed_rows_come_back_to_host_memory(late):
    values = torch.randn(1, 2, 900, 4)
    store = filled(KVKind.HOST_MEMORY, values)
    held = store.bytes
    rows = torch.tensor([[0, 1, 3]])
    merged(store, [0], torch.randn(1, 2, 3, 4), rows, 900)
    assert store.bytes - held == 2 * 2 * 3 * 4 * 4  # k and v, heads, rows, channels, bytes
    store.drop()
    assert store.bytes == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_host_memory_gives_what_the_devices_own_does(device):
    torch.manual_seed(0)
    device = torch.device(device)
    attended = {}
    steps = [torch.randn(2, 2, 40, 8, device=device) for _ in range(5)]
    for kind in (KVKind.LAST_VALUE, KVKind.HOST_MEMORY):
        store = filled(kind, steps[0], batch=2, device=device)
        out = []
        for n, values in enumerate(steps[1:]):
            text = 2 + n % 2  # a prompt of another length every time
            tokens = torch.arange(n, 38, 3, device=device)
            rows = torch.cat((torch.arange(text, device=device), tokens + text)).expand(1, -1)
            fresh = values[n % 2 :][:1].index_select(2, rows[0].clamp_max(39))
            out.append(merged(store, [n % 2], fresh, rows, 38 + text, text).k)
        attended[kind] = out
        if kind is KVKind.HOST_MEMORY:
            held = store._entries[A, 0].held.values()
            assert all(t.device.type == "cpu" and t.is_pinned() == (device != CPU) for t in held)
    assert all(map(torch.equal, *attended.values()))


# Conds.


def test_asking_for_room_takes_none():
    store = kv.KVStore(1, KVKind.LAST_VALUE, 7, counted=frozenset("u"))
    first, copy, other = (0, "u"), (1, "u"), (0, "x")
    assert store.has_room(copy) and store.has_room(first)
    assert store.claim(first) and store.claim(first)
    assert store.has_room(first) and not store.has_room(copy) and not store.claim(copy)
    assert not store.has_room(other) and not store.claim(other)
    store.keep_only([])
    assert store.claim(copy) and not store.has_room(first)
    assert kv.KVStore(1, KVKind.LAST_VALUE, 7).claim(other)


def test_what_has_no_room_is_not_kept_and_never_complete():
    values = torch.randn(1, 1, 9, 4)
    store = kv.KVStore(1, KVKind.PREDICT, 7, counted=frozenset("u"))
    for cond in ((0, "u"), (1, "u"), (0, "x")):
        store.tick(cond, [0], [1.0], None, CPU)
        store.write(cond, 0, kv.Write([0], values, values, 2, 2))
        store.complete(cond, [0], (9,))
    assert [store.has(c, 0, (9,)) for c in ((0, "u"), (1, "u"), (0, "x"))] == [True, False, False]
    assert store.bytes == kv.bytes_of(KVKind.PREDICT, 9, 4, 1, 4)


def test_an_image_is_usable_once_complete_and_until_forgotten():
    store = filled(KVKind.PREDICT, torch.randn(2, 1, 9, 4), batch=2)
    assert not store.has(A, 0, (9,))
    store.complete(A, [0, 1], (9,))
    assert store.has(A, 0, (9,)) and not store.has(A, 0, (8,)) and not store.has((1, "a"), 0, (9,))
    store.forget(A, 0)
    assert not store.has(A, 0, (9,)) and store.has(A, 1, (9,))
    store.keep_only([(1, "a")])
    assert not store.has(A, 1, (9,)) and store.bytes == 0


# Devices.


def test_a_device_without_8_bit_floats_is_known_before_the_run(monkeypatch):
    last._has_float8.cache_clear()
    assert kv.missing(KVKind.EIGHT_BIT, "cpu") is None
    ones = torch.ones

    def refused(*args, device=None, **named):
        if device == "mps":
            raise TypeError("the MPS backend does not support Float8_e4m3fn")
        return ones(*args, device=device, **named)

    monkeypatch.setattr(torch, "ones", refused)
    reason = Reason(ReasonCode.KV_NEEDS_FLOAT8, device="mps")
    assert kv.missing(KVKind.EIGHT_BIT, "mps") == reason
    others = [kind for kind in KVKind if kind is not KVKind.EIGHT_BIT]
    assert not any(kv.missing(kind, "mps") for kind in others)
    last._has_float8.cache_clear()


def test_a_torch_without_8_bit_floats_is_known_before_the_run(monkeypatch):
    last._has_float8.cache_clear()
    monkeypatch.setattr(last, "FLOAT8", None)
    assert kv.missing(KVKind.EIGHT_BIT, "cpu").code == ReasonCode.KV_NEEDS_FLOAT8.value
    last._has_float8.cache_clear()


@pytest.mark.parametrize("reach, far", [(4.0, 1.3), (0.5, 0.5)])
def test_a_prediction_goes_no_farther_than_the_reach(reach, far):
    before, latest = torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 4, 2)
    store = kv.KVStore(1, KVKind.PREDICT, 4, reach)
    for sigma, values in ((1.0, before), (0.9, latest)):
        store.tick(A, [0], [sigma], None, CPU)
        store.write(A, 0, kv.Write([0], values, values, 2, 0))
    rows = torch.tensor([[3]])
    store.tick(A, [0], [0.77], rows, CPU)
    keys = store.merge(A, 0, kv.Merge([0], latest[:, :, :1], latest[:, :, :1], rows, 0, 4)).k
    assert torch.allclose(keys[:, :, :3], torch.tensor(1 + far), atol=1e-5)
    assert math.isclose(keys[0, 0, 3, 0].item(), 1.0)
