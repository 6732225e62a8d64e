"""Students on disk: safetensors with the configuration in the header, no pickle."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from legibility.students._defaults import STUDENTS
from legibility.students._randomness import own_randomness
from legibility.students._signature import Signature
from legibility.students._student import Student, StudentNetwork

KEY = "legibility"
FORMAT = "legibility.student/1"


@dataclass(frozen=True)
class LoadedStudent:
    """What a file held.

    Attributes:
        student: The architecture with its settings.
        signature: What it reads and imitates.
        network: The trained network, on the CPU, in evaluation mode.
    """

    student: Student
    signature: Signature
    network: StudentNetwork


def _class_path(cls: type[Student]) -> str:
    return cls.__name__ if cls in STUDENTS else f"{cls.__module__}:{cls.__qualname__}"


def save_student(path: str | os.PathLike[str], network: StudentNetwork, student: Student, signature: Signature) -> None:
    """Write a student as safetensors, all or nothing; the same student gives the same bytes.

    Args:
        path: The file, conventionally `*.safetensors`; replaced if it exists.
        network: The network.
        student: The architecture that built it.
        signature: The signature that it was built for.

    Example:
        >>> import tempfile, pathlib
        >>> from legibility.students import MLPStudent
        >>> signature = Signature("features", (5,), outputs=2, per_position=False)
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "mlp.safetensors"
        >>> save_student(file, MLPStudent(width=8).build(signature), MLPStudent(width=8), signature)
        >>> load_student(file).student
        MLPStudent(width=8, depth=2, context=8)
    """
    # One key: safetensors writes several in random order, and equal students would give different bytes.
    configuration = {
        "format": FORMAT,
        "class": _class_path(type(student)),
        "settings": asdict(student),
        "signature": signature.to_json(),
        "width": network.width,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = save(tensors, metadata={KEY: json.dumps(configuration, sort_keys=True)})
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"`path`: {path} is truncated or not a safetensors file ({error}); give a file that save_student wrote."
        ) from error
    if KEY not in metadata:
        raise ValueError(
            f"`path`: {path} is a safetensors file without a student's configuration (metadata {KEY!r}); "
            "give a file that save_student wrote."
        )
    try:
        configuration: dict[str, Any] = json.loads(metadata[KEY])
        found = configuration["format"]
        complete = {"class", "settings", "signature", "width"} <= configuration.keys()
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"`path`: the student's configuration in {path} is damaged ({error!r}).") from error
    if found != FORMAT:
        raise ValueError(f"`path`: {path} has the format {found!r}, this version reads {FORMAT!r}.")
    if not complete:
        raise ValueError(f"`path`: the student's configuration in {path} is damaged: {sorted(configuration)}.")
    return configuration, tensors


def _find_class(path: Path, name: str, student_class: type[Student] | None) -> type[Student]:
    known = {cls.__name__: cls for cls in STUDENTS}
    if student_class is None:
        if name not in known:
            raise ValueError(
                f"`path`: {path} holds a student of the class {name}, which is not one of legibility.students; "
                "give the class as `student_class`."
            )
        return known[name]
    if _class_path(student_class) != name:
        raise ValueError(f"`student_class` must be the class in {path}, {name}; got {_class_path(student_class)}.")
    return student_class


def load_student(
    path: str | os.PathLike[str], *, expect: Student | None = None, student_class: type[Student] | None = None
) -> LoadedStudent:
    """Read a student that `save_student` wrote. Nothing in the file is executed, and no class is imported by name.

    Args:
        path: The file.
        expect: If given, the file must hold this student; a `width` of None agrees with every width.
        student_class: The class of a student of your own; default that of `expect`, else one of legibility.students.

    Returns:
        Architecture, signature and network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, not a student's, of another format, class, settings or shape.
    """
    path = Path(path)
    configuration, tensors = _read(path)
    if expect is not None:
        student_class = student_class or type(expect)
        if _class_path(type(expect)) != configuration["class"]:
            raise ValueError(f"`expect` must be the student in {path}, a {configuration['class']}; got {expect!r}.")
    cls = _find_class(path, configuration["class"], student_class)
    try:
        student = cls(**configuration["settings"])
        signature = Signature.from_json(configuration["signature"])
        with own_randomness(0, torch.device("cpu")), torch.device("cpu"):
            network = student.build(signature, width=configuration["width"])
        network.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`path`: the tensors and the configuration in {path} don't fit ({error}).") from error
    if expect is not None:
        wanted = replace(expect, width=student.width) if expect.width is None else expect
        if wanted != (replace(student, width=network.width) if expect.width is not None else student):
            raise ValueError(f"`expect` must be the student in {path}, {student!r}; got {expect!r}.")
    return LoadedStudent(student, signature, network.eval())
