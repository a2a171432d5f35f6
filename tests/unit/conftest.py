"""For all unit tests."""

from hypothesis import settings

# No test fails for the machine being slow: by default an example may take 200 ms, and one of a busy machine took 400.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
