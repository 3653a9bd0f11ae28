"""Test the removal of channels: exact results, whole groups, the optimizer's state, and
refusals."""

import copy
import io
import math

import bitpare as bp
import pytest
import torch
import torch.nn.functional as F
from bitpare.nn.quantizer import Quantizer
from bitpare.prune import Plan, Pruner, Schedule, plan_shrink, shrink
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Net(nn.Module):
    """A network of conv - BatchNorm - ReLU - body - pooling - linear."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first, self.norm = conv(3, channels), nn.BatchNorm2d(channels)
        self.head = nn.Linear(self.make(channels), 5)

    def make(self, c: int) -> int:
        """Make the layers of the body, and return the number of channels of its result."""
        raise NotImplementedError

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.norm(self.first(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Nets:
    class Plain(Net):
        def make(self, c: int) -> int:
            self.a, self.b = conv(c, 2 * c), conv(2 * c, 6, bias=False)
            return 6

        def body(self, x: Tensor) -> Tensor:
            return self.b(F.hardswish(self.a(x)))

    class Residual(Net):
        def make(self, c: int) -> int:
            self.a, self.b, self.bn = conv(c, 12), conv(12, c), nn.BatchNorm2d(c)
            return c

        def body(self, x: Tensor) -> Tensor:
            x = x + self.bn(self.b(F.gelu(self.a(x))))
            return F.relu(x + self.bn(self.b(F.gelu(self.a(x)))))  # the same layers again

    class Concatenated(Net):
        def make(self, c: int) -> int:
            self.a, self.b, self.bn, self.c = (
                conv(c, 4),
                conv(c, 6),
                nn.BatchNorm2d(18),
                conv(18, 7),
            )
            return 7

        def body(self, x: Tensor) -> Tensor:
            return self.c(self.bn(torch.cat([self.a(x), x, self.b(x)], 1)))

    class Depthwise(Net):
        def make(self, c: int) -> int:
            self.a, self.b = conv(c, 2 * c, groups=c), conv(2 * c, 6, 1)
            return 6

        def body(self, x: Tensor) -> Tensor:
            return self.b(F.relu6(self.a(x)))

    class Grouped(Net):
        def make(self, c: int) -> int:
            self.a, self.b = conv(c, 16, groups=4), conv(16, 12, groups=2)
            return 12

        def body(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    class Gated(Net):
        """A squeeze-and-excite block."""

        def make(self, c: int) -> int:
            self.down, self.up, self.b = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1), conv(c, 6)
            return 6

        def body(self, x: Tensor) -> Tensor:
            gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
            return self.b(x * gate)

    class Chunked(Net):
        def make(self, c: int) -> int:
            self.a, self.b = conv(c, 8), conv(8, 6)
            return 6

        def body(self, x: Tensor) -> Tensor:
            a, b = self.a(x).chunk(2, 1)
            return self.b(torch.cat([b, a], dim=1))

    class Shuffled(Net):
        def make(self, c: int) -> int:
            self.a, self.b = conv(c, 12), conv(12, 6, groups=2)
            return 6

        def body(self, x: Tensor) -> Tensor:
            x = self.a(x)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)
            return self.b(x)

    class PixelShuffled(Net):
        def make(self, c: int) -> int:
            self.a, self.up, self.b = conv(c, 16), nn.PixelShuffle(2), conv(4, 6)
            return 6

        def body(self, x: Tensor) -> Tensor:
            return self.b(self.up(self.a(x)))

    class Upsampled(Net):
        def make(self, c: int) -> int:
            self.a, self.act, self.b = nn.ConvTranspose2d(c, 10, 2, 2), nn.PReLU(10), conv(10, 6)
            return 6

        def body(self, x: Tensor) -> Tensor:
            return self.b(F.interpolate(self.act(self.a(x)), scale_factor=0.5))

    class Scaled(Net):
        """Its own parameter along the channels, and instance norms."""

        def make(self, c: int) -> int:
            self.scale = nn.Parameter(torch.randn(c, 1, 1))
            self.norm2, self.b = nn.InstanceNorm2d(c, affine=True), conv(c, 6)
            return 6

        def body(self, x: Tensor) -> Tensor:
            return self.b(self.norm2(x * self.scale).permute(0, 1, 3, 2))

    class Tied(Net):
        def make(self, c: int) -> int:
            self.a, self.b, self.c = conv(c, c), conv(c, c), conv(c, 6)
            self.b.weight = self.a.weight
            return 6

        def body(self, x: Tensor) -> Tensor:
            return self.c(self.b(F.relu(self.a(x))))

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 6), nn.Linear(6 * 64, 10)
            self.bn, self.c = nn.BatchNorm1d(10), nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            return self.c(F.silu(self.bn(self.b(x.view(x.size(0), -1)))))

    class Functional(Net):
        """A forward that uses only the parameters of layers, and stacked values."""

        def make(self, c: int) -> int:
            self.a, self.b, self.bn = conv(c, 10), conv(10, 6), nn.BatchNorm2d(10)
            self.fc = nn.Linear(6, 6)
            return 6

        def body(self, x: Tensor) -> Tensor:
            bn = self.bn
            x = F.conv2d(x, self.a.weight, self.a.bias, 1, 1)
            x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training)
            x = self.b(torch.stack([x, F.silu(x)], 1).sum(1))
            return F.linear(x.transpose(1, 3), self.fc.weight, self.fc.bias).transpose(1, 3)

    class Parts(Net):
        """Children that return more than one tensor, and an output in a dict."""

        class Two(nn.Module):
            def __init__(self, c: int) -> None:
                super().__init__()
                self.a, self.b = conv(c, 6), conv(c, 6)

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"a": self.a(x), "b": self.b(x)}

        def make(self, c: int) -> int:
            self.two = self.Two(c)
            return 6

        def body(self, x: Tensor) -> Tensor:
            found = self.two(x)
            return found["a"] + found["b"]


NETS = {name: kind for name, kind in vars(Nets).items() if name[0] != "_"}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def trained(name: str) -> nn.Module:
    """Return a model with running statistics and constants other than the initial ones."""
    torch.manual_seed(0)
    model = NETS[name]()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.affine:
            nn.init.normal_(m.weight, 1, 0.3)
            nn.init.normal_(m.bias)
    for _ in range(3):
        model.train()(torch.randn(4, 3, 8, 8))
    return model.eval()


def masked(model: nn.Module, plan: Plan) -> nn.Module:
    """Set the removed channels to 0, in a model of the old size."""
    other = copy.deepcopy(model)
    held = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for (name, dim), (size, kept) in plan.kept.items():
        gone = torch.tensor(sorted(set(range(size)) - set(kept)))
        if "running" not in name and not isinstance(
            other.get_submodule(name.rpartition(".")[0]), Quantizer
        ):
            held[name].data.index_fill_(dim, gone, 0)
    return other


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", NETS)
def test_is_exact(name, ratio):
    model = trained(name)
    before = copy.deepcopy(model.state_dict())
    plan = plan_shrink(model, example_inputs=X, sparsity=ratio)
    small = plan.apply(model)
    assert plan.kept and all(0 < len(kept) < size for size, kept in plan.kept.values())
    expected, found = masked(model, plan)(X), small(X)
    assert torch.allclose(found, expected, atol=1e-5 * max(1, float(expected.abs().max())))
    assert [type(m) for m in small.modules()] == [type(m) for m in model.modules()]
    assert list(small.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # unchanged
    assert sum(p.numel() for p in small.parameters()) == plan.sizes["parameters after"]
    # the result is an ordinary model
    small.train()(X).square().sum().backward()
    held = io.BytesIO()
    torch.save(small, held)
    held.seek(0)
    assert torch.equal(copy.deepcopy(small).eval()(X), small.eval()(X))
    assert torch.equal(torch.load(held, weights_only=False).eval()(X), small(X))
    for module in small.modules():  # the attributes of layers match their weights
        if isinstance(module, nn.modules.conv._ConvNd):
            transposed = isinstance(module, nn.ConvTranspose2d)
            sizes = (module.in_channels, module.out_channels)
            at = sizes if transposed else sizes[::-1]
            assert tuple(module.weight.shape[:2]) == (at[0], at[1] // module.groups)


def test_what_is_tied_goes_together():
    plan = plan_shrink(trained("Residual"), example_inputs=X, sparsity=0.5)
    same = [plan.kept[k][1] for k in (("first.weight", 0), ("b.weight", 0), ("bn.bias", 0))]
    assert same[0] == same[1] == same[2] == plan.kept["a.weight", 1][1]
    assert plan.kept["norm.running_var", 0] == plan.kept["head.weight", 1]
    assert len(plan.kept["a.weight", 0][1]) == 6
    assert ("head.weight", 0) not in plan.kept and ("first.weight", 1) not in plan.kept
    assert plan.whole == {"head": "it is an output of the model"}
    shuffled = plan_shrink(trained("Shuffled"), example_inputs=X, sparsity=0.5).kept["a.weight", 0][
        1
    ]
    assert [k - 6 for k in shuffled if k >= 6] == [k for k in shuffled if k < 6]
    depthwise = shrink(trained("Depthwise"), example_inputs=X, sparsity=0.5).a
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (4, 8, 4)
    tied = shrink(trained("Tied"), example_inputs=X, sparsity=0.5)
    assert tied.a.weight is tied.b.weight and tied.a.weight.shape[:2] == (4, 4)


def test_the_least_important_go():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight *= torch.tensor([1.0, 0.01, 1, 0.02, 1, 1])[:, None]
        model[2].weight *= torch.tensor([1.0, 0.01, 1, 0.02, 1, 1])
    kept = plan_shrink(model, example_inputs=torch.randn(1, 4), sparsity=0.4).kept
    assert kept["0.weight", 0] == (6, [0, 2, 4, 5]) == kept["2.weight", 1] == kept["0.bias", 0]


def test_options():
    model = trained("Plain")
    assert shrink(model, example_inputs=X, sparsity=0.4, round_to=4).a.out_channels == 12
    assert shrink(model, example_inputs=X, sparsity=0.9, min_channels=3).first.out_channels == 3
    left = shrink(model, example_inputs=X, sparsity=0.5, ignore=["fir*"])
    assert (left.first.out_channels, left.a.out_channels) == (8, 8)
    some = shrink(model, example_inputs=X, sparsity={"a": 0.25, "first": 0.5})
    assert (some.first.out_channels, some.a.out_channels, some.b.out_channels) == (4, 12, 6)
    for limit in (dict(macs=0.4), dict(parameters=0.3), dict(macs=0.5, parameters=0.5)):
        sizes = plan_shrink(model, example_inputs=X, keep=bp.Budget(**limit)).sizes
        for kind, share in limit.items():
            what = "MACs" if kind == "macs" else kind
            assert 0.6 * share < sizes[f"{what} after"] / sizes[f"{what} before"] <= share
    with torch.no_grad():
        model.a.weight *= torch.linspace(0.1, 3, 16)[:, None, None, None]
    spread = shrink(model, example_inputs=X, sparsity=0.5, scope="global")
    assert spread.first.out_channels + spread.a.out_channels + spread.b.out_channels == 15
    told = str(plan_shrink(model, example_inputs=X, sparsity=0.5))
    assert "MACs" in told and "head stays whole" in told


def test_macs_are_counted():
    model = trained("Depthwise")
    plan = plan_shrink(model, example_inputs=X, sparsity=0.5)
    for m, when in ((model, "before"), (plan.apply(model), "after")):
        counted = []

        def count(layer, args, y, counted=counted):
            per = layer.weight[0].numel()
            counted.append(y[0].numel() * per)

        for layer in m.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(count)
        m(X[:1])
        assert plan.sizes[f"MACs {when}"] == len(X) * sum(counted)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("name", ["Residual", "Depthwise", "Tied"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_optimizer_goes_over(kind, name):
    model = trained(name).train()
    weights = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": rest, "lr": 0.3}]
    optimizer = OPTIMIZERS[kind](groups)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    names = {id(p): n for n, p in model.named_parameters()}
    states = {names[id(p)]: copy.deepcopy(s) for p, s in optimizer.state.items()}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    plan = plan_shrink(model, example_inputs=X, sparsity=0.5)
    small = plan.apply(model, optimizer=optimizer)
    parameters = dict(small.named_parameters())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in parameters.values()}
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(weights), len(rest)]
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    for n, p in parameters.items():
        expected = gradients[n]
        for dim, kept in plan.dims_of(n).items():
            expected = expected.index_select(dim, torch.tensor(kept))
        assert torch.equal(p.grad, expected)
        for key, value in optimizer.state[p].items():
            wanted = states[n][key]
            if isinstance(wanted, Tensor) and wanted.dim():
                for dim, kept in plan.dims_of(n).items():
                    wanted = wanted.index_select(dim, torch.tensor(kept))
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(wanted)), (n, key)
    before = {n: p.detach().clone() for n, p in parameters.items()}
    small.train()(X).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in parameters.items() if p.dim() > 1)


def test_factored_states_are_sliced_and_odd_ones_refused():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows, columns = torch.rand(6, 1), torch.rand(1, 8)
    optimizer.state[model[0].weight] = {"row": rows, "column": columns, "step": torch.tensor(3.0)}
    plan = plan_shrink(model, example_inputs=torch.randn(1, 8), sparsity=0.5)
    small = plan.apply(model, optimizer=optimizer)
    state = optimizer.state[small[0].weight]
    assert torch.equal(state["row"], rows[plan.kept["0.weight", 0][1]])
    assert torch.equal(state["column"], columns) and state["step"] == 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model[0].weight] = {"flat": torch.rand(48)}
    with pytest.raises(bp.Unsupported, match=r"state 'flat' of 0\.weight has shape \(48,\)"):
        shrink(model, example_inputs=torch.randn(1, 8), sparsity=0.5, optimizer=optimizer)
    assert optimizer.param_groups[0]["params"][0] is model[0].weight  # nothing is half done
    foreign = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"holds a parameter of shape .* that is not the model's"):
        shrink(model, example_inputs=torch.randn(1, 8), sparsity=0.5, optimizer=foreign)


def test_a_plan_is_data(tmp_path):
    model = trained("Residual")
    plan = plan_shrink(model, example_inputs=X, sparsity=0.5)
    small = plan.apply(model)
    plan.save(tmp_path / "plan.json")
    fresh = Plan.load(tmp_path / "plan.json").apply(NETS["Residual"]())
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh.eval()(X), small(X))
    with pytest.raises(ValueError, match="it is of another architecture"):
        plan.apply(trained("Plain"))
    with pytest.raises(ValueError, match="or the plan was applied already"):
        plan.apply(small)
    with pytest.raises(ValueError, match="not a plan of this version"):
        Plan.from_dict({"version": 9})


class Refused:
    class LayerNorm(nn.Module):
        reason = "norm: a norm over channels"

        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4)
            self.c = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(self.norm(self.a(x)))))

    class GroupNorm(LayerNorm):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(2, 6)

    class Unknown(LayerNorm):
        reason = "cumsum: an operation that shrink does not know"

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(self.a(x).cumsum(1))))

    class Attention(LayerNorm):
        reason = "norm: MultiheadAttention mixes its channels"

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.MultiheadAttention(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            return self.c(torch.relu(self.b(self.norm(a, a, a)[0])))


REFUSED = {name: kind for name, kind in vars(Refused).items() if name[0] != "_"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_know_is_refused_or_left(name):
    torch.manual_seed(0)
    model, x = REFUSED[name]().eval(), torch.randn(3, 8)
    with pytest.raises(bp.Unsupported, match=REFUSED[name].reason):
        shrink(model, example_inputs=x, sparsity=0.5)
    small = shrink(model, example_inputs=x, sparsity=0.5, not_understood="leave")
    assert (small.a.out_features, small.b.out_features) == (6, 2)


def test_sizes_in_the_code_are_left_or_refused():
    class Fixed(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.a, self.b, self.how = conv(3, 4), nn.Linear(4 * 64, 5), how
            self.c = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if self.how == "literal":
                x = x.view(-1, 256)
            elif self.how == "number":
                x = x.flatten(1) * torch.ones(256)
            else:
                x = x[:, :4].flatten(1)
            return self.c(torch.relu(self.b(x)))

    for how in ("literal", "number", "slice"):
        small = shrink(Fixed(how).eval(), example_inputs=X, sparsity=0.5)
        assert (small.a.out_channels, small.b.out_features) == (4, 3)

    class Branching(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).flatten(1))) if x.sum() > 0 else x

    with pytest.raises(bp.Unsupported, match="shrink: the model cannot be traced"):
        shrink(Branching("").eval(), example_inputs=X, sparsity=0.5)


# -- prepared models

CONFIGS = {
    "int8": bp.QConfig.int8,
    "tensorrt": lambda: bp.QConfig.int8(target="tensorrt"),
    "lsq": lambda: bp.QConfig.int4(),
    "binary": bp.QConfig.binary_weights,
    "per channel": lambda: bp.QConfig.int8().override(
        "*", activation=bp.QSpec(bits=8, granularity="channel")
    ),
    "dynamic": bp.QConfig.dynamic,
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", ["Plain", "Residual", "Concatenated", "Depthwise", "Tied"])
def test_prepared_models(name, kind):
    """Check that a channel is removed with its scales, ranges and optimizer state."""
    qat = bp.prepare(trained(name), CONFIGS[kind](), example_inputs=(X,))
    bp.calibrate(qat, data=[X], progress=False)
    optimizer = torch.optim.SGD(bp.param_groups(qat), lr=1e-3, momentum=0.9)

    def step(model):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(X), torch.arange(len(X)) % 5).backward()
        optimizer.step()

    step(qat)
    qat.eval()
    plan = plan_shrink(qat, example_inputs=X, sparsity=0.5)
    small = plan.apply(qat, optimizer=optimizer)
    for before, after in zip(qat.modules(), small.modules(), strict=True):
        assert type(before) is type(after)
    if kind != "binary":  # for binary a masked weight is not 0
        expected, found = masked(qat, plan)(X), small(X)
        assert torch.allclose(found, expected, atol=0.03 * float(expected.detach().abs().max()))
    step(small)
    step(small)
    assert torch.isfinite(small.eval()(X)).all()
    # The same plan makes a model of that shape for a checkpoint.
    again = Plan.from_dict(plan.to_dict()).apply(
        bp.prepare(trained(name), CONFIGS[kind](), example_inputs=(X,))
    )
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(X), small(X))


def test_prepared_models_after_a_pruner():
    qat = bp.prepare(trained("Residual"), bp.QConfig.int8(), example_inputs=(X,))
    bp.calibrate(qat, data=[X], progress=False)
    optimizer = torch.optim.SGD(bp.param_groups(qat), lr=1e-2, momentum=0.9)
    pruner = Pruner(
        qat, Schedule.one_shot(0.5, at=1), pattern="channel", scope="local", example_inputs=(X,)
    ).attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        qat.train()(X).sum().backward()
        optimizer.step()
    expected = qat.eval()(X)
    small = shrink(qat, example_inputs=(X,), pruner=pruner, optimizer=optimizer)
    assert small.a.weight.shape[0] == 6 and small.a.bp_weight.scale.numel() == 6
    assert torch.allclose(small.eval()(X), expected, atol=0.02 * float(expected.abs().max()))


def test_parametrized_layers_stay_whole_and_other_results_pass():
    norm = torch.nn.utils.parametrizations.weight_norm

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = norm(nn.Linear(8, 6)), nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor):
            y = self.c(F.relu(self.b(F.relu(self.a(x)))))
            return y, y > 0, torch.where(y > 0, y, -torch.inf)

    x = torch.randn(5, 8)
    small = shrink(Both(), example_inputs=x, sparsity=0.5, not_understood="leave")
    assert small.a.weight.shape == (6, 8) and small.b.weight.shape == (2, 6)


def test_groups_of_weights_stay_whole():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    config = bp.QConfig.weight_only(bits=4, group=4).override("0", weight=bp.QSpec(bits=8))
    qat = bp.prepare(model, config, example_inputs=(torch.randn(2, 16),))
    with pytest.raises(bp.Unsupported, match="quantized in groups"):
        shrink(qat, example_inputs=torch.randn(2, 16), sparsity=0.5)


def test_errors():
    model = trained("Plain")
    for options, message in (
        (dict(sparsity=1.0), r"sparsity must be in \[0, 1\), got 1.0"),
        (dict(sparsity={"zz": 0.5}), "sparsity 'zz' matches no layer"),
        (dict(scope="all"), "scope must be local or global"),
        (dict(round_to=0), "round_to and min_channels must be 1 or more"),
        (dict(sparsity=None), "give one of sparsity=, keep= and pruner=, got none of them"),
        (dict(keep=bp.Budget(macs=0.5)), "got sparsity and keep"),
        (dict(sparsity=None, keep=bp.Budget(macs=1)), "cannot be met"),
        (dict(sparsity=None, keep=bp.Budget(latency_ms=1)), "a latency cannot be predicted"),
        (dict(not_understood="guess"), "not_understood must be refuse or leave"),
        (dict(ignore=["zz*"]), r"ignore 'zz\*' matches no layer"),
    ):
        with pytest.raises(ValueError, match=message):
            shrink(model, example_inputs=X, **{"sparsity": 0.5, **options})
    with pytest.raises(TypeError, match="example_inputs must be a tuple"):
        shrink(model, example_inputs=3, sparsity=0.5)
    plan = plan_shrink(model, example_inputs=X, sparsity=0.5)
    with pytest.raises(ValueError, match="quantized with a scale for each channel in this model"):
        plan.apply(bp.prepare(model, example_inputs=(X,)))
    with pytest.raises(bp.Unsupported, match="no channels of the model can be removed"):
        shrink(nn.Linear(4, 2), example_inputs=torch.randn(1, 4), sparsity=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "densenet121",
        "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "vgg11_bn", "efficientnet_b0",
        "regnet_y_400mf", "resnext50_32x4d", "mnasnet0_5",
    ],
)  # fmt: skip
def test_public_networks(name, ratio):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(num_classes=10, **options)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.train()(x)
    model.eval()
    plan = plan_shrink(model, example_inputs=x, sparsity=ratio)
    small = plan.apply(model)
    expected, found = masked(model, plan)(x), small(x)
    assert torch.allclose(found, expected, atol=1e-5 * max(1, float(expected.abs().max())))
    share = plan.sizes["MACs after"] / plan.sizes["MACs before"]
    assert share == pytest.approx((1 - ratio) ** 2, abs=0.2) and math.isfinite(share)
    y = small.train()(x)
    (y if isinstance(y, Tensor) else y[0]).sum().backward()
