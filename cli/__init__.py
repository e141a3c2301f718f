"""The command `distillery`. `cli.app` has its verbs; what they run is imported when they run."""
