"""Students, local models, tokenizers and chat templates, output layers, vocabularies."""
