"""What tests are made with: small data sets, networks and packages, a local Kaggle, faults."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
