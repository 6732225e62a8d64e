"""Callbacks for Lightning: some change training, one only reports.

- :class:`StudentLegibility` trains students beside the model and asks it to be easy to imitate.
- :class:`GroupSparsity` makes whole rows, columns, heads or neurons exactly zero; :func:`remove_dead_neurons` cuts.
- :class:`L1Sparsity` makes weights exactly zero by proximal steps; :class:`TopKSparsity` keeps only the largest.
- :class:`WiringCost` is L1 by the distance of the neurons that a weight connects; neurons look for good places.
- :func:`save_sparse` stores zeros as bits; :func:`to_torch_sparse` gives linear layers that skip them.
- :class:`ActivationSparsity` asks named activations to be sparse. :class:`Schedule` is the language of what changes.
- :class:`L1InsteadOfL2` switches weight decay and dropout off.
- :class:`InterpretabilityReport` only watches: it measures scores at the end and writes the run record.

Each works in ``lightning.pytorch`` and ``pytorch_lightning``.
"""

from legibility.lightning_plugins.imitation._student_legibility import StudentLegibility as StudentLegibility
from legibility.lightning_plugins.report._controls import RandomInitControl as RandomInitControl
from legibility.lightning_plugins.report._controls import TemperatureControl as TemperatureControl
from legibility.lightning_plugins.report._report import InterpretabilityReport as InterpretabilityReport
from legibility.lightning_plugins.report.picture._options import ModelPage as ModelPage
from legibility.lightning_plugins.sparsity._activation_sparsity import ActivationSparsity as ActivationSparsity
from legibility.lightning_plugins.sparsity._export import load_sparse as load_sparse
from legibility.lightning_plugins.sparsity._export import save_sparse as save_sparse
from legibility.lightning_plugins.sparsity._group_sparsity import GroupSparsity as GroupSparsity
from legibility.lightning_plugins.sparsity._l1_instead_of_l2 import L1InsteadOfL2 as L1InsteadOfL2
from legibility.lightning_plugins.sparsity._l1_sparsity import L1Sparsity as L1Sparsity
from legibility.lightning_plugins.sparsity._schedule import Schedule as Schedule
from legibility.lightning_plugins.sparsity._top_k_sparsity import TopKSparsity as TopKSparsity
from legibility.lightning_plugins.sparsity._torch_sparse import to_torch_sparse as to_torch_sparse
from legibility.lightning_plugins.sparsity._wiring_cost import WiringCost as WiringCost
from legibility.lightning_plugins.sparsity._wiring_picture import wiring_picture as wiring_picture
from legibility.lightning_plugins.sparsity.structure._remove_dead_neurons import Smaller as Smaller
from legibility.lightning_plugins.sparsity.structure._remove_dead_neurons import (
    remove_dead_neurons as remove_dead_neurons,
)

__all__ = [
    "ActivationSparsity",
    "GroupSparsity",
    "InterpretabilityReport",
    "L1InsteadOfL2",
    "L1Sparsity",
    "ModelPage",
    "RandomInitControl",
    "Schedule",
    "Smaller",
    "StudentLegibility",
    "TemperatureControl",
    "TopKSparsity",
    "WiringCost",
    "load_sparse",
    "remove_dead_neurons",
    "save_sparse",
    "to_torch_sparse",
    "wiring_picture",
]
