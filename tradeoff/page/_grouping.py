"""Arms that are one method at several strengths, and how they are drawn: the same colour and shape, on one curve."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from legibility.tradeoff._arms import Arm, Section
from legibility.tradeoff.statistics import method_of

COLOURS = 8
_SHAPES = ("circle", "diamond", "triangle-up", "pentagon", "triangle-down", "star", "hexagon")
_BASELINE_SHAPE = "square"
_CONTROL_SHAPES = ("x", "cross")


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: plotly's name of its symbol; its colour, a CSS variable of the page."""

    symbol: str
    colour: str


@dataclass(frozen=True)
class Group:
    """The arms of one method, weakest first.

    Args:
        name: the method's name; the arm's if it is the only one.
        arms: its arms.
        look: colour and shape that they share.
        control: whether these are controls.
        far: whether they stand so far off in task loss that all else would shrink to a point, as untrained models do.
    """

    name: str
    arms: tuple[Arm, ...]
    look: Look
    control: bool
    far: bool


def strength(arm: Arm) -> str:
    """What the arm's name ends in if that is a number, such as `"0.3"` of `"legibility-0.3"`.

    Without one `"1"`: beside `proximal-x0.5` the arm `proximal` is the one that is multiplied.
    """
    found = method_of(arm.name)[1]
    return "1" if found is None else f"{found:g}"


def groups(section: Section) -> list[Group]:
    """The section's arms by method, the baseline first, controls after the method that they belong to.

    Arms are of one method if their names differ in the number at the end only (`legibility-0.1`, `legibility-0.3`; also
    `proximal`, `proximal-x0.5`) and the same terms were added to their loss. Shapes and colours both differ from method to method; a control has the
    colour of the method it is matched to, and a cross.
    """
    members: dict[tuple[object, ...], list[Arm]] = {}
    for arm in section.arms:
        members.setdefault(_key(section, arm), []).append(arm)
    owners = {arm.name: key for key, arms in members.items() for arm in arms}
    looks: dict[tuple[object, ...], Look] = {}
    trained = [key for key, arms in members.items() if arms[0].control_of is None]
    for index, key in enumerate(key for key in trained if members[key][0].name != section.baseline):
        looks[key] = Look(_SHAPES[index % len(_SHAPES)], f"var(--c{index % COLOURS})")
    looks[owners[section.baseline]] = Look(_BASELINE_SHAPE, "var(--ink)")
    seen: dict[object, int] = {}
    for key, arms in members.items():
        if (control := arms[0].control_of) is not None:
            owner = owners.get(control.matches or "")
            count = seen[owner] = seen.get(owner, -1) + 1
            colour = looks[owner].colour if owner is not None and owner in looks else "var(--soft)"
            looks[key] = Look(_CONTROL_SHAPES[count % len(_CONTROL_SHAPES)], colour)
    found = [_group(arms, looks[key]) for key, arms in members.items()]
    names = Counter(group.name for group in found)
    return [replace(group, name=_told_apart(group)) if names[group.name] > 1 else group for group in found]


def looks(section: Section) -> dict[str, Look]:
    """The look of each arm by its name."""
    return {arm.name: group.look for group in groups(section) for arm in group.arms}


def _key(section: Section, arm: Arm) -> tuple[object, ...]:
    """What arms of one method have in common."""
    if arm.name == section.baseline:
        return (arm.name,)
    method = method_of(arm.name)[0]
    control = arm.control_of
    kind = None if control is None else (control.kind, control.arm, _method_of(control.matches))
    return (method, kind, tuple(sorted(arm.records[0].strengths)))


def _method_of(name: str | None) -> str | None:
    return None if name is None else method_of(name)[0]


def _told_apart(group: Group) -> str:
    """A name for one of several groups of one name, such as the temperatures of two methods."""
    control = group.arms[0].control_of
    goal = None if control is None else control.matches
    return f"{group.name} for {_method_of(goal)}" if goal is not None else group.arms[0].name


def _strength(arm: Arm) -> float:
    """The one that the records hold, if they hold one; else by the name."""
    known = list(arm.records[0].strengths.values())
    return known[0] if len(known) == 1 else float(strength(arm))


def _group(arms: Sequence[Arm], look: Look) -> Group:
    name = method_of(arms[0].name)[0] if len(arms) > 1 else arms[0].name
    ordered = sorted(arms, key=_strength)
    control = arms[0].control_of
    return Group(name, tuple(ordered), look, control is not None, control is not None and control.kind == "random-init")
