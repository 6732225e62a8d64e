"""Measuring instruments: scores of interpretability with their controls, and guards against a collapsed primary."""

from legibility.scores._dimension import activation_rms as activation_rms
from legibility.scores._dimension import effective_rank as effective_rank
from legibility.scores._dimension import live_units as live_units
from legibility.scores._dimension import participation_ratio as participation_ratio
from legibility.scores._headlines import families_for as families_for
from legibility.scores._headlines import headline_scores as headline_scores
from legibility.scores._headlines import structure_scores as structure_scores
from legibility.scores._material import ConstantModel as ConstantModel
from legibility.scores._material import Control as Control
from legibility.scores._material import Material as Material
from legibility.scores._material import PermutedAnswers as PermutedAnswers
from legibility.scores._material import RandomInit as RandomInit
from legibility.scores._material import Temperature as Temperature
from legibility.scores._material import default_controls as default_controls
from legibility.scores._measure import Measured as Measured
from legibility.scores._measure import Reading as Reading
from legibility.scores._measure import Score as Score
from legibility.scores._measure import measure as measure
from legibility.scores._untrained import untrained as untrained
from legibility.scores.circuits._circuit import CIRCUIT_PROTOCOL as CIRCUIT_PROTOCOL
from legibility.scores.circuits._circuit import Circuit as Circuit
from legibility.scores.circuits._circuit import faithful_circuit as faithful_circuit
from legibility.scores.circuits._circuit_metric import FaithfulCircuit as FaithfulCircuit
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
from legibility.scores.imitation._queries import Queries as Queries
from legibility.scores.imitation._saving import ImitationSaving as ImitationSaving
from legibility.scores.imitation._saving import imitation_saving as imitation_saving
from legibility.scores.imitation._saving import regression_queries as regression_queries
from legibility.scores.imitation._saving import transfer_ratio as transfer_ratio
from legibility.scores.imitation._temperature import match_temperature as match_temperature
from legibility.scores.imitation._tree_path import TreePath as TreePath
from legibility.scores.imitation._tree_path import tree_path_length as tree_path_length
from legibility.scores.imitation._watching import error_predictability as error_predictability
from legibility.scores.representation._variance_unexplained import (
    FractionOfVarianceUnexplained as FractionOfVarianceUnexplained,
)
from legibility.scores.weights._canonical import Canonical as Canonical
from legibility.scores.weights._canonical import canonicalise as canonicalise
from legibility.scores.weights._compressed import COMPRESSION_PROTOCOL as COMPRESSION_PROTOCOL
from legibility.scores.weights._compressed import CompressedSize as CompressedSize
from legibility.scores.weights._compressed import compressed_size as compressed_size
from legibility.scores.weights._compressed_metric import CompressedSizeOfModel as CompressedSizeOfModel
from legibility.scores.weights._modularity import Modularity as Modularity
from legibility.scores.weights._modularity import modularity as modularity
from legibility.scores.weights._modularity import normalised_cut as normalised_cut
from legibility.scores.weights._modularity import relative_modularity as relative_modularity
from legibility.scores.weights._sparsity import SparsityOfWeights as SparsityOfWeights
from legibility.scores.weights._sparsity import WeightSparsity as WeightSparsity
from legibility.scores.weights._sparsity import gini as gini
from legibility.scores.weights._sparsity import weight_sparsity as weight_sparsity
from legibility.scores.weights._spread import activation_l0 as activation_l0
from legibility.scores.weights._spread import hoyer as hoyer
from legibility.scores.weights._wiring import WiringCost as WiringCost
from legibility.scores.weights._wiring import wiring_cost as wiring_cost

__all__ = [
    "CIRCUIT_PROTOCOL",
    "COMPRESSION_PROTOCOL",
    "PROTOCOL",
    "Canonical",
    "Circuit",
    "CompressedSize",
    "CompressedSizeOfModel",
    "ConstantModel",
    "Control",
    "ErrorAgreement",
    "ErrorPredictability",
    "Estimator",
    "FaithfulCircuit",
    "FamilyImitation",
    "ForestEstimator",
    "FractionOfVarianceUnexplained",
    "HeldOutImitation",
    "ImitationSaving",
    "KernelEstimator",
    "Material",
    "Measured",
    "Modularity",
    "NearestEstimator",
    "PatchThroughKL",
    "PermutedAnswers",
    "Queries",
    "RandomInit",
    "Reading",
    "Score",
    "SparsityOfWeights",
    "Temperature",
    "TreeEstimator",
    "TreePath",
    "WeightSparsity",
    "WiringCost",
    "activation_l0",
    "activation_rms",
    "canonicalise",
    "code_length_saving",
    "compressed_size",
    "default_controls",
    "default_estimators",
    "effective_rank",
    "error_agreement",
    "error_predictability",
    "faithful_circuit",
    "families_for",
    "gini",
    "headline_scores",
    "held_out_imitation",
    "held_out_twin",
    "hoyer",
    "imitation_saving",
    "kt_code_length",
    "live_units",
    "match_temperature",
    "measure",
    "modularity",
    "normalised_cut",
    "participation_ratio",
    "patch_through_kl",
    "prediction_code_length",
    "regression_queries",
    "relative_modularity",
    "structure_scores",
    "transfer_ratio",
    "tree_path_length",
    "untrained",
    "weight_sparsity",
    "wiring_cost",
]
