"""The students: small models of other architectures that imitate the primary.

`Student` is an architecture with its settings, `read_signature` says what it must read and imitate, `size_students` how
wide it may be, `Cohort` trains several together, `save_student` keeps one.
"""

from legibility.students._cohort import Cohort as Cohort
from legibility.students._conv import ConvStudent as ConvStudent
from legibility.students._defaults import auto_students as auto_students
from legibility.students._defaults import held_out_students as held_out_students
from legibility.students._fourier import FourierStudent as FourierStudent
from legibility.students._gated_conv import GatedConvStudent as GatedConvStudent
from legibility.students._imitation import ImitationLoss as ImitationLoss
from legibility.students._linear import LinearStudent as LinearStudent
from legibility.students._mlp import MLPStudent as MLPStudent
from legibility.students._ngram import NGramStudent as NGramStudent
from legibility.students._recurrent import GRUStudent as GRUStudent
from legibility.students._recurrent import LSTMStudent as LSTMStudent
from legibility.students._signature import Signature as Signature
from legibility.students._signature import TapSignature as TapSignature
from legibility.students._signature import read_signature as read_signature
from legibility.students._sizing import check_smaller as check_smaller
from legibility.students._sizing import flops as flops
from legibility.students._sizing import size_students as size_students
from legibility.students._storage import LoadedStudent as LoadedStudent
from legibility.students._storage import load_student as load_student
from legibility.students._storage import save_student as save_student
from legibility.students._student import Prediction as Prediction
from legibility.students._student import Student as Student
from legibility.students._student import StudentNetwork as StudentNetwork
from legibility.students._transformer import TransformerStudent as TransformerStudent

__all__ = [
    "Cohort",
    "ConvStudent",
    "FourierStudent",
    "GRUStudent",
    "GatedConvStudent",
    "ImitationLoss",
    "LSTMStudent",
    "LinearStudent",
    "LoadedStudent",
    "MLPStudent",
    "NGramStudent",
    "Prediction",
    "Signature",
    "Student",
    "StudentNetwork",
    "TapSignature",
    "TransformerStudent",
    "auto_students",
    "check_smaller",
    "flops",
    "held_out_students",
    "load_student",
    "read_signature",
    "save_student",
    "size_students",
]
