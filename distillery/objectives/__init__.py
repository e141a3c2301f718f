"""One file per objective, the choice of one, and the loss kernels."""
