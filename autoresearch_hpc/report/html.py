"""report.html."""

from autoresearch_hpc.history import History
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.report.settings import Settings


def write_report_html(history: History, layout: RunLayout, settings: Settings) -> None: ...
