"""How the flows get onto work pools: generated deployments, pool templates, a local server."""
