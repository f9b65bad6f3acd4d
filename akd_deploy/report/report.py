"""Write a run's summary as one HTML file that opens anywhere, offline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from akd_deploy.errors import CorruptFileError
from akd_deploy.report import quantities, tables
from akd_deploy.report.summary import PARTS, Fields, check_parts
from akd_deploy.report.verdict import verdict_of
from akd_deploy.storage import write_text_atomically

ABSENT = "not part of this run"
"""What stands where a part of the report has nothing to show."""
_HERE = Path(__file__).parent


def write_report(summary: Fields, path: Path) -> Path:
    """Render a run's summary to `path` and return it.

    The file holds plotly.js, loads nothing, and forbids itself any request and any script but its own two. A part
    that the summary lacks is shown as `ABSENT`.

    Raises:
        CorruptFileError: a part of the summary has the wrong type or lacks what its figure shows.
        StorageError: the place cannot be written.
    """
    check_parts(summary, where="the run's summary")
    page = _render(summary)
    write_text_atomically(path, page)
    return path


def _render(summary: Fields) -> str:
    # Here, because plotly takes a third of a second that only a report is worth.
    from plotly.offline import get_plotlyjs

    from akd_deploy.report.figures import figures_of

    plotly_js = get_plotlyjs()
    draw_js = (_HERE / "draw.js").read_text(encoding="utf-8")
    try:
        return (
            _environment()
            .get_template("template.html.j2")
            .render(
                run=summary,
                absent=ABSENT,
                verdict=verdict_of(summary),
                figures=figures_of(summary),
                # The only texts that are not escaped: this package's own, and plotly's.
                style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
                plotly_js=Markup(plotly_js),
                draw_js=Markup(draw_js),
                security_policy=_security_policy(plotly_js, draw_js),
                **_rows(summary),
            )
        )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        if isinstance(error, CorruptFileError):
            raise
        raise CorruptFileError(
            asked="a summary that can be reported",
            found=f"{type(error).__name__}: {error}",
            next="Write the summary again.",
        ) from error


def _rows(summary: Fields) -> dict[str, Any]:
    """Everything the template shows in rows."""
    winner, shipped, target = (summary.get(key) or {} for key in ("winner", "export", "target"))
    columns, blocks = tables.architecture_table(winner.get("arch") or {})
    return {
        "accuracy_rows": tables.accuracy_rows(summary) if summary.get("accuracy") else [],
        "paired_rows": tables.paired_rows(summary.get("accuracy") or {}),
        "score_rows": tables.score_rows(summary.get("predictor") or {}),
        "block_columns": columns,
        "block_rows": blocks,
        "layers_sum_s": tables.sum_of_layers_s(winner) if winner.get("layers") else None,
        "engine_latencies": tables.medians_s(shipped.get("engines") or []),
        "variant_latencies": tables.medians_s(shipped.get("variants") or []),
        "parity_facts": tables.plain_facts(shipped.get("parity") or {}),
        "target_facts": tables.plain_facts(target, engine_version=summary.get("engine_version")),
        "unknown_parts": sorted(set(summary) - set(PARTS)),
    }


class _KeysOnly(jinja2.Environment):
    """`a.b` of a JSON object is its key `b` and nothing else: `scores.items` is never the method of a dict."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute) if isinstance(obj, Mapping) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Mapping):
            return obj[argument] if argument in obj else self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)


@cache
def _environment() -> jinja2.Environment:
    environment = _KeysOnly(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        # A value that the summary lacks is said to be missing, however deep it would have been.
        undefined=jinja2.ChainableUndefined,
        finalize=lambda value: quantities.NOT_RECORDED if quantities.is_missing(value) else value,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["unit_of"] = quantities.time_unit
    environment.filters.update(
        latency=quantities.latency,
        latency_range=quantities.latency_range,
        percent=quantities.percent,
        percentile=quantities.percentile,
        duration=quantities.duration,
        size=quantities.size,
        count=quantities.count,
        rounded=quantities.rounded,
        short_kernel=tables.short_kernel,
        short_architecture=tables.short_architecture,
    )
    return environment


def _security_policy(*scripts: str) -> str:
    """A content security policy under which nothing is fetched and only these scripts run."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
