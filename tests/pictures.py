"""A model's page with a picture of every kind, for tests; all its names can be chosen."""

from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry
from legibility.tradeoff.model_page import (
    AttentionPicture,
    CircuitPicture,
    ExamplePicture,
    GraphPicture,
    LensPicture,
    MaskPicture,
    ModelPicture,
    Reading,
    StudentPicture,
    UnitsPicture,
    WeightPicture,
)

HOSTILE = [
    "<script>window.broken=1</script>",
    '"><img src=x onerror="window.broken=1">',
    "</style></svg><svg onload=window.broken=1>",
    "\u202eevil\u202c <a href='javascript:window.broken=1'>here</a>",
    "{{ 7 * 7 }}{% for x in y %}",
]


def full_record(name: str = "plain") -> RunRecord:
    """A run with scores of every kind."""
    scores = [
        ScoreEntry("held_out_kl", 0.4, "nats", "lower", 0.6, "random-init", False),
        ScoreEntry("held_out_kl", 0.5, "nats", "lower", 0.6, "random-init", False, family=name),
        ScoreEntry("adjusted_saving", 0.1, "share", "higher", 0.5, "saving on the true labels", False),
        ScoreEntry(
            "canonical_gini", 0.3, "ratio", "higher", 0.1, "random-init", True,
            controls={"random-init": 0.1, "constant": 0.9}, control_reasons={"permuted answers": name},
        ),
        ScoreEntry("error_predictability", 0.2, "share", "higher", None, None, False, interval=[0.1, 0.3], details={"doubted by random-init": 0.95}),
        ScoreEntry("circuit_nodes", None, "share", "lower", None, None, False, reason="would take about 9 s"),
        ScoreEntry(name, 1.0, name, None, None, None, False),
    ]  # fmt: skip
    return RunRecord(
        name, 0, name, {name: 1.0}, [name], TaskEntry("cross-entropy", 1.5, 0.9, 0.2, 64, "validation"), scores,
        CostEntry(8.0, 100, 0.1, 1.0, None, {}, 1234, report_share=0.125), {"torch": "2"}, settings={name: name},
        guards={name: 1.0, "rank": None}, notes=[name], created="2026-01-01T00:00:00",
    )  # fmt: skip


def full_picture(name: str = "layer") -> ModelPicture:
    """A picture of every kind."""
    row = [99, 0, -99, 50]
    return ModelPicture(
        model=name,
        layers_found=name,
        examples=[ExamplePicture(name, words=[name, "\n", "b"]), ExamplePicture(name, grid=[row, row])],
        units=[UnitsPicture(name, 8, 7, [3, 1], [name, name, "b", "c"], [row, row], [name, "b"], [[9, -9], [0, 1]], [0.5, 0.1], 2.5)],
        lens=LensPicture([name, "later"], [2.0, 1.0], [1.5, 0.9], 2.3),
        circuits=[CircuitPicture("nodes", 0.3, 0.6, None, 10, [[1.0, 0.0], [3.0, 0.92], [10.0, 1.0]], [MaskPicture(name, 2, 4, [[99, 0, 99, 0]])])],
        graph=GraphPicture([name, "b"], [4, 4], [[0, 1, 0], [1, 2, 0], [0, 3, -1]], [[0, 1, 99], [2, 1, -40]], 9, 1, 0.2, None),
        students=[
            StudentPicture(
                name, 0.5, 0.8, [[name, "3", "0.5"]], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
                learnt=[Reading(0, [0.1, None, 0.5], [name, name, name], ["a", "b", "c"])],
                missed=[Reading(1, [2.0], [name], [name])],
            )
        ],
        weights=[WeightPicture(name, [2, 4], 0.25, 1.5, [1, 0, 4, 1], [row, row])],
        attention=[AttentionPicture(name, [[[99, 0], [50, 50]], [[99, 0], [9, 90]]])],
    )  # fmt: skip
