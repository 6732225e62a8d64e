"""What else may read a neuron than the layer behind it: such a layer stays, by name; plain ones beside it still shrink."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from legibility.lightning_plugins import remove_dead_neurons
from legibility.lightning_plugins.sparsity.structure._neurons import neurons


class Net(nn.Module):
    """Two hidden layers, something beside them, and a plain pair that is always found."""

    a: Any
    b: Any
    side: Any
    norm: Any
    walked: Any
    blocks: Any
    more: Any

    def __init__(self, layer: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.a, self.b, self.side = layer(8, 8), layer(8, 8), layer(8, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.use_side = False

    def tail(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.b(F.relu(self.a(x))))


class AuxiliaryHead(Net):
    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.a(x))
        y = self.tail(self.b(h))
        return (y, self.side(h)) if self.training else y


class AbsentArgument(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = F.relu(self.a(x))
        return self.tail(self.b(h) + (self.side(h) if mask is None else 0))


class EitherSide(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.tail(self.side(h) if x.sum() > 0 else self.b(h))


class ReaderFedByOthers(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.b(F.relu(self.a(x))) if x.sum() > 0 else self.b(x))


class AsksForTheKind(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.tail(self.b(h) + self.side(h)) if isinstance(x, Tensor) else self.tail(self.b(h))


class WeightReadTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.b(F.relu(self.a(x))) + (x @ self.a.weight.t()).sum(-1, keepdim=True))


class ReaderReadTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.b(F.relu(self.a(x))) + self.b.weight.abs().mean())


class WidthRead(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.tail(self.b(F.relu(h)) / h.shape[-1])


class WidthUnpacked(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        _, width = h.size()
        return self.tail(self.b(F.relu(h)) + width)


class NormTwice(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.b(self.norm(self.a(x))) + self.norm(x))


class InstanceNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(8, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.norm(self.a(x.view(-1, 1, 8).expand(-1, 8, -1))))
        return self.tail(y.mean(1))


class Untraceable(Net):
    """A loop over the batch's size: symbols have none."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        return self.tail(torch.stack([y[i] for i in range(len(y))]))

    def mix(self, x: Tensor) -> Tensor:
        y: Tensor = self.side(x)
        return y


class HalfTraceable(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        if x.sum() > 0:
            return self.tail(torch.stack([self.side(h[i]) for i in range(len(h))]))
        return self.tail(self.b(h))


class Walks(Untraceable):
    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = self.side = nn.Identity()
        self.walked = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))])
        self.outside = [self.walked]

    def mix(self, x: Tensor) -> Tensor:
        features = []
        for layer in self.walked:
            x = layer(x)
            features.append(x)
        return features[1] + x


class Indexes(Walks):
    def mix(self, x: Tensor) -> Tensor:
        h = self.walked[0](x)
        y: Tensor = self.walked[2](torch.relu(h)) + h
        return y


class Inherits(Indexes):
    def mix(self, x: Tensor) -> Tensor:
        return self.mix_as_before(x)

    def mix_as_before(self, x: Tensor) -> Tensor:
        return super().mix(x)


class Overrides(Indexes):
    def mix(self, x: Tensor) -> Any:
        return self.walked(x)


class ByPath(Walks):
    def mix(self, x: Tensor) -> Tensor:
        y: Tensor = self.walked(x) + self.get_submodule("walked.0")(x)
        return y


class Unpacks(Walks):
    def mix(self, x: Tensor) -> Tensor:
        first, last = self.walked[0], self.walked[2]
        h = first(x)
        y: Tensor = last.forward(torch.relu(h)) + h
        return y


class ByForward(Walks):
    def mix(self, x: Tensor) -> Tensor:
        y: Tensor = self.walked(x) + self.walked[0].forward(x)
        return y


class BoundDeeper(Walks):
    def mix(self, x: Tensor) -> Tensor:
        for _ in range(1):
            if x.ndim > 1:
                net = self.walked
        y = torch.zeros(8)
        for layer in net:
            x = layer(x)
            y = y + x
        return y


class Slices(Walks):
    def mix(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.walked[:2]:
            h = layer(h)
        y: Tensor = h + self.walked(x)
        return y


class Aliases(Walks):
    def mix(self, x: Tensor) -> Tensor:
        net, others = self.walked, [1, 2]
        inner = list(net.children())
        h = inner[0](x)
        y: Tensor = inner[2](torch.relu(h)) + h + len(others)
        return y


class ByName(Walks):
    def mix(self, x: Tensor) -> Tensor:
        h = getattr(self.walked, "0")(x)
        y: Tensor = self.walked(x) + h
        return y


class InAList(Walks):
    def mix(self, x: Tensor) -> Tensor:
        y: Tensor = self.walked(x)
        for net in self.outside:
            for layer in net:
                x = layer(x)
                y = y + x
        return y


def first_layer(net: nn.Sequential, x: Tensor) -> Tensor:
    y: Tensor = net[0](x)
    return y


class HandsOn(Walks):
    def mix(self, x: Tensor) -> Tensor:
        y: Tensor = self.walked(x) + first_layer(self.walked, x)
        return y


def first_of(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.walked[0](x)
    return y


class HandsItselfOn(Walks):
    def mix(self, x: Tensor) -> Tensor:
        y: Tensor = self.walked(x) + first_of(self, x)
        return y


class ThroughAProperty(Walks):
    @property
    def encoder(self) -> Any:
        return self.walked[0]

    def mix(self, x: Tensor) -> Tensor:
        y: Tensor = self.walked(x) + self.encoder(x)
        return y


class ReadsAsTensor(Walks):
    def mix(self, x: Tensor) -> Tensor:
        y: Tensor = self.walked(x) + (x @ self.walked[0].weight.t()).sum(-1, keepdim=True)
        return y


class BlocksWalked(Walks):
    def mix(self, x: Tensor) -> Tensor:
        x = self.walked(x)
        for i, block in enumerate(self.blocks):
            for layer in block:
                x = layer(x) + i
        return x


def kill(model: nn.Module) -> None:
    """The first half of the inputs of every layer is read by nobody."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight[:, :4] = 0


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    both = []
    for training in (True, False):
        y = model.train(training)(x)
        both += list(y) if isinstance(y, tuple) else [y]
    return both


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("kind", "stays", "reason"),
    [
        (AuxiliaryHead, "a", "used 2 times"),
        (AbsentArgument, "a", "used 2 times"),
        (EitherSide, "a", "is read by b or side, as the case may be"),
        (ReaderFedByOthers, "a", "b, which its output goes to, is called without it as well"),
        (AsksForTheKind, "a", "may be read by side, which AsksForTheKind.forward calls where no trace came to"),
        (WeightReadTwice, "a", "is read as a tensor as well"),
        (ReaderReadTwice, "a", "b, which its output goes to, is read as a tensor as well"),
        (WidthRead, "a", "number of units is read off"),
        (WidthUnpacked, "a", "number of units is read off"),
        (NormTwice, "a", "norm, which reads it, is called more than once"),
        (InstanceNorm, "a", "norm along another dimension"),
        (HalfTraceable, "a", "is called by HalfTraceable.forward, which can't be traced"),
        (Walks, "walked.0", "is called by Walks.mix, which can't be traced"),
        (Indexes, "walked.0", "is called by Indexes.mix"),
        (Inherits, "walked.0", "is called by Indexes.mix"),
        (ByPath, "walked.0", "is called by ByPath.mix"),
        (Unpacks, "walked.0", "is called by Unpacks.mix"),
        (ByForward, "walked.0", "is called by ByForward.mix"),
        (BoundDeeper, "walked.0", "is called by BoundDeeper.mix"),
        (Slices, "walked.0", "is called by Slices.mix"),
        (Aliases, "walked.0", "is called by Aliases.mix"),
        (ByName, "walked.0", "is called by ByName.mix"),
        (InAList, "walked.0", "is called by InAList.mix"),
        (HandsOn, "walked.0", "may be used by HandsOn.mix, which can't be followed"),
        (HandsItselfOn, "walked.0", "may be used by HandsItselfOn.mix, which can't be followed"),
        (ThroughAProperty, "walked.0", "may be used by ThroughAProperty.encoder"),
        (ReadsAsTensor, "walked.0", "is read as a tensor by ReadsAsTensor.mix"),
        (BlocksWalked, "blocks.0.0", "is called by BlocksWalked.mix"),
    ],
)
def test_a_second_reader_keeps_the_layer_whole(kind: type[Net], stays: str, reason: str, training: bool) -> None:
    torch.manual_seed(0)
    model = kind().train(training)
    kill(model)
    smaller = remove_dead_neurons(model)
    assert stays not in smaller.removed and reason in smaller.left[stays]
    assert smaller.removed.get("body.0") == (None if kind in (HandsItselfOn, AsksForTheKind, ByPath) else 4)
    assert not set(smaller.removed) & set(smaller.left)
    x = torch.randn(6, 8)
    for one, other in zip(outputs(model, x), outputs(smaller.model, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


class Feed(nn.Module):
    """A block with a residual stream and a check of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Any:
        if x.size(-1) != 8:
            raise ValueError("8 features")
        assert x.dim() == 2
        y = self.down(F.gelu(self.up(self.norm(x))))
        y = y if mask is None else y * mask
        return x + y * scale


class Rows(nn.Module):
    """Can't be traced, and makes what it stands in untraceable."""

    def __init__(self) -> None:
        super().__init__()
        self.feed = Feed()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.feed(x[i : i + 1]) for i in range(len(x))])


class Stack(Untraceable):
    """Blocks that a loop calls whole."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Feed(), Feed()])
        self.more = nn.ModuleDict({"one": Feed()})
        self.rows = nn.Sequential(Feed(), nn.Linear(8, 8), Rows(), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))

    def mix(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = checkpoint(block, x, use_reentrant=False) if i else block(x)
        for factor, block in zip([1.0, 2.0], self.blocks, strict=True):
            x = block(x, None, factor)
        for block in self.more.values():
            x = block(x, None)
        if self.use_side is not None and isinstance(self.a, nn.Linear):
            x = self.more["one"](x)
        y: Tensor = self.rows(x)
        return y


class Decides(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x / 100 if x.max() > 100 else x))
        assert h.shape[0] > 0
        if x.min() < -1000:
            raise ValueError("too small")
        return self.tail(self.b(h))


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Net, {"a", "b", "body.0"}),
        (Decides, {"a", "b", "body.0"}),
        (Stack, {"blocks.0.up", "blocks.1.up", "more.one.up", "rows.0.up", "rows.2.feed.up", "rows.3.0", "body.0"}),
        (Walks, {"body.0", "blocks.0.0"}),
        (Overrides, {"walked.0", "body.0", "blocks.0.0"}),
    ],
)
def test_what_is_called_whole_still_shrinks(kind: type[Net], found: set[str]) -> None:
    torch.manual_seed(0)
    model = kind()
    kill(model)
    smaller = remove_dead_neurons(model)
    assert set(smaller.removed) == found
    x = torch.randn(6, 8)
    for one, other in zip(outputs(model, x), outputs(smaller.model, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_hooks_and_forwards_put_on_later() -> None:
    def hooked(path: str, change: Callable[[nn.Module], Any]) -> str:
        model: Any = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        change(model.get_submodule(path))
        return neurons(model).left_out.get("0", "found")

    def hook(m: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * torch.arange(8.0)

    for path in "012":
        assert "hook" in hooked(path, lambda m: m.register_forward_hook(hook))
        assert "hook" in hooked(path, lambda m: m.register_forward_pre_hook(lambda m, inputs: None))
        assert "put onto it" in hooked(path, lambda m: setattr(m, "forward", m.forward))
        assert hooked(path, lambda m: m.register_full_backward_hook(lambda *_: None)) == "found"
    assert "forward that was put onto it" in hooked("", lambda m: setattr(m, "forward", m.forward))


def test_zero_must_stay_zero_in_every_branch() -> None:
    class Squashes(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.tail(self.b(torch.sigmoid(h) if x.sum() > 0 else F.relu(h)))

    model = Squashes()
    with torch.no_grad():
        for row in (model.a.weight, model.a.bias, model.b.weight, model.b.bias):
            row[:4] = 0
    assert remove_dead_neurons(model).removed == {"b": 4}


def test_what_lightning_calls_is_read_as_well(pl: Any) -> None:
    class Plain(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.other = Net(), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Any:
            return self.other(self.net(x))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch).mean() + self.other(batch).mean()

        def on_train_start(self) -> None:
            print(id(self.net), copy.copy(self.other))

    class Steps(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            first_layer(self.other, batch)

    class Ends(Plain):
        def on_train_epoch_end(self) -> None:
            self.other[0](torch.ones(8))

    assert {units.name for units in neurons(Plain())} == {"net.a", "net.b", "net.body.0", "other.0"}
    assert "may be used by Steps.validation_step" in neurons(Steps()).left_out["other.0"]
    assert "is called by Ends.on_train_epoch_end" in neurons(Ends()).left_out["other.0"]


def test_a_batch_norm_over_tokens_is_not_silent() -> None:
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
    kill(model)
    smaller = remove_dead_neurons(model).model
    x = torch.randn(5, 8, 8)
    torch.testing.assert_close(smaller(x[0]), model(x[0]), rtol=1e-5, atol=1e-5)
    model(x)  # eight tokens: taken for eight units
    with pytest.raises(RuntimeError, match="should contain"):
        smaller(x)
    model[1] = nn.BatchNorm1d(8, affine=False, track_running_stats=False)  # nothing of it would tell
    assert "norm along another" in remove_dead_neurons(model).left["0"]


def test_a_transformer_layer_with_a_forward_of_its_own() -> None:
    class Own(nn.TransformerEncoderLayer):
        def _ff_block(self, x: Tensor) -> Any:
            return self.linear1(x)[..., :8]

    assert "forward of its own" in neurons(nn.Sequential(Own(8, 2, 16))).left_out["0.linear1"]


def test_convolutions_may_be_asked_for_their_pixels() -> None:
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            b, _, height, width = h.shape
            y: Tensor = self.b(F.relu(h)) / (b * height * width) + F.interpolate(x, h.shape[-2:]).mean()
            return y

    class Channels(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            y: Tensor = self.b(F.relu(h)) / h.shape[self.where]
            return y

        where = 1

    assert [units.name for units in neurons(Pixels())] == ["a"]
    for where in (1, -3, slice(-3, None)):
        Channels.where = where  # type: ignore[assignment]
        assert "number of units" in neurons(Channels()).left_out["a"]


def test_modes_that_differ_from_part_to_part_are_looked_at_as_they_are() -> None:
    class Frozen(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.a(x))
            y = self.tail(self.b(h))
            return y + self.side(h) if self.training and not self.body.training else y

    model = Frozen()
    model.body.eval()
    assert "used 2 times" in neurons(model).left_out["a"]


def test_code_without_a_source_is_not_guessed() -> None:
    space: dict[str, Any] = {"Walks": Walks, "__name__": "elsewhere"}
    code = "class Hidden(Walks):\n def mix(self, x):\n  return self.walked(x) + self.walked[0](x)"
    exec(code, space)  # noqa: S102
    assert "Hidden.mix, whose source can't be read" in neurons(space["Hidden"]()).left_out["walked.0"]


def test_nothing_is_changed_by_looking() -> None:
    model = AuxiliaryHead()
    model.body.eval()
    before = copy.deepcopy(model)
    neurons(model)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert vars(model).keys() == vars(before).keys()
