"""Aggregates of the competition's public tables and headers that the phantom is sampled from (no rows)."""

from __future__ import annotations

import numpy as np

# Grade counts (normal/mild, moderate, severe) by level L1/L2..L5/S1, over the 1,975 training studies.
GRADE_COUNTS = np.array(
    [
        # Left foramen, left recess, right foramen, right recess, canal: the order of labels.CONDITIONS.
        [(1908, 63, 2), (1791, 171, 11), (1522, 411, 40), (1204, 629, 140), (1247, 520, 206)],
        [(1690, 93, 28), (1555, 255, 83), (1324, 454, 194), (887, 624, 461), (1408, 409, 147)],
        [(1891, 63, 13), (1793, 168, 6), (1512, 414, 41), (1208, 629, 130), (1281, 496, 190)],
        [(1680, 110, 24), (1577, 243, 73), (1322, 454, 197), (891, 622, 460), (1399, 396, 173)],
        [(1886, 67, 21), (1770, 151, 53), (1622, 230, 122), (1482, 237, 255), (1904, 51, 19)],
    ],
    dtype=float,
).reshape(25, 3)
ROWS_PREVALENCE = GRADE_COUNTS / GRADE_COUNTS.sum(axis=1, keepdims=True)
"""(25, 3) shares of the grades in the order of ROWS."""

# Width x height of sagittal T1 images and how often.
SAGITTAL_SIZES: dict[tuple[int, int], int] = {
    (512, 512): 817, (384, 384): 348, (320, 320): 311, (256, 256): 112, (640, 760): 89, (448, 448): 80,
    (768, 852): 29, (384, 540): 26, (512, 528): 26, (512, 544): 16, (768, 768): 16, (576, 640): 14,
    (640, 640): 13, (1024, 1024): 7, (352, 352): 6, (552, 512): 2,
}  # fmt: skip
SAGITTAL_SLICES: dict[int, int] = {
    10: 1, 11: 4, 12: 103, 13: 36, 14: 110, 15: 518, 16: 92, 17: 289, 18: 324, 19: 143,
    20: 95, 21: 163, 22: 22, 23: 42, 24: 6, 25: 16, 26: 4, 27: 2, 29: 1,
}  # fmt: skip
AXIAL_SIZES: dict[int, int] = {256: 12, 320: 34, 384: 18, 448: 6, 512: 22, 640: 7, 768: 1}

# Which axial series a study has and the levels (1 = L1/L2 .. 5 = L5/S1) that each covers.
AXIAL_COVERAGE: dict[str, int] = {
    "12345": 1487, "345": 76, "2345": 64, "1234": 5, "45": 3,
    "12345|12345": 127, "123|45": 77, "12|345": 23, "123|345": 17, "12345|5": 9, "12345|2345": 7,
    "1234|45": 5, "12345|345": 4, "1234|5": 4, "1234|12345": 4, "12345|45": 4, "234|45": 4, "23|45": 3,
    "12|12345|345": 4, "12|34|45": 3, "12|345|5": 3, "123|4|5": 3, "123|12345|45": 3, "123|12345|345|5": 1,
}  # fmt: skip
# Sagittal T1 and T2 series of a study, and how often.
SAGITTAL_SERIES: dict[tuple[int, int], int] = {(1, 1): 1965, (2, 1): 7, (0, 1): 2, (1, 0): 1}

# Share of studies where a whole condition was not graded, and of graded points that were not clicked.
UNGRADED_STUDIES = {
    "spinal_canal_stenosis": 1 / 1975,
    "left_neural_foraminal_narrowing": 2 / 1975,
    "right_neural_foraminal_narrowing": 8 / 1975,
}
UNCLICKED_CANAL = (77 / 1974, 45 / 1974, 5 / 1974, 5 / 1974, 9 / 1974)
UNCLICKED_OTHER = 1.5 / 1974

LEFT_HAS_HIGHER_INSTANCE = 0.64
AXIAL_DOWNWARD = 0.879
