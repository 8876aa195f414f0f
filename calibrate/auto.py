"""(placeholder)."""


def search(*a):
    raise NotImplementedError
