"""Sparse attention: tiles, what is chosen, and that every backend computes what the reference
does."""

import math
import re
import sys
import types
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rapid_core.attention_cost import SparseShape, tiles_kept
from rapid_core.engine.sparse import (
    BACKENDS,
    NAMES,
    BackendCheck,
    KeyLayout,
    ResidualAccess,
    SparseAttention,
    SparseResidual,
    Tiles,
    backends,
    flex,
    paged,
)
from rapid_core.engine.sparse.attention import key_bias
from rapid_core.engine.sparse.backends import AttentionSize, Backend, choose
from rapid_core.engine.sparse.problem import Problem, StaysDense
from rapid_core.engine.sparse.reference import attend as reference
from rapid_core.engine.sparse.select import choose_tiles, estimated_mass
from rapid_core.reasons import ReasonCode
from rapid_core.reasons import text as in_words
from rapid_core.types import Reason

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
    means,
    bias,
    dtype=torch.float32,
    seed=0,
    size=16,
    device="cpu",
):
    make = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=make).to(device, dtype)

    k, v = (draw(2, groups, tiles * size + text, depth) for _ in range(2))
    own = (torch.arange(2 * queries) % tiles).view(-1, 2)
    mass = torch.rand(2, heads, queries, tiles, generator=make)
    chosen = choose_tiles(mass, tiles_kept(density, tiles), own).to(device)
    added = draw(2, tiles * size + text) if bias else None
    return Problem(
        draw(2, heads, queries * 2 * size, depth),
        k,
        v,
        chosen,
        size,
        text,
        depth**-0.5,
        added,
        means,
    )


def usable(name, device):
    missing = BACKENDS[name].missing(device)
    if missing:
        pytest.skip(in_words(missing))


def double(p):
    """The problem in double precision."""
    return Problem(
        *(t.double() for t in (p.q, p.k, p.v)),
        p.chosen,
        p.size,
        p.always,
        p.scale,
        None if p.bias is None else p.bias.double(),
        p.means,
    )


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
def test_gather_computes_what_the_reference_does(
    heads, depth, tiles, queries, text, density, means, bias, dtype, seed
):
    p = problem(*heads, depth, tiles, queries, text, density, means and not bias, bias, dtype, seed)
    wanted = reference(double(p))
    given = BACKENDS["gather"].attend(p).double()
    noise = 1e-5 if dtype is torch.float32 else 0.05
    assert (given - wanted).abs().max() <= noise * max(1.0, wanted.abs().max().item())


ON_A_GPU = [
    (name, size, means)
    for name in ("xformers", "flex")
    for size in BACKENDS[name].tile_sizes or (16, 64, 128)
    for means in ((False, True) if BACKENDS[name].means else (False,))
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name, size, means", ON_A_GPU)
@pytest.mark.parametrize("heads, groups, depth", [(4, 4, 64), (4, 2, 128)])
@pytest.mark.parametrize("text", [0, 77])
def test_a_backend_on_a_gpu_computes_what_the_reference_does(
    name, size, means, heads, groups, depth, text
):
    usable(name, "cuda")
    p = problem(heads, groups, depth, 6, 4, text, 0.4, means, False, torch.float16, 0, size, "cuda")
    wanted = reference(double(p))
    assert (BACKENDS[name].attend(p) - wanted).norm() <= 0.02 * wanted.norm()


@given(
    st.sampled_from([(1, 1), (4, 2), (6, 2)]),
    st.integers(2, 9),
    st.integers(1, 9),
    st.sampled_from([0, 1, 77, 512]),
    st.floats(0.05, 1.0),
    st.sampled_from(paged.TILE_SIZES),
)
@settings(max_examples=20)
def test_the_pages_of_a_sequence_are_its_tiles_and_what_every_query_attends_to(
    heads, tiles, queries, always, density, size
):
    """A sequence gathered page by page has the keys of the reference, in order, and none beyond."""
    p = problem(*heads, 1, tiles, queries, always, density, False, False, size=size)
    table = paged.page_table(p)
    pages = torch.nn.functional.pad(p.k, (0, 0, 0, -p.k.shape[2] % size)).reshape(-1, size)
    assert 0 <= table.min() and table.max() < len(pages) and table.dtype == torch.int32
    sequences = pages[table.long()].view(*p.chosen.shape[:3], -1)
    count = p.chosen.shape[3] * size + always
    groups = heads[0] // heads[1]
    for row in range(2):
        for head in (0, heads[0] - 1):
            k = p.k[row, head // groups, :, 0]
            for tile in (0, queries - 1):
                parts = [k[i * size : (i + 1) * size] for i in p.chosen[row, head, tile]]
                wanted = torch.cat((*parts, k[tiles * size :]))
                assert torch.equal(sequences[row, head, tile, :count], wanted)


def test_xformers_lengths_are_made_once_a_shape(monkeypatch):
    made = []

    class Mask:
        """As xformers' mask, for what is used of it."""

        @classmethod
        def from_seqlens(cls, **given):
            made.append(given)
            return cls()

        def to(self, device):
            return self

    module = types.ModuleType("attn_bias")
    module.PagedBlockDiagonalPaddedKeysMask = Mask
    for name in ("xformers", "xformers.ops", "xformers.ops.fmha"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "xformers.ops.fmha.attn_bias", module)
    paged._lengths.cache_clear()
    for _ in range(57):
        paged._lengths(6, 128, 400, 9, 64, torch.device("cpu"))
    paged._lengths.cache_clear()
    assert [len(given["q_seqlen"]) for given in made] == [6]
    assert made[0]["kv_seqlen"] == [400] * 6 and made[0]["block_tables"].shape == (1, 9)


@pytest.mark.parametrize("bias, means", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("text", [0, 77])
@pytest.mark.parametrize("groups", [4, 2])
def test_flex_attention_computes_what_the_reference_does(groups, text, bias, means):
    """Uncompiled: what kernel and mask mean. That it compiles is for machines with a compiler,
    below."""
    from torch.nn.attention.flex_attention import flex_attention

    p = problem(4, groups, 64, 6, 4, text, 0.4, means, bias, size=128)
    assert torch.allclose(flex.attend(p, flex_attention), reference(p), atol=2e-5)


@pytest.mark.slow
def test_flex_attention_compiles_and_agrees_on_this_machine():
    usable("flex", "cpu")
    for means in (False, True):
        p = problem(2, 2, 64, 6, 6, 77, 0.5, means, False, size=64)
        assert torch.allclose(flex.attend(p), reference(p), atol=2e-5)


@given(st.floats(0.01, 1.0), st.integers(2, 30), st.integers(0, 5))
@settings(max_examples=40)
def test_a_query_tile_attends_to_its_own_tiles_and_the_heaviest(density, tiles, seed):
    mass = torch.rand(1, 2, tiles, 2 * tiles, generator=torch.Generator().manual_seed(seed))
    count, own = tiles_kept(density, 2 * tiles), torch.arange(2 * tiles).view(tiles, 2)
    chosen = choose_tiles(mass, count, own)
    assert chosen.shape[3] == count == max(1, round(density * 2 * tiles))
    assert ((chosen[..., None] == own[:, None]).any(4).sum(3) == min(2, count)).all()
    mine = (torch.arange(2 * tiles) // 2 == torch.arange(tiles)[:, None]).float()
    assert torch.equal(chosen, (mass + 2 * mine).topk(count).indices.sort(3).values) or count == 1


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
def test_tokens_attend_to_the_chosen_tiles_their_text_and_the_rest(
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

    def choose_and_look(*args):
        seen.append(choose_tiles(*args))
        return seen[-1]

    monkeypatch.setattr(attention, "choose_tiles", choose_and_look)
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
    """With all tiles but two chosen, and none of the mass on those, they get what dense attention
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

    def reason(tiles=tiles, density=0.5, backend="gather", layout=None, q=q, **more):
        reasons: list[Reason] = []
        sparse = SparseAttention(tiles, density, backend, True, reasons.append)
        named = {"heads": 2, "skip_reshape": True, **more}
        out = sparse(host_attention, q, k, v, named, layout or KeyLayout(0, 0))
        assert sparse.served == sparse.saved == 0
        assert more or len(q[0, 0]) < 64 or torch.equal(out, wanted)
        (dense,) = reasons
        assert dense.code == ReasonCode.ATTENTION_DENSE.value
        assert in_words(dense).endswith(": attention is dense")
        return dense.params["why"]

    assert reason(density=0.9) == Reason(ReasonCode.FEW_TILES, tokens=64, tiles=4, size=16)
    assert "64 image tokens make 1 tiles of 64" in in_words(reason(Tiles.of((1, 8, 8))))
    per_query = torch.ones(64, 64, dtype=torch.bool)
    assert reason(mask=per_query) == Reason(ReasonCode.MASK_PER_QUERY)
    assert reason(layout=KeyLayout(2, 0)) == Reason(ReasonCode.KEYS_MISSING)
    few = KeyLayout(0, 0, torch.arange(8)[None])
    assert reason(layout=few, q=q[:, :, :8]) == Reason(ReasonCode.FEW_TOKENS, tokens=8, size=32)
    assert reason(backend="xformers") == Reason(ReasonCode.XFORMERS_NEEDS_CUDA)


def test_sparse_attention_that_costs_more_than_it_saves_is_dense():
    """Beside much text, which each choice of tiles looks at."""
    assert SparseShape(8, 64, 4, 3, 16, 200, True).saving() < 0
    tiles, q = Tiles.of((1, 8, 8), 16), torch.randn(1, 1, 264, 8)
    reasons: list[Reason] = []
    sparse = SparseAttention(tiles, 0.75, "gather", True, reasons.append)
    sparse(host_attention, q, q, q, {"heads": 1, "skip_reshape": True}, KeyLayout(200, 0))
    assert reasons == [Reason(ReasonCode.ATTENTION_DENSE, why=Reason(ReasonCode.NO_SAVING))]


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
    assert key_bias(torch.zeros(74, 74)[:1], k).shape == (2, 74)
    assert key_bias(None, k) is None


def test_what_a_node_offers_is_auto_and_the_backends():
    assert NAMES == ("auto", "gather", "flex", "xformers")


def test_auto_goes_by_measurements_and_says_when_it_stays_dense():
    size = AttentionSize("cpu", 64, 4096, 0.25, 64)
    assert choose("auto", size).backend.name == "gather"
    small = choose("auto", replace(size, tokens=100))
    assert small.backend is None and "100 tokens" in in_words(small.reason)
    assert small.reason == Reason(
        ReasonCode.AUTO_IS_DENSE, device="cpu", tokens=100, head_size=64, density=0.25
    )


@pytest.fixture
def anywhere(monkeypatch):
    """Every backend can run on this machine."""
    for name, backend in list(BACKENDS.items()):
        monkeypatch.setitem(BACKENDS, name, replace(backend, missing=lambda device: None))


@pytest.mark.parametrize("tile", [16, 64, 128])
@pytest.mark.parametrize("name", ["gather", "flex", "xformers"])
def test_a_backend_is_chosen_only_for_tiles_that_it_takes(name, tile, anywhere):
    choice = choose(name, AttentionSize("cuda", 64, 4096, 0.25, tile))
    if name == "xformers" and tile == 16:
        wanted = Reason(
            ReasonCode.TILE_WITH_BACKEND, backend="xformers", accepted="64, 128", given=16
        )
        assert choice.backend is None and choice.reason == wanted
        assert in_words(wanted) == "xformers takes tiles of 64, 128, not 16"
    else:
        assert choice.backend is BACKENDS[name] and choice.reason is None


def test_auto_passes_over_backends_that_do_not_take_the_tile(anywhere, monkeypatch):
    row = {"device": "cuda", "head_size": 64, "tokens": 1024, "density": 0.25}
    rows = (
        {**row, "backend": "xformers", "speedup": 3.0},
        {**row, "backend": "flex", "speedup": 2.0},
    )
    monkeypatch.setattr(backends, "measured", lambda: rows)
    sizes = [AttentionSize("cuda", 64, 4096, 0.25, tile) for tile in (64, 16)]
    assert [choose("auto", size).backend.name for size in sizes] == ["xformers", "flex"]


def test_flex_takes_blocks_that_divide_its_tiles():
    """On a GPU in half precision; torch's own may be larger than a tile, and it raises then."""
    q = torch.zeros(1, 1, 256, 64, dtype=torch.float16)
    for size in (16, 64, 128):
        p = Problem(on_a_gpu(q), q, q, q, size, 0, 1.0)
        options = flex.kernel_options(p)
        assert p.query_size % options["BLOCK_M"] == size % options["BLOCK_N"] == 0
        assert min(options.values()) >= 16
    assert flex.kernel_options(Problem(q, q, q, q, 64, 0, 1.0)) is None


def test_flex_never_runs_uncompiled_because_it_was_compiled_too_often(monkeypatch):
    """Uncompiled it holds the scores of all keys; with `fullgraph` torch raises instead, and the
    attention is dense."""
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda function, **how: asked.update(how))
    flex._compiled.cache_clear()
    flex._compiled()
    flex._compiled.cache_clear()
    assert asked == {"dynamic": False, "fullgraph": True}


def on_a_gpu(q):
    """What is asked of a tensor on a GPU."""
    return types.SimpleNamespace(
        device=torch.device("cuda"), element_size=q.element_size, shape=q.shape
    )


def ten_attentions(backend, check=None, add_reason=no_reason):
    """Ten attentions of a model call; their results, what dense attention gives, and the call."""
    tiles, make = Tiles.of((1, 8, 8), 16), torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, 2, 64, 8, generator=make) for _ in range(3))
    named = {"heads": 2, "skip_reshape": True}
    sparse = SparseAttention(tiles, 0.5, backend, True, add_reason, check)
    outs = [sparse(host_attention, q, k, v, named, KeyLayout(0, 0), at) for at in range(10)]
    return outs, host_attention(q, k, v, 2, skip_reshape=True), sparse


def test_a_backend_is_chosen_once_a_run(monkeypatch):
    looks = []
    monkeypatch.setitem(BACKENDS, "new", Backend("new", reference, looks.append, tested=("cpu",)))
    check = BackendCheck()
    for _ in range(3):
        assert ten_attentions("new", check)[2].served == 10
    assert looks == ["cpu"]


def test_places_of_tokens_are_made_once_a_call_and_chunk(monkeypatch):
    from rapid_core.engine.sparse import attention

    made = []
    make = attention.tile_layout

    def counted(*args):
        made.append(args)
        return make(*args)

    monkeypatch.setattr(attention, "tile_layout", counted)
    tiles, draw = Tiles.of((1, 12, 12), 16), torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(1, 2, n, 8, generator=draw) for n in (80, 144, 144))
    tokens = [torch.randperm(144, generator=draw)[:80].sort().values[None] for _ in range(2)]
    named = {"heads": 2, "skip_reshape": True}

    def call():
        return SparseAttention(tiles, 0.4, "gather", True, no_reason)

    together, outs = call(), []
    for at in range(3):
        for chunk in (0, 1):
            layout = KeyLayout(0, 0, tokens[chunk].clone(), chunk)
            outs.append(together(host_attention, q, k, v, named, layout, at))
    assert len(made) == 2
    alone = [call()(host_attention, q, k, v, named, KeyLayout(0, 0, t)) for t in tokens]
    assert all(map(torch.equal, outs, alone * 3))


def broken(problem):
    return reference(problem) + 0.5


def nothing(problem):
    return reference(problem) * torch.nan


def failing(problem):
    raise NotImplementedError("no kernel\nfor this")


def out_of_memory(problem):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def half(problem):
    return reference(problem).to(torch.bfloat16).float()


@pytest.mark.parametrize(
    "attend, words",
    [
        (broken, r"new is off by \d+ % from the reference on cpu"),
        (nothing, "new is off by nan % from the reference on cpu"),
        (failing, r"new does not work here \(NotImplementedError: no kernel\)"),
        (out_of_memory, "new needs more memory than there is"),
        (half, None),
    ],
)
def test_a_backend_that_was_never_tried_here_has_to_prove_itself(attend, words, monkeypatch):
    calls = []

    def counted(problem):
        calls.append(problem)
        return attend(problem)

    monkeypatch.setitem(BACKENDS, "new", Backend("new", counted, lambda device: None))
    reasons: list[Reason] = []
    outs, dense, sparse = ten_attentions("new", BackendCheck(), reasons.append)
    assert all(torch.equal(out, dense) == (words is not None) for out in outs)
    assert len(calls) == (1 if words else 10) and sparse.served == (0 if words else 10)
    assert len(reasons) == (10 if words else 0) and len(set(reasons)) <= 1
    assert all(re.fullmatch(f"{words}: attention is dense", in_words(reason)) for reason in reasons)


@pytest.mark.parametrize(
    "attend, code",
    [(failing, ReasonCode.BACKEND_FAILS), (out_of_memory, ReasonCode.BACKEND_OUT_OF_MEMORY)],
)
def test_a_backend_that_fails_where_it_was_tried_does_not_end_the_run(attend, code, monkeypatch):
    monkeypatch.setitem(
        BACKENDS, "new", Backend("new", attend, lambda device: None, tested=("cpu",))
    )
    reasons: list[Reason] = []
    outs, dense, _ = ten_attentions("new", add_reason=reasons.append)
    assert all(torch.equal(out, dense) for out in outs)
    assert reasons[0].params["why"].code == code.value


def test_what_a_failed_attempt_held_is_free_for_dense_attention(monkeypatch):
    held = []

    def attend(problem):
        scores = torch.zeros(1000)
        held.append(weakref.ref(scores))
        raise torch.cuda.OutOfMemoryError("no more")

    monkeypatch.setitem(BACKENDS, "new", Backend("new", attend, lambda device: None))
    tiles, q = Tiles.of((1, 8, 8), 16), torch.randn(1, 2, 64, 8)

    def dense(*args, **named):
        assert held[0]() is None
        return host_attention(*args, **named)

    sparse = SparseAttention(tiles, 0.5, "new", True, lambda reason: None)
    sparse(dense, q, q, q, {"heads": 2, "skip_reshape": True}, KeyLayout(0, 0))


def test_a_check_says_that_an_attention_stays_dense():
    with pytest.raises(StaysDense) as stays:
        BackendCheck().choose("xformers", AttentionSize("cpu", 64, 4096, 0.25, 64))
    assert stays.value.reason == Reason(ReasonCode.XFORMERS_NEEDS_CUDA)


def access(store, sigma, measures, images=(0,), conds=("c",), density=0.5):
    """Images at the same sigma, or at one each."""
    sigmas = sigma if isinstance(sigma, tuple) else (sigma,) * len(images)
    return ResidualAccess(store, conds, images, sigmas, density, measures)


def test_a_difference_moves_on_half_the_way_that_it_was_going():
    tiles = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    for slope, wanted in ((0.5, 3.5), (0.0, 3.0)):
        store = SparseResidual(slope)
        for sigma, value in ((1.0, 2.0), (0.8, 3.0)):
            access(store, sigma, True).write("at", None, torch.full((1, 1, 4, 2), value), tiles)
        out = torch.ones(1, 1, 4, 2)
        access(store, 0.6, False).add("at", None, out)
        assert torch.allclose(out, torch.full_like(out, 1 + wanted))
        assert store.bytes == (2 if slope else 1) * 4 * 2 * 4 + 4


def test_differences_belong_to_their_cond_image_attention_and_density():
    store, tiles = SparseResidual(), torch.arange(2).view(2, 1, 1, 1)
    values = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 4, 2)
    access(store, 1.0, True, images=(1,), conds=("c", "u")).write("at", None, values, tiles)
    there = access(store, 0.9, False, images=(1,), conds=("c", "u"))
    out = torch.zeros(1, 1, 4, 2)
    there.add("at", 1, out)
    assert (out == 2.0).all() and there.tiles("at", 1).item() == 1 and there.has("at", None)
    assert not there.has("other", None)
    assert not access(store, 0.9, False, images=(0,)).has("at", None)
    assert not access(store, 0.9, False, images=(1,), density=0.25).has("at", None)


def test_differences_of_images_at_sigmas_of_their_own_move_on_by_them():
    store, tiles = SparseResidual(slope=1.0), torch.zeros(2, 1, 1, 1)
    for sigmas in ((1.0, 0.9), (0.8, 0.6)):
        values = torch.tensor(sigmas).view(2, 1, 1, 1).expand(2, 1, 4, 2)
        access(store, sigmas, True, images=(0, 1)).write("at", None, values, tiles)
    out = torch.zeros(2, 1, 4, 2)
    access(store, (0.7, 0.3), False, images=(0, 1)).add("at", None, out)
    assert torch.allclose(out, torch.tensor([0.7, 0.3]).view(2, 1, 1, 1).expand_as(out))


def test_some_queries_take_their_own_part_of_a_difference_and_those_beyond_it_nothing():
    store = SparseResidual()
    difference = torch.arange(4.0).view(1, 1, 4, 1)
    access(store, 1.0, True).write(
        "at", None, difference, torch.zeros(1, 1, 1, 1, dtype=torch.long)
    )
    out = torch.zeros(1, 1, 3, 1)
    access(store, 0.5, False).add("at", None, out, torch.tensor([[1, 3, 5]]))
    assert out.flatten().tolist() == [1.0, 3.0, 0.0]


def test_the_same_attention_twice_is_dense_the_second_time():
    """What dense attention had more is what is added, the tiles being the same."""
    tiles, store, make = (
        Tiles.of((1, 12, 12), 16),
        SparseResidual(),
        torch.Generator().manual_seed(5),
    )
    q, k, v = (torch.randn(2, 2, 150, 8, generator=make) for _ in range(3))
    named, lay = {"heads": 2, "skip_reshape": True}, KeyLayout(6, 0)
    wanted, saved = host_attention(q, k, v, **named), []
    for measures in (True, False):
        known = access(store, 1.0, measures, images=(0, 1), density=0.4)
        sparse = SparseAttention(tiles, 0.4, "gather", True, no_reason, residual=known)
        found = sparse(host_attention, q, k, v, named, lay, "at")
        assert torch.allclose(found, wanted, atol=1e-5)
        saved.append(sparse.saved)
    assert saved[0] < 0 < saved[1]


def test_a_difference_is_forgotten_with_the_cond_that_it_was_measured_under():
    store, tiles = SparseResidual(), torch.zeros(1, 1, 1)
    for cond in ((0, "a"), (1, "b")):
        for image in (0, 1):
            store.write((cond, "shape"), 3, image, 0.5, 0.25, torch.ones(1, 2, 2), tiles)
    store.forget((0, "a"), 1)
    has = [store.has((s, "shape"), 3, i, 0.25) for s in ((0, "a"), (1, "b")) for i in (0, 1)]
    assert has == [True, False, True, True]
    store.keep_only([(1, "b")])
    has = [store.has((s, "shape"), 3, i, 0.25) for s in ((0, "a"), (1, "b")) for i in (0, 1)]
    assert has == [False, False, True, True]
    store.drop()
    assert store.bytes == 0


def test_a_second_look_at_a_sigma_takes_the_place_of_the_first():
    """heun computes a sigma twice; a line needs two sigmas."""
    store, tiles = SparseResidual(slope=1.0), torch.zeros(1, 1, 1)
    for sigma, value in ((1.0, 2.0), (0.8, 7.0), (0.8, 3.0)):
        store.write((0, "a"), 0, 0, sigma, 0.5, torch.full((1, 4, 2), value), tiles)
    terms = store.prediction((0, "a"), 0, 0, 0.6)
    assert torch.allclose(sum(weight * value for value, weight in terms), torch.tensor(4.0))
