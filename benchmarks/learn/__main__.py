"""`python -m benchmarks.learn`, which `dev.py bench learn` calls."""

from benchmarks.learn import main

if __name__ == "__main__":
    main()
