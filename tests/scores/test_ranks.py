import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def scores_on(ranks: int, folder: Path, program: str) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if sys.platform == "darwin":
        environment["GLOO_SOCKET_IFNAME"] = "lo0"
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / program), str(rank), str(ranks), str(folder / f"meeting{ranks}")],
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
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    one, two = (scores_on(ranks, tmp_path, "score_on_ranks.py") for ranks in (1, 2))
    assert set(one) == set(two)
    assert {"through", "unexplained", "zeros", "gini", "dead_units", "linear/kl", "linear/fvu/tap"} <= set(one)
    assert {"tree/saving", "size_90", "learned_99", "bits", "kappa", "errors"} <= set(one)
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name
    assert all(math.isfinite(one[name]) for name in ("size_90", "learned_99", "bits", "kappa", "tree/saving"))
    assert 0 < one["zeros"] < 1 and one["dead_units"] == 0


@pytest.mark.slow
def test_concepts_and_representation_on_two_ranks(tmp_path: Path) -> None:
    one, two = (scores_on(ranks, tmp_path, "readings_on_ranks.py") for ranks in (1, 2))
    assert set(one) == set(two)
    assert {"use/score", "disentanglement/score", "lens/gap", "dimension/effective_rank", "similarity/value"} <= set(
        one
    )
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name
    assert 0 < one["use/score"] < 1 and 0 < one["disentanglement/score"] < 1 and one["lens/gap"] > 0
