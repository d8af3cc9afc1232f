"""``python -m holdfast``."""

from holdfast.cli.main import main

__all__ = []

if __name__ == "__main__":
    main()
