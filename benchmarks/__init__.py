"""What Distillery costs and how fast it is, against endpoints on this machine."""
