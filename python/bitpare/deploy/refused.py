"""Why something has no integer form."""


class Refused(Exception):
    """Says why something stays in float."""
