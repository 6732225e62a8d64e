"""What a recipe is: one question, the arms that answer it, the controls that keep the answer honest."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RESERVED = "base"
"""The folder of the shared base training, so no arm may have this name."""


@dataclass(frozen=True)
class Arm:
    """One setting of one method: what is laid over the recipe's YAML.

    Args:
        config: Overrides in the shape of the YAML, e.g. ``{"model": {"init_args": {"dropout": 0.3}}}``.
        callbacks: Entries of ``class_path`` and ``init_args``, appended to ``trainer.callbacks``.

    Example:
        >>> arm = Arm(config={"model": {"init_args": {"dropout": 0.3}}})
        >>> arm.callbacks
        ()
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Control:
    """An arm that costs no training: the finished model of another arm, measured with something taken away.

    Args:
        kind: ``"temperature"`` flattens the logits of the finished model until its task loss is that of ``matches``;
            ``"random-init"`` measures the model before any training.
        of: The arm whose model is used.
        matches: The arm whose task loss the temperature is fitted to.

    Raises:
        ValueError: If a temperature control does not say what it matches, or a random-init control does.

    Example:
        >>> Control(kind="temperature", of="plain", matches="legibility-0.3").of
        'plain'
    """

    kind: Literal["temperature", "random-init"]
    of: str
    matches: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("temperature", "random-init"):
            raise ValueError(f'`kind` of a control must be "temperature" or "random-init", got {self.kind!r}')
        if (self.matches is not None) != (self.kind == "temperature"):
            raise ValueError(
                f'`matches` names the arm whose task loss a "temperature" control is fitted to: it is needed there '
                f"and nowhere else, got kind={self.kind!r} with matches={self.matches!r}"
            )


@dataclass(frozen=True)
class Preset:
    """How much of a recipe is run.

    Args:
        seeds: The seeds of every arm.
        config: Overrides in the shape of the YAML, laid over it before those of the arm.
        minutes: What a whole sweep took on two CPU cores, for ``legibility ls``.
        base_steps: Steps of the shared base training, where this preset differs from ``Recipe.base``.

    Example:
        >>> Preset(seeds=(0, 1), config={"trainer": {"max_epochs": 5}}).seeds
        (0, 1)
    """

    seeds: tuple[int, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    base_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.seeds or any(seed < 0 for seed in self.seeds) or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"`seeds` of a preset must be different numbers from 0 up, at least one, got {self.seeds}")


@dataclass(frozen=True)
class Base:
    """A training that all arms share, once for each seed: every arm goes on from its checkpoint.

    An arm keeps its own callbacks and its own optimizer settings (weight decay, betas, ...). The learning rate and
    the moments come from the checkpoint.

    Args:
        arm: The arm that is trained as the base, without its ``InterpretabilityReport``.
        max_steps: Optimizer steps of the base. The arms' ``trainer.max_steps`` counts them in.

    Example:
        >>> Base(arm="plain", max_steps=900).max_steps
        900
    """

    arm: str
    max_steps: int


@dataclass(frozen=True)
class Recipe:
    """One question with everything that is trained to answer it.

    A recipe is a Python module that holds the LightningModule, the LightningDataModule and ``RECIPE``, with a YAML
    of the same name beside it: what all arms share, as LightningCLI reads it. Later layers win: YAML, preset, arm,
    command line. ``RECIPE`` written with nothing but these classes and plain values is read without importing
    torch, so ``legibility ls`` answers at once.

    Args:
        name: The module's name.
        question: One line.
        arms: Arms by name. The names are folder names.
        presets: Presets by name. The first is the default.
        baseline: The arm that the others are compared with.
        controls: Controls by name.
        base: The training that all arms share, if there is one.

    Raises:
        ValueError: If a name cannot be a folder, or an arm is named that does not exist.

    Example:
        >>> recipe = Recipe(
        ...     name="mine",
        ...     question="Does dropout help?",
        ...     arms={"plain": Arm(), "dropout": Arm(config={"model": {"init_args": {"dropout": 0.3}}})},
        ...     presets={"quick": Preset(seeds=(0, 1, 2))},
        ... )
        >>> list(recipe.arms)
        ['plain', 'dropout']
    """

    name: str
    question: str
    arms: Mapping[str, Arm]
    presets: Mapping[str, Preset]
    baseline: str = "plain"
    controls: Mapping[str, Control] = field(default_factory=dict)
    base: Base | None = None

    def __post_init__(self) -> None:
        for kind, names in (("arms", self.arms), ("controls", self.controls), ("presets", self.presets)):
            for name in names:
                if not _NAME.fullmatch(name) or name == RESERVED:
                    raise ValueError(
                        f"`{kind}` of recipe {self.name!r}: {name!r} cannot be a folder's name; use letters, digits, "
                        f'".", "_" and "-", and not "{RESERVED}"'
                    )
        if not self.presets:
            raise ValueError(f"`presets` of recipe {self.name!r} must hold at least one Preset")
        if both := sorted(set(self.arms) & set(self.controls)):
            raise ValueError(f"recipe {self.name!r}: {both} are both `arms` and `controls`")
        named = [("baseline", self.baseline)]
        for name, control in self.controls.items():
            named += [(f"controls[{name!r}].of", control.of)]
            named += [(f"controls[{name!r}].matches", control.matches)] if control.matches is not None else []
        named += [("base.arm", self.base.arm)] if self.base is not None else []
        for argument, arm in named:
            if arm not in self.arms:
                raise ValueError(f"recipe {self.name!r}: `{argument}` is {arm!r}; the arms are {sorted(self.arms)}")
