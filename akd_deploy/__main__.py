"""Entry point of `akd-deploy` and `python -m akd_deploy`."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from akd_deploy.cli.app import run

    run()


if __name__ == "__main__":
    main()
