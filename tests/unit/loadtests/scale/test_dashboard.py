"""The drawing of the dashboard: lines from Prometheus' answers, and panels at their places."""

import json
from pathlib import Path

from loadtests.scale.dashboard import DASHBOARD, PanelLine, draw, lines_of, stat_text
from tests.support.prometheus_api import prometheus_api


def test_lines_have_the_legend_of_their_labels_and_start_at_zero() -> None:
    panel = {
        "targets": [
            {"expr": 'rate(x{model=~"$model"}[1m])', "legendFormat": "{{model}} {{rung}}"},
            {"expr": "y"},
        ]
    }
    with prometheus_api() as api:
        labels = {"model": "a", "rung": "r"}
        series = {"metric": labels, "values": [[100, "1.5"], [101, "2"]]}
        api.set_result('rate(x{model=~".*"}[1m])', series, kind="matrix")
        api.set_result("y", kind="matrix")
        lines = lines_of(panel, api.url, 100, 160)
    assert lines == [PanelLine("a r", [0.0, 1.0], [1.5, 2.0])]
    assert {request["step"] for request in api.requests} == {"1.0"}


def test_a_stat_panel_shows_its_last_value() -> None:
    line = PanelLine("", [0.0, 1.0], [0.5, 0.25])
    percent, plain = ({"fieldConfig": {"defaults": unit}} for unit in ({"unit": "percentunit"}, {}))
    assert stat_text(percent, [line]) == "25.0%"
    assert stat_text(plain, [line]) == "0.25"
    assert stat_text(plain, []) == "nan"


def test_all_panels_of_the_shipped_dashboard_can_be_drawn(tmp_path: Path) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    line = PanelLine("a", [0.0, 1.0, 2.0], [1.0, 3.0, 2.0])
    panels = [(panel, [line]) for panel in dashboard["panels"] if "targets" in panel]
    assert len(panels) > 20
    draw(panels, tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").read_bytes().startswith(b"\x89PNG")
