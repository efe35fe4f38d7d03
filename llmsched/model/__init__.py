"""Values everything else speaks of: applications, jobs, events, recordings, latency curves."""
