"""Building a cohort's networks, the same on every rank."""

import zlib
from collections.abc import Mapping, Sequence

import torch

from legibility.students._randomness import own_randomness
from legibility.students._signature import Signature
from legibility.students._student import Student, StudentNetwork


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
