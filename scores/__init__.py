"""Measuring instruments: scores of interpretability with their controls, and guards against a collapsed primary."""

from legibility.scores._further import further_scores as further_scores
from legibility.scores._headlines import families_for as families_for
from legibility.scores._headlines import headline_scores as headline_scores
from legibility.scores._layer import Layer as Layer
from legibility.scores._material import ConstantModel as ConstantModel
from legibility.scores._material import Control as Control
from legibility.scores._material import Material as Material
from legibility.scores._material import PermutedAnswers as PermutedAnswers
from legibility.scores._material import RandomInit as RandomInit
from legibility.scores._material import Temperature as Temperature
from legibility.scores._material import default_controls as default_controls
from legibility.scores._measure import UNLEARNT as UNLEARNT
from legibility.scores._measure import Measured as Measured
from legibility.scores._measure import Reading as Reading
from legibility.scores._measure import Score as Score
from legibility.scores._measure import measure as measure
from legibility.scores._structure import structure_scores as structure_scores
from legibility.scores._untrained import untrained as untrained
from legibility.scores.circuits._circuit import CIRCUIT_PROTOCOL as CIRCUIT_PROTOCOL
from legibility.scores.circuits._circuit import Circuit as Circuit
from legibility.scores.circuits._circuit import faithful_circuit as faithful_circuit
from legibility.scores.circuits._circuit_metric import FaithfulCircuit as FaithfulCircuit
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
from legibility.scores.imitation._code_length import code_length_saving as code_length_saving
from legibility.scores.imitation._code_length import kt_code_length as kt_code_length
from legibility.scores.imitation._code_length import prediction_code_length as prediction_code_length
from legibility.scores.imitation._errors import ErrorPredictability as ErrorPredictability
from legibility.scores.imitation._errors import error_agreement as error_agreement
from legibility.scores.imitation._errors_metric import ErrorAgreement as ErrorAgreement
from legibility.scores.imitation._estimators import Estimator as Estimator
from legibility.scores.imitation._estimators import ForestEstimator as ForestEstimator
from legibility.scores.imitation._estimators import KernelEstimator as KernelEstimator
from legibility.scores.imitation._estimators import NearestEstimator as NearestEstimator
from legibility.scores.imitation._estimators import TreeEstimator as TreeEstimator
from legibility.scores.imitation._estimators import default_estimators as default_estimators
from legibility.scores.imitation._family_imitation import PROTOCOL as PROTOCOL
from legibility.scores.imitation._family_imitation import FamilyImitation as FamilyImitation
from legibility.scores.imitation._held_out import held_out_imitation as held_out_imitation
from legibility.scores.imitation._held_out import held_out_twin as held_out_twin
from legibility.scores.imitation._held_out_metric import HeldOutImitation as HeldOutImitation
from legibility.scores.imitation._patch_through import PatchThroughKL as PatchThroughKL
from legibility.scores.imitation._patch_through import patch_through_kl as patch_through_kl
from legibility.scores.imitation._pilot import FitSeconds as FitSeconds
from legibility.scores.imitation._pilot import held_out_seconds as held_out_seconds
from legibility.scores.imitation._queries import Queries as Queries
from legibility.scores.imitation._queries_metric import PredictableErrors as PredictableErrors
from legibility.scores.imitation._queries_metric import TreePathLength as TreePathLength
from legibility.scores.imitation._saving import ImitationSaving as ImitationSaving
from legibility.scores.imitation._saving import imitation_saving as imitation_saving
from legibility.scores.imitation._saving import regression_queries as regression_queries
from legibility.scores.imitation._saving import transfer_ratio as transfer_ratio
from legibility.scores.imitation._temperature import match_temperature as match_temperature
from legibility.scores.imitation._tree_path import TreePath as TreePath
from legibility.scores.imitation._tree_path import tree_path_length as tree_path_length
from legibility.scores.imitation._watching import error_predictability as error_predictability
from legibility.scores.representation._difficulty_slope import DifficultyProfile as DifficultyProfile
from legibility.scores.representation._difficulty_slope import DifficultySlope as DifficultySlope
from legibility.scores.representation._difficulty_slope import difficulty_slope as difficulty_slope
from legibility.scores.representation._difficulty_slope import profile_distance as profile_distance
from legibility.scores.representation._difficulty_slope import reference_profiles as reference_profiles
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
from legibility.scores.weights._canonical import Canonical as Canonical
from legibility.scores.weights._canonical import canonicalise as canonicalise
from legibility.scores.weights._compressed import COMPRESSION_PROTOCOL as COMPRESSION_PROTOCOL
from legibility.scores.weights._compressed import CompressedSize as CompressedSize
from legibility.scores.weights._compressed import compressed_size as compressed_size
from legibility.scores.weights._compressed_metric import CompressedSizeOfModel as CompressedSizeOfModel
from legibility.scores.weights._crosstalk import CrosstalkOfPaths as CrosstalkOfPaths
from legibility.scores.weights._crosstalk import PathCrosstalk as PathCrosstalk
from legibility.scores.weights._crosstalk import path_crosstalk as path_crosstalk
from legibility.scores.weights._modularity import Modularity as Modularity
from legibility.scores.weights._modularity import modularity as modularity
from legibility.scores.weights._modularity import normalised_cut as normalised_cut
from legibility.scores.weights._modularity import relative_modularity as relative_modularity
from legibility.scores.weights._sparse_cost import sparse_bytes as sparse_bytes
from legibility.scores.weights._sparse_cost import sparse_flops as sparse_flops
from legibility.scores.weights._sparsity import SparsityOfWeights as SparsityOfWeights
from legibility.scores.weights._sparsity import WeightSparsity as WeightSparsity
from legibility.scores.weights._sparsity import gini as gini
from legibility.scores.weights._sparsity import weight_sparsity as weight_sparsity
from legibility.scores.weights._spread import ActivationL0 as ActivationL0
from legibility.scores.weights._spread import activation_l0 as activation_l0
from legibility.scores.weights._spread import hoyer as hoyer
from legibility.scores.weights._structure_metrics import RelativeModularity as RelativeModularity
from legibility.scores.weights._structure_metrics import RelativeWiringCost as RelativeWiringCost
from legibility.scores.weights._wiring import WiringCost as WiringCost
from legibility.scores.weights._wiring import wiring_cost as wiring_cost

__all__ = [
    "CIRCUIT_PROTOCOL",
    "COMPRESSION_PROTOCOL",
    "PROTOCOL",
    "UNLEARNT",
    "ActivationL0",
    "Canonical",
    "Circuit",
    "CompressedSize",
    "CompressedSizeOfModel",
    "ConceptUse",
    "ConstantModel",
    "Control",
    "CrosstalkOfPaths",
    "DifficultyProfile",
    "DifficultySlope",
    "Dimension",
    "Disentanglement",
    "Eraser",
    "ErrorAgreement",
    "ErrorPredictability",
    "Estimator",
    "ExplanationFidelity",
    "FaithfulCircuit",
    "FamilyImitation",
    "FeatureDimensionality",
    "ForestEstimator",
    "FractionOfVarianceUnexplained",
    "GatedDisentanglement",
    "HeldOutImitation",
    "ImitationSaving",
    "KernelEstimator",
    "KeyValueMemories",
    "Layer",
    "LensAtDepth",
    "LensGap",
    "LensProfile",
    "LinearCKA",
    "LocalFidelity",
    "Material",
    "Measured",
    "MemoryReadings",
    "Modularity",
    "MonosemanticUnits",
    "Monosemanticity",
    "NearestEstimator",
    "PatchThroughKL",
    "PathCrosstalk",
    "PermutedAnswers",
    "PredictableErrors",
    "Queries",
    "RandomInit",
    "Reading",
    "RelativeModularity",
    "RelativeWiringCost",
    "Retargetability",
    "Retargeting",
    "Score",
    "SparsityOfWeights",
    "Temperature",
    "TreeEstimator",
    "TreePath",
    "TreePathLength",
    "UnitReadings",
    "UnitStudents",
    "UseOfConcepts",
    "UsedGivenEncoded",
    "WeightSparsity",
    "WiringCost",
    "activation_l0",
    "activation_rms",
    "canonicalise",
    "code_length_saving",
    "compressed_size",
    "dci_disentanglement",
    "default_controls",
    "default_estimators",
    "difficulty_slope",
    "effective_rank",
    "error_agreement",
    "error_predictability",
    "explanation_fidelity",
    "faithful_circuit",
    "families_for",
    "feature_dimensionality",
    "further_scores",
    "gated_disentanglement",
    "gini",
    "headline_scores",
    "held_out_imitation",
    "held_out_seconds",
    "held_out_twin",
    "hoyer",
    "imitation_saving",
    "key_value_memories",
    "kt_code_length",
    "leace_eraser",
    "lens_profile",
    "linear_cka",
    "live_units",
    "match_temperature",
    "measure",
    "modularity",
    "monosemanticity",
    "normalised_cut",
    "participation_ratio",
    "patch_through_kl",
    "path_crosstalk",
    "prediction_code_length",
    "profile_distance",
    "reference_profiles",
    "regression_queries",
    "relative_modularity",
    "retargetability",
    "search_regret",
    "sparse_bytes",
    "sparse_flops",
    "structure_scores",
    "transfer_ratio",
    "tree_path_length",
    "unit_students",
    "untrained",
    "used_given_encoded",
    "weight_sparsity",
    "wiring_cost",
]
