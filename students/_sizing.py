"""How much students cost, and how wide they may be."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from legibility.students._randomness import kept_randomness, own_randomness
from legibility.students._signature import Signature
from legibility.students._student import Student, StudentNetwork

STEP = 4  # widths are multiples of it
WIDEST = 1024
EXAMPLES = 2  # enough to measure on: the cost is proportional to the batch


def _lstm_layer(inputs: torch.Size, weight: torch.Size, recurrent: torch.Size, *_: Any, **__: Any) -> int:
    """The CPU's fused LSTM, one layer: two matrices per position."""
    return 2 * inputs[:-1].numel() * (weight.numel() + recurrent.numel())


def _cudnn_layers(inputs: torch.Size, weights: Sequence[torch.Size], *_: Any, **__: Any) -> int:
    """cuDNN's recurrent layers: every matrix once per position."""
    return 2 * inputs[:-1].numel() * sum(shape.numel() for shape in weights if len(shape) == 2)


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """The CPU's fused attention, (batch, heads, positions, size): query x key and weights x value."""
    return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])


# Kernels that torch's counter takes for free (seen with torch 2.13).
_UNCOUNTED: dict[Any, Any] = {
    torch.ops.aten.mkldnn_rnn_layer: _lstm_layer,
    torch.ops.aten._cudnn_rnn: _cudnn_layers,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}


@contextlib.contextmanager
def _undisturbed(measured: object, device: torch.device) -> Iterator[None]:
    """Evaluation mode without a trace in running statistics, random numbers and the modes of modules."""
    modules = list(measured.modules()) if isinstance(measured, nn.Module) else []
    before = [module.training for module in modules]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque kernel, which the counter takes for free
    try:
        for module in modules:
            module.training = False
        with torch.no_grad(), kept_randomness(device):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in zip(modules, before, strict=True):
            module.training = training


def flops(measured: Callable[..., Any], *inputs: Any) -> int:
    """Floating point operations of one forward call, 2 per multiply-add, counted in matrix products and convolutions.

    `torch.utils.flop_counter` with the fused LSTM, cuDNN's recurrent networks and the CPU's fused attention added.
    Elementwise work and table look-ups count as 0. A module is called in evaluation mode and without gradients; its
    running statistics, modes and the random state stay as they are. Its forward hooks do fire.

    Args:
        measured: A module or another callable.
        inputs: What to call it with.

    Returns:
        The number of operations.

    Example:
        >>> flops(nn.Linear(3, 5), torch.zeros(7, 3))  # 2 * 7 * 3 * 5
        210
    """
    device = next((part.device for part in inputs if isinstance(part, Tensor)), torch.device("cpu"))
    with _undisturbed(measured, device), FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        measured(*inputs)
    return int(counter.get_total_flops())


def _scaled_flops(network: StudentNetwork, inputs: Tensor) -> int:
    few = inputs[:EXAMPLES]
    return flops(network, few) * len(inputs) // max(len(few), 1)


def _width(student: Student, signature: Signature, inputs: Tensor, budget: float, parameters: float) -> int:
    def affordable(width: int) -> bool:
        with own_randomness(0, torch.device("cpu")), torch.device("cpu"):
            network = student.build(signature, width=width)
        size = sum(parameter.numel() for parameter in network.parameters())
        return size <= parameters and _scaled_flops(network, inputs) <= budget

    low, high = 1, 2  # in steps; `low` is taken whether affordable or not
    while high * STEP <= WIDEST and affordable(high * STEP):
        low, high = high, 2 * high
    high = min(high, WIDEST // STEP + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if affordable(middle * STEP) else (low, middle)
    return low * STEP


def size_students(
    students: Sequence[Student],
    signature: Signature,
    inputs: Tensor,
    *,
    budget_flops: float,
    budget_parameters: float | None = None,
) -> list[int]:
    """The widths at which students share a budget of forward FLOPs equally.

    A student without a `width` gets the largest multiple of 4 from 4 to 1024 whose FLOPs on `inputs` are at most
    `budget_flops / len(students)`; given widths are kept and nothing is taken from the others for them. If even 4 is
    above the budget it is used: compare with `check_smaller`. Steps of 4 leave up to 60 % of a share unused at width 8
    and less than 40 % from width 16 on.

    Args:
        students: The architectures.
        signature: What they read and imitate.
        inputs: A batch of the primary's inputs; two examples of it are computed, and the result is scaled.
        budget_flops: For all students and the whole batch.
        budget_parameters: For all students, shared in the same way: tables (n-grams) cost no FLOPs.

    Returns:
        One width per student.

    Raises:
        ValueError: If a budget is not above 0, or a student doesn't read such inputs.

    Example:
        >>> from legibility.students import GRUStudent, read_signature
        >>> ids = torch.zeros(8, 16, dtype=torch.long)
        >>> signature = read_signature(ids, torch.zeros(8, 16, 50))
        >>> size_students([GRUStudent()], signature, ids, budget_flops=2e6)  # 8 * 16 * (12 w^2 + 100 w)
        [32]
    """
    for name, budget in (("budget_flops", budget_flops), ("budget_parameters", budget_parameters)):
        if budget is not None and not budget > 0:
            raise ValueError(f"`{name}` must be above 0, got {budget}.")
    if not students:
        return []
    inputs = inputs.detach().cpu()
    share = budget_flops / len(students)
    parameters = float("inf") if budget_parameters is None else budget_parameters / len(students)
    return [
        student.width if student.width is not None else _width(student, signature, inputs, share, parameters)
        for student in students
    ]


def check_smaller(
    networks: Mapping[str, StudentNetwork], inputs: Tensor, *, primary_flops: float, primary_parameters: int
) -> None:
    """Refuse students that are larger than the primary: their imitation would be no evidence of legibility.

    Args:
        networks: Students by name.
        inputs: A batch of the primary's inputs, on the students' device.
        primary_flops: Of the primary's forward call on `inputs`.
        primary_parameters: Number of the primary's parameters.

    Raises:
        ValueError: If a student needs more FLOPs or holds more parameters than the primary; names them.

    Example:
        >>> from legibility.students import MLPStudent, read_signature
        >>> inputs = torch.zeros(8, 4)
        >>> network = MLPStudent(width=64).build(read_signature(inputs, torch.zeros(8, 3)))
        >>> check_smaller({"mlp": network}, inputs, primary_flops=1e6, primary_parameters=1000)
        Traceback (most recent call last):
            ...
        ValueError: `students` must be smaller than the primary (1000000 FLOPs, 1000 parameters); larger are: ...
    """
    larger = []
    for name, network in networks.items():
        cost, size = _scaled_flops(network, inputs), sum(p.numel() for p in network.parameters())
        if cost > primary_flops or size > primary_parameters:
            larger.append(f"`{name}` of width {network.width} ({cost} FLOPs, {size} parameters)")
    if larger:
        raise ValueError(
            f"`students` must be smaller than the primary ({primary_flops:.0f} FLOPs, {primary_parameters} "
            f"parameters); larger are: {', '.join(larger)}. Give a smaller `width`, or leave it to size_students."
        )
