"""One file per filter, and the stage that runs them."""
