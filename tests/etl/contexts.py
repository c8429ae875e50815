"""What a job is started with."""

import argparse

from conf.cli import JobContext
from conf.settings import load_settings
from tests.rows import DAY


def context_of(settings, job, day=DAY, *, overrides=(), dry_run=False):
    if overrides:
        storage = (f"storage.root={settings.storage.root}", f"storage.artifacts={settings.storage.artifacts}")
        settings = load_settings(overrides=(*storage, *overrides))
    return JobContext(job, day, settings, "test-run", dry_run, argparse.Namespace())
