"""Zeros that `torch.sparse` makes use of: the same outputs, and what stays dense by name."""

import copy
import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.sparse import _semi_structured_conversions

from legibility.lightning_plugins import to_torch_sparse
from legibility.lightning_plugins.sparsity import _torch_sparse
from legibility.lightning_plugins.sparsity._torch_sparse import SparseLinear


def pruned(model: nn.Module, density: float = 0.1) -> nn.Module:
    """Each matrix with that many weights."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand_like(parameter) < density)
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (12,), (0, 12)])
def test_one_layer_computes_the_same(bias: bool, shape: tuple[int, ...]) -> None:
    layer = pruned(nn.Linear(12, 7, bias=bias), 0.2)
    found = to_torch_sparse(layer, least=0.5)
    x = torch.randn(shape)
    assert isinstance(found.model, SparseLinear) and list(found.taken) == [""]
    torch.testing.assert_close(found.model(x), layer(x))
    assert layer.weight.layout == torch.strided, "the model itself is untouched"


def test_gradients_reach_the_input() -> None:
    layer = pruned(nn.Linear(6, 4), 0.3)
    x = torch.randn(3, 6, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    to_torch_sparse(layer, least=0.0).model(x).square().sum().backward()
    layer(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("training", [True, False])
def test_a_transformer_and_its_fast_path(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, activation="gelu")
    model = pruned(nn.TransformerEncoder(layer, 2)).train(training)
    found = to_torch_sparse(model)
    assert set(found.taken) == {f"layers.{i}.linear{j}" for i in range(2) for j in (1, 2)}
    assert found.left["layers.0.self_attn.out_proj"] == "is read by its attention without a call"
    x, padding = torch.randn(3, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
    with torch.no_grad():
        for options in ({}, {"src_key_padding_mask": padding}):
            ours, theirs = found.model(x, **options), model(x, **options)
            real = ~padding[:, : theirs.shape[1]] if options else torch.ones_like(padding)
            torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-5)


def test_what_stays_dense_says_why() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model = nn.Sequential(
        pruned(nn.Linear(8, 8)), nn.Linear(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), Own(8, 8)
    )
    hooked = pruned(nn.Linear(8, 8))
    hooked.register_forward_hook(lambda *_: None)
    found = to_torch_sparse(model.append(hooked))
    assert list(found.taken) == ["0"]
    assert found.left == {
        "1": "has 0 % zeros",
        "2": "is no plain linear layer (ParametrizedLinear)",
        "3": "is no plain linear layer (Own)",
        "4": "has hooks",
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_dense_on_a_cpu(dtype: torch.dtype) -> None:
    layer = pruned(nn.Linear(8, 8)).to(dtype)
    found = to_torch_sparse(layer)
    assert not found.taken and "of which torch has no sparse product on a CPU" in found.left[""]
    found.model(torch.zeros(2, 8, dtype=dtype))


def test_shared_layers_and_a_copy_and_a_file() -> None:
    shared = pruned(nn.Linear(8, 8))
    model = nn.Sequential(shared, nn.Tanh(), shared)
    found = to_torch_sparse(model)
    assert found.model[0] is found.model[2] and isinstance(found.model[0], SparseLinear)  # type: ignore[index]
    x = torch.randn(4, 8)
    torch.testing.assert_close(found.model(x), model(x))
    torch.testing.assert_close(copy.deepcopy(found.model)(x), model(x))
    file = io.BytesIO()
    torch.save(found.model.state_dict(), file)
    file.seek(0)
    empty = to_torch_sparse(model).model
    for buffer in empty.buffers():
        buffer.zero_()
    empty.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(empty(x), model(x))
    torch.testing.assert_close(empty.double()(x.double()), model.double()(x.double()))


def test_layers_go_by_the_names_that_users_gave() -> None:
    model = nn.ModuleDict({"model": nn.Sequential(pruned(nn.Linear(8, 8))), "submodel": nn.Linear(8, 8)})
    found = to_torch_sparse(model)
    assert list(found.taken) == ["model.0"] and list(found.left) == ["submodel"]


def test_the_pattern_of_two_in_four_is_checked_and_never_made() -> None:
    good = torch.tensor([1.0, 0.0, 2.0, 0.0]).repeat(32, 16)
    bad = good.clone()
    bad[0, 1] = 3.0
    layers = [nn.Linear(64, 32, dtype=torch.bfloat16) for _ in range(2)] + [nn.Linear(64, 32), nn.Linear(6, 2).half()]
    for layer, weight in zip(layers, (good, bad, good), strict=False):
        layer.weight.data.copy_(weight)
    found = to_torch_sparse(nn.Sequential(*layers), "2:4")
    assert found.taken == {}
    assert found.left == {
        "0": "is on cpu; 2:4 needs a CUDA device",
        "1": "has 1 of 512 fours with more than two weights that are not zero",
        "2": "holds float32; 2:4 needs float16 or bfloat16",
        "3": "has 6 inputs; 2:4 needs a multiple of 4",
    }
    assert torch.equal(found.model[1].weight, layers[1].weight)  # type: ignore[index]


@pytest.fixture
def kernels_by_hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's own packing and dispatch of 2:4 weights on the CPU; only the two products that a GPU has are written out."""
    weights: Any = torch.sparse.SparseSemiStructuredTensor
    cutlass: Any = torch.sparse.SparseSemiStructuredTensorCUTLASS
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        pytest.skip("what is replaced here lies elsewhere in older versions of torch")
    check = cutlass._validate_device_dim_dtype_shape.__func__

    def all_but_the_device(cls: Any, tensor: Tensor) -> None:
        seen = SimpleNamespace(is_cuda=True, dim=tensor.dim, is_contiguous=tensor.is_contiguous)
        seen.dtype, seen.shape = tensor.dtype, tensor.shape
        check(cls, seen)

    def product(packed: Tensor, meta: Tensor, x: Tensor, *, out_dtype: Any = None) -> Tensor:
        conversions: Any = _semi_structured_conversions
        dense: Tensor = conversions.sparse_semi_structured_to_dense_cutlass(packed, meta)
        return dense @ x

    def biased(bias: Tensor, packed: Tensor, meta: Tensor, x: Tensor, *, out_dtype: Any = None) -> Tensor:
        return product(packed, meta, x) + bias[:, None]

    monkeypatch.setattr(weights, "_FORCE_CUTLASS", True)
    monkeypatch.setattr(cutlass, "_validate_device_dim_dtype_shape", classmethod(all_but_the_device))
    monkeypatch.setattr(_torch_sparse, "_no_kernels", lambda device: None)
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("_sparse_semi_structured_mm", product, "CPU")
    library.impl("_sparse_semi_structured_addmm", biased, "CPU")
    yield
    library._destroy()


def two_in_four(layer: nn.Linear) -> nn.Linear:
    """Any two of each four weights gone, of some fours more."""
    torch.manual_seed(0)
    fours = layer.weight.data.view(len(layer.weight), -1, 4)
    fours.scatter_(2, torch.rand_like(fours, dtype=torch.float32).argsort(-1)[..., :2], 0.0)
    fours[:3], fours[4, :, 0] = 0.0, 0.0
    return layer


@pytest.mark.usefixtures("kernels_by_hand")
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_two_in_four_packed_by_torch_computes_the_same(bias: bool, dtype: torch.dtype, gradients: bool) -> None:
    layer = two_in_four(nn.Linear(64, 32, bias=bias, dtype=dtype))
    found = to_torch_sparse(layer, "2:4")
    assert list(found.taken) == [""] and found.taken[""] > 0.5 and not found.left
    weight: Any = found.model.weight
    assert torch.equal(weight.to_dense(), layer.weight)
    held = sum(part.numel() * part.element_size() for part in (weight.packed, weight.meta))
    assert held == 9 / 16 * layer.weight.numel() * 2
    xs = [torch.randn(shape) for shape in ((5, 64), (2, 3, 64), (64,), (0, 64))]
    with torch.set_grad_enabled(gradients):
        for x in (x.to(dtype) for x in [*xs, torch.randn(64, 7).T, torch.randn(3, 2, 64).transpose(0, 1)]):
            for model in (found.model, copy.deepcopy(found.model)):
                torch.testing.assert_close(model(x), layer(x), rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("kernels_by_hand")
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
def test_shapes_that_the_kernels_do_not_take_stay() -> None:
    """A model is not lost for a head of ten classes."""
    model = nn.Sequential(two_in_four(nn.Linear(64, 64).half()), nn.ReLU(), two_in_four(nn.Linear(64, 10).half()))
    found = to_torch_sparse(model, "2:4")
    assert list(found.taken) == ["0"] and list(found.left) == ["2"]
    assert "is not taken by torch: " in found.left["2"] and "must be larger or equal" in found.left["2"]
    x = torch.randn(3, 64).half()
    torch.testing.assert_close(found.model(x), model(x), rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_in_four_computes_the_same(dtype: torch.dtype) -> None:
    layer = nn.Linear(256, 128, dtype=dtype, device="cuda")
    layer.weight.data.view(128, 64, 4)[..., 2:] = 0
    found = to_torch_sparse(layer, "2:4")
    assert found.taken == {"": 0.5}
    for x in (torch.randn(64, 256), torch.randn(3, 5, 256), torch.randn(256, 40).T):
        x = x.to("cuda", dtype)
        torch.testing.assert_close(found.model(x), layer(x), rtol=1e-2, atol=1e-2)
    head = nn.Linear(256, 10, dtype=dtype, device="cuda")
    head.weight.data.view(10, 64, 4)[..., 2:] = 0
    assert "is not taken by torch" in to_torch_sparse(head, "2:4").left[""]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layout": "coo"}, "`layout`.*'coo'"), ({"least": 1.5}, "`least`.*1.5")],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_torch_sparse(nn.Linear(2, 2), **options)  # type: ignore[arg-type]
