"""Frozen networks whose features samples are compared in; small weights lie beside the code, others
come of a person's file.
"""

from jldm.metrics.extractors import clip, dino, fashion, inception, pixels  # noqa: F401 (they register themselves)
