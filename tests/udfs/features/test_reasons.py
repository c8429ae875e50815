"""Every reason under which a feature job refuses a row is explained in the table of rules."""

from conf.rules import RULES
from udfs.features.runner import FEATURE_JOBS, REQUEST_REASONS


def test_the_rules_of_a_feature_jobs_source_are_the_reasons_of_the_jobs_that_read_it():
    reasons: dict[str, set[str]] = {}
    for job in FEATURE_JOBS.values():
        reasons.setdefault(job.source_table, set()).update(job.reasons)

    reasons["ranking_requests"].update(REQUEST_REASONS)  # of the request as a whole, whichever job reads it
    assert reasons == {
        table: {rule.code for rule in RULES if rule.table == table and rule.severity == "refuse"}
        for table in reasons
    }
