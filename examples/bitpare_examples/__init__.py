"""Code that the examples and the accuracy tests share: networks, and data without a download."""
