"""One file per format in which a student leaves for the place where it is served."""
