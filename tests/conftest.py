"""Settings that all tests share."""

from hypothesis import settings

# A deadline would make tests depend on how busy the machine is.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")
