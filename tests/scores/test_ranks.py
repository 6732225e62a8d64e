import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from metric_cases import ON_RANKS


def scores_on(ranks: int, folder: Path) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if sys.platform == "darwin":
        environment["GLOO_SOCKET_IFNAME"] = "lo0"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("metrics_on_ranks.py")),
                str(rank),
                str(ranks),
                str(folder / f"meeting{ranks}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, error) in zip(processes, said, strict=True):
        assert process.returncode == 0, error
    found: dict[str, float] = json.loads(said[0][0].strip().splitlines()[-1])
    return found


@pytest.mark.slow
def test_two_ranks_equal_one_process_for_every_metric(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("networkx")
    one, two = (scores_on(ranks, tmp_path) for ranks in (1, 2))
    assert set(one) == set(two)
    assert {name.partition(":")[0] for name in one} == set(ON_RANKS)
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name
    assert all(any(math.isfinite(v) for k, v in one.items() if k.startswith(f"{name}:")) for name in ON_RANKS)
    assert 0 < one["UsedGivenEncoded:score"] < 1 and 0 < one["GatedDisentanglement:score"] < 1
    assert 0.1 < one["HeldOutImitation of tokens:nearest/saving"] < 1
    assert one["LensGap:gap"] > 0 and 0 < one["WeightSparsity:zeros"] < 1
