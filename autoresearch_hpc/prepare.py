"""python -m autoresearch_hpc.prepare: prepares the data set of a configuration, once.

Takes the overrides that the main program takes (`corpus=climbmix corpus.shards=64`, `+round=quickstart`) and looks
only at the corpus. A data set that exists is left alone.
"""

import argparse
import sys
from collections.abc import Sequence

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autoresearch_hpc import complaints, data, entry
from autoresearch_hpc.config import CorpusConfig
from autoresearch_hpc.data.pipeline import fetch
from autoresearch_hpc.dataset import Dataset


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m autoresearch_hpc.prepare",
        description="Prepare training data once: text, tokenizer, packed rows.",
        epilog="example: python -m autoresearch_hpc.prepare corpus=climbmix corpus.shards=64",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the main program's overrides")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--verify", action="store_true", help="check every file of an existing data set, change nothing")
    what.add_argument("--download", action="store_true", help="only fetch the text: the rest then needs no network")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options = parser.parse_args(arguments)
    entry.setup_logging()
    return entry.run(lambda: _prepare(options))


def _prepare(options: argparse.Namespace) -> None:
    corpus = _corpus(options.overrides)
    if options.verify:
        opened, state = data.verify(corpus), "intact"
    elif options.download:
        fetch(corpus)
        print(f"the text of corpus {corpus.name} is here")
        return
    else:
        opened, state = Dataset(data.prepare(corpus, quiet=options.quiet)), "complete"
    print(_summary(opened, state))


def _summary(opened: Dataset, state: str) -> str:
    m = opened.manifest
    return (
        f"{opened.root} is {state}: {m.rows('train')} training and {m.rows('val')} validation rows "
        f"of {m.seq_len + 1} tokens, vocabulary {m.vocab_size}, from {m.source}; sha256 {m.sha256[:12]}"
    )


def _corpus(overrides: Sequence[str]) -> CorpusConfig:
    composed = entry.compose(overrides)
    try:
        corpus = OmegaConf.to_object(composed.corpus)
    except OmegaConfBaseException as error:
        raise complaints.config_error(error) from error
    assert isinstance(corpus, CorpusConfig)
    return corpus


if __name__ == "__main__":
    sys.exit(main())
