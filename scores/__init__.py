"""Measuring instruments: scores of interpretability with their controls, and guards against a collapsed primary."""

from legibility.scores._code_length import code_length_saving as code_length_saving
from legibility.scores._code_length import kt_code_length as kt_code_length
from legibility.scores._code_length import prediction_code_length as prediction_code_length
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
from legibility.scores.concepts._disentanglement import Disentanglement as Disentanglement
from legibility.scores.concepts._disentanglement import dci_disentanglement as dci_disentanglement
from legibility.scores.concepts._disentanglement import gated_disentanglement as gated_disentanglement
from legibility.scores.concepts._disentanglement_metric import GatedDisentanglement as GatedDisentanglement
from legibility.scores.concepts._leace import Eraser as Eraser
from legibility.scores.concepts._leace import leace_eraser as leace_eraser
from legibility.scores.concepts._monosemanticity import Monosemanticity as Monosemanticity
from legibility.scores.concepts._monosemanticity import MonosemanticUnits as MonosemanticUnits
from legibility.scores.concepts._monosemanticity import monosemanticity as monosemanticity
from legibility.scores.concepts._unit_students import UnitReadings as UnitReadings
from legibility.scores.concepts._unit_students import UnitStudents as UnitStudents
from legibility.scores.concepts._unit_students import unit_students as unit_students
from legibility.scores.concepts._used_given_encoded import ConceptUse as ConceptUse
from legibility.scores.concepts._used_given_encoded import UseOfConcepts as UseOfConcepts
from legibility.scores.concepts._used_given_encoded import used_given_encoded as used_given_encoded
from legibility.scores.concepts._used_given_encoded_metric import UsedGivenEncoded as UsedGivenEncoded
from legibility.scores.representation._difficulty_slope import DifficultyProfile as DifficultyProfile
from legibility.scores.representation._difficulty_slope import DifficultySlope as DifficultySlope
from legibility.scores.representation._difficulty_slope import difficulty_slope as difficulty_slope
from legibility.scores.representation._difficulty_slope import profile_distance as profile_distance
from legibility.scores.representation._difficulty_slope import search_regret as search_regret
from legibility.scores.representation._dimension import activation_rms as activation_rms
from legibility.scores.representation._dimension import effective_rank as effective_rank
from legibility.scores.representation._dimension import live_units as live_units
from legibility.scores.representation._dimension import participation_ratio as participation_ratio
from legibility.scores.representation._dimension_metric import Dimension as Dimension
from legibility.scores.representation._explanation_fidelity import ExplanationFidelity as ExplanationFidelity
from legibility.scores.representation._explanation_fidelity import LocalFidelity as LocalFidelity
from legibility.scores.representation._explanation_fidelity import explanation_fidelity as explanation_fidelity
from legibility.scores.representation._feature_dimensionality import FeatureDimensionality as FeatureDimensionality
from legibility.scores.representation._feature_dimensionality import feature_dimensionality as feature_dimensionality
from legibility.scores.representation._key_value_memories import MemoryReadings as MemoryReadings
from legibility.scores.representation._key_value_memories import key_value_memories as key_value_memories
from legibility.scores.representation._key_value_memories_metric import KeyValueMemories as KeyValueMemories
from legibility.scores.representation._lens import LensAtDepth as LensAtDepth
from legibility.scores.representation._lens import LensProfile as LensProfile
from legibility.scores.representation._lens import lens_profile as lens_profile
from legibility.scores.representation._lens_metric import LensGap as LensGap
from legibility.scores.representation._retargetability import Retargeting as Retargeting
from legibility.scores.representation._retargetability import retargetability as retargetability
from legibility.scores.representation._retargetability_metric import Retargetability as Retargetability
from legibility.scores.representation._similarity import LinearCKA as LinearCKA
from legibility.scores.representation._similarity import linear_cka as linear_cka
from legibility.scores.representation._variance_unexplained import (
    FractionOfVarianceUnexplained as FractionOfVarianceUnexplained,
)

__all__ = [
    "PROTOCOL",
    "ConceptUse",
    "DifficultyProfile",
    "DifficultySlope",
    "Dimension",
    "Disentanglement",
    "Eraser",
    "ExplanationFidelity",
    "FamilyImitation",
    "FeatureDimensionality",
    "FractionOfVarianceUnexplained",
    "GatedDisentanglement",
    "HeldOutImitation",
    "KeyValueMemories",
    "LensAtDepth",
    "LensGap",
    "LensProfile",
    "LinearCKA",
    "LocalFidelity",
    "MemoryReadings",
    "MonosemanticUnits",
    "Monosemanticity",
    "PatchThroughKL",
    "Queries",
    "Retargetability",
    "Retargeting",
    "SparsityOfWeights",
    "UnitReadings",
    "UnitStudents",
    "UseOfConcepts",
    "UsedGivenEncoded",
    "WeightSparsity",
    "activation_rms",
    "code_length_saving",
    "dci_disentanglement",
    "difficulty_slope",
    "effective_rank",
    "explanation_fidelity",
    "feature_dimensionality",
    "gated_disentanglement",
    "gini",
    "held_out_imitation",
    "held_out_twin",
    "key_value_memories",
    "kt_code_length",
    "leace_eraser",
    "lens_profile",
    "linear_cka",
    "live_units",
    "match_temperature",
    "monosemanticity",
    "participation_ratio",
    "patch_through_kl",
    "prediction_code_length",
    "profile_distance",
    "retargetability",
    "search_regret",
    "sparse_bytes",
    "sparse_flops",
    "unit_students",
    "used_given_encoded",
    "weight_sparsity",
]
