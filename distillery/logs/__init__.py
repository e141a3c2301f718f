"""Logs of an application in production as a source of prompts."""
