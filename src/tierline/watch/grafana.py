"""Dashboards as Grafana reads them, built with its own ``grafana-foundation-sdk`` (extra ``dev``)."""

import json

from grafana_foundation_sdk.builders import common, prometheus, timeseries
from grafana_foundation_sdk.builders import dashboard as pages
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableOption, VariableRefresh

from tierline.watch.panels import CHOSEN, Dashboard, Panel

SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
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
    number = 0
    for row in dashboard.rows:
        built = built.with_row(pages.Row(row.title))
        for panel in row.panels:
            number += 1
            built = built.with_panel(_drawn(panel, number))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


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
