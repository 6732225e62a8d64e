"""Which of several tensors that a model returned is the one that its task is about, where anything tells."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from legibility.lightning_plugins.foundation._arguments import pick_input
from legibility.lightning_plugins.foundation._recording import (
    candidate_outputs,
    find_labels,
    pick_leaf,
    prediction_shape,
)
from legibility.lightning_plugins.foundation._trees import Leaf, batch_first, padded, rows_of


def choose_output(result: Any, batch: Any, arguments: Mapping[str, Any], read: Leaf | None = None) -> str | None:
    """The path to imitate in a result of several tensors, by the first of these rules that leaves exactly one.

    - it has a row for each example (``(logits, state)`` of a recurrent network, whose state has layers first);
    - the batch holds class labels for it (of the heads of a multi-task network, the classifier);
    - it has the shape of the input (what an autoencoder returns beside its code);
    - it is not within a nested container (``(prediction, (hidden, cell))``).

    Args:
        result: What the model returned.
        batch: The batch, searched for labels.
        arguments: The call's, by name.
        read: What the students read, if that is not one of the arguments.

    Returns:
        The dotted path; None where :func:`pick_leaf` needs none, or where no rule tells and the user must.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(4, 3), torch.tensor([0, 1, 1, 0])
        >>> choose_output({"age": torch.zeros(4, 1), "class": torch.zeros(4, 2)}, (x, y), {"x": x})
        'class'
        >>> choose_output((torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4, 2)), x, {"x": x})
        '0'
        >>> choose_output((torch.zeros(4, 5), (torch.zeros(1, 4, 8), torch.zeros(1, 4, 8))), x, {"x": x})
        '0'
        >>> choose_output((torch.zeros(4, 5), torch.zeros(4, 6)), x, {"x": x}) is None
        True
    """
    found = candidate_outputs(result)
    if isinstance(result, Tensor) or len(found) < 2:
        return None
    pairs = list(_with_inputs(result, found, arguments, read))
    pairs = [pair for pair in pairs if prediction_shape(pair[1], pair[2])[0] == len(pair[2])]
    rules = (
        [path for path, _, _ in pairs],
        [path for path, output, inputs in pairs if _labelled(output, inputs, batch, arguments)],
        [path for path, output, inputs in pairs if inputs.is_floating_point() and output.shape == inputs.shape],
        [path for path, _, _ in pairs if "." not in path],
    )
    return next((paths[0] for paths in rules if len(paths) == 1), None)


def _with_inputs(
    result: Any, paths: Mapping[str, Leaf], arguments: Mapping[str, Any], read: Leaf | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    for path in paths:
        leaf = pick_leaf(result, path)
        try:
            inputs, _ = padded(pick_input(arguments, rows_of(leaf)) if read is None else read)
        except ValueError:
            continue
        inputs = batch_first(inputs, rows_of(leaf))
        output, _ = padded(leaf, positions=inputs.shape[1] if inputs.ndim > 1 else 0)
        yield path, output, inputs


def _labelled(output: Tensor, inputs: Tensor, batch: Any, arguments: Mapping[str, Any]) -> bool:
    shape = prediction_shape(output, inputs)
    if shape[-1] < 2 or 0 in shape:
        return False
    return find_labels(batch, inputs, output.detach().reshape(shape), arguments) is not None
