"""What is learned of a model before it is used: what gaps cost (`gaps`), which steps to compute
(`search`, `plans`), and what its pictures have shown (`library`)."""
