"""python -m ncsn_fast.benchmarks.static"""

import sys

from ncsn_fast.benchmarks.static.compiled import main

if __name__ == "__main__":
    sys.exit(main())
