"""One-time data preparation: text -> BPE -> packed rows -> the files that `dataset` reads.

    corpora, climbmix, texts -> bpe -> encode -> pack        pipeline runs the stages, claim keeps a second one waiting

Everything is a function of the text and the settings: prepared twice, a data set has the same bytes.
"""

from autoresearch_hpc.data.pipeline import prepare, verify

__all__ = ["prepare", "verify"]
