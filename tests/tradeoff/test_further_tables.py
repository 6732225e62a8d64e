"""The tables below the headline table: what they hold, by hand, and what they leave out."""

from collections.abc import Sequence
from dataclasses import replace

from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare, further_tables


def run(arm: str, seed: int, loss: float, kl: float) -> RunRecord:
    score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
    strengths = {"legibility": 1.0} if arm.startswith("ours") else {}
    task = TaskEntry("cross-entropy", loss, None, None, None, "test")
    cost = CostEntry(None, None, None, None, None, {}, 1)
    return RunRecord(arm, seed, "demo", strengths, [], task, [score], cost, {})


def records(gain: float) -> Sequence[RunRecord]:
    found = [run("plain", seed, 1.0 + 0.01 * seed, 1.0 + 0.01 * seed) for seed in range(6)]
    for seed in range(6):
        noise = 0.002 * (-1) ** seed
        for strength in (1, 2, 3, 4):
            loss = 1.0 + 0.01 * seed + 0.1 * strength
            kl = 2.0 - loss + noise
            found += [run(f"ours-{strength}", seed, loss, kl - gain), run(f"decay-{strength}", seed, loss, kl - noise)]
    return found


def test_a_gain_at_equal_loss_is_a_row_with_its_verdict() -> None:
    tables = {table.title: table for table in further_tables(compare(records(0.1)))["demo"]}
    matched = tables["At equal task loss"]
    assert list(matched.header) == ["method", "against", "at task loss", "held-out KL"]
    (row,) = [row for row in matched.rows if list(row[:2]) == ["ours", "decay"]]
    assert "(better, p 0.001)" in row[3] and row[3].startswith("-") and "%" in row[3]
    reached = {row[0]: row for row in tables["What each method can reach"].rows}
    assert reached["ours"][1] == "5" and float(reached["ours"][2].split()[0]) > float(reached["decay"][2].split()[0])


def test_no_gain_is_no_verdict() -> None:
    tables = {table.title: table for table in further_tables(compare(records(0.0)))["demo"]}
    (row,) = [row for row in tables["At equal task loss"].rows if list(row[:2]) == ["ours", "decay"]]
    assert "(=, p" in row[3]


def test_what_can_not_be_said_is_said_why() -> None:
    found = further_tables(compare([run("plain", 0, 1.0, 1.0), run("ours-1", 0, 1.1, 0.9)]))["demo"]
    (table,) = [table for table in found if table.title == "At equal task loss"]
    assert list(table.header) == ["reason"] and "two strengths" in table.rows[0][0]


def test_agreement_is_a_matrix_below_its_diagonal() -> None:
    def three(arm: str, kl: float, length: float, zeros: float) -> RunRecord:
        values = {"held_out_kl": (kl, "lower"), "code_length": (length, "lower"), "zeros": (zeros, "higher")}
        scores = [
            ScoreEntry(name, found, "nats", direction, None, None, trained_on=False)  # type: ignore[arg-type]
            for name, (found, direction) in values.items()
        ]
        return replace(run(arm, 0, 1.0, 1.0), scores=scores)

    places = enumerate(((1.0, 4.0, 0.1), (2.0, 3.0, 0.2), (3.0, 1.0, 0.3), (4.0, 2.0, 0.4)))
    runs = [three(("plain", "b", "c", "d")[place], *found) for place, found in places]
    (table,) = [one for one in further_tables(compare(runs))["demo"] if one.title == "Do the scores agree?"]
    # KL against length: ranks 1 2 3 4 and 4 3 1 2, rho -.8; more zeros are better, so they disagree with KL wholly.
    assert list(table.header) == ["score", "held-out KL", "code length"]
    assert [list(row) for row in table.rows] == [["code length", "-0.80", ""], ["zeros", "-1.00", "+0.80"]]
    assert "means of 4 arms" in table.caption
    fewer = further_tables(compare(runs[:3]))["demo"]
    assert not [one for one in fewer if one.title == "Do the scores agree?"]
