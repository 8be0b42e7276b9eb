"""What is learned of a model before it is used: which steps to compute (`search`), and how its
derivatives go together over a run (`gram`)."""
