"""Pure functions of tensors: what a student minimises, what makes weights sparse.

Every function checks its arguments before it computes, works in float32 (float64 for float64 inputs) and leaves
weighting, scheduling and detaching to the caller. Lower is better for every value; the proximal steps return weights.
"""

from legibility.losses._activations import abs_top_k as abs_top_k
from legibility.losses._activations import activation_l1 as activation_l1
from legibility.losses._activations import rectified_l1 as rectified_l1
from legibility.losses._activations import tail_energy as tail_energy
from legibility.losses._hidden import fraction_of_variance_unexplained as fraction_of_variance_unexplained
from legibility.losses._imitation import entropy as entropy
from legibility.losses._imitation import forward_kl as forward_kl
from legibility.losses._imitation import masked_mean as masked_mean
from legibility.losses._imitation import reverse_kl as reverse_kl
from legibility.losses._imitation import symmetric_kl as symmetric_kl
from legibility.losses._meeting import kl_sum_and_gradient as kl_sum_and_gradient
from legibility.losses._pieces import in_pieces as in_pieces
from legibility.losses._proximal import group_soft_threshold as group_soft_threshold
from legibility.losses._proximal import reweighted_soft_threshold as reweighted_soft_threshold
from legibility.losses._proximal import soft_threshold as soft_threshold
from legibility.losses._sparsity import group_l1_penalty as group_l1_penalty
from legibility.losses._sparsity import l1_penalty as l1_penalty
from legibility.losses._sparsity import log_penalty as log_penalty
from legibility.losses._sparsity import root_mean_square as root_mean_square
from legibility.losses._top_k import hard_threshold as hard_threshold
from legibility.losses._top_k import magnitude_threshold as magnitude_threshold

__all__ = [
    "abs_top_k",
    "activation_l1",
    "entropy",
    "forward_kl",
    "fraction_of_variance_unexplained",
    "group_l1_penalty",
    "group_soft_threshold",
    "hard_threshold",
    "in_pieces",
    "kl_sum_and_gradient",
    "l1_penalty",
    "log_penalty",
    "magnitude_threshold",
    "masked_mean",
    "rectified_l1",
    "reverse_kl",
    "reweighted_soft_threshold",
    "root_mean_square",
    "soft_threshold",
    "symmetric_kl",
    "tail_energy",
]
