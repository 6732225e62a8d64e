"""What models take and return, one program each: the term's gradient equals the objective written by hand."""

import copy
import importlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from watched import Facts, Program, cross_entropy, fit, loader_of, make_plugin, rows, watched

from legibility.lightning_plugins import InterpretabilityReport
from legibility.students import GRUStudent


@pytest.fixture
def pl() -> Any:
    """One namespace is enough here: nothing of Lightning's is touched."""
    return pytest.importorskip("lightning.pytorch")


# -- outputs


class _Plain(nn.Module):
    """10 -> 32 -> 5, returns what `wrap` makes of logits and hidden."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any] = lambda logits, hidden: logits) -> None:
        super().__init__()
        self.up, self.down, self.wrap = nn.Linear(10, 32), nn.Linear(32, 5), wrap

    def forward(self, x: Tensor) -> Any:
        hidden = self.up(x).tanh()
        return self.wrap(self.down(hidden), hidden)

    def logits(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())  # type: ignore[no-any-return]


@dataclass
class _Answer:
    hidden: Tensor
    scores: Tensor


class _Pair(NamedTuple):
    scores: Tensor
    hidden: Tensor


class _StandIn(OrderedDict[str, Any]):
    """Hugging Face's ModelOutput as far as it matters: a dataclass that is also a dictionary of what is not None."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            if getattr(self, item.name) is not None:
                self[item.name] = getattr(self, item.name)

    def __getitem__(self, key: Any) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]


try:
    _ModelOutput: Any = importlib.import_module("transformers.utils").ModelOutput
except ImportError:
    _ModelOutput = _StandIn


@dataclass
class _CausalOutput(_ModelOutput):  # type: ignore[misc]
    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None


OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str | None, Callable[[Any], Tensor]]] = {
    # name: (what the model returns, `output`, how the user gets the logits)
    "tuple": (lambda logits, hidden: (hidden, logits), "1", lambda r: r[1]),
    "list": (lambda logits, hidden: [logits, hidden], "0", lambda r: r[0]),
    "loss and one tensor": (lambda logits, hidden: (hidden.mean(), logits), None, lambda r: r[1]),
    "dict with logits": (lambda logits, hidden: {"hidden": hidden, "logits": logits}, None, lambda r: r["logits"]),
    "nested dict": (lambda logits, hidden: {"a": [hidden, {"b": logits}]}, "a.1.b", lambda r: r["a"][1]["b"]),
    "dataclass": (lambda logits, hidden: _Answer(hidden, logits), "scores", lambda r: r.scores),
    "namedtuple": (lambda logits, hidden: _Pair(logits, hidden), "scores", lambda r: r.scores),
    "ModelOutput": (
        lambda logits, hidden: _CausalOutput(hidden.mean(), logits, object(), (hidden, hidden)),
        None,
        lambda r: r.logits,
    ),
    "attribute": (
        lambda logits, hidden: torch.distributions.Categorical(logits=logits, validate_args=False),
        "logits",
        lambda r: r.logits,
    ),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_every_kind(pl: Any, trainer: Callable[..., Any], kind: str) -> None:
    wrap, output, pick = OUTPUTS[kind]
    program = Program(
        net=lambda: _Plain(wrap),
        task=lambda net, b: cross_entropy(pick(net(b[0])), b[1]),
        facts=lambda net, b: Facts(b[0], net.logits(b[0])),
        options={"output": output},
    )
    fit(pl, trainer, program)


# -- inputs


class _KeywordOnly(_Plain):
    def forward(self, *, labels: Tensor, attention_mask: Tensor, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x)


class _Tokens(nn.Module):
    """A tied language model: embedding -> linear -> embedding's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 24)
        self.mix = nn.Linear(24, 24)
        self.head = nn.Linear(24, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, flat: bool = False) -> Tensor:
        out = self.head(self.mix(self.embedding(input_ids)).tanh())
        return out.flatten(0, 1) if flat else out  # type: ignore[no-any-return]


def _token_batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 9, (8, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(8, 6, dtype=torch.long)
    mask[::2, 3:] = 0
    return ids, mask


class _Encoder(nn.Module):
    """A transformer encoder; the padding mask is True where nothing is."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 24)
        layer = nn.TransformerEncoderLayer(24, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(24, 9)

    def forward(self, ids: Tensor, mask: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(ids), mask, src_key_padding_mask, is_causal=True)
        return self.head(hidden)  # type: ignore[no-any-return]


def _causal() -> Tensor:
    return torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)


def _encoder_task(net: Any, b: Any) -> Tensor:
    return cross_entropy(net(b[0], _causal(), src_key_padding_mask=b[1] == 0), b[0])


INPUTS = {
    "keyword-only, the input last": Program(
        net=_KeywordOnly,
        task=lambda net, b: cross_entropy(net(labels=b[1], attention_mask=torch.ones(16, 10), x=b[0]), b[1]),
        facts=lambda net, b: Facts(b[0], net.logits(b[0])),
    ),
    "token ids with an attention mask of integers, tied weights": Program(
        net=_Tokens,
        task=lambda net, b: cross_entropy(net(*b), b[0]),
        facts=lambda net, b: Facts(b[0], net(b[0]), b[1].bool()),
        batch=_token_batch,
        options={"taps": "net.mix"},
    ),
    "batch and time flattened by the model": Program(
        net=_Tokens,
        task=lambda net, b: cross_entropy(net(attention_mask=b[1].float(), input_ids=b[0], flat=True), b[0]),
        facts=lambda net, b: Facts(b[0], net(b[0]), b[1].bool()),
        batch=_token_batch,
    ),
    "a padding mask with the inverted meaning beside a causal one": Program(
        net=_Encoder,
        task=_encoder_task,
        facts=lambda net, b: Facts(b[0], net(b[0], _causal(), b[1] == 0), b[1].bool()),
        batch=_token_batch,
        options={"taps": "net.encoder"},
    ),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_and_masks(pl: Any, trainer: Callable[..., Any], kind: str) -> None:
    fit(pl, trainer, INPUTS[kind])


def test_padding_has_no_influence_on_the_students(pl: Any, trainer: Callable[..., Any]) -> None:
    program = INPUTS["token ids with an attention mask of integers, tied weights"]
    students = []
    for garbage in (0, 7):

        def batch(garbage: int = garbage) -> tuple[Tensor, Tensor]:
            ids, mask = _token_batch()
            return ids.masked_fill(mask == 0, garbage), mask

        def task(net: Any, b: Any) -> Tensor:
            out = net(*b)
            return nn.functional.cross_entropy(out[b[1] == 1], b[0][b[1] == 1])

        same = Program(program.net, task, program.facts, {"students": [GRUStudent(width=8)]}, batch)
        plugin = fit(pl, trainer, same)
        assert plugin.built is not None
        students.append(plugin.built.cohort.networks["gru"].state_dict())
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name])


class _Recurrent(nn.Module):
    """LSTM over a packed sequence; returns it packed with the final state, or classes of the last step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.lstm, self.head, self.kind = nn.LSTM(4, 12, batch_first=True), nn.Linear(12, 5), kind

    def forward(self, packed: PackedSequence) -> Any:
        out, (last, cell) = self.lstm(packed)
        if self.kind == "last":
            return self.head(last[-1])
        return out._replace(data=self.head(out.data)), (last, cell)


def _sequences() -> Any:
    generator = torch.Generator().manual_seed(3)
    lengths = [5, 2, 6, 1, 4, 6, 3, 2]
    return [torch.randn(n, 4, generator=generator) for n in lengths], torch.arange(8) % 5


def _packed(b: Any) -> PackedSequence:
    return pack_sequence(b[0], enforce_sorted=False)


def _padded(b: Any) -> tuple[Tensor, Tensor]:
    inputs = nn.utils.rnn.pad_sequence(b[0], batch_first=True)
    return inputs, torch.tensor([[i < len(s) for i in range(6)] for s in b[0]])


PACKED = {
    "packed in, classes out": Program(
        net=lambda: _Recurrent("last"),
        task=lambda net, b: cross_entropy(net(_packed(b)), b[1]),
        facts=lambda net, b: Facts(_padded(b)[0], net(_packed(b)), _padded(b)[1]),
        batch=_sequences,
        options={"taps": "net.lstm", "students": [GRUStudent(width=4)]},
    ),
    "packed in, packed out": Program(
        net=lambda: _Recurrent("all"),
        task=lambda net, b: net(_packed(b))[0].data.logsumexp(-1).mean(),
        facts=lambda net, b: Facts(
            _padded(b)[0], pad_packed_sequence(net(_packed(b))[0], batch_first=True)[0], _padded(b)[1]
        ),
        batch=_sequences,
        options={"taps": "net.lstm", "output": "0", "students": [GRUStudent(width=4)]},
    ),
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_sequences(pl: Any, trainer: Callable[..., Any], kind: str) -> None:
    plugin = fit(pl, trainer, PACKED[kind])
    assert plugin.built is not None and plugin.built.plan.signature.taps["net.lstm"].shape == (6, 12)


class _Graph:
    """A batch of graphs: an object that is no tensor."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(4)
        self.nodes = torch.randn(40, 6, generator=generator)
        self.graph = torch.arange(40) % 8
        self.classes = torch.arange(8) % 5


class _GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pool, self.head = nn.Linear(6, 16), nn.Identity(), nn.Linear(16, 5)

    def forward(self, batch: _Graph) -> Tensor:
        nodes = self.embed(batch.nodes).tanh()
        pooled = torch.zeros(8, 16).index_add(0, batch.graph, nodes)
        return self.head(self.pool(pooled))  # type: ignore[no-any-return]


class _LooseGraphNet(_GraphNet):
    def forward(self, nodes: Tensor, batch: _Graph) -> Tensor:  # type: ignore[override]
        return super().forward(batch)


def _pooled(net: Any, b: _Graph) -> Tensor:
    return torch.zeros(8, 16).index_add(0, b.graph, net.embed(b.nodes).tanh())


def _graph_program(**options: Any) -> Program:
    return Program(
        net=_GraphNet,
        task=lambda net, b: cross_entropy(net(b), b.classes),
        facts=lambda net, b: Facts(_pooled(net, b), net(b)),
        options=options,
        batch=_Graph,
    )


def test_graph_batches_are_read_at_a_named_activation(pl: Any, trainer: Callable[..., Any]) -> None:
    fit(pl, trainer, _graph_program(reads="net.pool"))


def test_graph_batches_without_a_name_ask_for_it(pl: Any, trainer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"`reads`: the model's arguments \(batch: _Graph\).*reads=\"encoder"):
        fit(pl, trainer, _graph_program())
    loose = _graph_program()
    loose.net, loose.task = _LooseGraphNet, lambda net, b: cross_entropy(net(b.nodes, b), b.classes)
    with pytest.raises(ValueError, match=r"`reads`: students would read \(40, 6\) and imitate \(8, 5\).*net.pool"):
        fit(pl, trainer, loose)


# -- in-place operations, checkpointing, parameters of every kind


def _halved(net: Any, b: Any) -> Tensor:
    logits = net(b[0])
    logits.mul_(0.5).tanh_()
    return cross_entropy(logits, b[1])


def _clamped(net: Any, b: Any) -> Tensor:
    logits = net(b[0])
    loss = cross_entropy(logits.clone(), b[1])
    with torch.no_grad():
        logits.zero_()
    return loss


@pytest.mark.parametrize("task", [_halved, _clamped])
def test_an_inplace_operation_after_the_call_changes_nothing(pl: Any, trainer: Callable[..., Any], task: Any) -> None:
    program = Program(_Plain, task, lambda net, b: Facts(b[0], net.logits(b[0])))
    fit(pl, trainer, program)


class _Blocks(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.second, self.reentrant = nn.Linear(10, 32), nn.Linear(32, 5), reentrant
        self.inner = nn.Sequential(nn.Linear(32, 32), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.reentrant is None:
            return self.second(self.inner(hidden))  # type: ignore[no-any-return]
        return self.second(checkpoint(self.inner, hidden, use_reentrant=self.reentrant))  # type: ignore[no-any-return]


def _checkpointed(net: Any, b: Any) -> Tensor:
    return cross_entropy(checkpoint(net, b[0], use_reentrant=False), b[1])


@pytest.mark.parametrize("taps", [(), "net.inner.0"])
@pytest.mark.parametrize("whole", [False, True])
def test_activation_checkpointing(pl: Any, trainer: Callable[..., Any], whole: bool, taps: Any) -> None:
    program = Program(
        net=lambda: _Blocks(None if whole else False),
        task=_checkpointed if whole else lambda net, b: cross_entropy(net(b[0]), b[1]),
        facts=lambda net, b: Facts(b[0], net.second(net.inner(net.first(b[0])))),
        options={"taps": taps, "model": "net"},
    )
    plugin = fit(pl, trainer, program)
    assert plugin.built is not None and list(plugin.built.plan.signature.taps) == ([taps] if taps else [])


def test_reentrant_checkpointing_of_a_tap_names_the_switch(pl: Any, trainer: Callable[..., Any]) -> None:
    plain = Program(lambda: _Blocks(True), lambda net, b: cross_entropy(net(b[0]), b[1]), lambda net, b: Facts(b[0], b))
    plain.options = {"taps": "net.inner.0"}
    with pytest.raises(ValueError, match="`taps`.*net.inner.0 never ran.*use_reentrant=False"):
        fit(pl, trainer, plain)


class _Odd(_Plain):
    """With a 0-d parameter, a complex one, a frozen teacher that is larger, and a tensor that nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.phase = nn.Parameter(torch.ones(5, dtype=torch.complex64))
        self.teacher = nn.Sequential(nn.Linear(10, 300), nn.Linear(300, 5)).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        self.teacher(x)
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) * self.gain * self.phase.real


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("net", [_Plain, _Odd])
def test_parameters_of_every_kind(pl: Any, trainer: Callable[..., Any], net: Any, dtype: torch.dtype) -> None:
    def make() -> nn.Module:
        made: nn.Module = net()
        for parameter in made.parameters():
            if not parameter.is_complex():
                parameter.data = parameter.data.to(dtype)
        return made

    program = Program(
        net=make,
        task=lambda net, b: cross_entropy(net(b[0]), b[1]),
        facts=lambda net, b: Facts(b[0], net.logits(b[0])),
        batch=lambda: rows(dtype),
    )
    fit(pl, trainer, program)


# -- where the model is


def test_a_module_that_returns_its_loss_is_looked_into(pl: Any, trainer: Callable[..., Any]) -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = _Plain()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(self.plain(x), y)

    program = Program(WithLoss, lambda net, b: net(*b), lambda net, b: Facts(b[0], net.plain.logits(b[0])))
    assert fit(pl, trainer, program).built is not None


@pytest.mark.parametrize("call", ["forward", "parts"])
def test_a_model_that_is_not_called_is_asked_for(pl: Any, trainer: Callable[..., Any], call: str) -> None:
    def parts(net: Any, b: Any) -> Tensor:
        return cross_entropy(net.down(net.up(b[0])), b[1])

    small = Program(
        net=_Halves,
        task=parts if call == "parts" else lambda net, b: cross_entropy(net.forward(b[0]), b[1]),
        facts=lambda net, b: Facts(b[0], b[0]),
    )
    with pytest.raises(ValueError, match=r"`model`: no single module.*self\.net\(x\).*net.up \(50% .*net.down"):
        fit(pl, trainer, small)


class _Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))  # type: ignore[no-any-return]


def test_a_named_model_that_never_runs_is_not_met_with_silence(pl: Any, trainer: Callable[..., Any]) -> None:
    program = Program(_Halves, lambda net, b: cross_entropy(net.forward(b[0]), b[1]), lambda net, b: Facts(b[0], b[0]))
    program.options = {"model": "net"}
    plugin = make_plugin(**program.options)
    module = watched(pl, program, plugin)
    module.on_before_optimizer_step = lambda optimizer: None
    module.on_train_batch_end = lambda *args: None
    with pytest.warns(UserWarning, match=r"`model`: 'net' was not called with gradients in 2 training steps"):
        trainer(plugin).fit(module, loader_of(program, 2))


class _Student(nn.Module):
    """Makes its own target network in the first step, while the hooks are on."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = _Plain(_only_logits)
        self.target: _Plain | None = None


def _only_logits(logits: Tensor, hidden: Tensor) -> Tensor:
    return logits


def _with_target(net: Any, b: Any) -> Tensor:
    if net.target is None:
        net.target = copy.deepcopy(net.plain).requires_grad_(False)
    return cross_entropy(net.plain(b[0]), b[1]) + cross_entropy(net.target(b[0]), b[1])


def test_averages_and_copies_are_not_recorded_and_keep_no_hooks(pl: Any, trainer: Callable[..., Any]) -> None:
    program = Program(_Student, _with_target, lambda net, b: Facts(b[0], net.plain.logits(b[0])))
    plugin = make_plugin()
    module = watched(pl, program, plugin)
    average = [pl.callbacks.WeightAveraging()] if hasattr(pl.callbacks, "WeightAveraging") else []  # from 2.6 on
    trainer([*average, plugin]).fit(module, loader_of(program, 3))
    assert module.steps_with_term == 2
    assert not any(m._forward_hooks or m._forward_hooks_with_kwargs for m in module.modules())
    assert module.net.target is not None


# -- the report asks the same kinds of models again


@pytest.mark.parametrize("kind", ["packed in, packed out", "packed in, classes out"])
def test_the_report_keeps_and_asks_packed_sequences(pl: Any, trainer: Callable[..., Any], kind: str) -> None:
    program = PACKED[kind]
    torch.manual_seed(0)
    net: Any = program.net()
    net.head.weight.data *= 20  # so that there is something to predict
    report = InterpretabilityReport(
        queries=32,
        taps="net.lstm",
        output=program.options.get("output"),
        passes=1,
        progress=False,
        budget_seconds=float("inf"),
        scores="canonical_gini",
    )

    class Bare(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return program.task(self.net, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    trainer(report).fit(Bare(), loader_of(program, 8))
    assert report.record is not None
    assert not any("failed" in note for note in report.record.notes), report.record.notes
    if kind == "packed in, classes out":
        values = {score.name: score.value for score in report.record.scores}
        assert values["patch_through_kl/net.lstm"] is not None, report.record.scores
