"""Every alert, held by ``promtool`` against a history in which it must fire and one in which it must not."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.prometheus import program

from tierline.watch import ALERTS

RULES = Path(__file__).parents[3] / "deploy/alerts/prometheus.yaml"
LONG = "x90"
GROWS, STILL = f"0+60{LONG}", f"5+0{LONG}"
ROUTER = 'instance="router:8000"'
NODE = 'instance="node:9200"'
POD = 'instance="pod:9464", resource_name="demo", pod_name="demo-0"'

ILL: dict[str, dict[str, str]] = {
    "TierlineNoEndpoint": {f'tierline_router_endpoint_up{{{ROUTER}, endpoint="http://a"}}': f"0{LONG}"},
    "TierlineEndpointDown": {f'tierline_router_endpoint_up{{{ROUTER}, endpoint="http://a"}}': f"0{LONG}"},
    "TierlineErrors": {
        f'tierline_router_requests_total{{{ROUTER}, status="200"}}': f"0+90{LONG}",
        f'tierline_router_requests_total{{{ROUTER}, status="503"}}': f"0+10{LONG}",
    },
    "TierlineSlowFirstTokens": {
        f'tierline_router_ttft_seconds_bucket{{{ROUTER}, le="10"}}': f"0+10{LONG}",
        f'tierline_router_ttft_seconds_bucket{{{ROUTER}, le="30"}}': f"0+60{LONG}",
        f'tierline_router_ttft_seconds_bucket{{{ROUTER}, le="+Inf"}}': f"0+60{LONG}",
    },
    "TierlineTurnsAway": {f'tierline_router_limits_reached_total{{{ROUTER}, reason="queue_full"}}': GROWS},
    "TierlineImbalance": {
        f'tierline_router_answers_total{{{ROUTER}, endpoint="http://{name}", outcome="good"}}': f"0+{pace}{LONG}"
        for name, pace in (("a", 500), ("b", 1), ("c", 1), ("d", 1))
    },
    "TierlinePredictionsFail": {
        f'tierline_router_cached_tokens_total{{{ROUTER}, endpoint="http://a", kind="predicted"}}': f"0+100{LONG}",
        f'tierline_router_cached_tokens_total{{{ROUTER}, endpoint="http://a", kind="actual"}}': f"0+20{LONG}",
    },
    "TierlineEventsLost": {
        f'tierline_router_kv_events_total{{{ROUTER}, endpoint="http://a", rank="0", kind="gap"}}': GROWS
    },
    "TierlineCorruptObjects": {
        f'tierline_node_verifications_total{{{NODE}, occasion="scrub", result="mismatch"}}': GROWS
    },
    "TierlineNodeRefuses": {f"tierline_node_refusals_total{{{NODE}}}": GROWS},
    "TierlineLeasesExpire": {f"tierline_node_leases_expired_total{{{NODE}}}": GROWS},
    "TierlineNodeIsLate": {f"tierline_node_event_loop_lag_seconds{{{NODE}}}": f"0.2{LONG}"},
    "TierlineSegmentUnnamed": {f"tierline_node_segment_named{{{NODE}}}": f"0{LONG}"},
    "TierlineCertificateExpires": {f"tierline_node_certificate_expiry_seconds{{{NODE}}}": f"90000{LONG}"},
    "TierlinePoolIsPartial": {f'tierline_node_pool_members{{{NODE}, state="unreachable"}}': f"1{LONG}"},
    "TierlineTierFails": {f'tierline_node_tier_failures_total{{{NODE}, tier="redis", reason="stalled"}}': GROWS},
    "TierlineModelErrors": {
        f"model_invocations_total{{{POD}}}": f"0+100{LONG}",
        f"model_errors_total{{{POD}}}": f"0+20{LONG}",
    },
    "TierlineCapturesLost": {f'tierline_proxy_capture_records_total{{{POD}, outcome="dropped"}}': GROWS},
    "TierlineDutiesFail": {f'tierline_router_failed_duties_total{{{ROUTER}, duty="health"}}': GROWS},
    "TierlineNobodyLeads": {'tierline_operator_leads{instance="operator:9320"}': f"0{LONG}"},
    "TierlineDeploymentFailed": {
        'tierline_operator_resources{instance="operator:9320", state="DeploymentFailed"}': f"2{LONG}"
    },
    "TierlineOperatorIsBehind": {'tierline_operator_watch_behind{instance="operator:9320"}': f"1{LONG}"},
}
"""Series by the alert that they are the history of, a sample a minute."""
WELL: dict[str, dict[str, str]] = {
    "TierlineNoEndpoint": {f'tierline_router_endpoint_up{{{ROUTER}, endpoint="http://a"}}': f"1{LONG}"},
    "TierlineEndpointDown": {f'tierline_router_endpoint_up{{{ROUTER}, endpoint="http://a"}}': f"1{LONG}"},
    "TierlineErrors": {f'tierline_router_requests_total{{{ROUTER}, status="200"}}': f"0+90{LONG}"},
    "TierlineSlowFirstTokens": {
        f'tierline_router_ttft_seconds_bucket{{{ROUTER}, le="10"}}': f"0+60{LONG}",
        f'tierline_router_ttft_seconds_bucket{{{ROUTER}, le="+Inf"}}': f"0+60{LONG}",
    },
    "TierlineImbalance": {
        f'tierline_router_answers_total{{{ROUTER}, endpoint="http://{name}", outcome="good"}}': f"0+50{LONG}"
        for name in "abcd"
    },
    "TierlinePredictionsFail": {
        f'tierline_router_cached_tokens_total{{{ROUTER}, endpoint="http://a", kind="predicted"}}': f"0+100{LONG}",
        f'tierline_router_cached_tokens_total{{{ROUTER}, endpoint="http://a", kind="actual"}}': f"0+95{LONG}",
    },
    "TierlineNodeIsLate": {f"tierline_node_event_loop_lag_seconds{{{NODE}}}": f"0.001{LONG}"},
    "TierlineSegmentUnnamed": {f"tierline_node_segment_named{{{NODE}}}": f"1{LONG}"},
    "TierlineCertificateExpires": {f"tierline_node_certificate_expiry_seconds{{{NODE}}}": f"9000000{LONG}"},
    "TierlinePoolIsPartial": {f'tierline_node_pool_members{{{NODE}, state="alive"}}': f"2{LONG}"},
    "TierlineModelErrors": {
        f"model_invocations_total{{{POD}}}": f"0+100{LONG}",
        f"model_errors_total{{{POD}}}": f"0+1{LONG}",
    },
    "TierlineNobodyLeads": {
        'tierline_operator_leads{instance="operator:9320"}': f"0{LONG}",
        'tierline_operator_leads{instance="operator-2:9320"}': f"1{LONG}",
    },
    "TierlineDeploymentFailed": {
        'tierline_operator_resources{instance="operator:9320", state="DeploymentInProgress"}': f"2{LONG}"
    },
    "TierlineOperatorIsBehind": {'tierline_operator_watch_behind{instance="operator:9320"}': f"0{LONG}"},
}
"""The same where all is well; of those that are not here, what grew has stopped."""


def history(name: str, series: dict[str, str], fires: bool) -> dict[str, Any]:
    """Return a test of ``promtool``: whether an alert fires when nearly an hour and a half is over."""
    asked = f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) > bool 0 or vector(0)'
    return {
        "name": f"{name}, {'ill' if fires else 'well'}",
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "promql_expr_test": [
            {"expr": asked, "eval_time": "85m", "exp_samples": [{"labels": "{}", "value": int(fires)}]}
        ],
    }


def promtool(*arguments: str | Path) -> str:
    """Return what it has to complain of."""
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    return f"{done.stdout}{done.stderr}" if done.returncode else ""


def test_every_alert_fires_where_it_must_and_not_where_all_is_well(tmp_path: Path) -> None:
    assert {alert.name for alert in ALERTS} == ILL.keys()
    stopped = {name: dict.fromkeys(series, STILL) for name, series in ILL.items()}
    tests = [history(name, series, fires=True) for name, series in ILL.items()]
    tests += [history(name, series, fires=False) for name, series in (stopped | WELL).items()]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    assert promtool("test", "rules", file) == ""


@pytest.mark.parametrize("file", ["prometheus.yaml", "prometheus-rule.yaml"])
def test_the_rules_are_as_prometheus_wants_them(file: str, tmp_path: Path) -> None:
    written = yaml.safe_load((RULES.parent / file).read_text())
    plain = tmp_path / "rules.yaml"
    plain.write_text(yaml.safe_dump(written.get("spec", written)))
    assert promtool("check", "rules", plain) == ""
