"""A flow that does nothing, started as our commands are: what Prefect itself costs."""

from flows.environment import prepare_environment


def main() -> None:
    """Run it."""
    prepare_environment()
    from prefect import flow

    @flow(name="empty")
    def empty() -> None:
        """Return at once."""

    empty()


if __name__ == "__main__":
    main()
