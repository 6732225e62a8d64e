"""Hands zeros over to ``torch.sparse``: linear layers that skip them."""

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.sparsity.weights._flat_pieces import refuse_sharded


class SparseLinear(nn.Module):
    """A linear layer for evaluation whose weight is a compressed sparse row (CSR) tensor.

    Args:
        weight: Dense, (outputs, inputs).
        bias: (outputs,), or None.

    Example:
        >>> layer = SparseLinear(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), None)
        >>> layer(torch.tensor([[3.0, 4.0]]))
        tensor([[8., 0.]])
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        compressed = weight.detach().to_sparse_csr()
        # In parts: a sparse tensor can't be copied by `copy.deepcopy`.
        self.register_buffer("values", compressed.values())
        self.register_buffer("rows", compressed.crow_indices().int())
        self.register_buffer("columns", compressed.col_indices().int())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The CSR tensor."""
        shape = (self.out_features, self.in_features)
        return torch.sparse_csr_tensor(self.rows, self.columns, self.values, shape, check_invariants=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        examples = x.reshape(-1, self.in_features).T
        # Two to five times as fast as `linear` with this weight, which multiplies the other way round.
        weight, bias = self.weight, self.bias
        found = weight @ examples if bias is None else torch.addmm(bias[:, None], weight, examples)
        return found.T.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As ``nn.Linear`` says it, and the share of weights that are not zero."""
        density = self.values.numel() / max(1, self.out_features * self.in_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, density={density:.3g}"


class SemiStructuredLinear(nn.Module):
    """A linear layer for evaluation whose weight is a 2:4 semi-structured tensor.

    Args:
        weight: As ``torch.sparse.to_sparse_semi_structured`` makes it, (outputs, inputs).
        bias: (outputs,), or None.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return nn.functional.linear(x.contiguous(), self.weight, self.bias)  # it views x as a matrix

    def extra_repr(self) -> str:
        """As ``nn.Linear`` says it."""
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, density=0.5"


class HandedOver(NamedTuple):
    """What :func:`to_torch_sparse` returns.

    Attributes:
        model: The copy, for evaluation.
        taken: Layer -> its share of zeros.
        left: Layer -> why it stayed dense.
    """

    model: nn.Module
    taken: dict[str, float]
    left: dict[str, str]


def to_torch_sparse(model: nn.Module, layout: Literal["csr", "2:4"] = "csr", least: float = 0.8) -> HandedOver:
    """A copy of a model whose sparse linear layers make use of their zeros, with equal outputs up to rounding.

    - "csr": layers become :class:`SparseLinear`. On a CPU it pays from about 80 % zeros on (``benchmarks/sparse_layers.py``).
    - "2:4": layers become :class:`SemiStructuredLinear` (``torch.sparse.to_sparse_semi_structured``), in 9/16 of the
      memory: a CUDA device of compute capability 8.0 or more, float16 or bfloat16, at most two weights that are not zero in
      each four of a row, numbers of inputs and outputs that torch's kernels take (multiples of 16, of 32 and 64 without
      cuSPARSELt). Nothing is cut off to reach the pattern: a layer that has it not stays, and ``left`` counts what is too
      much.

    The output projection of an ``nn.MultiheadAttention`` stays, for that reads the weight by itself. Parametrised and other
    layers with a forward of their own stay too.

    Args:
        model: Not modified.
        layout: Which.
        least: Share of zeros below which a layer stays dense; of no account to "2:4".

    Raises:
        ValueError: An unknown layout, ``least`` outside of [0, 1], or sharded weights.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> net[0].weight.data[1:] = 0
        >>> found = to_torch_sparse(net, least=0.5)
        >>> found.taken, found.left
        ({'0': 0.6666666666666666}, {'2': 'has 0 % zeros'})

    Source: ``torch.sparse``; 2:4 after Mishra et al., "Accelerating sparse deep neural networks", 2021.
    """
    if layout not in ("csr", "2:4"):
        raise ValueError(f'`layout` must be "csr" or "2:4", got {layout!r}.')
    if not 0 <= least <= 1:
        raise ValueError(f"`least` is a share from 0 to 1, got {least}.")
    refuse_sharded(model)
    found = HandedOver(copy.deepcopy(model), {}, {})
    holder = nn.ModuleDict({"model": found.model})  # so that a model that is one layer has an owner too
    done: dict[nn.Module, nn.Module] = {}  # a layer may hang in several places
    for place, owner in list(holder.named_modules()):
        for name, layer in list(owner._modules.items()):
            if isinstance(layer, nn.Linear):
                if layer not in done:
                    path = f"{place}.{name}".removeprefix(".").removeprefix("model").removeprefix(".")
                    done[layer] = _handed_over(owner, layer, path, layout, least, found)
                setattr(owner, name, done[layer])
    for module in found.model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # the fast path reads weights without calling their layers
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # leads to the fast path too
    return found._replace(model=holder["model"])


def _handed_over(
    owner: nn.Module, layer: nn.Linear, path: str, layout: str, least: float, found: HandedOver
) -> nn.Module:
    zeros = int((layer.weight == 0).sum()) / max(1, layer.weight.numel())
    reason = _why_not(owner, layer) or (_not_2_to_4(layer.weight) if layout == "2:4" else None)
    if (
        reason is None
        and layout == "csr"
        and layer.weight.is_cpu
        and layer.weight.dtype in (torch.float16, torch.bfloat16)
    ):
        reason = (
            f"holds {str(layer.weight.dtype).removeprefix('torch.')}, of which torch has no sparse product on a CPU"
        )
    if reason is None and layout == "csr" and zeros < least:
        reason = f"has {100 * zeros:.0f} % zeros"
    made: nn.Module | None = None
    if reason is None and layout == "2:4":
        try:
            weight = torch.sparse.to_sparse_semi_structured(layer.weight.detach().contiguous())
            made = SemiStructuredLinear(weight, layer.bias)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # shapes differ by backend
            reason = f"is not taken by torch: {error}"
    elif reason is None:
        made = SparseLinear(layer.weight, layer.bias)
    if made is None:
        found.left[path] = str(reason)
        return layer
    found.taken[path] = zeros
    return made


def _why_not(owner: nn.Module, layer: nn.Linear) -> str | None:
    if isinstance(owner, nn.MultiheadAttention):
        return "is read by its attention without a call"
    if type(layer).forward is not nn.Linear.forward or nn.utils.parametrize.is_parametrized(layer):
        return f"is no plain linear layer ({type(layer).__name__})"
    if layer._forward_pre_hooks or layer._forward_hooks:
        return "has hooks"
    return None


def _not_2_to_4(weight: Tensor) -> str | None:
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"holds {str(weight.dtype).removeprefix('torch.')}; 2:4 needs float16 or bfloat16"
    if weight.shape[1] % 4:
        return f"has {weight.shape[1]} inputs; 2:4 needs a multiple of 4"
    fours = (weight != 0).view(len(weight), -1, 4).sum(-1)
    if (fours > 2).any():
        return f"has {int((fours > 2).sum())} of {fours.numel()} fours with more than two weights that are not zero"
    return _no_kernels(weight.device)


def _no_kernels(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"is on {device.type}; 2:4 needs a CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < (8, 0):
        return f"is on a device of compute capability {capability[0]}.{capability[1]}; 2:4 needs 8.0 or more"
    return None
