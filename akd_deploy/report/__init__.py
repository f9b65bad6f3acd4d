"""Reports: one self-contained HTML file for a run."""

from __future__ import annotations

from akd_deploy.report.report import write_report
from akd_deploy.report.summary import read_summary

__all__ = ["read_summary", "write_report"]
