"""When replicas are added and taken away: ``autoScalingSpec``, of workers, of the router, of prefill and of decode."""

from typing import Literal

from pydantic import Field

from tierline.operator.resources.base import Fragment, Int32, Tag

MOST_TRIGGERS = 100
_SECONDS = "seconds"


class CloudWatchTrigger(Fragment):
    """A metric of Amazon CloudWatch that replicas follow; without ``metricName`` it is none."""

    name: str | None = Field(default=None, description="name of the trigger")
    namespace: str | None = Field(default=None, description="CloudWatch's namespace of the metric")
    metric_name: str | None = Field(default=None, description="name of the metric")
    metric_stat: str = Field(default="Average", description="statistic of the metric")
    metric_type: Literal["Value", "Average"] = Field(
        default="Average", description="whether the target is the whole value, or its share for each replica"
    )
    target_value: float | None = Field(default=None, description="what the metric is kept at")
    activation_target_value: float = Field(default=0, description="above it there is at least one replica")
    min_value: float = Field(default=0, description="taken where CloudWatch has no value")
    metric_collection_period: Int32 = Field(default=300, description=f"{_SECONDS} that a value is taken over")
    metric_collection_start_time: Int32 = Field(default=300, description=f"{_SECONDS} that are looked back")
    use_cached_metrics: bool = Field(default=True, description="ask once for each pollingInterval")
    dimensions: list[Tag] | None = Field(default=None, description="dimensions of the metric")


class PrometheusTrigger(Fragment):
    """A query of Prometheus that replicas follow; without ``query`` it is none."""

    name: str | None = Field(default=None, description="name of the trigger")
    namespace: str | None = Field(default=None, description="namespace that Prometheus is asked for, where it has some")
    query: str | None = Field(default=None, description="PromQL with one number for an answer")
    server_address: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s]+$|^$",
        description="URL of Prometheus, or of a workspace of Amazon's; empty: the operator's own",
    )
    metric_type: Literal["Value", "Average"] = Field(
        default="Average", description="whether the target is the whole value, or its share for each replica"
    )
    target_value: float | None = Field(default=None, description="what the query's answer is kept at")
    activation_target_value: float = Field(default=0, description="above it there is at least one replica")
    custom_headers: str | None = Field(default=None, description="headers of the query, as NAME=VALUE,NAME=VALUE")
    use_cached_metrics: bool = Field(default=True, description="ask once for each pollingInterval")


class AutoScalingSpec(Fragment):
    """How many replicas there may be, and what they follow; a list of triggers comes before a single one."""

    min_replica_count: Int32 = Field(default=1, ge=0, description="fewest replicas")
    max_replica_count: Int32 = Field(default=5, ge=0, description="most replicas")
    polling_interval: Int32 = Field(default=30, ge=0, description=f"{_SECONDS} between two looks at a trigger")
    cooldown_period: Int32 = Field(default=300, ge=0, description=f"{_SECONDS} without need until no replica is left")
    initial_cooldown_period: Int32 = Field(default=300, ge=0, description=f"{_SECONDS} after the start without that")
    scale_down_stabilization_time: Int32 = Field(
        default=300, ge=0, description=f"{_SECONDS} that fewer must do before replicas go"
    )
    scale_up_stabilization_time: Int32 = Field(
        default=0, ge=0, description=f"{_SECONDS} that more must be needed before replicas come"
    )
    cloud_watch_trigger: CloudWatchTrigger | None = Field(default=None, description="a metric of Amazon CloudWatch")
    cloud_watch_trigger_list: list[CloudWatchTrigger] | None = Field(
        default=None, max_length=MOST_TRIGGERS, description="metrics of Amazon CloudWatch"
    )
    prometheus_trigger: PrometheusTrigger | None = Field(default=None, description="a query of Prometheus")
    prometheus_trigger_list: list[PrometheusTrigger] | None = Field(
        default=None, max_length=MOST_TRIGGERS, description="queries of Prometheus"
    )
