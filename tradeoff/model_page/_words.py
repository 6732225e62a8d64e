"""What scores are called and what they mean, in one sentence each, for those who read a model's page."""

from collections.abc import Mapping

from legibility.tradeoff._record import DOUBTED_BY, CostEntry, ScoreEntry

_WORDS = {
    "held_out_kl": ("held-out KL", "how far students that never met the model end from its answers"),
    "relative_kl": (
        "relative KL",
        "the same as a share of what knowing only its mean answer costs; 1 = learnt nothing",
    ),
    "disagreement": ("disagreement", "how often the students' first choice is another one"),
    "code_length": ("code length", "bits to send the model's choices to somebody who holds a student"),
    "imitation_saving": ("imitation saving", "share of these bits that students save against not reading the input"),
    "adjusted_saving": (
        "adjusted saving",
        "the same less what they save on the true labels: easier than the task itself?",
    ),
    "median_saving": ("median saving", "adjusted saving, median over students, forests, neighbours, kernels and trees"),
    "error_predictability": (
        "error predictability",
        "whether families foresee the model's errors beyond those of a twin",
    ),
    "error_predictability_shifted": ("error predictability, shifted", "the same on data from another distribution"),
    "patch_through_kl": ("patch-through KL", "what the answers lose when a student's guess replaces a layer"),
    "circuit_nodes": ("circuit, nodes", "share of the units that answer like all of them, at fidelity .9"),
    "circuit_edges": ("circuit, edges", "share of the weights that answer like all of them, at fidelity .9"),
    "compressed_size": (
        "compressed size",
        "bits in which the weights can be written before the task suffers, of 32 each",
    ),
    "exact_zero_share": ("exact-zero share", "weights that are exactly zero"),
    "active_weight_share": ("active weights", "weights above .01"),
    "gini": ("Gini", "how unequal the weights are, as they stand"),
    "canonical_gini": ("Gini, canonical", "the same after rescaling that changes no function"),
    "dead_unit_share": ("dead units", "rows of weights that are all zero"),
    "sparse_bytes_share": ("sparse bytes", "what the parameters take with zeros as bits"),
    "sparse_flops_share": ("sparse multiplications", "what a call takes without multiplying by zero"),
    "relative_modularity": ("relative modularity", "clusters of weights beyond those of the same weights elsewhere"),
    "wiring_cost": ("wiring cost", "length of the connections once units stand best, against shuffled weights"),
    "tree_path_length": ("tree path", "questions that a tree asks to agree with the model"),
    "participation_ratio": ("dimension", "directions that the layer fills (participation ratio)"),
    "activation_l0": ("units at work", "share of the layer's units that say anything at a time"),
    "patch_through": (
        "patch-through",
        "share of what the answers say that is lost when a student's guess replaces a layer",
    ),
    "student_cka": ("CKA to students", "how alike a layer and what students make of it are"),
    "unit_readability": ("unit readability", "how well small trees and lines foresee single units"),
    "path_crosstalk": ("path cross-talk", "whether an input's paths through the units lead to all outputs"),
    "lens_gap": ("lens gap", "of what layers know, the share that is in another language than the output's"),
    "key_value_memories": (
        "feed-forward memories",
        "how often a unit's value says what the model answers where it fires",
    ),
    "explanation_error": ("explanation error", "how far the best linear explanation near an input is off"),
    "used_given_encoded": ("used given encoded", "of the concepts in the last layer, those that the answers depend on"),
    "gated_disentanglement": ("disentanglement, gated", "whether units stand for one concept each, beyond chance"),
    "selectivity": ("selectivity", "variance of units that their best concept explains"),
}


def controls_of(entry: ScoreEntry) -> dict[str, float]:
    """All controls that have a value: the first one stands by itself too, of held-out students only there."""
    controls = dict(entry.controls)
    if entry.control is not None and entry.control_name is not None:
        controls.setdefault(entry.control_name, entry.control)
    return controls


def cost_in_words(cost: CostEntry) -> str:
    """What measuring took; empty if that wasn't written down."""
    if cost.report_seconds is None:
        return ""
    share = "" if cost.report_share is None else f", {100 * cost.report_share:.1f} % of the fit's time"
    return f"Measuring took {cost.report_seconds:.1f} s{share}."


def doubts_of(details: Mapping[str, float]) -> list[tuple[str, float]]:
    """Controls that haven't learnt but would do better, and what they would have.

    Example:
        >>> doubts_of({"area": 0.5, "doubted by random-init": 0.1})
        [('random-init', 0.1)]
    """
    return [(name.removeprefix(DOUBTED_BY), value) for name, value in details.items() if name.startswith(DOUBTED_BY)]


def title_of(name: str) -> str:
    """A score's name in words; with the layer that it is about.

    Example:
        >>> title_of("fvu/blocks.1"), title_of("held_out_kl"), title_of("my_own")
        ('unexplained variance of blocks.1', 'held-out KL', 'my own')
    """
    kind, _, layer = name.partition("/")
    words = "unexplained variance" if kind == "fvu" else _WORDS.get(kind, (kind.replace("_", " "),))[0]
    return f"{words} of {layer}" if layer else words


def meaning_of(name: str) -> str:
    """What a score says, in one sentence; empty for one that isn't known here."""
    kind = name.partition("/")[0]
    if kind == "fvu":
        return "share of a layer's variance that students can't predict"
    return _WORDS[kind][1] if kind in _WORDS else ""
