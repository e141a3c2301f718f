"""Contracts of Distillery: the recipe, the frames, the refs, the errors. No torch, no Prefect."""
