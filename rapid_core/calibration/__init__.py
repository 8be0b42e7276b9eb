"""What is learned of a model before it is used: what gaps cost (`gaps`), and which steps to compute
(`search`)."""
