"""The students that were built for the primary's calls, all of them on each rank or split by rank."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_warn

from legibility.lightning_plugins.foundation._recording import Recording
from legibility.lightning_plugins.imitation._guards import Guards
from legibility.lightning_plugins.imitation._plan import Plan
from legibility.students import Cohort, ImitationLoss, Prediction, read_signature, save_student


@dataclass
class BuiltCohort:
    """The students and what they were built for.

    Attributes:
        cohort: The students.
        plan: What they were built for: what they read and imitate, and what they cost.
        ranks: Over how many ranks they are split; 1 = every rank has them all.
        guards: What is watched in the primary.
        sizes: Student -> number of parameters, also of those on other ranks.
    """

    cohort: Cohort
    plan: Plan
    ranks: int = 1
    guards: Guards = field(default_factory=Guards)
    sizes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in self.cohort.networks.items()}

    @property
    def kind(self) -> Literal["distribution", "values"]:
        """What the output is."""
        return self.plan.kind

    @property
    def share(self) -> float:
        r"""Weight of each living student in this rank's term.

        One over their number. Split by rank: ranks / number of students, for gradients are averaged over ranks.
        """
        return self.ranks / len(self.cohort.names) if self.ranks > 1 else 1 / max(len(self.cohort.networks), 1)

    def fits(self, recording: Recording) -> bool:
        """Whether a call is of the kind that the students were built for: several tasks may share one model."""
        try:
            signature = read_signature(
                recording.inputs, recording.imitated.float(), recording.taps, vocabulary=self.plan.signature.vocabulary
            )
        except (TypeError, ValueError):
            return False
        return signature.settled == self.plan.signature.settled

    def learn(
        self, recording: Recording, predictions: list[tuple[str, Prediction]], scale: float
    ) -> dict[str, ImitationLoss]:
        """The students' backward pass on one recorded call; nothing reaches the primary."""
        output = recording.imitated.float()
        return self.cohort.learn(predictions, output, recording.taps, recording.mask, scale=scale)

    def step(self) -> None:
        """The students' optimizer step; warns of those that failed in it."""
        before = set(self.cohort.failed)
        self.cohort.step()
        for name in self.cohort.failed.keys() - before:
            # Split by rank, nobody else knows.
            say = rank_zero_warn if self.ranks == 1 else warnings.warn
            say(f"StudentLegibility: {name} is dropped: {self.cohort.failed[name]}")

    def save(self, folder: Path) -> list[Path]:
        """Writes each living student to ``<folder>/<name>.safetensors``; returns the files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for name, network in self.cohort.networks.items():
            files.append(folder / f"{name}.safetensors")
            save_student(files[-1], network, self.cohort.students[name], self.plan.signature)
        return files

    def state_dict(self) -> dict[str, Any]:
        """The cohort's state and the guards': tensors, numbers and strings."""
        return {**self.cohort.state_dict(), "guards": self.guards.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the cohort and the guards."""
        self.cohort.load_state_dict(state)
        self.guards.load_state_dict(state["guards"])
