"""Sparse attention: tiles, what is kept, and that every backend computes what the masked reference
does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rapid_core.cost import tiles_kept
from rapid_core.engine.sparse import (
    BACKENDS,
    KeyLayout,
    ResidualAccess,
    SparseAttention,
    SparseResidual,
    Tiles,
    flex,
)
from rapid_core.engine.sparse.attention import key_bias
from rapid_core.engine.sparse.backends import Backend, choose
from rapid_core.engine.sparse.problem import Problem
from rapid_core.engine.sparse.reference import attend as reference
from rapid_core.engine.sparse.select import estimated_mass, keep

GRIDS = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))


@given(GRIDS, st.sampled_from([16, 64]))
@settings(max_examples=60)
def test_the_walk_visits_every_token_once_and_no_tile_is_padded(grid, size):
    tiles = Tiles.of(grid, size)
    assert sorted(tiles.walk.tolist()) == list(range(math.prod(grid)))
    assert tiles.number * size + tiles.rest == math.prod(grid) and 0 <= tiles.rest < size


@pytest.mark.parametrize("rows, columns", [(64, 64), (48, 40), (37, 53), (90, 51)])
def test_tiles_are_compact(rows, columns):
    tiles = Tiles.of((1, rows, columns))
    places = tiles.walk[: tiles.number * 64].view(-1, 64)
    wide = (places % columns).amax(1) - (places % columns).amin(1) + 1
    high = (places // columns).amax(1) - (places // columns).amin(1) + 1
    assert wide.float().mean() < 10 and high.float().mean() < 12
    if rows % 8 == columns % 8 == 0:
        assert wide.max() == high.max() == 8


def problem(
    heads,
    groups,
    depth,
    tiles,
    queries,
    text,
    density,
    pooled,
    bias,
    dtype=torch.float32,
    seed=0,
    size=16,
):
    make = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=make).to(dtype)

    k, v = (draw(2, groups, tiles * size + text, depth) for _ in range(2))
    own = (torch.arange(2 * queries) % tiles).view(-1, 2)
    kept = keep(
        torch.rand(2, heads, queries, tiles, generator=make), tiles_kept(density, tiles), own
    )
    added = draw(2, tiles * size + text) if bias else None
    return Problem(
        draw(2, heads, queries * 2 * size, depth),
        k,
        v,
        kept,
        size,
        text,
        depth**-0.5,
        added,
        pooled,
    )


def usable(name):
    missing = BACKENDS[name].missing("cpu")
    if missing:
        pytest.skip(missing)


@pytest.mark.parametrize("name", ["gather", "xformers", "spargeattn"])
@given(
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2)]),
    st.sampled_from([64, 128]),
    st.integers(2, 9),
    st.integers(1, 9),
    st.sampled_from([0, 1, 77, 512]),
    st.floats(0.05, 1.0),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 5),
)
@settings(max_examples=40)
def test_a_backend_computes_what_the_masked_reference_does(
    name, heads, depth, tiles, queries, text, density, pooled, bias, dtype, seed
):
    usable(name)
    p = problem(
        *heads, depth, tiles, queries, text, density, pooled and not bias, bias, dtype, seed
    )
    double = Problem(
        *(t.double() for t in (p.q, p.k, p.v)),
        p.kept,
        p.size,
        p.always,
        p.scale,
        None if p.bias is None else p.bias.double(),
        p.pooled,
    )
    wanted, found = reference(double), BACKENDS[name].attend(p).double()
    noise = 1e-5 if dtype is torch.float32 else 0.05
    assert (found - wanted).abs().max() <= noise * max(1.0, wanted.abs().max().item())


@pytest.mark.parametrize("bias, pooled", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("text", [0, 77])
@pytest.mark.parametrize("groups", [4, 2])
def test_flex_attention_computes_what_the_masked_reference_does(groups, text, bias, pooled):
    """Uncompiled: what kernel and mask mean. That it compiles is for machines with a compiler,
    below."""
    from torch.nn.attention.flex_attention import flex_attention

    p = problem(4, groups, 64, 6, 4, text, 0.4, pooled, bias, size=128)
    assert torch.allclose(flex.attend(p, flex_attention), reference(p), atol=2e-5)


@pytest.mark.slow
def test_flex_attention_compiles_and_agrees_on_this_machine():
    usable("flex")
    for pooled in (False, True):
        p = problem(2, 2, 64, 6, 6, 77, 0.5, pooled, False, size=64)
        assert torch.allclose(flex.attend(p), reference(p), atol=2e-5)


@given(st.floats(0.01, 1.0), st.integers(2, 30), st.integers(0, 5))
@settings(max_examples=40)
def test_a_query_tile_keeps_its_own_tiles_and_the_heaviest(density, tiles, seed):
    mass = torch.rand(1, 2, tiles, 2 * tiles, generator=torch.Generator().manual_seed(seed))
    count, own = tiles_kept(density, 2 * tiles), torch.arange(2 * tiles).view(tiles, 2)
    kept = keep(mass, count, own)
    assert kept.shape[3] == count == max(1, round(density * 2 * tiles))
    assert ((kept[..., None] == own[:, None]).any(4).sum(3) == min(2, count)).all()
    mine = (torch.arange(2 * tiles) // 2 == torch.arange(tiles)[:, None]).float()
    assert torch.equal(kept, (mass + 2 * mine).topk(count).indices.sort(3).values) or count == 1


def test_estimated_mass_is_exact_where_all_tokens_of_a_run_are_alike():
    make = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(1, 2, 8, 32, generator=make).repeat_interleave(4, 2) for _ in range(2)
    )  # 2 key tiles of 16
    k = torch.cat((k, torch.randn(1, 2, 5, 32, generator=make)), 2)
    true = (
        (q @ k.transpose(2, 3) * 0.3).softmax(3)[..., :32].view(1, 2, 1, 32, 2, 16).sum(5).mean(3)
    )
    assert torch.allclose(estimated_mass(q, k, 5, 0.3, 16), true, atol=1e-6)


def host_attention(q, k, v, heads, mask=None, skip_reshape=False, **named):
    if not skip_reshape:
        q, k = (t.unflatten(2, (heads, -1)) for t in (q, k))
        v = v if v.ndim == 4 else v.unflatten(2, (heads, -1))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if named.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)


def no_reason(reason):
    raise AssertionError(reason)


@pytest.mark.parametrize("grid", [(1, 8, 8), (1, 11, 9), (3, 4, 6)])
@pytest.mark.parametrize("text, extra", [(0, 0), (5, 3)])
@pytest.mark.parametrize("ready", [True, False])
def test_tokens_attend_to_the_kept_tiles_their_text_and_the_rest(
    grid, text, extra, ready, monkeypatch
):
    """Against a mask over single tokens, made from the same choice of tiles by other means."""
    from rapid_core.engine.sparse import attention

    tiles, heads, depth = Tiles.of(grid, 16), 2, 8
    number = len(tiles.walk)
    length = text + number + extra
    make = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, heads, length, depth, generator=make) for _ in range(3))
    seen = []
    monkeypatch.setattr(attention, "keep", lambda *args: seen.append(keep(*args)) or seen[-1])
    sparse = SparseAttention(tiles, 0.5, "gather", False, no_reason)
    given = (q, k, v) if ready else tuple(t.transpose(1, 2).flatten(2) for t in (q, k, v))
    found = sparse(
        host_attention, *given, {"heads": heads, "skip_reshape": ready}, KeyLayout(text, extra)
    )
    mask = torch.ones(2, heads, length, length, dtype=torch.bool)
    members = [tiles.walk[i * 16 : i * 16 + 16] + text for i in range(tiles.number)]
    pairs = [torch.cat(members[i : i + 2]) for i in range(0, tiles.number // 2 * 2, 2)]
    for row in range(2):
        for head in range(heads):
            for i, queries in enumerate(pairs):
                for j, keys in enumerate(members):
                    if j not in seen[0][row, head, i]:
                        mask[row, head].view(-1)[(queries[:, None] * length + keys).flatten()] = (
                            False
                        )
    assert not mask.all()
    assert torch.allclose(found, host_attention(q, k, v, heads, mask, skip_reshape=True), atol=1e-5)
    assert sparse.saved > 0


def test_a_few_queries_attend_to_tiles_of_all_keys():
    """With all tiles but two kept, and none of the mass on those, they get what dense attention
    gives."""
    tiles, text, extra = Tiles.of((1, 12, 12), 16), 4, 2
    length, make = text + 144 + extra, torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 2, length, 8, generator=make) for _ in range(3))
    far = tiles.walk[16:48] + text
    k[:, :, far] = 0.0
    k[:, :, far, 0], q[..., 0] = -200.0, 20.0  # nobody looks there
    others = torch.cat((tiles.walk[:16], tiles.walk[48:]))
    tokens = others[torch.randperm(112, generator=make)[:70]].sort().values[None]
    rows = torch.cat((torch.arange(text), tokens[0] + text, torch.arange(text + 144, length)))
    sparse = SparseAttention(tiles, 7 / 9, "gather", False, no_reason)
    found = sparse(
        host_attention,
        q[:, :, rows],
        k,
        v,
        {"heads": 2, "skip_reshape": True},
        KeyLayout(text, extra, tokens),
    )
    assert torch.allclose(found, host_attention(q, k, v, 2, skip_reshape=True)[:, rows], atol=1e-5)


def test_what_cannot_be_sparse_is_dense_and_says_why():
    tiles, make = Tiles.of((1, 8, 8), 16), torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 2, 64, 8, generator=make) for _ in range(3))
    wanted = host_attention(q, k, v, 2, skip_reshape=True)

    def reasons(tiles=tiles, density=0.5, backend="gather", lay=None, q=q, **more):
        said, lay = [], lay or KeyLayout(0, 0)
        sparse = SparseAttention(tiles, density, backend, True, said.append)
        out = sparse(host_attention, q, k, v, {"heads": 2, "skip_reshape": True, **more}, lay)
        return said, out

    said, out = reasons(density=0.9)
    assert "4 tiles" in said[0] and torch.equal(out, wanted)
    assert "64 image tokens make 1 tiles of 64" in reasons(Tiles.of((1, 8, 8)))[0][0]
    assert "differs between queries" in reasons(mask=torch.ones(64, 64, dtype=torch.bool))[0][0]
    assert "missing keys" in reasons(lay=KeyLayout(2, 0))[0][0]
    assert (
        "less than a tile"
        in reasons(lay=KeyLayout(0, 0, torch.arange(8)[None]), q=q[:, :, :8])[0][0]
    )
    assert "spargeattn runs on CUDA only" in reasons(backend="spargeattn")[0][0]


def test_a_mask_over_keys_is_a_bias_and_keys_that_it_hides_get_nothing():
    tiles, make = Tiles.of((1, 8, 8), 16), torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 2, 74, 8, generator=make) for _ in range(3))
    mask = torch.ones(2, 1, 1, 74, dtype=torch.bool)
    mask[1, ..., 4:10] = False
    other = v.clone()
    other[1, :, 4:10] += 100.0
    sparse = SparseAttention(tiles, 0.5, "gather", True, no_reason)
    named = {"heads": 2, "skip_reshape": True, "mask": mask}
    found, same = (sparse(host_attention, q, k, x, named, KeyLayout(10, 0)) for x in (v, other))
    assert torch.allclose(found, same)
    bias, _ = key_bias(torch.zeros(74, 74)[:1], k)
    assert bias.shape == (2, 74)


def test_auto_goes_by_measurements_and_says_when_it_stays_dense():
    q = torch.zeros(1, 1, 4096, 64)
    assert choose("auto", q, 4096, 0.25).backend.name == "gather"
    small = choose("auto", q, 100, 0.25)
    assert small.backend is None and "100 tokens" in small.reason


def broken(problem):
    return reference(problem) + 0.5


def failing(problem):
    raise NotImplementedError("no kernel")


def half(problem):
    return reference(problem).to(torch.bfloat16).float()


@pytest.mark.parametrize(
    "attend, said",
    [(broken, "off by"), (failing, "does not work here (NotImplementedError: no"), (half, None)],
)
def test_a_backend_that_was_never_tried_here_has_to_prove_itself(attend, said, monkeypatch):
    calls = []
    new = Backend("new", lambda p: calls.append(p) or attend(p), lambda device: None)
    monkeypatch.setitem(BACKENDS, "new", new)
    tiles, make = Tiles.of((1, 8, 8), 16), torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, 2, 64, 8, generator=make) for _ in range(3))
    reasons = []
    sparse = SparseAttention(tiles, 0.5, "new", True, reasons.append)
    named, dense = {"heads": 2, "skip_reshape": True}, host_attention(q, k, v, 2, skip_reshape=True)
    for _ in range(2):
        out = sparse(host_attention, q, k, v, named, KeyLayout(0, 0))
        assert torch.equal(out, dense) == (said is not None)
    assert len(calls) == (1 if said else 2)
    assert all(said in reason for reason in reasons) and bool(reasons) == bool(said)


def ledger(store, sigma, measures, images=(0,), streams=("c",), density=0.5):
    return ResidualAccess(store, streams, images, sigma, density, measures)


def test_a_difference_moves_on_half_the_way_that_it_was_going():
    kept = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    for slope, wanted in ((0.5, 3.5), (0.0, 3.0)):
        store = SparseResidual(slope)
        for sigma, value in ((1.0, 2.0), (0.8, 3.0)):
            ledger(store, sigma, True).write("at", None, torch.full((1, 1, 4, 2), value), kept)
        out = torch.ones(1, 1, 4, 2)
        ledger(store, 0.6, False).add("at", None, out)
        assert torch.allclose(out, torch.full_like(out, 1 + wanted))
        assert store.bytes == (2 if slope else 1) * 4 * 2 * 4 + 4


def test_differences_belong_to_their_stream_image_attention_and_density():
    store, kept = SparseResidual(), torch.arange(2).view(2, 1, 1, 1)
    values = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 4, 2)
    ledger(store, 1.0, True, images=(1,), streams=("c", "u")).write("at", None, values, kept)
    there = ledger(store, 0.9, False, images=(1,), streams=("c", "u"))
    out = torch.zeros(1, 1, 4, 2)
    there.add("at", 1, out)
    assert (out == 2.0).all() and there.kept("at", 1).item() == 1 and there.has("at", None)
    assert not there.has("other", None)
    assert not ledger(store, 0.9, False, images=(0,)).has("at", None)
    assert not ledger(store, 0.9, False, images=(1,), density=0.25).has("at", None)


def test_some_queries_take_their_own_part_of_a_difference_and_those_beyond_it_nothing():
    store = SparseResidual()
    difference = torch.arange(4.0).view(1, 1, 4, 1)
    ledger(store, 1.0, True).write(
        "at", None, difference, torch.zeros(1, 1, 1, 1, dtype=torch.long)
    )
    out = torch.zeros(1, 1, 3, 1)
    ledger(store, 0.5, False).add("at", None, out, torch.tensor([[1, 3, 5]]))
    assert out.flatten().tolist() == [1.0, 3.0, 0.0]


def test_the_same_attention_twice_is_dense_the_second_time():
    """Whatever was left out is what is added, the tiles being the same."""
    tiles, store, make = (
        Tiles.of((1, 12, 12), 16),
        SparseResidual(),
        torch.Generator().manual_seed(5),
    )
    q, k, v = (torch.randn(2, 2, 150, 8, generator=make) for _ in range(3))
    named, lay = {"heads": 2, "skip_reshape": True}, KeyLayout(6, 0)
    wanted, saved = host_attention(q, k, v, **named), []
    for measures in (True, False):
        book = ledger(store, 1.0, measures, images=(0, 1), density=0.4)
        sparse = SparseAttention(tiles, 0.4, "gather", True, no_reason, ledger=book)
        found = sparse(host_attention, q, k, v, named, lay, "at")
        assert torch.allclose(found, wanted, atol=1e-5)
        saved.append(sparse.saved)
    assert saved[0] < 0 < saved[1]


def test_what_was_left_out_is_forgotten_with_the_stream_that_it_was_measured_in():
    left_out, tiles = SparseResidual(), torch.zeros(1, 1, 1)
    for stream in ((0, "a"), (1, "b")):
        for image in (0, 1):
            left_out.write((stream, "shape"), 3, image, 0.5, 0.25, torch.ones(1, 2, 2), tiles)
    left_out.forget((0, "a"), 1)
    has = [left_out.has((s, "shape"), 3, i, 0.25) for s in ((0, "a"), (1, "b")) for i in (0, 1)]
    assert has == [True, False, True, True]
