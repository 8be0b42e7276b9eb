"""Writes all tables of all pages anew."""

from benchmarks.results import make_pages

if __name__ == "__main__":
    make_pages()
