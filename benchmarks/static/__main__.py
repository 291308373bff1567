"""python -m ncsn_fast.benchmarks.static"""

import sys

from ncsn_fast.benchmarks.static.command import main

if __name__ == "__main__":
    sys.exit(main())
