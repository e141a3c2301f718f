"""Where results live: the store, stages and their manifests, fingerprints, checkpoints."""
