"""How a student reads a batch: ids wrapped, floats standardised, non-finite numbers as 0."""

import torch
from torch import Tensor, nn

from legibility.students._signature import Signature

CLIP = 10.0  # standard deviations: a feature that was constant in the first batch can't shout later


class InputReader(nn.Module):
    """Brings a batch into the form that bodies expect.

    * tokens: (batch, positions) or (batch,) integers -> (batch, positions) ids modulo the vocabulary;
    * features: (batch, ...) -> (batch, features); image and sequence keep their shape. Floats become fp32,
      standardised per feature (per channel for images) by fixed buffers and clipped to 10 standard deviations.
      Before `set_scale` they pass unchanged. NaN and infinities count as 0.

    Args:
        signature: What is read.
    """

    mean: Tensor
    std: Tensor
    limit: Tensor

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.signature = signature
        if signature.reads != "tokens":
            self.register_buffer("mean", torch.zeros(self._features()))
            self.register_buffer("std", torch.ones(self._features()))
            self.register_buffer("limit", torch.tensor(float("inf")))

    def _features(self) -> int:
        shape = self.signature.input_shape
        if self.signature.reads == "image":
            return shape[0]
        return shape[-1] if self.signature.reads == "sequence" else int(torch.Size(shape).numel())

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Fix the mean and standard deviation, each (features,), by which inputs are standardised."""
        self.mean, self.std = mean.detach().clone(), std.detach().clone()
        self.limit = torch.full_like(self.limit, CLIP)

    def rows(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """The numbers whose statistics `set_scale` takes: (rows, features), those that `mask` counts."""
        inputs = self._check(inputs).detach().float()
        if self.signature.reads == "image":
            return inputs.movedim(1, -1).reshape(-1, inputs.shape[1])
        if self.signature.reads == "sequence":
            return (inputs if mask is None or mask.dim() != 2 else inputs[mask]).reshape(-1, inputs.shape[-1])
        return inputs.reshape(inputs.shape[0], -1)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read one batch; `mask` bool (batch, positions) silences the sequence positions that don't count."""
        inputs = self._check(inputs)
        if self.signature.vocabulary is not None:
            ids = inputs if inputs.dim() == 2 else inputs.unsqueeze(1)
            return ids.long().remainder(self.signature.vocabulary)
        values = torch.nan_to_num(inputs.float(), nan=0.0, posinf=0.0, neginf=0.0)
        if self.signature.reads == "features":
            values = values.reshape(values.shape[0], self.mean.numel())
        shape = (-1, 1, 1) if self.signature.reads == "image" else (-1,)
        values = (values - self.mean.view(shape)) / self.std.view(shape)
        values = values.clamp(-self.limit, self.limit)
        if self.signature.reads == "sequence" and mask is not None and mask.dim() == 2:
            values = values * mask.unsqueeze(-1)
        return values

    def _check(self, inputs: Tensor) -> Tensor:
        """Raise for a batch of another kind than the student was built for."""
        reads, shape, seen = self.signature.reads, tuple(inputs.shape[1:]), self.signature.input_shape
        if inputs.is_floating_point() == (reads == "tokens"):
            raise TypeError(f"`inputs` must be {reads} as in the first batch, got {inputs.dtype}; build new students.")
        fits = {
            "tokens": inputs.dim() in (1, 2),
            "sequence": inputs.dim() == 3 and shape[-1:] == seen[-1:],
            "image": inputs.dim() == 4 and shape[:1] == seen[:1],
            "features": shape == seen,
        }[reads]
        if not fits:
            raise ValueError(
                f"`inputs` must be {reads} shaped like the first batch, (batch, {', '.join(map(str, seen))}), "
                f"got {tuple(inputs.shape)}; build new students for another shape."
            )
        return inputs.detach()
