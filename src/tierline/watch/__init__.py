"""What to look at: dashboards, recorded series and alerts, as data from which files for others are made."""

from tierline.watch.dashboards import DASHBOARDS
from tierline.watch.panels import Dashboard, Panel, Query, Row
from tierline.watch.rules import ALERTS, RECORDED, Alert, Recorded

__all__ = ["ALERTS", "DASHBOARDS", "RECORDED", "Alert", "Dashboard", "Panel", "Query", "Recorded", "Row"]
