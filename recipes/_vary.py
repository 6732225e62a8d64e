"""The dial of a trade-off: arms at other strengths. ``proximal-x0.5`` is ``proximal`` with half of each strength."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

from legibility.recipes._recipe import Arm, Recipe

_VARIANT = re.compile(r"(?P<arm>.+)-x(?P<times>[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?)")


def variant(name: str, times: float) -> str:
    """The name of an arm with each of its strengths multiplied; at 1 it is the arm itself.

    Example:
        >>> variant("proximal", 0.5), variant("proximal", 1.0)
        ('proximal-x0.5', 'proximal')
    """
    return name if float(f"{times:g}") == 1 else f"{name}-x{times:g}"


def has_strength(arm: Arm) -> bool:
    """Whether a callback of the arm has a strength that can be multiplied."""
    return any(_strength(entry.get("init_args", {})) is not None for entry in arm.callbacks)


def vary(recipe: Recipe, arms: Sequence[str] | None, times: Iterable[float] = ()) -> tuple[Recipe, list[str] | None]:
    """Adds variants of arms to a recipe, each with the controls that are matched to its arm.

    Args:
        recipe: The recipe.
        arms: Arms that are wanted, variants by their names (``proximal-x0.5``) among them; None for all.
        times: Every wanted arm that has strengths is wanted at these multiples of them too.

    Returns:
        The recipe with the variants, and what is wanted of it.

    Raises:
        ValueError: If a variant is named of an arm without strengths, or no wanted arm has any for ``times``.

    Example:
        >>> halved = {"class_path": "legibility.lightning_plugins.L1Sparsity", "init_args": {"strength": 8.0}}
        >>> from legibility.recipes import Preset
        >>> mine = Recipe("mine", "?", {"plain": Arm(), "l1": Arm(callbacks=[halved])}, {"quick": Preset((0,))})
        >>> varied, wanted = vary(mine, ["plain", "l1"], [0.5, 1.0])
        >>> wanted, varied.arms["l1-x0.5"].callbacks[0]["init_args"]["strength"]
        (['plain', 'l1', 'l1-x0.5'], 4.0)
    """
    multiples = list(times)
    asked = [*recipe.arms, *recipe.controls] if arms is None else list(arms)
    able = [name for name in asked if name in recipe.arms and has_strength(recipe.arms[name])]
    if multiples and not able:
        raise ValueError(f"`--strengths`: no arm among {', '.join(asked)} has a callback with a strength")
    added = [(name, multiple) for name in able for multiple in multiples]
    for name in asked:
        found = _VARIANT.fullmatch(name)
        if found and name not in recipe.arms and name not in recipe.controls:
            control = recipe.controls.get(found["arm"])
            of = str(found["arm"] if control is None else control.matches)
            if of in recipe.arms:
                if not has_strength(recipe.arms[of]):
                    raise ValueError(f"{name!r}: the arm {of!r} has no callback with a strength to multiply")
                added.append((of, float(found["times"])))
    variants = {variant(name, t): _times(recipe.arms[name], t) for name, t in added if variant(name, t) != name}
    controls = {
        variant(control, t): replace(settings, matches=variant(name, t))
        for name, t in added
        for control, settings in recipe.controls.items()
        if settings.matches == name and variant(name, t) != name
    }
    varied = replace(recipe, arms={**recipe.arms, **variants}, controls={**recipe.controls, **controls})
    if arms is None:
        return varied, None
    return varied, list(dict.fromkeys([*arms, *(variant(name, t) for name, t in added if t in multiples)]))


def _strength(settings: object) -> float | dict[str, float] | None:
    """A number above 0, or numbers by pattern of which one is; a pattern that is switched off stays so."""
    value = settings.get("strength") if isinstance(settings, Mapping) else None
    if not isinstance(value, Mapping):
        return float(value) if _is_number(value) and value > 0 else None
    if not all(map(_is_number, value.values())) or not any(one > 0 for one in value.values()):
        return None
    return {pattern: float(one) for pattern, one in value.items()}


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _times(arm: Arm, times: float) -> Arm:
    callbacks = []
    for entry in arm.callbacks:
        settings = dict(entry.get("init_args", {}))
        strength = _strength(settings)
        if strength is not None:
            if isinstance(strength, dict):
                settings["strength"] = {pattern: one * times for pattern, one in strength.items()}
            else:
                settings["strength"] = strength * times
        callbacks.append({**entry, "init_args": settings} if settings else dict(entry))
    return Arm(arm.config, callbacks)
