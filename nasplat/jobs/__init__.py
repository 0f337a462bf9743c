"""What the command line does, as functions: `nasplat.jobs.search.prepare`, `nasplat.jobs.runs.open_run` and others."""
