"""The metric contract: names, labels and buckets, and what each observation does to them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from llmsched.gateway.metrics import DECISION, LONG, Metrics

#: name -> labels, as the design page has them.
CONTRACT = {
    "llmsched_jobs_submitted_total": {"application", "class"},
    "llmsched_jobs_finished_total": {"application", "outcome"},
    "llmsched_jobs_active": {"application"},
    "llmsched_leads": set(),
    "llmsched_store_up": set(),
    "llmsched_job_completion_seconds_count": {"application"},
    "llmsched_task_queue_seconds_count": {"pool", "application"},
    "llmsched_task_run_seconds_count": {"pool", "application"},
    "llmsched_ready_tasks": {"pool"},
    "llmsched_running_tasks": {"executor"},
    "llmsched_executor_slots": {"executor"},
    "llmsched_decision_seconds_count": set(),
    "llmsched_decisions_total": set(),
    "llmsched_event_loop_lag_seconds_count": set(),
    "llmsched_explorations_total": set(),
    "llmsched_estimate_error_ratio_count": {"application"},
    "llmsched_task_retries_total": {"pool", "reason"},
    "llmsched_slices_total": {"pool"},
    "llmsched_engine_up": {"executor"},
    "llmsched_profile_jobs": {"application"},
    "llmsched_profile_age_seconds": {"application"},
    "llmsched_profile_fallback": {"application"},
    "llmsched_callback_attempts_total": {"outcome"},
    "llmsched_callbacks_ended_total": {"state"},
    "llmsched_callback_delay_seconds_count": set(),
    "llmsched_callbacks_owed": set(),
    "llmsched_oldest_waiting_job_seconds": {"pool"},
    "llmsched_max_wait_seconds": set(),
    "llmsched_tenant_jobs_total": {"tenant", "event"},
    "llmsched_tenant_tokens_total": {"tenant", "kind"},
    "llmsched_tenant_seconds_total": {"tenant", "kind"},
    "llmsched_tenant_active_jobs": {"tenant"},
    "llmsched_over_quota_total": {"tenant", "quota"},
}

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(metrics: Metrics) -> Series:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def busy() -> Metrics:
    metrics = Metrics()
    metrics.job_submitted("web_search", "interactive")
    metrics.job_submitted("web_search", "interactive")
    metrics.job_finished("web_search", "completed", 12.0)
    metrics.job_finished("web_search", "failed", 99.0)
    metrics.task_started("llm", "web_search", 0.004)
    metrics.task_ended("llm", "web_search", 3.0)
    metrics.task_retried("llm", "http_500")
    metrics.task_sliced("llm")
    metrics.callback_tried("delivered")
    metrics.callback_ended("delivered", 0.2)
    metrics.decided(0.0002)
    metrics.explored()
    metrics.estimated("web_search", 1.05)
    metrics.lagged(0.004)
    return metrics


def value(series: Series, name: str, **labels: str) -> float | None:
    return series.get((name, frozenset(labels.items())))


def test_every_metric_of_the_contract_is_exposed_and_no_other() -> None:
    names = {n for n in Metrics().names() if not n.endswith(("_sum", "_bucket"))}
    bare = {name.removesuffix("_total").removesuffix("_count") for name in CONTRACT}
    assert names == CONTRACT.keys() | bare


def test_labels_are_those_of_the_contract() -> None:
    for name, labels in scraped(busy()):
        if name in CONTRACT:
            assert {label for label, _ in labels} == CONTRACT[name], name


def test_counters_count_by_class_outcome_and_reason() -> None:
    series = scraped(busy())
    jobs = {"application": "web_search"}
    assert value(series, "llmsched_jobs_submitted_total", **jobs, **{"class": "interactive"}) == 2
    assert value(series, "llmsched_jobs_finished_total", **jobs, outcome="completed") == 1
    assert value(series, "llmsched_jobs_finished_total", **jobs, outcome="failed") == 1
    assert value(series, "llmsched_task_retries_total", pool="llm", reason="http_500") == 1
    assert value(series, "llmsched_slices_total", pool="llm") == 1
    assert value(series, "llmsched_decisions_total") == 1
    assert value(series, "llmsched_explorations_total") == 1


def test_only_completed_jobs_have_a_completion_time() -> None:
    series = scraped(busy())
    assert value(series, "llmsched_job_completion_seconds_count", application="web_search") == 1
    assert value(series, "llmsched_job_completion_seconds_sum", application="web_search") == 12.0


def test_observations_fall_into_their_buckets() -> None:
    series = scraped(busy())
    completion = {"application": "web_search"}
    assert value(series, "llmsched_job_completion_seconds_bucket", **completion, le="10.0") == 0
    assert value(series, "llmsched_job_completion_seconds_bucket", **completion, le="15.0") == 1
    queue = {"pool": "llm", "application": "web_search"}
    assert value(series, "llmsched_task_queue_seconds_bucket", **queue, le="0.001") == 0
    assert value(series, "llmsched_task_queue_seconds_bucket", **queue, le="0.005") == 1
    assert value(series, "llmsched_estimate_error_ratio_bucket", **completion, le="1.0") == 0
    assert value(series, "llmsched_estimate_error_ratio_bucket", **completion, le="1.1") == 1
    assert value(series, "llmsched_decision_seconds_bucket", le="0.0001") == 0
    assert value(series, "llmsched_decision_seconds_bucket", le="0.00025") == 1
    assert value(series, "llmsched_event_loop_lag_seconds_bucket", le="0.0025") == 0
    assert value(series, "llmsched_event_loop_lag_seconds_bucket", le="0.005") == 1


def test_buckets_cover_long_jobs_and_decisions_of_a_tenth_to_a_hundred_milliseconds() -> None:
    assert (LONG[0], LONG[-1]) == (0.3, 7680.0)  # vLLM's request buckets
    assert (DECISION[0], DECISION[-1]) == (0.0001, 0.1)
    assert list(LONG) == sorted(LONG)
    assert list(DECISION) == sorted(DECISION)
