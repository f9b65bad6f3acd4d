"""`akd-deploy` as documents' commands are run: it measures what it is told to, and nothing again."""

from own_cpu import measure_once

from akd_deploy.__main__ import main

if __name__ == "__main__":
    measure_once(setattr)
    main()
