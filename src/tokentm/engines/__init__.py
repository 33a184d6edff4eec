"""Where work is computed: on this machine, or on a cluster. An engine knows nothing of what it computes."""
