"""`python -m benchmarks.dial`, which `dev.py bench dial` calls."""

from benchmarks.dial import main

if __name__ == "__main__":
    main()
