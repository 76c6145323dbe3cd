"""Recorded series and alerts, and what whoever is called does about each.

From these, ``deploy/alerts`` has a file for Prometheus and a PrometheusRule for its operator, and the documentation its
list. Thresholds are where something is wrong, not where it is merely busy.
"""

from dataclasses import dataclass
from typing import Any, Literal

from tierline.watch.panels import Query

Severity = Literal["critical", "warning"]
"""Critical: requests fail, or answers are wrong; warning: they will, or are slower than they need be."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A series that is computed once and for all who ask."""

    name: str
    expression: str
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the samples that it is made of."""
        return Query(self.expression, "").metrics


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a person should hear of.

    Parameters
    ----------
    name
        In ``ALERTS`` of Prometheus.
    expression
        Has a series for each that is ill.
    lasts
        How long before it is told, as Prometheus spells it.
    severity
        How soon somebody should look.
    summary
        What is wrong, with the labels of the series.
    remedy
        What to look at, and what to do.
    """

    name: str
    expression: str
    lasts: str
    severity: Severity
    summary: str
    remedy: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the samples that it looks at."""
        return Query(self.expression, "").metrics


_PROGRAMS = ("node", "router", "controller", "proxy", "collector", "operator")
RECORDED = (
    Recorded(
        "tierline:router_errors:ratio_rate5m",
        '(sum by (instance) (rate(tierline_router_requests_total{status=~"5.."}[5m]))'
        " or 0 * sum by (instance) (rate(tierline_router_requests_total{}[5m])))"
        " / (sum by (instance) (rate(tierline_router_requests_total{}[5m])) > 0)",
    ),
    Recorded(
        "tierline:router_ttft_seconds:p90_rate5m",
        "histogram_quantile(0.9, sum by (instance, le) (rate(tierline_router_ttft_seconds_bucket{}[5m])))",
    ),
    Recorded(
        "tierline:router_cached_blocks:ratio_rate5m",
        'sum by (instance) (rate(tierline_router_prompt_blocks_total{kind="actual", told="yes"}[5m]))'
        ' / (sum by (instance) (rate(tierline_router_prompt_blocks_total{kind="total", told="yes"}[5m])) > 0)',
    ),
    Recorded(
        "tierline:router_prediction:ratio_rate5m",
        'sum by (instance) (rate(tierline_router_cached_tokens_total{kind="actual"}[5m]))'
        ' / (sum by (instance) (rate(tierline_router_cached_tokens_total{kind="predicted"}[5m])) > 0)',
    ),
    Recorded(
        "tierline:router_imbalance:ratio_rate5m",
        "max by (instance) (sum by (instance, endpoint) (rate(tierline_router_answers_total{}[5m])))"
        " / (avg by (instance) (sum by (instance, endpoint) (rate(tierline_router_answers_total{}[5m]))) > 0)",
    ),
    Recorded(
        "tierline:node_hits:ratio_rate5m",
        "sum by (instance) (rate(tierline_node_hits_total{}[5m])) / (sum by (instance) "
        "(rate(tierline_node_hits_total{}[5m]))"
        " + sum by (instance) (rate(tierline_node_misses_total{}[5m])) > 0)",
    ),
    *(
        Recorded(
            "tierline:failed_duties:increase10m",
            f"increase(tierline_{program}_failed_duties_total{{}}[10m])",
            (("program", program),),
        )
        for program in _PROGRAMS
    ),
)

ALERTS = (
    Alert(
        "TierlineNoEndpoint",
        "sum by (instance) (tierline_router_endpoint_up{}) == 0",
        "1m",
        "critical",
        "router {{ $labels.instance }} has no endpoint that is up",
        "`tierline router endpoints` says how each stands. Look at the engines' logs, and whether the router "
        "reaches them: its health checks ask "
        "`health_path`.",
    ),
    Alert(
        "TierlineEndpointDown",
        "tierline_router_endpoint_up{} == 0",
        "5m",
        "warning",
        "endpoint {{ $labels.endpoint }} is down, as router {{ $labels.instance }} sees it",
        "Look at the engine's log. One that is meant to be gone is taken out of the router's endpoints "
        "(`tierline router remove`).",
    ),
    Alert(
        "TierlineErrors",
        "tierline:router_errors:ratio_rate5m{} > 0.05",
        "5m",
        "critical",
        "{{ $value | humanizePercentage }} of the requests at router {{ $labels.instance }} fail",
        "`tierline router decisions` has the last requests with their status and endpoint. 503 and 504 are of "
        "engines that are full or silent.",
    ),
    Alert(
        "TierlineSlowFirstTokens",
        "tierline:router_ttft_seconds:p90_rate5m{} > 10",
        "10m",
        "warning",
        "of ten streams at router {{ $labels.instance }} one waits {{ $value | humanizeDuration }} for its first token",
        "The dashboard *router* shows where prompts wait. If waiting tokens are many at all endpoints, there "
        "are too few; if at one, see *Balance*; "
        "if the share of cached blocks fell, see *tiers*.",
    ),
    Alert(
        "TierlineTurnsAway",
        "sum by (instance, reason) (increase(tierline_router_limits_reached_total{}[10m])) > 0",
        "10m",
        "warning",
        "router {{ $labels.instance }} turns requests away: {{ $labels.reason }}",
        "Add endpoints, or raise the limits ([admission](admission.md)); `rate_limit_exceeded` is a client's "
        "own limit.",
    ),
    Alert(
        "TierlineImbalance",
        "tierline:router_imbalance:ratio_rate5m{} > 3",
        "15m",
        "warning",
        "one endpoint of router {{ $labels.instance }} answers {{ $value }} times as much as the mean",
        "One prefix that everybody asks about ties requests to one endpoint until its queue costs more than "
        "its cache saves. If others are idle, see "
        "whether they are up, and *What was known of endpoints*.",
    ),
    Alert(
        "TierlinePredictionsFail",
        "tierline:router_prediction:ratio_rate5m{} < 0.5",
        "15m",
        "warning",
        "engines had {{ $value | humanizePercentage }} of what router {{ $labels.instance }} predicted as cached",
        "Engines evict sooner than the router believes, or were restarted: with [`kvaware`](kvaware.md) it "
        "hears of it.",
    ),
    Alert(
        "TierlineEventsLost",
        'sum by (instance) (increase(tierline_router_kv_events_total{kind="gap"}[10m])) > 5',
        "10m",
        "warning",
        "router {{ $labels.instance }} misses KV events",
        "Publishers drop what subscribers do not read in time. Is the router's processor busy? Then use a "
        "[controller](kvaware.md).",
    ),
    Alert(
        "TierlineCorruptObjects",
        'sum by (instance) (increase(tierline_node_verifications_total{result="mismatch"}[15m])) > 0',
        "0m",
        "critical",
        "node store {{ $labels.instance }} found objects whose bytes are not what was written",
        "They were dropped and are computed anew. Look for memory errors of the machine, and for a program "
        "that writes into the segment "
        "([guarantees](guarantees.md)).",
    ),
    Alert(
        "TierlineNodeRefuses",
        "sum by (instance) (increase(tierline_node_refusals_total{}[10m])) > 0",
        "10m",
        "warning",
        "node store {{ $labels.instance }} has no room for what engines write",
        "The segment is too small for what is leased at once: raise `capacity`, or see who holds leases "
        "(`tierline node leases`).",
    ),
    Alert(
        "TierlineLeasesExpire",
        "sum by (instance) (increase(tierline_node_leases_expired_total{}[10m])) > 10",
        "10m",
        "warning",
        "clients of node store {{ $labels.instance }} do not release their leases",
        "Engines die, or take longer than a lease lasts: their log says which.",
    ),
    Alert(
        "TierlineNodeIsLate",
        "tierline_node_event_loop_lag_seconds{} > 0.05",
        "5m",
        "warning",
        "node store {{ $labels.instance }} is late by {{ $value | humanizeDuration }}",
        "The machine's processors are taken. Give the store one of its own.",
    ),
    Alert(
        "TierlineSegmentUnnamed",
        "tierline_node_segment_named{} == 0",
        "5m",
        "warning",
        "the segment of node store {{ $labels.instance }} cannot be opened by name",
        "Those connected are served. Somebody removed or replaced its files in `/dev/shm`; the next start "
        "begins empty.",
    ),
    Alert(
        "TierlineCertificateExpires",
        "tierline_node_certificate_expiry_seconds{} - time() < 7 * 86400",
        "1h",
        "warning",
        "the certificate of node store {{ $labels.instance }} expires in {{ $value | humanizeDuration }}",
        "Renew the file; the store takes it up by itself. `tierline_node_failed_reloads_total` says whether it "
        "could not.",
    ),
    Alert(
        "TierlinePoolIsPartial",
        'sum by (instance, state) (tierline_node_pool_members{state!~"self|alive"}) > 0',
        "5m",
        "warning",
        "node store {{ $labels.instance }} sees members of its pool as {{ $labels.state }}",
        "`tierline node cluster` says which, and why. What only they hold is a miss until they are back.",
    ),
    Alert(
        "TierlineTierFails",
        "sum by (instance, tier) (increase(tierline_node_tier_failures_total{}[10m])) > 10",
        "10m",
        "warning",
        "tier {{ $labels.tier }} of node store {{ $labels.instance }} fails",
        "*Failures* of the dashboard *tiers* has the reasons, which [tiers](tiers.md) explains. Misses are "
        "computed meanwhile.",
    ),
    Alert(
        "TierlineModelErrors",
        "sum by (resource_name, pod_name) (rate(model_errors_total{}[5m]))"
        " / (sum by (resource_name, pod_name) (rate(model_invocations_total{}[5m])) > 0) > 0.05",
        "5m",
        "critical",
        "{{ $value | humanizePercentage }} of the invocations at pod {{ $labels.pod_name }} fail",
        "The proxy's log has each with its request id; the model's log has the reason.",
    ),
    Alert(
        "TierlineCapturesLost",
        'sum by (instance) (increase(tierline_proxy_capture_records_total{outcome="dropped"}[10m])) > 0',
        "0m",
        "warning",
        "records of invocations are lost at proxy {{ $labels.instance }}",
        "Its destination cannot be written, or not as fast as invocations come ([capture](proxy.md)).",
    ),
    Alert(
        "TierlineDutiesFail",
        "tierline:failed_duties:increase10m{} > 0",
        "10m",
        "warning",
        "{{ $labels.program }} {{ $labels.instance }} fails at {{ $labels.duty }}",
        "The log of the program has why, once a minute. What it is serves on.",
    ),
    Alert(
        "TierlineNobodyLeads",
        "sum(tierline_operator_leads{}) == 0",
        "3m",
        "critical",
        "no operator holds the Lease",
        "Changes of endpoints are not acted upon; what runs goes on. Do the operators reach the Kubernetes "
        "API, and may they write the Lease?",
    ),
    Alert(
        "TierlineDeploymentFailed",
        'tierline_operator_resources{state="DeploymentFailed"} > 0',
        "5m",
        "warning",
        "{{ $value }} endpoints could not be deployed",
        "`tierline endpoint status` says in words what keeps each from serving.",
    ),
    Alert(
        "TierlineOperatorIsBehind",
        "tierline_operator_watch_behind{} == 1",
        "10m",
        "warning",
        "operator {{ $labels.instance }} cannot follow the cluster",
        "It acts on what it knew. Its log has the request that fails: most often a right that was taken away.",
    ),
)


def groups() -> dict[str, Any]:
    """Return all rules as Prometheus' file has them."""
    recorded = [
        {"record": each.name, "expr": each.expression, **({"labels": dict(each.labels)} if each.labels else {})}
        for each in RECORDED
    ]
    alerts = [
        {
            "alert": each.name,
            "expr": each.expression,
            "for": each.lasts,
            "labels": {"severity": each.severity},
            "annotations": {"summary": each.summary, "description": each.remedy},
        }
        for each in ALERTS
    ]
    return {
        "groups": [
            {"name": "tierline-recorded", "rules": recorded},
            {"name": "tierline-alerts", "rules": alerts},
        ]
    }


def prometheus_rule() -> dict[str, Any]:
    """Return the same for Prometheus' operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "tierline", "labels": {"app.kubernetes.io/name": "tierline"}},
        "spec": groups(),
    }
