"""Everything around the machine learning: tables, encoding, statistics, models on disk, MLflow.

Nothing in here trains a network; `model_utils.py` does. `docs/ARCHITECTURE.md` has the picture.
"""
