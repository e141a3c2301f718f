"""The pure library of Distillery: everything a notebook or a test can call. No Prefect."""
