"""Students on disk."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from legibility.students import (
    ConvStudent,
    FourierStudent,
    GatedConvStudent,
    GRUStudent,
    LinearStudent,
    LSTMStudent,
    MLPStudent,
    NGramStudent,
    Signature,
    Student,
    StudentNetwork,
    TransformerStudent,
    load_student,
    save_student,
)

STUDENTS: list[Student] = [
    MLPStudent(depth=3),
    ConvStudent(width=8),
    GRUStudent(),
    NGramStudent(buckets=32),
    TransformerStudent(),
    LSTMStudent(),
    GatedConvStudent(),
    FourierStudent(bandwidth=0.5),
    LinearStudent(),
]


@dataclass(frozen=True)
class OwnStudent(Student):
    """A user's own."""

    reads = frozenset({"features"})

    depth: int = 1

    def body(self, signature: Signature, width: int) -> nn.Module:
        """One layer."""
        return nn.Linear(signature.input_shape[0], width)


def _trained(student: Student, signature: Signature, inputs: Tensor) -> StudentNetwork:
    """With every tensor away from where it started."""
    torch.manual_seed(0)
    network = student.build(signature, width=8)
    network.set_statistics({}, inputs=3 * inputs if inputs.is_floating_point() else None)
    for tensor in network.state_dict().values():
        if tensor.numel() > 1:
            tensor.add_(torch.rand_like(tensor))
    return network.eval()


@pytest.mark.parametrize("student", STUDENTS, ids=lambda student: student.name)
def test_round_trip(student: Student, signature: Signature, tmp_path: Path, draw: Callable[..., Tensor]) -> None:
    if signature.reads not in student.reads:
        return
    inputs = draw(signature)
    network = _trained(student, signature, inputs)
    save_student(tmp_path / "a.safetensors", network, student, signature)
    state = torch.random.get_rng_state()
    loaded = load_student(tmp_path / "a.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (loaded.student, loaded.signature, loaded.network.width) == (student, signature, 8)
    assert not loaded.network.training
    before, after = network(inputs), loaded.network(inputs)
    assert torch.equal(before.output, after.output)
    assert list(before.taps) == list(after.taps)
    assert all(torch.equal(before.taps[name], after.taps[name]) for name in before.taps)


def test_the_same_student_gives_the_same_bytes(signatures: dict[str, Signature], tmp_path: Path) -> None:
    student, signature = GRUStudent(), signatures["tokens"]
    network = _trained(student, signature, torch.zeros(1, 1, dtype=torch.long))
    for name in "abc":
        save_student(tmp_path / name, network, student, signature)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    loaded = load_student(tmp_path / "a")
    save_student(tmp_path / "d", loaded.network, loaded.student, loaded.signature)
    assert (tmp_path / "d").read_bytes() == (tmp_path / "a").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]  # nothing unfinished is left


@pytest.fixture
def saved(signatures: dict[str, Signature], tmp_path: Path) -> Path:
    """A file with MLPStudent(depth=1) of width 8 for features."""
    student, signature = MLPStudent(depth=1), signatures["features"]
    network = _trained(student, signature, torch.randn(4, 5))
    save_student(tmp_path / "mlp.safetensors", network, student, signature)
    return tmp_path / "mlp.safetensors"


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated(saved: Path, kept: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else int(kept)])
    with pytest.raises(ValueError, match=r"`path`: .*mlp.safetensors is truncated or not a safetensors file"):
        load_student(saved)


def test_other_files(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a student, but a longer text than eight bytes")
    with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
        load_student(tmp_path / "text")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle")
    with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
        load_student(tmp_path / "pickle")
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.zeros(2)}, tmp_path / "other", metadata=metadata)
        with pytest.raises(ValueError, match="is a safetensors file without a student's configuration"):
            load_student(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        load_student(tmp_path / "missing")


def _rewrite(path: Path, **changes: object) -> None:
    """Change entries of the configuration, leave the tensors."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    configuration = json.loads(header["__metadata__"]["legibility"]) | changes
    header["__metadata__"]["legibility"] = json.dumps({k: v for k, v in configuration.items() if v is not None})
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + length :])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"format": "legibility.student/2"}, "has the format 'legibility.student/2', this version reads"),
        ({"format": None}, "configuration in .* is damaged"),
        ({"settings": None}, "configuration in .* is damaged"),
        ({"class": "GRUStudent"}, "the tensors and the configuration in .* don't fit"),
        ({"class": "os:system"}, "class os:system, which is not one of legibility.students; .*`student_class`"),
        ({"class": "Student"}, "class Student, which is not one of legibility.students"),
        ({"settings": {"depth": 2}}, "don't fit"),
        ({"settings": {"height": 2}}, "don't fit"),
        ({"settings": {"depth": 0}}, "don't fit"),
        ({"width": 9}, "don't fit"),
        ({"width": "wide"}, "don't fit"),
        ({"signature": "{}"}, "don't fit"),
    ],
)
def test_a_configuration_that_does_not_fit(changes: dict[str, object], message: str, saved: Path) -> None:
    _rewrite(saved, **changes)
    if not message:
        load_student(saved)
        return
    with pytest.raises(ValueError, match=message):
        load_student(saved)


def test_expectations(saved: Path) -> None:
    assert load_student(saved, expect=MLPStudent(depth=1)).student == MLPStudent(depth=1)
    assert load_student(saved, expect=MLPStudent(depth=1, width=8)).network.width == 8
    for other in (MLPStudent(depth=2), MLPStudent(depth=1, width=12), LinearStudent()):
        with pytest.raises(ValueError, match="`expect` must be the student in .*mlp.safetensors"):
            load_student(saved, expect=other)


def test_a_width_that_was_given_is_expected_too(signatures: dict[str, Signature], tmp_path: Path) -> None:
    student = LinearStudent(width=8)
    network = _trained(student, signatures["features"], torch.randn(4, 5))
    save_student(tmp_path / "a", network, student, signatures["features"])
    for fits in (student, replace(student, width=None)):
        assert load_student(tmp_path / "a", expect=fits).student == student
    with pytest.raises(ValueError, match="`expect`"):
        load_student(tmp_path / "a", expect=LinearStudent(width=12))


def test_a_class_of_the_users_own(signatures: dict[str, Signature], tmp_path: Path) -> None:
    student, signature = OwnStudent(), signatures["features"]
    inputs = torch.randn(4, 5)
    network = _trained(student, signature, inputs)
    save_student(tmp_path / "own", network, student, signature)
    with pytest.raises(ValueError, match="OwnStudent, which is not one of legibility.students; give .*`student_class`"):
        load_student(tmp_path / "own")
    with pytest.raises(ValueError, match="`student_class` must be the class in .*OwnStudent; got MLPStudent"):
        load_student(tmp_path / "own", student_class=MLPStudent)
    for loaded in (
        load_student(tmp_path / "own", student_class=OwnStudent),
        load_student(tmp_path / "own", expect=OwnStudent()),
    ):
        assert loaded.student == student
        assert torch.equal(loaded.network(inputs).output, network(inputs).output)


def test_an_interrupted_save_leaves_the_old_file(
    saved: Path, signatures: dict[str, Signature], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    student, signature = LinearStudent(), signatures["features"]
    with pytest.raises(OSError, match="disk full"):
        save_student(saved, _trained(student, signature, torch.randn(4, 5)), student, signature)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
