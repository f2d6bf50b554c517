"""From a run folder to tables and figures."""
