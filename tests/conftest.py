"""Settings that all tests share."""

import signal

from hypothesis import settings

# A deadline would make tests depend on how busy the machine is.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")

# A shell that runs the tests in the background starts them with Ctrl-C ignored, and every process they start inherits
# that; what is tested about interruptions is the ordinary case.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
