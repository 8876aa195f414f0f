def require_new(*a):
    pass


def write_report(*a):
    pass
