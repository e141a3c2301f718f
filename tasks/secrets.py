"""Keys from Prefect's secret blocks, for the library, which does not know Prefect."""

from typing import Any

from schemas.errors import RecipeError


def read_secret(name: str) -> str:
    """Return the value of the Prefect secret block ``name``.

    Raises:
        RecipeError: There is no such block on this server, or it holds no text.
    """
    from prefect.blocks.system import Secret

    try:
        load: Any = Secret.load  # its decorator hides that it takes `_sync`
        block = load(name, _sync=True)
    except ValueError as error:
        # Prefect's own message names the server's answer, not what to do.
        raise RecipeError(
            f"there is no Prefect secret block {name!r} (teacher.api_key_secret) on this server. "
            "Create a block of type Secret with that name, or set teacher.api_key_env in its place."
        ) from error
    value = block.get()
    if not isinstance(value, str):
        raise RecipeError(
            f"the Prefect secret block {name!r} (teacher.api_key_secret) holds "
            f"{type(value).__name__}, not text. Save the key alone in it."
        )
    return value
