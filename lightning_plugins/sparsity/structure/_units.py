"""Units of a network: what belongs to each neuron, head, row or column, spread over several tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from legibility.lightning_plugins.foundation._names import plain_name
from legibility.lightning_plugins.sparsity.weights._flat_pieces import Cut, cuts
from legibility.lightning_plugins.sparsity.weights._latent import settle_rounded
from legibility.lightning_plugins.sparsity.weights._weights import local

PIECE = 1 << 16  # weights that are taken at a time where the processor's cache counts


@dataclass(frozen=True, eq=False)
class Piece:
    """What belongs to some units in one tensor: slices along one dimension.

    Along ``dim`` the tensor has outer x units x inner slices, and slice (o, u, i) belongs to unit u. The queries, keys
    and values of a head stand in one matrix three times (outer 3), a channel that was flattened feeds a run of columns
    (inner = its pixels).

    Attributes:
        name: The tensor's, without wrappers' prefixes.
        owner: The module that holds it,
        attribute: under this name.
        tensor: A parameter or a buffer.
        cut: How FSDP1 has cut it, if it has.
    """

    name: str
    owner: nn.Module
    attribute: str
    tensor: Tensor
    dim: int
    outer: int = 1
    inner: int = 1
    cut: Cut | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the whole tensor."""
        return self.tensor.shape if self.cut is None else self.cut.shape

    @property
    def count(self) -> int:
        """Number of units."""
        return self.shape[self.dim] // (self.outer * self.inner)

    def of_each_slice(self, values: Tensor) -> Tensor:
        """One value for each unit, repeated for each slice along ``dim``."""
        return values.view(1, -1, 1).expand(self.outer, -1, self.inner).reshape(-1)

    def slices(self, units: Tensor) -> Tensor:
        """Where the slices of some units stand along ``dim``, in their order within each outer block."""
        where = torch.arange(self.outer * self.count * self.inner).view(self.outer, self.count, self.inner)
        return where[:, units.cpu()].reshape(-1)

    def squares(self) -> Tensor:
        """Sum of squares of each unit's weights, in float32 at least; of a sharded tensor over all ranks."""
        tensor = self.tensor.detach() if self.cut is None else self.cut.block(self.tensor)
        dtype = None if tensor.dtype == torch.float64 else torch.float32
        others = [d for d in range(tensor.ndim) if d != self.dim]
        sums: Any  # a DTensor knows more than a Tensor
        if isinstance(tensor, DTensor):
            sums = tensor.to(dtype).square()
            sums = (sums.sum(others) if others else sums).full_tensor()
        elif others == [0]:  # columns: a few rows at a time, which is many times faster than their norms
            parts = torch.split(tensor, max(1, PIECE // tensor.shape[1]))
            sums = torch.stack([part.to(dtype).square().sum(0) for part in parts]).sum(0)
        elif others:
            sums = torch.linalg.vector_norm(tensor, dim=others, dtype=dtype).square()
        else:
            sums = tensor.to(dtype).square()
        if self.cut is not None:
            sums = self.cut.total(sums, self.dim)
        found: Tensor = sums.view(self.outer, -1, self.inner).sum((0, 2))
        return found

    def scale(self, factors: Tensor, rounding: Tensor | None = None) -> None:
        """Multiplies each unit's weights by a factor, in place.

        Args:
            factors: One for each unit.
            rounding: For a tensor of low precision: what rounding has taken of what this rank holds; goes on in place.
        """
        tensor, each = self.tensor.detach(), self.of_each_slice(factors)
        each = each.view([-1 if d == self.dim else 1 for d in range(len(self.shape))])
        if self.cut is not None:
            each = self.cut.part(each)
        if isinstance(tensor, DTensor):
            mesh = tensor.device_mesh
            each = DTensor.from_local(each, mesh, [Replicate()] * mesh.ndim, run_check=False)
        if rounding is None:
            tensor.mul_(each)
        else:
            each = local(torch.ones_like(tensor, dtype=rounding.dtype) * each)
            settle_rounded(local(tensor), rounding, lambda exact: exact * each, whole=True)


@dataclass(frozen=True, eq=False)
class Units:
    """All units of one layer.

    Attributes:
        name: The layer's module (neurons, heads) or weight (rows, columns).
        incoming: Rows and biases: what a unit computes its value from.
        outgoing: Columns of the layers that read it.
        between: A norm's entries: they follow the unit when it moves or goes, and are no weights.
        still: A unit whose incoming weights are zero puts out zero.
    """

    name: str
    incoming: tuple[Piece, ...]
    outgoing: tuple[Piece, ...] = ()
    between: tuple[Piece, ...] = ()
    still: bool = True

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The weights."""
        return self.incoming + self.outgoing

    @property
    def count(self) -> int:
        """Number of units."""
        return self.pieces[0].count

    @property
    def size(self) -> float:
        """Number of weights of one unit."""
        return sum(piece.shape.numel() for piece in self.pieces) / self.count

    def lengths(self) -> Tensor:
        """Euclidean norm of each unit's weights together."""
        squares = [piece.squares() for piece in self.pieces]
        return torch.stack(squares).sum(0).sqrt()


class Tensors:
    """Where the tensors of a model stand: owner, attribute and plain name of each, and which are shared."""

    def __init__(self, root: nn.Module) -> None:
        self.modules = {plain_name(name): module for name, module in root.named_modules()}
        self._seen: dict[int, int] = {}
        for module in dict.fromkeys(root.modules()):
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._seen[id(parameter)] = self._seen.get(id(parameter), 0) + 1
        self._cuts = cuts(root)

    def why_not(self, module: nn.Module, attributes: Sequence[str]) -> str | None:
        """Why a module's tensors can't be taken for those of its units; None if they can."""
        for attribute in attributes:
            parameter = module._parameters.get(attribute)
            if parameter is None:
                return f"has no parameter {attribute} of its own (parametrised?)"
            if self._seen[id(parameter)] > 1:
                return f"shares its {attribute} with another layer"
            if not parameter.requires_grad:
                return f"has a frozen {attribute}"
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                return f"has a {attribute} without a shape yet (lazy)"
        return None

    def piece(self, path: str, attribute: str, dim: int, outer: int = 1, inner: int = 1) -> Piece:
        """The slices of a module's tensor."""
        module = self.modules[path]
        name = f"{path}.{attribute}" if path else attribute
        tensor = getattr(module, attribute)
        return Piece(name, module, attribute, tensor, dim, outer, inner, self._cuts.get(id(tensor)))

    def with_bias(self, path: str, attribute: str, bias: str, outer: int = 1, inner: int = 1) -> tuple[Piece, ...]:
        """The rows of a module's weight, and its biases if it has any."""
        rows = self.piece(path, attribute, 0, outer, inner)
        if getattr(self.modules[path], bias) is None:
            return (rows,)
        return (rows, self.piece(path, bias, 0, outer, inner))


class Found(list[Units]):
    """Units that were found, and in ``left_out`` which layers were not taken and why."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out: dict[str, str] = {}


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def rows_or_columns(root: nn.Module, names: Sequence[str], *, rows: bool) -> Found:
    """Of weights by name: rows (all weights of one output) or columns (of one input) as units."""
    tensors, found = Tensors(root), Found()
    for name in names:
        path, _, attribute = name.rpartition(".")
        module = tensors.modules[path]
        if getattr(module, "groups", 1) != 1 and rows == isinstance(module, _TRANSPOSED):
            found.left_out[name] = "is a grouped convolution's, whose weights of one input or output stand in no column"
            continue
        dim = int(rows == isinstance(module, _TRANSPOSED))
        found.append(Units(name, (tensors.piece(path, attribute, dim),)))
    return found


def heads(root: nn.Module) -> Found:
    """The heads of every ``nn.MultiheadAttention``: rows of its projections with their biases, columns of its output."""
    tensors, found = Tensors(root), Found()
    for path, module in tensors.modules.items():
        if not isinstance(module, nn.MultiheadAttention):
            continue
        together = module.in_proj_weight is not None
        matrices = ["in_proj_weight"] if together else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
        biases = ["in_proj_bias"] if module.in_proj_bias is not None else []
        output = f"{path}.out_proj" if path else "out_proj"
        reason = tensors.why_not(module, matrices + biases) or tensors.why_not(tensors.modules[output], ["weight"])
        if reason is not None:
            found.left_out[path] = reason
            continue
        rows = [tensors.piece(path, matrix, 0, 3 if together else 1, module.head_dim) for matrix in matrices]
        rows += [tensors.piece(path, bias, 0, 3, module.head_dim) for bias in biases]
        extra = [name for name in ("bias_k", "bias_v") if getattr(module, name) is not None]
        rows += [tensors.piece(path, name, 2, 1, module.head_dim) for name in extra]
        columns = tensors.piece(output, "weight", 1, 1, module.head_dim)
        found.append(Units(path, tuple(rows), (columns,)))
    return found
