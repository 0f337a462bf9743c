"""Where the randomness of a search comes from: the study's seed, and nothing that depends on time or place."""

from __future__ import annotations

import hashlib

import numpy as np


def ask_rng(study_seed: int, number: int, stream: int = 0) -> np.random.Generator:
    """The generator of the ask with this number; streams are independent of each other."""
    return np.random.default_rng([study_seed, number, stream])


def candidate_seed(study_seed: int, digest: str, replicate: int = 0) -> int:
    """The seed with which an architecture is initialised and trained, in [0, 2**63).

    It depends on neither the trial's number nor its worker, so that every executor fills the same table.
    """
    text = f"{study_seed}:{digest}:{replicate}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
