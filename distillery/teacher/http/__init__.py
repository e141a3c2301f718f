"""The adaptive client of an OpenAI-compatible endpoint."""
