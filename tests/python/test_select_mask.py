"""Test masks that prune a given number of elements, against a sort."""

import bitpare as bp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

F = bp.functional


def by_sorting(scores, pruned, *, previous=None, least=None) -> list[Tensor]:
    """Return bool tensors, True where kept, directly from the definition."""
    order = []
    for i, x in enumerate(scores):
        kept = torch.ones(x.numel()) if previous is None else previous[i].flatten()
        order += [
            (bool(k), 0.0 if v == 0 else v, i, j)
            for j, (k, v) in enumerate(zip(kept.tolist(), x.flatten().tolist(), strict=True))
        ]
    order.sort()
    stays = set()
    for i, x in enumerate(scores):
        mine = [e for e in order if e[2] == i]
        stays |= set(mine[len(mine) - min(least[i] if least else 0, x.numel()) :])
    eligible = [e for e in order if e not in stays]
    result = [torch.ones(x.numel(), dtype=torch.bool) for x in scores]
    for _, _, i, j in eligible[:pruned]:
        result[i][j] = False
    return [r.view(x.shape) for r, x in zip(result, scores, strict=True)]


def unpacked(masks, scores):
    return [F.unpack_mask(m, x.shape) for m, x in zip(masks, scores, strict=True)]


def assert_masks(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b), (a.flatten(), b.flatten())


@st.composite
def selections(draw):
    """Draw lists of tensors with many ties, previous masks, and the minimum numbers to keep."""
    shapes = draw(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    levels = draw(st.sampled_from([1, 3, 20, 10**6]))
    scores = [
        torch.randint(-levels, levels + 1, s, generator=generator).float() / levels for s in shapes
    ]
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    previous = None
    if draw(st.booleans()):
        share = draw(st.floats(0, 1))
        previous = [torch.rand(s, generator=generator) < share for s in shapes]
    least = draw(st.lists(st.integers(0, 12), min_size=len(shapes), max_size=len(shapes)))
    sparsity = draw(st.floats(0, 1, exclude_max=True))
    return [x.to(dtype) for x in scores], previous, least, sparsity


@settings(max_examples=200, deadline=None)
@given(selection=selections())
def test_global_is_a_sort(selection):
    scores, previous, least, sparsity = selection
    n = sum(x.numel() for x in scores)
    eligible = sum(max(x.numel() - m, 0) for x, m in zip(scores, least, strict=True))
    k = min(int(sparsity * n + 1e-6), eligible)
    before = None if previous is None else [F.pack_mask(p) for p in previous]
    masks = F.select_mask(scores, sparsity, previous=before, min_keep=least)
    got = unpacked(masks, scores)
    assert sum(int((~kept).sum()) for kept in got) == k
    assert_masks(got, by_sorting(scores, k, previous=previous, least=least))
    assert_masks(masks, [F.pack_mask(kept) for kept in got])  # bits past the end are 0


@settings(max_examples=100, deadline=None)
@given(selection=selections(), each=st.booleans())
def test_local_is_a_sort_of_each(selection, each):
    scores, previous, least, sparsity = selection
    shares = [sparsity * (i + 1) / len(scores) for i in range(len(scores))]
    before = None if previous is None else [F.pack_mask(p) for p in previous]
    got = F.select_mask(
        scores, shares if each else sparsity, scope="local", previous=before, min_keep=least
    )
    for i, (x, m) in enumerate(zip(scores, least, strict=True)):
        n = x.numel()
        k = min(int((shares[i] if each else sparsity) * n + 1e-6), max(n - m, 0))
        held = None if previous is None else [previous[i]]
        assert_masks(unpacked([got[i]], [x]), by_sorting([x], k, previous=held, least=[m]))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("masked", [None, 0.3, 0.95])
def test_large_tensors(sparsity, masked):
    """Test several threads and parts, and scores that are close together."""
    torch.manual_seed(0)
    shapes = [(300, 400), (7,), (64, 64, 3, 3), (1, 100000)]
    scores = [torch.randn(s).abs() for s in shapes]
    scores[2] = (scores[2] * 4).round() / 4  # ties
    previous = None if masked is None else [torch.rand(s) >= masked for s in shapes]
    before = None if previous is None else [F.pack_mask(p) for p in previous]
    got = unpacked(F.select_mask(scores, sparsity, previous=before, min_keep=0), scores)
    flat = torch.cat([x.flatten() for x in scores]).double()
    held = torch.cat([p.flatten() for p in previous]) if previous else torch.ones_like(flat).bool()
    key = torch.where(held, flat, flat - 1000)
    order = key.argsort(stable=True)
    k = int(sparsity * len(flat) + 1e-6)
    expected = torch.ones_like(held)
    expected[order[:k]] = False
    assert torch.equal(torch.cat([kept.flatten() for kept in got]), expected)


def test_specials():
    inf = torch.inf
    x = torch.tensor([0.0, -0.0, inf, -inf, 1e-45, -1e-45, 3.4e38, -3.4e38])
    for k, gone in enumerate([3, 7, 5, 0, 1, 4, 6]):
        got = F.unpack_mask(F.select_mask([x], (k + 1) / 8)[0], x.shape)
        assert int((~got).sum()) == k + 1 and not got[gone]
    with pytest.raises(RuntimeError, match=r"select_mask: scores\[1\] holds NaN"):
        F.select_mask([x, torch.tensor([1.0, torch.nan])], 0.5)
    with pytest.raises(RuntimeError, match="select_mask: scores hold NaN"):
        F.select_mask([torch.tensor([[1.0, torch.nan]])], 0.5, pattern="1:2")


def test_min_keep_moves_the_shortfall_elsewhere():
    small, large = torch.zeros(4), torch.arange(1.0, 17.0)
    a, b = unpacked(F.select_mask([small, large], 0.5, min_keep=3), [small, large])
    assert a.tolist() == [False, True, True, True] and int((~b).sum()) == 9
    a, b = unpacked(F.select_mask([small, large], 0.99, min_keep=3), [small, large])
    assert int(a.sum()) == 3 and int(b.sum()) == 3  # as many as can be pruned
    (all_kept,) = F.select_mask([torch.randn(5)], 0.9, min_keep=9)
    assert all_kept.item() == 31


def test_layout_does_not_matter():
    x = torch.randn(8, 6, 3, 3)
    other = x.contiguous(memory_format=torch.channels_last)
    for pattern in ("element", "2:3", "block2x3", "filter", "channel"):
        (a,), (b,) = (F.select_mask([t], 0.5, pattern=pattern) for t in (x, other))
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(8, 8), (5, 16, 3, 3), (64, 64, 1, 1), (3, 8, 7)])
@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (1, 8), (4, 4), (4, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_n_of_m(shape, n, m, masked):
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3).round()
    held = torch.rand(shape) < 0.5 if masked else torch.ones(shape, dtype=torch.bool)
    before = [F.pack_mask(held)] if masked else None
    (mask,) = F.select_mask([x], 0.5, pattern=f"{n}:{m}", previous=before)
    got = F.unpack_mask(mask, shape)
    assert (got.reshape(shape[0], shape[1] // m, m, -1).sum(2) == n).all()
    for i in range(shape[0]):
        for block in range(shape[1] // m):
            for p in range(x[0, 0].numel()):
                where = (i, slice(block * m, block * m + m))
                part = lambda t: t[where].reshape(m, -1)[:, p]  # noqa: B023, E731
                (expected,) = by_sorting([part(x)], m - n, previous=[part(held)])
                assert torch.equal(part(got), expected)
    (dense,) = F.select_mask([x], 0.0, pattern=f"{n}:{m}")
    assert F.unpack_mask(dense, shape).all()


def in_blocks(t: Tensor, rows: int, columns: int) -> Tensor:
    """Return [units, elements of each], with units ordered by rows, columns and later
    dimensions."""
    blocks = t.reshape(t.shape[0] // rows, rows, t.shape[1] // columns, columns, -1)
    return blocks.permute(0, 2, 4, 1, 3).reshape(-1, rows * columns)


UNITS = {
    "block4x1": lambda t: in_blocks(t, 4, 1),
    "block2x3": lambda t: in_blocks(t, 2, 3),
    "filter": lambda t: t.flatten(1),
    "channel": lambda t: t.transpose(0, 1).flatten(1),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pattern", UNITS)
def test_blocks_filters_and_channels(pattern, masked):
    torch.manual_seed(0)
    tensors = [torch.rand(8, 6, 3, 3), torch.rand(4, 12)]
    held = [torch.rand(t.shape) < 0.5 for t in tensors]
    held[0][:4, 0], held[0][1], held[0][:, 5] = False, False, False
    held[1][:, 3] = False
    before = [F.pack_mask(h) for h in held] if masked else None
    got = unpacked(F.select_mask(tensors, 0.5, pattern=pattern, previous=before), tensors)
    scores = [UNITS[pattern](t).double().mean(1) for t in tensors]
    kept = [UNITS[pattern](g) for g in got]
    assert all((k.amin(1) == k.amax(1)).all() for k in kept)  # all or nothing
    was = [UNITS[pattern](h).amax(1) for h in held] if masked else None
    pruned = sum(len(s) for s in scores) // 2
    expected = by_sorting(scores, pruned, previous=was, least=[1, 1])
    assert_masks([k[:, 0] for k in kept], expected)


def test_makes_no_large_tensors():
    """Check that it allocates less than a byte per weight besides its result."""
    x = [torch.rand(500, 1000)]
    F.select_mask(x, 0.5)
    with torch.profiler.profile(profile_memory=True) as profile:
        F.select_mask(x, 0.5)
    taken = sum(e.cpu_memory_usage for e in profile.events() if e.cpu_memory_usage > 0)
    assert 0 < taken < 1.1 * 500_000


@pytest.mark.parametrize("pattern", ["element", "2:4", "block4x1"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_compiles(pattern, scope):
    scores = [torch.rand(8, 8), torch.rand(16, 4, 3, 3)]
    run = lambda *s: F.select_mask(list(s), 0.5, scope=scope, pattern=pattern)  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_masks(compiled(*scores), run(*scores))
    meta = run(*(s.to("meta") for s in scores))
    assert [m.shape for m in meta] == [m.shape for m in run(*scores)]


X = torch.rand(4, 6)
ERRORS = [
    (([X], 1.0), {}, r"sparsity must be in \[0, 1\), got 1"),
    (([X], -0.1), {}, r"sparsity must be in \[0, 1\), got -0.1"),
    (([X], [0.1, 0.2]), {}, "sparsity must be one number, got 2"),
    (([X], [0.1, 0.2]), {"scope": "local"}, "one number or one for each of the scores, got 2"),
    (([X], 0.5), {"scope": "layer"}, "scope must be one of 'global', 'local', got 'layer'"),
    (([X], 0.5), {"min_keep": [1, 2]}, "min_keep must be one number or one for each of the 1"),
    (([X], 0.5), {"min_keep": -1}, "min_keep must not be negative, got -1"),
    (([X], 0.5), {"previous": []}, "previous must hold 1 masks like scores, got 0"),
    (([X], 0.5), {"previous": [torch.zeros(2).long()]}, "mask must be an int64 tensor of 1 words"),
    (([X], 0.5), {"pattern": "5:4"}, "pattern must be 'element', 'N:M' as '2:4'"),
    (([X], 0.5), {"pattern": "block4"}, "pattern must be 'element', 'N:M' as '2:4'"),
    (([X], 0.5), {"pattern": "2:4"}, r"dimension 1 of scores\[0\] to be a multiple of 4"),
    (
        ([X], 0.5),
        {"pattern": "block3x1"},
        r"dimensions 0 and 1 of scores\[0\] to be multiples of 3",
    ),
    (([X[0]], 0.5), {"pattern": "1:2"}, r"scores\[0\] must have 2 dimensions or more"),
    (([X.long()], 0.5), {}, "select_mask: x must be"),
    (([X.double()], 0.5), {}, "select_mask: x must be"),
]


@pytest.mark.parametrize("arguments, options, message", ERRORS, ids=[e[2][:40] for e in ERRORS])
def test_errors(arguments, options, message):
    with pytest.raises(RuntimeError, match=message):
        F.select_mask(*arguments, **options)


def test_nothing():
    assert F.select_mask([], 0.5) == []
    (mask,) = F.select_mask([torch.empty(0)], 0.5)
    assert mask.numel() == 0


@pytest.mark.cuda
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("pattern", ["element", "2:4", "block4x1", "filter", "channel"])
@pytest.mark.parametrize("masked", [False, True])
def test_cuda_selects_the_same(scope, pattern, masked):
    torch.manual_seed(0)
    scores = [(torch.randn(s) * 8).round() for s in [(64, 32, 3, 3), (1000, 100), (4, 8)]]
    previous = [F.pack_mask(torch.rand(s.shape) < 0.3) for s in scores] if masked else None
    on_gpu = [p.cuda() for p in previous] if previous else None
    options = {"scope": scope, "pattern": pattern}
    expected = F.select_mask(scores, 0.7, previous=previous, **options)
    got = F.select_mask([s.cuda() for s in scores], 0.7, previous=on_gpu, **options)
    assert_masks([g.cpu() for g in got], expected)
