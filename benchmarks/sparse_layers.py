"""What `to_torch_sparse` makes of zeros: time of a linear layer against the dense one.

    python benchmarks/sparse_layers.py [--repeats 20]

One CPU thread, float32, random zeros; each ratio is dense over sparse, CPU time (`time.process_time`), the best of three
rounds each. On a CUDA device it also measures 2:4 in float16.

Measured on a shared virtual CPU with AVX-512 (torch 2.13.0, MKL; the machine was busy), how many times as fast as dense:

| weights, batch | 0.5 left | 0.2 left | 0.1 left | 0.03 left | 0.01 left |
|---|---|---|---|---|---|
| 256 x 256, 64 | 0.62 | 1.22 | 1.84 | 2.79 | 3.29 |
| 512 x 512, 64 | 0.60 | 1.52 | 2.67 | 5.56 | 7.98 |
| 2048 x 2048, 64 | 0.66 | 1.55 | 2.91 | 9.82 | 26.7 |
| 2048 x 2048, 1 | 0.37 | 1.00 | 2.31 | 7.93 | 19.0 |

So half of the weights gone is a loss, 80 % about break-even, 90 % twice as fast. 2:4 in 16 bits takes 9/16 of the
memory (tests/lightning_plugins/sparsity/test_torch_sparse.py); its time was not measured: no CUDA device.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from legibility.lightning_plugins import to_torch_sparse

DENSITIES = (0.5, 0.2, 0.1, 0.03, 0.01)
SHAPES = ((256, 64), (512, 64), (2048, 64), (2048, 1))  # width of a square matrix, rows of the batch


def seconds(function: Callable[[], Any], repeats: int, cuda: bool) -> float:
    """Of one call: the best of three rounds."""
    clock = time.perf_counter if cuda else time.process_time
    best = float("inf")
    function()
    for _ in range(3):
        if cuda:
            torch.cuda.synchronize()
        start = clock()
        for _ in range(repeats):
            function()
        if cuda:
            torch.cuda.synchronize()
        best = min(best, (clock() - start) / repeats)
    return best


@torch.no_grad()
def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")  # CSR is "beta"
    print("| weights, batch | " + " | ".join(f"{d:g} left" for d in DENSITIES) + " |")
    for width, rows in SHAPES:
        x, ratios = torch.randn(rows, width), []
        for density in DENSITIES:
            layer = nn.Linear(width, width)
            layer.weight *= torch.rand_like(layer.weight) < density
            sparse = to_torch_sparse(layer, least=0.0).model
            dense = seconds(lambda layer=layer, x=x: layer(x), repeats, cuda=False)  # type: ignore[misc]
            ratios.append(dense / seconds(lambda sparse=sparse, x=x: sparse(x), repeats, cuda=False))  # type: ignore[misc]
        print(f"| {width} x {width}, {rows} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    if torch.cuda.is_available():
        for width in (2048, 8192):
            layer = nn.Linear(width, width, dtype=torch.float16, device="cuda")
            layer.weight.view(width, -1, 4)[..., 2:] = 0
            x = torch.randn(2048, width, dtype=torch.float16, device="cuda")
            sparse = to_torch_sparse(layer, "2:4").model
            ratio = seconds(lambda: layer(x), repeats, cuda=True) / seconds(lambda: sparse(x), repeats, cuda=True)  # noqa: B023
            print(f"2:4, {width} x {width}, 2048: {ratio:.2f}")


if __name__ == "__main__":
    main()
