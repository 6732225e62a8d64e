"""The tables below the headline table: what they hold, by hand, and what they leave out."""

from collections.abc import Sequence

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
