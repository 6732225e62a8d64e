"""From the first recorded call to a cohort of students that fits it."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._compiled import uncompiled
from legibility.lightning_plugins.foundation._recording import Recording, find_labels, prediction_shape
from legibility.lightning_plugins.foundation._untouched import untouched
from legibility.lightning_plugins.imitation._guards import Guards
from legibility.students import (
    Cohort,
    ImitationLoss,
    Prediction,
    Signature,
    Student,
    auto_students,
    check_smaller,
    flops,
    read_signature,
    save_student,
    size_students,
)


@dataclass
class BuiltCohort:
    """The students and what they were built for.

    Attributes:
        cohort: The students.
        signature: What they read and imitate.
        kind: "distribution" or "values".
        primary_flops: FLOPs of one forward call of the primary on the first batch.
        student_flops: Student -> FLOPs on the same batch.
        guards: What is watched in the primary.
    """

    cohort: Cohort
    signature: Signature
    kind: Literal["distribution", "values"]
    primary_flops: int
    student_flops: dict[str, int]
    guards: Guards = field(default_factory=Guards)

    def fits(self, recording: Recording) -> bool:
        """Whether a call is of the kind that the students were built for: several tasks may share one model."""
        try:
            output = recording.output.detach()
            output = output.reshape(prediction_shape(output, recording.inputs))
            signature = read_signature(
                recording.inputs, output.float(), recording.taps, vocabulary=self.signature.vocabulary
            )
        except (TypeError, ValueError):
            return False
        return signature.settled == self.signature.settled

    def learn(
        self, recording: Recording, predictions: list[tuple[str, Prediction]], scale: float
    ) -> dict[str, ImitationLoss]:
        """The students' backward pass on one recorded call; nothing reaches the primary."""
        output = recording.output.detach().float()
        output = output.reshape(prediction_shape(output, recording.inputs))
        return self.cohort.learn(predictions, output, recording.taps, recording.mask, scale=scale)

    def step(self) -> list[str]:
        """The students' optimizer step; returns the names of those that failed in it."""
        before = set(self.cohort.failed)
        self.cohort.step()
        return [name for name in self.cohort.failed if name not in before]

    def save(self, folder: Path) -> list[Path]:
        """Writes each living student to ``<folder>/<name>.safetensors``; returns the files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for name, network in self.cohort.networks.items():
            files.append(folder / f"{name}.safetensors")
            save_student(files[-1], network, self.cohort.students[name], self.signature)
        return files

    def state_dict(self) -> dict[str, Any]:
        """The cohort's state and the guards': tensors, numbers and strings."""
        return {**self.cohort.state_dict(), "guards": self.guards.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the cohort and the guards."""
        self.cohort.load_state_dict(state)
        self.guards.load_state_dict(state["guards"])


def build_cohort(
    recording: Recording,
    batch: Any,
    primary: nn.Module,
    *,
    students: list[Student] | None,
    imitate: Literal["auto", "distribution", "values"],
    budget: float,
    learning_rate: float,
    seed: int,
    on_failure: Literal["drop", "raise"],
    widths: list[int] | None = None,
) -> BuiltCohort:
    """Chooses, sizes and builds the students for what was recorded.

    Args:
        recording: The primary's first call.
        batch: The batch it belongs to, searched for class labels.
        primary: The recorded module; run once more to count FLOPs, without a trace.
        students: Architectures, or None for the default ones.
        imitate: What the output is.
        budget: Share of the primary's FLOPs for all students without a width.
        learning_rate: Of the students' Adam.
        seed: Of their initial weights.
        on_failure: Drop a failing student, or raise.
        widths: The students' widths, when a checkpoint has settled them.

    Raises:
        ValueError: Shapes that no student reads, or students larger than the primary.
    """
    output = recording.output.detach().float()
    output = output.reshape(prediction_shape(output, recording.inputs))
    vocabulary = _vocabulary(primary, recording.inputs)
    signature = read_signature(recording.inputs, output, recording.taps, vocabulary=vocabulary)
    cost = _primary_flops(primary, recording)
    chosen = auto_students(signature) if students is None else students
    if widths is None:
        size = sum(parameter.numel() for parameter in primary.parameters())
        widths = size_students(
            chosen, signature, recording.inputs, budget_flops=budget * cost, budget_parameters=max(1.0, budget * size)
        )
        widths = _smallest_over_ranks(widths, recording.output.device)
    distribution = _is_distribution(imitate, signature, recording, batch, output)
    kind: Literal["distribution", "values"] = "distribution" if distribution else "values"
    cohort = Cohort(
        chosen,
        signature,
        widths=widths,
        seed=seed,
        learning_rate=learning_rate,
        device=recording.output.device,
        on_failure=on_failure,
        kind=kind,
    )
    costs = {name: flops(network, recording.inputs) for name, network in cohort.networks.items()}
    if students is not None:
        size = sum(parameter.numel() for parameter in primary.parameters())
        check_smaller(cohort.networks, recording.inputs, primary_flops=cost, primary_parameters=size)
    return BuiltCohort(cohort, signature, kind, cost, costs)


def _is_distribution(imitate: str, signature: Signature, recording: Recording, batch: Any, output: Tensor) -> bool:
    if imitate != "auto":
        return imitate == "distribution"
    if signature.outputs < 2:
        return False
    if signature.reads == "tokens" and signature.per_position:
        return True
    return find_labels(batch, recording.inputs, output, recording.arguments) is not None


def _smallest_over_ranks(widths: list[int], device: torch.device) -> list[int]:
    """Ranks size their students by their own first batch, whose length may differ: they agree on the smallest."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return widths
    agreed = torch.tensor(widths, device=device)
    torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN)
    return [int(width) for width in agreed]


def _vocabulary(primary: nn.Module, inputs: Tensor) -> int | None:
    """The number of token ids: that of the primary's largest embedding, so that all ranks agree."""
    if inputs.is_floating_point():
        return None
    sizes = [m.num_embeddings for m in primary.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    if sizes:
        return max(sizes)
    highest = inputs.max() + 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    return int(highest)


def _primary_flops(primary: nn.Module, recording: Recording) -> int:
    """FLOPs of one forward call, counted by running it again; by its parameters where that does not work."""
    try:
        with untouched(primary), uncompiled(), warnings.catch_warnings():
            # The counter's hooks are global ones, and compiled modules say so.
            warnings.filterwarnings("ignore", message=".*global hooks on modules.*")
            counted = flops(lambda: primary(*recording.args, **recording.kwargs))
        if counted > 0:
            return counted
    except Exception as error:  # noqa: BLE001
        # Whatever the user's forward raises when it is run a second time must not end the user's training.
        warnings.warn(
            f"StudentLegibility could not count the primary's FLOPs ({type(error).__name__}: {error}); the students "
            "are sized by its number of parameters.",
            stacklevel=2,
        )
    positions = (
        recording.inputs.shape[1] if recording.inputs.ndim == 2 and not recording.inputs.is_floating_point() else 1
    )
    size = sum(parameter.numel() for parameter in primary.parameters())
    return 2 * size * recording.inputs.shape[0] * positions
