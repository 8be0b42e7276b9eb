"""What demo and benchmarks share: subjects that draw, suites that compare methods on them, and rows of
figures. What is drawn, and the judge of it, come in from outside (`judges`)."""
