"""Dashboards as Grafana reads them, built with its own ``grafana-foundation-sdk`` (extra ``dev``)."""

import json

from grafana_foundation_sdk.builders import common, logs, loki, prometheus, timeseries
from grafana_foundation_sdk.builders import dashboard as pages
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, LogsSortOrder, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableOption, VariableRefresh

from tierline.watch.panels import CHOSEN, Dashboard, Panel

SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
LOGS = DataSourceRef(type_val="loki", uid="${logs}")
COLUMNS = 24
HEIGHT = 8
ABREAST = 3


def page(dashboard: Dashboard) -> str:
    """Return a dashboard's JSON."""
    instances = (
        pages.QueryVariable("instance")
        .label("Instance")
        .datasource(SOURCE)
        .query(f"label_values({dashboard.instances}, instance)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all"))
    )
    built = (
        pages.Dashboard(dashboard.title)
        .uid(dashboard.name)
        .tags(["tierline"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(pages.DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .with_variable(instances)
    )
    if any(panel.source == "loki" for row in dashboard.rows for panel in row.panels):
        built = built.with_variable(pages.DatasourceVariable("logs").label("Loki").type("loki"))
        built = built.with_variable(pages.TextBoxVariable("request_id").label("Request").default_value(".+"))
    number = 0
    for row in dashboard.rows:
        built = built.with_row(pages.Row(row.title))
        for panel in row.panels:
            number += 1
            built = built.with_panel((_drawn if panel.source == "prometheus" else _listed)(panel, number))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _listed(panel: Panel, number: int) -> logs.Panel:
    listed = (
        logs.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.description)
        .datasource(LOGS)
        .show_time(show_time=True)
        .wrap_log_message(wrap_log_message=True)
        .enable_log_details(enable_log_details=True)
        .sort_order(LogsSortOrder.ASCENDING)
        .height(2 * HEIGHT)
        .span(COLUMNS)
    )
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        listed = listed.with_target(loki.Dataquery().ref_id(letter).expr(query.expression))
    return listed


def _drawn(panel: Panel, number: int) -> timeseries.Panel:
    legend = common.VizLegendOptions().show_legend(show_legend=True).display_mode(LegendDisplayMode.LIST)
    drawn = (
        timeseries.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .legend(legend.placement(LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .height(HEIGHT)
        .span(COLUMNS // ABREAST)
    )
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        asked = prometheus.Dataquery().ref_id(letter).range()
        drawn = drawn.with_target(asked.expr(shown(query.expression)).legend_format(query.legend))
    return drawn


def shown(expression: str) -> str:
    """Return an expression as Grafana asks it, of the instances that were chosen."""
    return expression.replace("$where", CHOSEN)
