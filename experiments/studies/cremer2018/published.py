"""Published numbers beside which ours stand, in nats, with where they come from.

Cremer, Li and Duvenaud (2018), inference gaps, larger encoder and no warm-up: training images, 3280 epochs. The digits
of these tables are RECALLED, not read from the paper: their gap rows equal the differences of their bound rows to the
last digit, which makes a slip unlikely and does not exclude it. One entry was corrected by that subtraction.

Independent rerun in JAX (2022), `ATML-2022-Group6/inference-suboptimality`, as printed in its notebooks: L[q] over all
training images, L[q*] over the first thousand, local normals started from the trained encoder.
"""

from __future__ import annotations

ROWS: tuple[str, ...] = (
    "log p(x)",
    "L[q*_AF]",
    "L[q*_FFG]",
    "L[q]",
    "approximation gap",
    "amortization gap",
    "inference gap",
)

# Experiment, data set, family trained with: one number for each of ROWS.
RECALLED: dict[tuple[str, str, str], tuple[float, ...]] = {
    ("inference-gaps", "mnist", "FFG"): (-89.80, -90.80, -91.23, -92.57, 1.43, 1.34, 2.77),
    ("inference-gaps", "mnist", "AF"): (-88.94, -90.38, -113.54, -91.79, 1.44, 1.41, 2.85),
    ("inference-gaps", "fashion_mnist", "FFG"): (-97.47, -98.92, -100.53, -104.75, 3.06, 4.22, 7.28),
    ("inference-gaps", "fashion_mnist", "AF"): (-97.41, -99.10, -132.46, -103.76, 1.69, 4.66, 6.35),
    ("inference-gaps", "cifar10", "FFG"): (-816.9, -820.19, -831.65, -869.12, 14.75, 37.47, 52.22),
    ("inference-gaps", "cifar10", "AF"): (-820.56, -822.16, -861.62, -864.28, 1.60, 42.12, 43.72),
    ("larger-encoder", "mnist", "FFG"): (-89.61, -90.65, -91.07, -92.18, 1.46, 1.11, 2.57),
    ("larger-encoder", "mnist", "AF"): (-88.99, -90.44, -108.71, -91.19, 1.45, 0.75, 2.20),
    ("larger-encoder", "fashion_mnist", "FFG"): (-95.99, -97.40, -99.64, -102.73, 3.65, 3.09, 6.74),
    ("larger-encoder", "fashion_mnist", "AF"): (-96.18, -97.91, -129.70, -101.67, 1.73, 3.76, 5.49),
    ("no-warm-up", "mnist", "FFG"): (-89.82, -90.96, -90.84, -92.33, 1.02, 1.49, 2.51),
    ("no-warm-up", "mnist", "AF"): (-89.52, -90.45, -92.25, -91.75, 0.93, 1.30, 2.23),
    ("no-warm-up", "fashion_mnist", "FFG"): (-102.56, -103.73, -103.85, -106.90, 1.29, 3.05, 4.34),
    ("no-warm-up", "fashion_mnist", "AF"): (-102.88, -104.02, -105.80, -107.01, 1.14, 2.99, 4.13),
}

# The same keys: L[q] on training images, L[q*_FFG], L[q*_AF].
RERUN_2022: dict[tuple[str, str, str], tuple[float, float, float]] = {
    ("inference-gaps", "mnist", "FFG"): (-92.87, -90.28, -90.48),
    ("no-warm-up", "mnist", "FFG"): (-92.84, -90.16, -90.36),
    ("larger-encoder", "mnist", "FFG"): (-92.33, -89.99, -90.19),
    ("inference-gaps", "mnist", "AF"): (-90.90, -94.15, -89.42),
    ("no-warm-up", "mnist", "AF"): (-91.60, -93.11, -89.28),
    ("larger-encoder", "mnist", "AF"): (-90.67, -99.18, -90.10),
    ("inference-gaps", "fashion_mnist", "FFG"): (-104.80, -99.06, -99.22),
    ("no-warm-up", "fashion_mnist", "FFG"): (-105.99, -100.90, -101.16),
    ("larger-encoder", "fashion_mnist", "FFG"): (-103.26, -98.54, -98.68),
    ("inference-gaps", "fashion_mnist", "AF"): (-101.52, -103.47, -97.21),
    ("no-warm-up", "fashion_mnist", "AF"): (-104.69, -104.98, -99.80),
    ("larger-encoder", "fashion_mnist", "AF"): (-100.40, -107.16, -98.32),
    ("inference-gaps", "kmnist", "FFG"): (-146.58, -137.94, -136.12),
    ("inference-gaps", "kmnist", "AF"): (-144.08, -156.85, -136.89),
}
_RERUN_ROWS: tuple[str, ...] = ("L[q]", "L[q*_FFG]", "L[q*_AF]")


def published(experiment: str, data: str, model: str, quantity: str) -> tuple[float | None, float | None]:
    """Return the published number (recalled) and that of the rerun of 2022, None where there is none."""
    key = experiment, data, model
    paper = dict(zip(ROWS, RECALLED.get(key, ()), strict=False)).get(quantity)
    rerun = dict(zip(_RERUN_ROWS, RERUN_2022.get(key, ()), strict=False)).get(quantity)
    return paper, rerun
