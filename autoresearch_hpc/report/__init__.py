"""What people read of a run: tables, the progress picture, the HTML report, the closing summary.

Everything here is made from the journal and the run's files, can be made again at any time, and changes nothing
that a controller relies on.
"""

from autoresearch_hpc.history import History
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.report import tables
from autoresearch_hpc.report.settings import Settings, read_settings


def write_tables(history: History, layout: RunLayout) -> None:
    """results.tsv and trials.csv."""
    tables.write_results_tsv(history, layout.results_tsv)
    tables.write_trials_csv(history, layout.trials_csv)


def write_all(history: History, layout: RunLayout, settings: Settings | None = None) -> None:
    """The tables, progress.png and report.html. `settings` default to those in the run's config.yaml."""
    from autoresearch_hpc.report.html import write_report_html
    from autoresearch_hpc.report.plots import write_progress_png

    write_tables(history, layout)
    write_progress_png(history, layout.progress_png)
    write_report_html(history, layout, settings or read_settings(layout.config))
