"""Which students are used where the user names none."""

from collections.abc import Sequence

from legibility.students._conv import ConvStudent
from legibility.students._fourier import FourierStudent
from legibility.students._gated_conv import GatedConvStudent
from legibility.students._linear import LinearStudent
from legibility.students._mlp import MLPStudent
from legibility.students._ngram import NGramStudent
from legibility.students._recurrent import GRUStudent, LSTMStudent
from legibility.students._signature import Reads, Signature
from legibility.students._student import Student
from legibility.students._transformer import TransformerStudent

STUDENTS: tuple[type[Student], ...] = (
    MLPStudent,
    ConvStudent,
    GRUStudent,
    NGramStudent,
    TransformerStudent,
    LSTMStudent,
    GatedConvStudent,
    FourierStudent,
    LinearStudent,
)

# Held-out families, best first; those after the number of _HELD_OUT stand in for classes that were trained with.
_HELD_OUT: dict[Reads, int] = {"tokens": 4, "sequence": 3, "image": 3, "features": 3}
_FAMILIES: dict[Reads, tuple[type[Student], ...]] = {
    "tokens": (TransformerStudent, LSTMStudent, GatedConvStudent, NGramStudent, MLPStudent, ConvStudent, GRUStudent),
    "sequence": (TransformerStudent, LSTMStudent, GatedConvStudent, MLPStudent, ConvStudent, GRUStudent),
    "image": (FourierStudent, LinearStudent, MLPStudent, ConvStudent),
    "features": (FourierStudent, LinearStudent, MLPStudent),
}


def auto_students(signature: Signature) -> list[Student]:
    """The two students that train with a primary by default.

    Two cheap students that differ.

    Args:
        signature: What is read.

    Returns:
        Convolution and GRU for tokens and sequences, convolution and MLP for images, two MLPs of depth 1 and 3 for
        features; all to be sized.

    Example:
        >>> [s.name for s in auto_students(Signature("features", (5,), outputs=2, per_position=False))]
        ['mlp', 'mlp']
    """
    if signature.reads in ("tokens", "sequence"):
        return [ConvStudent(), GRUStudent()]
    if signature.reads == "image":
        return [ConvStudent(), MLPStudent()]
    return [MLPStudent(depth=1), MLPStudent(depth=3)]


def held_out_students(signature: Signature, trained_with: Sequence[Student] = ()) -> list[Student]:
    """Students of families that the primary never met, for measuring.

    Args:
        signature: What is read.
        trained_with: The students that trained with the primary; none of their classes is returned.

    Returns:
        Up to four students (tokens) or three (else), to be sized.

    Raises:
        ValueError: If no family is left.

    Example:
        >>> signature = Signature("tokens", (16,), outputs=50, per_position=True, vocabulary=50)
        >>> [s.name for s in held_out_students(signature, [LSTMStudent()])]
        ['transformer', 'gated_conv', 'ngram', 'mlp']
    """
    met = {type(student) for student in trained_with}
    left = [family() for family in _FAMILIES[signature.reads] if family not in met]
    if not left:
        raise ValueError(
            f"`trained_with` holds every family that reads {signature.reads}; train with fewer, "
            "or give held-out students of your own."
        )
    return left[: _HELD_OUT[signature.reads]]
