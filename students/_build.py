"""Building a cohort's networks, the same on every rank."""

import zlib
from collections.abc import Mapping, Sequence

import torch

from legibility.students._randomness import own_randomness
from legibility.students._signature import Signature
from legibility.students._student import Student, StudentNetwork
from legibility.students._synchronise import largest_over_ranks


def unique_names(students: Sequence[Student]) -> list[str]:
    """The students' names; a second `mlp` becomes `mlp_2`.

    Example:
        >>> from legibility.students import MLPStudent
        >>> unique_names([MLPStudent(depth=1), MLPStudent(depth=3)])
        ['mlp', 'mlp_2']
    """
    names: list[str] = []
    for student in students:
        name, number = student.name, 1
        while name in names:
            number += 1
            name = f"{student.name}_{number}"
        names.append(name)
    return names


def build_networks(
    students: Mapping[str, Student],
    signature: Signature,
    widths: Sequence[int | None],
    *,
    seed: int,
    device: torch.device,
) -> tuple[dict[str, StudentNetwork], dict[str, str]]:
    """The networks on `device`, and why there was no memory for the others.

    Each is drawn on the CPU from `seed` and its name alone: the same on every device, whatever others there are.
    """
    networks, reasons = {}, {}
    for (name, student), width in zip(students.items(), widths, strict=True):
        own = (seed + zlib.crc32(name.encode())) % 2**63
        try:
            with own_randomness(own, device), torch.inference_mode(False), torch.device("cpu"):
                networks[name] = student.build(signature, width=width).to(device)
        except (MemoryError, RuntimeError) as error:
            # torch reports a full CPU as a plain RuntimeError, a full accelerator as a subclass of it.
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            reasons[name] = f"out of memory when built: {(str(error) or 'MemoryError').splitlines()[0]}"
    return networks, reasons


def failed_on_any_rank(
    students: Mapping[str, Student],
    signature: Signature,
    widths: Sequence[int | None],
    reasons: Mapping[str, str],
    device: torch.device,
) -> dict[str, str]:
    """`reasons` of all ranks.

    Raises:
        ValueError: If the ranks were given different students; all of them raise.
    """
    described = f"{list(students.values())} {list(widths)} {signature.settled}"
    digest = float(zlib.crc32(described.encode()) % 2**20)
    flags = [float(name in reasons) for name in students]
    *flags, most, least = largest_over_ranks([*flags, digest, -digest], device)
    if most != -least:
        raise ValueError(
            f"`students`, `widths` and `signature` must be the same on every rank; this one has {described}. "
            "Give `vocabulary` instead of reading it from a rank's own batch."
        )
    elsewhere = "out of memory when built on another rank"
    return {n: reasons.get(n, elsewhere) for n, flag in zip(students, flags, strict=True) if flag}
