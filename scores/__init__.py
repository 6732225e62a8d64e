"""Measuring instruments: scores of interpretability with their controls, and guards against a collapsed primary."""

from legibility.scores._code_length import code_length_saving as code_length_saving
from legibility.scores._code_length import kt_code_length as kt_code_length
from legibility.scores._code_length import prediction_code_length as prediction_code_length
from legibility.scores._dimension import activation_rms as activation_rms
from legibility.scores._dimension import effective_rank as effective_rank
from legibility.scores._dimension import live_units as live_units
from legibility.scores._dimension import participation_ratio as participation_ratio
from legibility.scores._held_out import PROTOCOL as PROTOCOL
from legibility.scores._held_out import FamilyImitation as FamilyImitation
from legibility.scores._held_out import held_out_imitation as held_out_imitation
from legibility.scores._held_out import held_out_twin as held_out_twin
from legibility.scores._held_out_metric import HeldOutImitation as HeldOutImitation
from legibility.scores._patch_through import PatchThroughKL as PatchThroughKL
from legibility.scores._patch_through import patch_through_kl as patch_through_kl
from legibility.scores._queries import Queries as Queries
from legibility.scores._sparse_cost import sparse_bytes as sparse_bytes
from legibility.scores._sparse_cost import sparse_flops as sparse_flops
from legibility.scores._sparsity import SparsityOfWeights as SparsityOfWeights
from legibility.scores._sparsity import WeightSparsity as WeightSparsity
from legibility.scores._sparsity import gini as gini
from legibility.scores._sparsity import weight_sparsity as weight_sparsity
from legibility.scores._temperature import match_temperature as match_temperature
from legibility.scores._variance_unexplained import FractionOfVarianceUnexplained as FractionOfVarianceUnexplained

__all__ = [
    "PROTOCOL",
    "FamilyImitation",
    "FractionOfVarianceUnexplained",
    "HeldOutImitation",
    "PatchThroughKL",
    "Queries",
    "SparsityOfWeights",
    "WeightSparsity",
    "activation_rms",
    "code_length_saving",
    "effective_rank",
    "gini",
    "held_out_imitation",
    "held_out_twin",
    "kt_code_length",
    "live_units",
    "match_temperature",
    "participation_ratio",
    "patch_through_kl",
    "prediction_code_length",
    "sparse_bytes",
    "sparse_flops",
    "weight_sparsity",
]
