"""Which students are chosen."""

import pytest

from legibility.students import (
    ConvStudent,
    FourierStudent,
    GRUStudent,
    LinearStudent,
    MLPStudent,
    Signature,
    Student,
    auto_students,
    held_out_students,
)


def test_auto_students_fit_and_differ(signature: Signature) -> None:
    students = auto_students(signature)
    assert len(set(students)) == 2
    assert all(signature.reads in student.reads and student.width is None for student in students)


def test_auto_students_are_the_documented_ones(signatures: dict[str, Signature]) -> None:
    assert auto_students(signatures["tokens"]) == [ConvStudent(), GRUStudent()]
    assert auto_students(signatures["sequence"]) == [ConvStudent(), GRUStudent()]
    assert auto_students(signatures["image"]) == [ConvStudent(), MLPStudent()]
    assert auto_students(signatures["features"]) == [MLPStudent(depth=1), MLPStudent(depth=3)]


def test_held_out_students_were_never_met(signature: Signature) -> None:
    met = auto_students(signature)
    for trained_with in ([], met, held_out_students(signature)[:1]):
        held_out = held_out_students(signature, trained_with)
        assert len(held_out) >= 2
        assert not {type(student) for student in held_out} & {type(student) for student in trained_with}
        assert all(signature.reads in student.reads for student in held_out)


def test_held_out_families_of_text(signatures: dict[str, Signature]) -> None:
    names = [student.name for student in held_out_students(signatures["tokens"], auto_students(signatures["tokens"]))]
    assert names == ["transformer", "lstm", "gated_conv", "ngram"]


def test_no_family_left(signatures: dict[str, Signature]) -> None:
    met: list[Student] = [MLPStudent(), FourierStudent(), LinearStudent()]
    with pytest.raises(ValueError, match="`trained_with` holds every family that reads features"):
        held_out_students(signatures["features"], met)
