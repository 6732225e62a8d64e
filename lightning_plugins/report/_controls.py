"""Controls: models that a score must not prefer, made from a finished one without training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TemperatureControl:
    """The finished model of arm ``of`` with its logits divided by the T > 1 at which its task loss equals ``loss``.

    Softening alone lowers every soft distance. What an arm gains beyond this control at equal task loss is its own.

    Attributes:
        of: The arm whose model is flattened.
        matches: The arm whose task loss is matched.
        loss: That task loss: mean cross-entropy in nats on the same queries.
    """

    of: str
    matches: str
    loss: float


@dataclass(frozen=True)
class RandomInitControl:
    """The architecture of arm ``of`` with freshly drawn weights.

    Attributes:
        of: The arm whose architecture is used.
        seed: Of the draw.
    """

    of: str
    seed: int = 0
