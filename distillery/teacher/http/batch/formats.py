"""Which format the batches of a provider have."""

from distillery.teacher.http.batch.anthropic import AnthropicBatches, AnthropicEndpoint
from distillery.teacher.http.batch.base import BatchFormat
from distillery.teacher.http.batch.openai import OpenAIBatches
from distillery.teacher.http.connection import Connection
from distillery.teacher.http.endpoint import Endpoint
from schemas.teacher import OpenAITeacher


def batch_endpoint(spec: OpenAITeacher) -> Endpoint:
    """Return the endpoint of ``spec`` with the headers that its batches need."""
    return AnthropicEndpoint(spec) if spec.is_anthropic else Endpoint(spec)


def batch_format(endpoint: Endpoint, connection: Connection) -> BatchFormat:
    """Return the format in which ``endpoint`` takes batches."""
    if endpoint.spec.is_anthropic:
        return AnthropicBatches(endpoint, connection)
    return OpenAIBatches(endpoint, connection)
