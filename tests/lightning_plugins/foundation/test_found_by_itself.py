"""What a user need not name: which of several tensors, whether it is a distribution, who was called and how."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import loader, make_module, weights_of
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, ctc_loss, mse_loss, nll_loss, normalize
from torch.utils.checkpoint import checkpoint

from legibility.lightning_plugins import InterpretabilityReport, L1Sparsity, StudentLegibility
from legibility.lightning_plugins.foundation._choose_output import choose_output
from legibility.lightning_plugins.foundation._direct_calls import DirectCalls
from legibility.lightning_plugins.foundation._recorder import Recorder
from legibility.lightning_plugins.foundation._recording import Recording, class_labels, look_at_loss
from legibility.lightning_plugins.foundation._softmax import softmaxed
from legibility.students import MLPStudent

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 5


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].expand(8, 5)


def similar(h: Tensor) -> Tensor:
    z = normalize(h, dim=1)
    return cross_entropy(z @ z.T / 0.2, torch.arange(8))


def with_queue(h: Tensor) -> Tensor:
    z, queue = normalize(h, dim=1), torch.ones(5, 7)
    return cross_entropy(torch.cat([(z * X[:, :5]).sum(1, keepdim=True), z @ queue], 1), torch.zeros(8).long())


LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], bool | None]] = {
    "cross-entropy": (lambda h: cross_entropy(h, Y), True),
    "smoothed": (lambda h: cross_entropy(h, Y, label_smoothing=0.1), True),
    "likelihood of log-probabilities": (lambda h: nll_loss(h, Y), True),
    "with a temperature": (lambda h: cross_entropy(h / 0.3, Y), True),
    "in halves": (lambda h: torch.stack([cross_entropy(part, Y[:4]) for part in h.chunk(2)]).sum(), True),
    "row by row": (lambda h: cross_entropy(torch.stack(h.unbind(0)[2:]), Y[2:]), True),
    "shifted": (lambda h: cross_entropy(h.view(2, 4, 5)[:, :-1].flatten(0, 1).double(), Y[:6]), True),
    "selected": (lambda h: cross_entropy(h[Y > 1], Y[Y > 1]), True),
    "a distribution's": (lambda h: -torch.distributions.Categorical(logits=h).log_prob(Y).mean(), True),  # type: ignore[no-untyped-call]
    "CTC": (
        lambda h: ctc_loss(h.view(8, 1, 5).log_softmax(-1), torch.ones(1, 2).long(), torch.tensor([8]), torch.tensor([2])),
        True,
    ),
    "checkpointed": (lambda h: checkpoint(lambda t: cross_entropy(t, Y), h, use_reentrant=False), True),
    "squared error": (lambda h: mse_loss(h, X[:, :5]), False),
    "several labels for each": (lambda h: binary_cross_entropy_with_logits(h, torch.ones(8, 5)), False),
    "one action's value": (lambda h: h.gather(1, Y[:, None]).square().mean(), False),
    "similarities": (similar, False),
    "a queue of keys": (with_queue, False),
    "somebody's own function": (lambda h: _Opaque.apply(h), None),  # type: ignore[no-untyped-call]
    "reentrant": (lambda h: checkpoint(lambda t: cross_entropy(t, Y), h, use_reentrant=True), None),
    "of something else": (lambda h: torch.ones(3, requires_grad=True).sum(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_tells_whether_an_output_is_logits(name: str) -> None:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss, expected = LOSSES[name]
    output = X @ weight
    assert softmaxed(output, loss(output)) is expected


def test_a_compiled_loss_can_not_tell() -> None:
    output = X @ torch.zeros(6, 5, requires_grad=True)
    compiled = torch.compile(lambda h: cross_entropy(h, Y), backend="aot_eager")
    assert softmaxed(output, compiled(output)) is None


def recording(output: Tensor, inputs: Tensor = X) -> Recording:
    return Recording((inputs,), {}, inputs, None, output, arguments={"x": inputs})


def test_labels_that_the_loss_has_no_use_for_are_none() -> None:
    output = X @ torch.zeros(6, 5, requires_grad=True)
    found = recording(output)
    assert class_labels((X, Y), found) is Y, "nobody knows the loss: labels count"
    look_at_loss([found], mse_loss(output, X[:, :5]))
    assert class_labels((X, Y), found) is None
    look_at_loss([found], cross_entropy(output, Y))
    assert class_labels((X, Y), found) is Y


def test_log_probabilities_are_logits_whatever_is_done_with_them() -> None:
    found = recording((X @ torch.randn(6, 5, requires_grad=True)).log_softmax(-1))
    look_at_loss([found], -found.output.gather(1, Y[:, None]).mean())
    assert found.logits


@pytest.mark.parametrize(
    ("output", "inputs"),
    [
        (torch.zeros(8, 784), torch.zeros(8, 16)),  # generated pixels beside ten digits
        (torch.zeros(8, 6), X),  # a reconstruction
        (torch.zeros(8, 5, 4, 4), torch.zeros(8, 1, 4, 4)),  # an image of classes: no single label
    ],
)
def test_without_a_loss_labels_of_something_else_are_none(output: Tensor, inputs: Tensor) -> None:
    assert class_labels((inputs, Y), recording(output, inputs)) is None


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ((torch.zeros(8, 1), torch.zeros(8, 5)), "1"),  # class labels
        (
            {"code": torch.zeros(8, 2), "spread": torch.zeros(8, 2), "copy": torch.zeros(8, 6)},
            "copy",
        ),  # the input's shape
        ((torch.zeros(8, 1), (torch.zeros(8, 1), torch.zeros(8, 1))), "0"),  # the outermost
        ((torch.zeros(8, 1), torch.zeros(2, 8, 4)), "0"),  # a row for each example
        ((torch.zeros(8, 5), torch.zeros(8, 5)), None),
        ((torch.zeros(8, 5), torch.zeros(8, 7)), None),
        ({"y_hat": torch.zeros(8, 1), "hidden": torch.zeros(8, 3)}, None),  # the name is enough
        (torch.distributions.Normal(torch.zeros(8, 1), torch.ones(8, 1)), None),
        (torch.zeros(8, 5), None),
    ],
)
def test_one_of_several_tensors(result: Any, expected: str | None) -> None:
    assert choose_output(result, (X, Y), {"x": X}) == expected


# -- who was called, and how


def fitted(pl: Any, trainer: Callable[..., Any], module: Any, *others: Any, **options: Any) -> StudentLegibility:
    settings = {"students": [MLPStudent(width=8)], "warmup": 0.0, "summary": False, "learning_rate": 1e-2}
    plugin = StudentLegibility(0.7, **{**settings, **options})
    trainer([plugin, *others]).fit(module, loader(rows=24 * 8), loader())
    assert plugin.built is not None
    return plugin


class _OwnLayers:
    """Layers on the LightningModule; the step calls `forward` in one way or another."""

    how = "call"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(10, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if self.how == "both":
            return cross_entropy(self(x), y) + cross_entropy(self.forward(x / 2), y)  # type: ignore[operator]
        if self.how == "direct twice":
            return cross_entropy(self.forward(x), y) + cross_entropy(self.forward(x / 2), y)
        return cross_entropy(self(x) if self.how == "call" else self.forward(x), y)  # type: ignore[operator]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", cross_entropy(self.forward(batch[0]), batch[1]))  # type: ignore[attr-defined]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)  # type: ignore[attr-defined]


def own_layers(pl: Any, kind: str) -> Any:
    class Module(_OwnLayers, pl.LightningModule):  # type: ignore[misc]
        how = kind

    return Module()


def test_forward_called_directly_is_a_call(pl: Any, trainer: Callable[..., Any], tmp_path: Any) -> None:
    plugins, modules = [], []
    for kind in ("call", "direct"):
        modules.append(own_layers(pl, kind))
        report = InterpretabilityReport(
            folder=str(tmp_path / kind), queries=32, held_out=[MLPStudent(width=4)], passes=1,
            random_init_control=False, progress=False,
        )  # fmt: skip
        plugins.append(fitted(pl, trainer, modules[-1], report))
        assert "forward" not in vars(type(modules[-1])) and "forward" not in vars(modules[-1])
        assert report.record is not None and report.record.task.loss is not None
    assert torch.equal(weights_of(modules[0]), weights_of(modules[1]))
    assert any(plugins[1].built.cohort.active.values()), "or the test could not fail"  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["both", "direct twice"])
def test_each_direct_call_counts_once(pl: Any, kind: str) -> None:
    module = own_layers(pl, kind)
    recorder = Recorder(module)
    recorder.install()
    recorder.open()
    module.training_step((torch.ones(4, 10), torch.zeros(4).long()), 0)
    assert [float(r.inputs[0, 0]) for r in recorder.close()] == [1.0, 0.5]
    recorder.remove()


def test_a_copy_made_meanwhile_is_a_model_of_its_own(pl: Any) -> None:
    import copy

    module = own_layers(pl, "direct")
    seen: list[Any] = []
    watching = [DirectCalls(module, lambda *call: seen.append(call)) for _ in range(2)]
    for each in watching:
        each.install()
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.down.bias.add_(1.0)
    x = torch.ones(2, 10)
    torch.testing.assert_close(other.forward(x), module.forward(x) + 1)
    assert len(seen) == 2, "the copy's call is nobody's"
    for each in watching:
        each.remove()
        each.remove()
    assert "forward" not in vars(type(module)) and type(module).forward is _OwnLayers.forward


def test_somebody_elses_forward_stays(pl: Any) -> None:
    module = own_layers(pl, "direct")
    watching = DirectCalls(module, lambda *call: None)
    watching.install()
    theirs = lambda self, x: x
    type(module).forward = theirs
    watching.remove()
    assert type(module).forward is theirs


def test_a_target_network_that_no_optimizer_holds_is_no_model(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)
    module.target = make_module(pl).net
    module.configure_optimizers = lambda: torch.optim.SGD(module.net.parameters(), 0.1)
    plugin = fitted(pl, trainer, module)
    assert plugin.built is not None and plugin.built.plan.kind == "distribution"


def test_calls_within_vmap_are_not_recorded(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)

    def step(batch: Any, batch_idx: int) -> Tensor:
        jacobian = torch.func.vmap(torch.func.jacrev(module.net))(batch[0])
        return cross_entropy(module.net(batch[0]), batch[1]) + 1e-3 * jacobian.square().mean()  # type: ignore[no-any-return]

    module.training_step = step
    assert fitted(pl, trainer, module)._warned is False


@pytest.mark.parametrize("plugins", [{"model": "net"}, {"taps": "net"}, {"reads": "net"}, {}])
def test_scripted_modules_are_refused(pl: Any, trainer: Callable[..., Any], plugins: Any) -> None:
    module = make_module(pl)
    module.net = torch.jit.script(module.net)
    before = weights_of(module)
    with pytest.raises(ValueError, match="TorchScript" if plugins else "`model`: no single module"):
        fitted(pl, trainer, module, **plugins)
    assert torch.equal(weights_of(module), before)
    trainer(L1Sparsity(5.0)).fit(module, loader())
    assert not torch.equal(weights_of(module), before)


def test_reading_what_is_imitated_is_refused(pl: Any, trainer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="`reads`: 'net.4' returns the very numbers"):
        fitted(pl, trainer, make_module(pl), reads="net.4")


class _TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        out, state = self.lstm(x)
        return self.head(out[-1]), state


def test_time_before_batch_is_read_with_the_batch_first() -> None:
    root = nn.ModuleDict({"net": _TimeFirst()})
    recorder = Recorder(root)
    recorder.install()
    recorder.open()
    x = torch.randn(5, 8, 2)
    root["net"](x)
    (found,) = recorder.close()
    assert torch.equal(found.inputs, x.transpose(0, 1)) and found.output.shape == (8, 5) and recorder.output == "0"
    recorder.remove()


# -- what no student could do before


def test_one_number_for_each_example(pl: Any, trainer: Callable[..., Any]) -> None:
    def module() -> Any:
        made = make_module(pl)
        made.net[4] = nn.Linear(64, 1)
        made.training_step = lambda batch, batch_idx: mse_loss(made.net(batch[0])[:, 0], batch[0].sum(1))
        made.validation_step = None
        return made

    plugin = fitted(pl, trainer, module())
    assert plugin.built is not None and plugin.built.kind == "values"
    with pytest.raises(ValueError, match="`imitate` = 'distribution' needs at least 2 outputs"):
        fitted(pl, trainer, module(), imitate="distribution")


def test_a_term_that_never_counted_is_said(pl: Any, trainer: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="in 24 batches no student came to know more"):
        fitted(pl, trainer, make_module(pl), learning_rate=1e-9)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_nothing_to_make_sparse_is_an_error_only_if_it_was_asked_for(
    pl: Any, trainer: Callable[..., Any], strength: float
) -> None:
    module = make_module(pl)
    module.net = nn.Sequential(nn.Linear(10, 5)).requires_grad_(False)
    module.scale = nn.Parameter(torch.ones(5))
    module.training_step = lambda batch, batch_idx: cross_entropy(module.net(batch[0]) * module.scale, batch[1])
    if strength:
        with pytest.raises(ValueError, match="`targets`: the model has no weight"):
            trainer(L1Sparsity(strength)).fit(module, loader())
    else:
        trainer(L1Sparsity(strength)).fit(module, loader())
