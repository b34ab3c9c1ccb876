"""What belongs to a device."""


def get_cublas_handle() -> int:
    return 1
