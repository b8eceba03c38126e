from streamfit.errors import StreamfitError

__all__ = ["StreamfitError"]
