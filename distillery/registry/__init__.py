"""The gate, and the aliases of promoted students."""
