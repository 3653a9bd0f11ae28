"""Code that the examples and the accuracy tests share: data that needs no download, and
networks."""
