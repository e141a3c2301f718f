"""Steps of `prefect deploy`, named in `prefect.yaml`."""

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound


async def read_schedule(deployment: str, slug: str) -> dict[str, bool]:
    """Return whether a schedule is active: as the operator left it, and paused when it is new.

    Args:
        deployment: `flow name/deployment name`.
        slug: The schedule's own name.
    """
    async with get_client() as client:
        try:
            found = await client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            return {"active": False}
    return {"active": any(s.active for s in found.schedules if s.slug == slug)}
